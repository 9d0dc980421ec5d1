"""Token shards: whole frames of uint16 codes, an index of videos, and a manifest that vouches for both.

    shard_00000.bin    uint16 codes [frames, h * w], frame after frame, little-endian
    shard_00000.npy    int64 rows (video, first frame in the shard, frames, milli-fps)
    manifest.json      tokenizer and its SHA-256, resolution, SHA-256 of every file, skipped videos

Because whole frames are stored, start, stride and length of a clip are free at training time.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt16
from torch import Tensor

from toto_robot.backbone.weights import replace_atomically, sha256_of, write_json

COLUMNS = 4  # video, first frame, frames, milli-fps
MANIFEST = "manifest.json"


@dataclass
class Manifest:
    """What a folder of shards is and where it comes from."""

    tokenizer: str
    tokenizer_sha256: str
    vocabulary: int
    resolution: int
    tokens_per_side: int
    videos: list[str] = field(default_factory=list)  # relative paths; row `video` of the indices
    held_out: list[int] = field(default_factory=list)  # positions in `videos`
    skipped: dict[str, str] = field(default_factory=dict)  # relative path -> reason
    shards: list[dict[str, Any]] = field(default_factory=list)  # name, frames, bin and npy SHA-256
    decoder: str = ""

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


def write_shard(
    folder: Path,
    name: str,
    clips: Sequence[tuple[int, float, UInt16[np.ndarray, "frames tokens"]]],
) -> dict[str, Any]:
    """Write one shard from (video number, frames/s, codes) and return its manifest entry."""
    counts = np.array([len(codes) for _, _, codes in clips])
    firsts = np.cumsum(counts) - counts
    rows = [
        (video, first, count, round(1000 * fps))
        for (video, fps, _), first, count in zip(clips, firsts, counts, strict=True)
    ]
    paths = [folder / f"{name}.bin", folder / f"{name}.npy"]
    temporaries = [path.with_name(path.name + ".tmp") for path in paths]
    np.concatenate([codes for _, _, codes in clips]).astype("<u2").tofile(temporaries[0])
    with open(temporaries[1], "wb") as file:
        np.save(file, np.array(rows, np.int64).reshape(-1, COLUMNS))
    for temporary, path in zip(temporaries, paths, strict=True):
        replace_atomically(temporary, path)
    return {
        "name": name,
        "frames": int(counts.sum()),
        "bin_sha256": sha256_of(paths[0]),
        "npy_sha256": sha256_of(paths[1]),
    }


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
    """

    def __init__(
        self, folder: Path, *, frames: int, stride: int, held_out: bool = False, verify: bool = True
    ) -> None:
        self.manifest = read_manifest(folder)
        self.manifest_sha256 = sha256_of(folder / MANIFEST)
        self.offsets = np.arange(frames) * stride
        span = int(self.offsets[-1]) + 1
        wanted = set(self.manifest.held_out)
        self.codes: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for number, entry in enumerate(self.manifest.shards):
            if verify:
                check_shard(folder, entry, self.manifest.tokens_per_frame)
            shape = (entry["frames"], self.manifest.tokens_per_frame)
            self.codes.append(np.memmap(folder / f"{entry['name']}.bin", "<u2", "r", shape=shape))
            for video, first, count, _ in np.load(folder / f"{entry['name']}.npy"):
                if (int(video) in wanted) == held_out and count >= span:
                    begins = np.arange(first, first + count - span + 1)
                    starts.append(np.stack([np.full_like(begins, number), begins], axis=1))
        if not starts:
            kind = "held-out" if held_out else "training"
            raise ValueError(
                f"no {kind} video in {folder} has the {span} frames that frames={frames} "
                f"stride={stride} spans; lower them, or film longer videos"
            )
        self.starts = np.concatenate(starts)  # (shard, first frame)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Int[np.ndarray, "T tokens"]:
        shard, first = self.starts[index]
        return self.codes[shard][first + self.offsets].astype(np.int64)

    def batch(self, indices: Int[np.ndarray, " B"]) -> Int[Tensor, "B T tokens"]:
        """Codes (without the offset for special ids) of several clips."""
        return torch.from_numpy(np.stack([self[int(i)] for i in indices]))
