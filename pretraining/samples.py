"""What training draws from: samples by number, so that there is nothing to save and nothing to seek."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from pretraining.sampling import draw
from pretraining.shards import Clips, Manifest, read_manifest
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START, to_sequence
from toto_robot.backbone.tokenizers import load_tokenizer


@dataclass(frozen=True)
class Batch:
    """B samples of T frames of N tokens.

    Attributes:
        codes: integers of the codebook (16 bits each until `sequence`), without the offset for ids.
        starts: id of each sequence's first token, `VIDEO_START` or `IMAGE_START`.
        frames: the pixels behind the codes, for models that read or predict them.
    """

    codes: Integer[Tensor, "B T N"]
    starts: int | Int[Tensor, " B"] = VIDEO_START
    frames: UInt8[Tensor, "B T R R 3"] | None = None

    @property
    def sequence(self) -> Int[Tensor, "B L"]:
        """[start, code + 4, …], L = 1 + T * N."""
        return to_sequence(self.codes, self.starts)

    def to(self, device: torch.device) -> "Batch":
        def move(value):
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return Batch(move(self.codes), move(self.starts), move(self.frames))


class Samples(Protocol):
    """The training or the held-out part of some data.

    Attributes:
        manifest: what its codes are; `manifest_sha256` changes whenever the data does.
    """

    manifest: Manifest
    manifest_sha256: str

    def __len__(self) -> int: ...

    def at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Some of the `len(self)` samples."""
        ...

    def draw(self, seed: int, numbers: Int[np.ndarray, " B"]) -> Batch:
        """The samples of these numbers (0, 1, …, without end) of the run with this seed."""
        ...


class ShardSamples:
    """Clips out of one folder of token shards, each epoch in an order of its own."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips
        self.manifest, self.manifest_sha256 = clips.manifest, clips.manifest_sha256

    def __len__(self) -> int:
        return len(self.clips)

    def at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        return Batch(self.clips.batch(indices))

    def draw(self, seed: int, numbers: Int[np.ndarray, " B"]) -> Batch:
        return self.at(draw(seed, numbers, len(self)))


class PictureSamples:
    """Sequences of T pictures of one folder, chosen at random, as if they were a clip's frames.

    Paper, section 3.4. Sample k of a run holds its pictures number k * T to k * T + T - 1, and each
    epoch of pictures has an order of its own, with every picture in it once.

    Args:
        pictures: clips of one frame.

    Raises:
        ValueError: there are fewer than T pictures.
    """

    def __init__(self, pictures: Clips, per_sample: int) -> None:
        self.pictures, self.per_sample = pictures, per_sample
        self.manifest, self.manifest_sha256 = pictures.manifest, pictures.manifest_sha256
        if len(pictures) < per_sample:
            raise ValueError(
                f"{len(pictures)} pictures do not make one sequence of frames={per_sample}; lower "
                "it, or keep more pictures for this part (held_out= of pretraining.tokenize)"
            )

    def __len__(self) -> int:
        return len(self.pictures) // self.per_sample

    def at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        return self.draw(0, indices)

    def draw(self, seed: int, numbers: Int[np.ndarray, " B"]) -> Batch:
        places = np.asarray(numbers)[:, None] * self.per_sample + np.arange(self.per_sample)
        codes = self.pictures.batch(draw(seed, places.ravel(), len(self.pictures)))
        return Batch(codes.reshape(*places.shape, -1), IMAGE_START)


def open_shards(folder: Path, *, frames: int, stride: int) -> tuple[Samples, Samples]:
    """Training and held-out samples of one folder.

    Raises:
        ValueError: its tokenizer and its shards do not belong together, or as `Clips`.
    """
    manifest = read_manifest(folder)
    _, tokenizer = load_tokenizer(folder)
    if tokenizer["sha256"] != manifest.tokenizer_sha256:
        raise ValueError(
            f"the tokenizer in {folder} has SHA-256 {tokenizer['sha256'][:12]}…, the shards were "
            f"made with {manifest.tokenizer_sha256[:12]}…; run pretraining.tokenize again"
        )
    pictures = manifest.kind == "image"
    length = 1 if pictures else frames
    training, held_out = (
        Clips(folder, frames=length, stride=stride, held_out=part, verify=not part)
        for part in (False, True)
    )
    if pictures:
        return PictureSamples(training, frames), PictureSamples(held_out, frames)
    return ShardSamples(training), ShardSamples(held_out)
