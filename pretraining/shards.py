"""Token shards: whole frames of uint16 codes, an index of videos, and a manifest that vouches for both.

    shard_00000.bin    uint16 codes [frames, h * w], frame after frame, little-endian
    shard_00000.npy    int64 rows (video, first frame in the shard, frames, milli-fps, crop)
    manifest.json      tokenizer and its SHA-256, resolution, SHA-256 of every file, skipped videos

A picture is a video of one frame with 0 frames/s.

Because whole frames are stored, start, stride and length of a clip are free at training time.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt16
from torch import Tensor

from toto_robot.backbone.weights import (
    replace_atomically,
    sha256_of,
    temporary_name,
    write_json,
)

COLUMNS = 5  # video, first frame, frames, milli-fps, crop
MANIFEST = "manifest.json"


@dataclass
class Manifest:
    """What a folder of shards is and where it comes from."""

    tokenizer: str
    tokenizer_sha256: str
    vocabulary: int
    resolution: int
    tokens_per_side: int
    kind: Literal["video", "image"] = "video"
    layout: str = "videos"
    crops: int = 1  # per video: the first from the centre, the others from random places
    dtype: str = "uint16"  # little-endian, codes without an offset for special ids
    frames: int = 0  # in all shards; a frame counts once per crop
    tokens: int = 0
    decoder: str = ""  # PyAV and FFmpeg, or Pillow
    encoder: str = ""  # torch, device and precision: they decide between codes that nearly tie
    videos: list[str] = field(default_factory=list)  # names of the sources, row `video` of indices
    labels: list[int | None] = field(default_factory=list)  # class of each, where there are classes
    held_out: list[int] = field(default_factory=list)  # positions in `videos`
    skipped: dict[str, str] = field(default_factory=dict)  # name -> reason
    shards: list[dict[str, Any]] = field(default_factory=list)  # name, frames, bin and npy SHA-256

    @property
    def tokens_per_frame(self) -> int:
        return self.tokens_per_side**2

    def save(self, folder: Path) -> None:
        write_json(folder / MANIFEST, dataclasses.asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """FileNotFoundError without a manifest, ValueError when it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make shards first: python -m pretraining.tokenize "
            f"data=<films> tokenizer=<folder> out={folder}"
        )
    try:
        return Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the folder, tokenize again"
        ) from error


class CodedVideo(NamedTuple):
    """One crop of one video (or picture), to be written into a shard."""

    video: int  # position in Manifest.videos
    crop: int
    fps: float
    codes: UInt16[np.ndarray, "frames tokens"]


def write_shard(folder: Path, name: str, clips: Sequence[CodedVideo]) -> dict[str, Any]:
    """Write one shard, whole or not at all, and return its manifest entry.

    Temporary names are unique, so that two writers of the same shard do not meet.
    """
    counts = np.array([len(clip.codes) for clip in clips], np.int64)
    rows = [
        (clip.video, first, len(clip.codes), round(1000 * clip.fps), clip.crop)
        for clip, first in zip(clips, np.cumsum(counts) - counts, strict=True)
    ]
    paths = [folder / f"{name}.bin", folder / f"{name}.npy"]
    temporaries = [temporary_name(path) for path in paths]
    try:
        with open(temporaries[0], "wb") as file:
            for clip in clips:
                file.write(clip.codes.astype("<u2").tobytes())
        with open(temporaries[1], "wb") as file:
            np.save(file, np.array(rows, np.int64).reshape(-1, COLUMNS))
        hashes = [sha256_of(temporary) for temporary in temporaries]
        for temporary, path in zip(temporaries, paths, strict=True):
            replace_atomically(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    frames = int(counts.sum())
    return {"name": name, "frames": frames, "bin_sha256": hashes[0], "npy_sha256": hashes[1]}


def check_shard(folder: Path, entry: dict[str, Any], tokens_per_frame: int) -> None:
    """ValueError when a shard is missing, truncated, or differs from the manifest."""
    path = folder / f"{entry['name']}.bin"
    expected = entry["frames"] * tokens_per_frame * 2
    advice = f"delete {path.with_suffix('.*')} and run pretraining.tokenize again"
    for file in (path, path.with_suffix(".npy")):
        if not file.is_file():
            raise ValueError(f"{file} is named in the manifest and does not exist; {advice}")
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} has {size} bytes, the manifest promises {expected}; {advice}")
    for file, key in ((path, "bin_sha256"), (path.with_suffix(".npy"), "npy_sha256")):
        if sha256_of(file) != entry[key]:
            raise ValueError(f"{file} does not have the SHA-256 in the manifest; {advice}")


class Clips:
    """All clips of `frames` frames, every `stride`-th, of the training or the held-out videos.

    Video shorter than a clip's span give none. With `frames=1` the samples are single pictures.
    Clips are numbered video after video; only the videos are listed, a clip's place is computed
    from its number, so that the index does not grow with the length of the films.
    """

    def __init__(
        self, folder: Path, *, frames: int, stride: int, held_out: bool = False, verify: bool = True
    ) -> None:
        self.manifest = read_manifest(folder)
        self.manifest_sha256 = sha256_of(folder / MANIFEST)
        self.frames, self.stride, self.span = frames, stride, (frames - 1) * stride + 1
        self.codes: list[np.ndarray] = []
        shards, firsts, counts = [], [], []  # of videos
        for number, entry in enumerate(self.manifest.shards):
            if verify:
                check_shard(folder, entry, self.manifest.tokens_per_frame)
            shape = (entry["frames"], self.manifest.tokens_per_frame)
            mapped = np.memmap(folder / f"{entry['name']}.bin", "<u2", "r", shape=shape)
            self.codes.append(np.asarray(mapped))  # slices of plain arrays are made faster
            video, first, count, *_ = np.load(folder / f"{entry['name']}.npy").T
            used = (np.isin(video, self.manifest.held_out) == held_out) & (count >= self.span)
            shards.append(np.full(used.sum(), number))
            firsts.append(first[used])
            counts.append(count[used] - self.span + 1)
        if not sum(len(videos) for videos in counts):
            kind = "held-out" if held_out else "training"
            raise ValueError(
                f"no {kind} video in {folder} has the {self.span} frames that frames={frames} "
                f"stride={stride} spans; lower them, or film longer videos"
            )
        self.shards, self.firsts = np.concatenate(shards), np.concatenate(firsts)
        self.ends = np.cumsum(np.concatenate(counts))  # clips up to and with each video

    def __len__(self) -> int:
        return int(self.ends[-1])

    def places(
        self, indices: Int[np.ndarray, " B"]
    ) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """The shard and the first frame in it of each clip; IndexError outside 0..len - 1."""
        indices = np.asarray(indices, np.int64)
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"clips {indices.min()}..{indices.max()}, there are {len(self)}")
        video = np.searchsorted(self.ends, indices, side="right")
        clips_before = np.where(video > 0, self.ends[video - 1], 0)
        return self.shards[video], self.firsts[video] + indices - clips_before

    def __getitem__(self, index: int) -> UInt16[np.ndarray, "T tokens"]:
        return self.batch(np.array([index]))[0].numpy()

    def batch(self, indices: Int[np.ndarray, " B"]) -> UInt16[Tensor, "B T tokens"]:
        """Codes (without the offset for special ids) of several clips; to be widened on the device."""
        shape = (len(indices), self.frames, self.manifest.tokens_per_frame)
        codes = np.empty(shape, np.uint16)
        for clip, shard, first in zip(codes, *self.places(indices), strict=True):
            clip[:] = self.codes[shard][first : first + self.span : self.stride]
        return torch.from_numpy(codes)
