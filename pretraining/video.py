"""Frames out of video files: find, decode with PyAV, resize the shortest side, crop a square."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}


class CorruptVideoError(ValueError):
    """A file that should be a video and cannot be decoded to its end."""


def find_videos(folder: Path) -> list[Path]:
    """All videos below `folder`, sorted. FileNotFoundError when there is none."""
    videos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not videos:
        raise FileNotFoundError(
            f"no video ({', '.join(sorted(SUFFIXES))}) below {folder.absolute()}; "
            "film the simulator first: python -m toto_robot.film"
        )
    return videos


def split_videos(
    videos: list[Path], folder: Path, fraction: float
) -> tuple[list[Path], list[Path]]:
    """Training and held-out videos: whole videos, chosen by a hash of their name, order kept."""
    count = max(1, round(len(videos) * fraction))
    if count >= len(videos):
        raise ValueError(
            f"{len(videos)} video(s) below {folder} cannot be split; at least 2 are needed"
        )

    def rank(video: Path) -> str:
        return hashlib.sha256(video.relative_to(folder).as_posix().encode()).hexdigest()

    held_out = set(sorted(videos, key=rank)[:count])
    return [v for v in videos if v not in held_out], [v for v in videos if v in held_out]


class Crop(NamedTuple):
    """A square's place in what is left of a frame beside it (0 to 1; None: its middle), mirrored?"""

    down: float | None = None
    right: float | None = None
    mirrored: bool = False


CENTRE = Crop()


def to_square(
    frame: av.VideoFrame, resolution: int, crop: Crop = CENTRE
) -> UInt8[np.ndarray, "R R 3"]:
    """Resize so that the shortest side is `resolution`, then crop a square (paper, section 3.4)."""
    width, height = frame.width, frame.height
    if min(width, height) != resolution:
        scale = resolution / min(height, width)
        width, height = round(width * scale), round(height * scale)
        frame = frame.reformat(width=width, height=height, interpolation="AREA")
    top = place(crop.down, height - resolution)
    left = place(crop.right, width - resolution)
    pixels = frame.to_ndarray(format="rgb24")[top : top + resolution, left : left + resolution]
    return pixels[:, ::-1] if crop.mirrored else pixels


def place(share: float | None, room: int) -> int:
    """One of the `room` + 1 places, all equally wide shares of [0, 1)."""
    return room // 2 if share is None else int(share * (room + 1))


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames of a video. CorruptVideoError names the file and the decoder's complaint."""
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise CorruptVideoError(f"{path} has no video stream")
            expected = container.streams.video[0].frames
            for frame in container.decode(video=0):
                yield frame
                count += 1
    except av.error.FFmpegError as error:
        raise CorruptVideoError(
            f"{path} cannot be decoded after {count} frames: {error}"
        ) from error
    if count == 0 or count < expected:
        raise CorruptVideoError(f"{path} ends after {count} frames, its header promises {expected}")


def read_frames(path: Path, resolution: int) -> Iterator[UInt8[np.ndarray, "R R 3"]]:
    """All frames of a video, RGB. CorruptVideoError as in `decode`."""
    return (to_square(frame, resolution) for frame in decode(path))


def sample_frames(
    videos: list[Path], resolution: int, max_frames: int, description: str
) -> UInt8[Tensor, "N R R 3"]:
    """Evenly spaced frames of all videos, at most `max_frames` together, in memory."""
    quota = max(1, max_frames // len(videos))
    kept: list[np.ndarray] = []
    for video in tqdm(videos, desc=description, unit="video"):
        try:
            frames = list(read_frames(video, resolution))
        except CorruptVideoError as error:
            tqdm.write(f"skipped: {error}")
            continue
        picks = np.linspace(0, len(frames) - 1, min(quota, len(frames))).round().astype(int)
        kept += [frames[i] for i in picks]
    if not kept:
        raise CorruptVideoError(f"none of the {len(videos)} videos could be decoded")
    return torch.from_numpy(np.stack(kept))
