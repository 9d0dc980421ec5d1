"""Tokens/s out of token shards on one core, against PyTorch's DataLoader over the same files.

    python -m benchmarks.loader [--gigabytes 1] [--batch 256] [--batches 40]

Clips of 16 frames of 256 tokens, every 4th frame, in random order, out of shards of random codes that
are written to a temporary folder. Ours is what pretraining.train calls, the order without state
included; the peer is a map-style Dataset over memory maps with a shuffling DataLoader in this process.
Both are measured up to 16-bit codes (what is sent to a GPU) and up to the int64 sequence that a
model reads, taking turns. Appends a JSON line to benchmarks/results/loader.jsonl.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretraining.samples import ShardSamples
from pretraining.shards import Clips, CodedVideo, Manifest, write_shard
from toto_robot.runs import describe_machine

RESULTS = Path(__file__).parent / "results" / "loader.jsonl"
FRAMES, STRIDE, SIDE, VIDEO = 16, 4, 16, 300  # frames of a clip, between them; tokens; frames
SPAN = (FRAMES - 1) * STRIDE + 1


def write_shards(folder: Path, gigabytes: float, shards: int = 8) -> None:
    """Videos of `VIDEO` frames of random codes."""
    manifest = Manifest("random", "", vocabulary=8192, resolution=128, tokens_per_side=SIDE)
    videos = max(1, round(gigabytes * 1e9 / (2 * SIDE**2 * VIDEO * shards)))
    random = np.random.default_rng(0)
    for number in range(shards):
        codes = random.integers(0, 8192, (videos, VIDEO, SIDE**2), dtype=np.uint16)
        clips = [CodedVideo(number * videos + i, 0, 30.0, video) for i, video in enumerate(codes)]
        manifest.shards.append(write_shard(folder, f"shard_{number:05d}", clips))
    manifest.save(folder)


class MappedClips(Dataset):
    """What one writes first: sample i is a slice of a memory map, as a tensor."""

    def __init__(self, folder: Path, widen: bool) -> None:
        paths = sorted(folder.glob("*.bin"))
        self.shards = [np.memmap(path, np.uint16, "r").reshape(-1, SIDE**2) for path in paths]
        self.starts = [
            (shard, video + start)
            for shard, codes in enumerate(self.shards)
            for video in range(0, len(codes), VIDEO)
            for start in range(VIDEO - SPAN + 1)
        ]
        self.widen = widen

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        shard, first = self.starts[index]
        clip = self.shards[shard][first : first + SPAN : STRIDE]
        return torch.from_numpy(clip.astype(np.int64) + 4 if self.widen else clip.copy())


def ours(folder: Path, batch: int, widen: bool) -> Iterator[Tensor]:
    samples = ShardSamples(Clips(folder, frames=FRAMES, stride=STRIDE, verify=False))
    for first in itertools.count(0, batch):
        drawn = samples.draw(0, np.arange(first, first + batch))
        yield drawn.sequence if widen else drawn.codes


def theirs(folder: Path, batch: int, widen: bool) -> Iterator[Tensor]:
    start = torch.ones(batch, 1, dtype=torch.int64)
    for codes in itertools.cycle(
        DataLoader(MappedClips(folder, widen), batch, shuffle=True, drop_last=True)
    ):
        yield torch.cat([start, codes.flatten(1)], dim=1) if widen else codes


def timed(step: Callable[[], object]) -> float:
    started = time.thread_time()
    step()
    return time.thread_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--no-append", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokens = args.batch * FRAMES * SIDE**2
    record: dict = {"date": time.strftime("%Y-%m-%d"), "gigabytes": args.gigabytes,
                    "batch": args.batch, "machine": describe_machine()}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, args.gigabytes)
        for kind, widen in (("16-bit codes", False), ("int64 sequences", True)):
            sides = {"ours": ours(folder, args.batch, widen),
                     "DataLoader": theirs(folder, args.batch, widen)}  # fmt: skip
            shapes = {next(side).flatten(1).shape for side in sides.values()}
            assert len(shapes) == 1, shapes
            cpu_s: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(args.batches):
                for side, batches in sides.items():
                    cpu_s[side].append(timed(lambda batches=batches: next(batches)))
            rates = {side: tokens / statistics.median(times) for side, times in cpu_s.items()}
            for side, rate in rates.items():
                ratio = rate / rates["DataLoader"]
                print(f"{kind}, {side}: {rate / 1e6:.0f} M tokens per CPU second, {ratio:.1f}x")
            record[kind] = {side: round(rate) for side, rate in rates.items()}
    if not args.no_append:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with open(RESULTS, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
