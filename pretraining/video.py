"""Frames out of videos and pictures: decode, resize the shortest side, crop a square."""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from pretraining.sources import Source

# What decoders raise on damaged content, beside FFmpeg's own errors.
DAMAGE = (OSError, EOFError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError)
DAMAGE += (struct.error, zlib.error, Image.DecompressionBombError)


NARROWEST = 50  # ratio of the sides; beyond, resizing the shorter one fills the memory


class CorruptSourceError(ValueError):
    """A file that should be a video or a picture and cannot be decoded to its end."""


class CorruptVideoError(CorruptSourceError):
    """A video of that sort."""


def hashed_share(names: list[str], fraction: float) -> set[str]:
    """A share of the names, at least one, that depends on nothing but the names."""
    count = max(1, round(len(names) * fraction))
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count])


class Crop(NamedTuple):
    """A square's place in what is left of a frame beside it (0 to 1; None: its middle), mirrored?"""

    down: float | None = None
    right: float | None = None
    mirrored: bool = False


CENTRE = Crop()


def crops_of(name: str, count: int) -> list[Crop]:
    """The centre, then places that a hash of the source's name and the crop's number chooses."""
    digests = [hashlib.sha256(f"{name}#{crop}".encode()).digest() for crop in range(1, count)]
    shares = [[int.from_bytes(d[i : i + 4]) / 2**32 for i in (0, 4)] for d in digests]
    return [CENTRE, *(Crop(down, right) for down, right in shares)]


def to_square(
    frame: av.VideoFrame, resolution: int, crop: Crop = CENTRE
) -> UInt8[np.ndarray, "R R 3"]:
    """Resize so that the shortest side is `resolution`, then crop a square (paper, section 3.4)."""
    width, height = frame.width, frame.height
    if min(width, height) != resolution:
        scale = resolution / min(height, width)
        width, height = round(width * scale), round(height * scale)
        # To RGB in the same step: halved colour planes of an odd width would be spread wrongly.
        frame = frame.reformat(width, height, format="rgb24", interpolation="AREA")
    top = place(crop.down, height - resolution)
    left = place(crop.right, width - resolution)
    pixels = frame.to_ndarray(format="rgb24")[top : top + resolution, left : left + resolution]
    return pixels[:, ::-1] if crop.mirrored else pixels


def place(share: float | None, room: int) -> int:
    """One of the `room` + 1 places, all equally wide shares of [0, 1)."""
    return room // 2 if share is None else int(share * (room + 1))


def decode(path: Path | str, name: str = "") -> Iterator[av.VideoFrame]:
    """All frames of a video. CorruptVideoError names the file and the decoder's complaint.

    Args:
        path: a file, or an address as FFmpeg knows them.
        name: of the video in messages, instead of the path.
    """
    count, name = 0, name or str(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise CorruptVideoError(f"{name} has no video stream")
            expected = container.streams.video[0].frames
            for frame in container.decode(video=0):
                yield frame
                count += 1
        if count < expected:
            expected -= hidden_frames(str(path))
    except av.error.FFmpegError as error:
        raise CorruptVideoError(
            f"{name} cannot be decoded after {count} frames: {error.strerror}"
        ) from error
    if count == 0 or count < expected:
        raise CorruptVideoError(f"{name} ends after {count} frames, its header promises {expected}")


def hidden_frames(address: str) -> int:
    """Frames that a video's header counts and its edit list hides: a cut without re-encoding (`-c copy`)
    keeps those from the last whole picture on. Nothing is decoded."""
    with av.open(address) as container:
        packets = container.demux(video=0)
        if not next(packets).is_discard:
            return 0
        return 1 + sum(packet.is_discard for packet in packets)


def read_frames(path: Path, resolution: int) -> Iterator[UInt8[np.ndarray, "R R 3"]]:
    """All frames of a video, RGB. CorruptVideoError as in `decode`."""
    return (to_square(frame, resolution) for frame in decode(path))


def address(source: Source) -> str:
    """What FFmpeg opens: the file, or the stretch of a tar that is its member."""
    if source.offset is None:
        return str(source.path)
    end = source.offset + source.bytes
    return f"subfile,,start,{source.offset},end,{end},,:{source.path}"


def read_picture(source: Source) -> av.VideoFrame:
    """A picture as a frame, so that it is resized just as a video's are."""
    with open(source.path, "rb") as file:
        file.seek(source.offset or 0)
        content = file.read(source.bytes)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:  # its text has a memory address, another one in every run
        raise CorruptSourceError(
            f"{source.name} is no picture; it begins {content[:8]!r}"
        ) from None
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def frames_of(source: Source) -> Iterator[av.VideoFrame]:
    """All frames of a video or the one of a picture.

    Raises:
        CorruptSourceError: with the name of the source and the complaint.
    """
    try:
        if source.broken_archive:
            raise CorruptSourceError(f"{source.name} is no archive that can be read to its end")
        image = source.kind == "image"
        for frame in [read_picture(source)] if image else decode(address(source), source.name):
            if max(frame.width, frame.height) > NARROWEST * min(frame.width, frame.height):
                raise CorruptSourceError(f"{source.name} is {frame.width} x {frame.height} px")
            yield frame
    except CorruptSourceError:
        raise
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise CorruptSourceError(f"{source.name} cannot be read: {reason}") from error


def read_source(
    source: Source, resolution: int, crops: list[Crop]
) -> Iterator[UInt8[np.ndarray, "crops R R 3"]]:
    """All frames of a video or the one of a picture, RGB, in several crops.

    A square one has a single crop, as all would be alike.

    Raises:
        CorruptSourceError: as `frames_of`.
    """
    for number, frame in enumerate(frames_of(source)):
        if number == 0 and frame.width == frame.height:
            crops = crops[:1]
        yield np.stack([to_square(frame, resolution, crop) for crop in crops])


def frames_per_second(source: Source) -> float:
    """The average rate of a video, 0 for a picture. CorruptVideoError if it cannot be opened."""
    if source.kind == "image":
        return 0.0
    try:
        with av.open(address(source)) as container:
            return float(container.streams.video[0].average_rate or 0)
    except (av.error.FFmpegError, IndexError) as error:
        raise CorruptVideoError(f"{source.name} cannot be opened: {error}") from error


def count_frames(source: Source) -> int:
    """1 for a picture; of a video as its header says, else as many as there are packets.

    Nothing is decoded.
    """
    if source.kind == "image":
        return 1
    try:
        with av.open(address(source)) as container:
            if not container.streams.video:
                return 0
            known = container.streams.video[0].frames
            if not known:
                return sum(packet.size > 0 for packet in container.demux(video=0))
        return known - hidden_frames(address(source))
    except av.error.FFmpegError:
        return 0  # `frames_of` tells the reason


def sample_frames(
    sources: list[Source], resolution: int, max_frames: int, description: str
) -> UInt8[Tensor, "N R R 3"]:
    """Evenly spaced frames of all videos, or pictures, at most `max_frames` together, in memory."""
    if len(sources) > max_frames:
        sources = [sources[i * len(sources) // max_frames] for i in range(max_frames)]
    quota = max_frames // len(sources)
    kept: list[np.ndarray] = []
    for source in tqdm(sources, desc=description, unit=sources[0].kind):
        count = count_frames(source)
        picks = set(np.linspace(0, count - 1, min(quota, count)).round().astype(int).tolist())
        try:
            # To the end, as only that shows whether a video is whole.
            kept += [
                to_square(f, resolution) for i, f in enumerate(frames_of(source)) if i in picks
            ]
        except CorruptSourceError as error:
            tqdm.write(f"skipped: {error}")
    if not kept:
        raise CorruptSourceError(f"none of the {len(sources)} sources could be decoded")
    return torch.from_numpy(np.stack(kept))
