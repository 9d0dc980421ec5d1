"""How much of a tokenizer's vocabulary is used: n-grams of codes (paper, Figs 3, 12 and 13).

    python -m pretraining.studies.ngrams data=data/shards-dvae,data/shards-vqgan out=outputs/ngrams

1-, 2- and 3-grams of consecutive codes in raster order within a frame: 256 tokens hold 255 pairs.
Writes ngrams.json and ngrams.png. Counting is exact; memory grows with the number of distinct
n-grams (16 bytes each), not with the number of frames.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt64
from tqdm import tqdm

from pretraining.pictures import Line, Panel, plot_panels
from pretraining.shards import Clips, Manifest, read_manifest
from pretraining.studies.common import names_of, paths_in
from toto_robot.backbone.weights import write_json
from toto_robot.cli import parse

ORDERS = (1, 2, 3)
BITS = 16  # of a packed code, as codes are uint16: three fit into 64 bits
CURVE_POINTS = 200

PUBLISHED = {
    "source": "arXiv 2501.05453, Figs 3, 12, 13; read off the figures, approximate",
    "data": "ImageNet validation pictures; 10,000 of them for pairs and triples",
    "distinct": {
        "dVAE 8k": {"1": 8_100, "2": 2_370_000, "3": 2_500_000},
        "VQGAN 1k": {"1": 445, "2": 198_000, "3": 2_500_000},
        "VQGAN 16k": {"1": 980, "2": 790_000, "3": 2_500_000},
    },
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Count the n-grams of codes in shard folders, one folder per tokenizer."""

    data: str  # shard folders, separated by commas
    out: Path
    split: Literal["held_out", "training", "all"] = "all"
    max_frames: int = 10_000  # evenly spaced ones of each folder; 0: all
    chunk: int = 4_000_000  # n-grams counted at a time
    top: int = 10  # commonest n-grams to list


def pack(frames: Int[np.ndarray, "F tokens"], order: int) -> UInt64[np.ndarray, " n"]:
    """The n-grams of each frame as integers, the first code in the highest bits."""
    count = frames.shape[1] - order + 1
    packed = np.zeros((len(frames), max(0, count)), np.uint64)
    for i in range(order):
        packed = packed << np.uint64(BITS) | frames[:, i : i + count].astype(np.uint64)
    return packed.ravel()


def unpack(key: int, order: int) -> list[int]:
    return [key >> BITS * (order - 1 - i) & (1 << BITS) - 1 for i in range(order)]


@dataclass(frozen=True)
class Counts:
    """Distinct packed n-grams in ascending order, and how often each came."""

    keys: UInt64[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]

    def plus(self, packed: UInt64[np.ndarray, " m"]) -> "Counts":
        """These and the ones of another chunk."""
        keys, counts = np.unique(packed, return_counts=True)
        merged, place = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts]))
        return Counts(merged, total)


def count_ngrams(batches: Iterable[Int[np.ndarray, "F tokens"]], chunk: int) -> dict[int, Counts]:
    """Counts of each order over all frames of all batches."""
    empty = Counts(np.zeros(0, np.uint64), np.zeros(0, np.int64))
    totals: dict[int, Counts] = dict.fromkeys(ORDERS, empty)
    waiting: dict[int, list[np.ndarray]] = {order: [] for order in ORDERS}
    for frames in batches:
        for order in ORDERS:
            waiting[order].append(pack(frames, order))
            if sum(map(len, waiting[order])) >= chunk:
                totals[order] = totals[order].plus(np.concatenate(waiting[order]))
                waiting[order].clear()
    return {
        order: totals[order].plus(np.concatenate(rest)) if rest else totals[order]
        for order, rest in waiting.items()
    }


def read_frames(folder: Path, config: Config) -> Iterator[Int[np.ndarray, "F tokens"]]:
    """Codes of evenly spaced frames, some at a time."""
    splits = {"held_out": [True], "training": [False], "all": [False, True]}[config.split]
    parts = [Clips(folder, frames=1, stride=1, held_out=held_out) for held_out in splits]
    available = sum(map(len, parts))
    wanted = min(config.max_frames or available, available)
    chosen = np.linspace(0, available - 1, wanted).round().astype(int)
    with tqdm(total=wanted, unit="frame", desc=folder.name) as bar:
        for part in parts:
            here, chosen = chosen[chosen < len(part)], chosen[chosen >= len(part)] - len(part)
            for first in range(0, len(here), 1000):
                codes = part.batch(here[first : first + 1000]).flatten(1).numpy()
                bar.update(len(codes))
                yield codes


def summarise(counts: Counts, order: int, vocabulary: int, top: int) -> dict[str, Any]:
    """Numbers of one order: distinct n-grams, their shares, the commonest, the sorted curve."""
    total = int(counts.counts.sum())
    order_of = np.argsort(-counts.counts, kind="stable")
    frequency = counts.counts[order_of]
    ranks = np.unique(np.geomspace(1, max(1, len(frequency)), CURVE_POINTS).round().astype(int))
    share = frequency / total
    return {
        "total": total,
        "distinct": len(frequency),
        "possible": vocabulary**order,
        "share_of_possible": len(frequency) / vocabulary**order,
        "share_of_total": len(frequency) / total,
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "once": int((frequency == 1).sum()),
        "top": [
            {"codes": unpack(int(counts.keys[i]), order), "count": int(counts.counts[i])}
            for i in order_of[:top]
        ],
        "curve": {"rank": ranks.tolist(), "count": frequency[ranks - 1].tolist()},
    }


def study(folder: Path, config: Config) -> dict[str, Any]:
    """One tokenizer's entry in ngrams.json."""
    manifest: Manifest = read_manifest(folder)
    counted = count_ngrams(read_frames(folder, config), config.chunk)
    return {
        "data": str(folder),
        "tokenizer": manifest.tokenizer,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "vocabulary": manifest.vocabulary,
        "tokens_per_frame": manifest.tokens_per_frame,
        "frames": int(counted[1].counts.sum()) // manifest.tokens_per_frame,
        "ngrams": {
            str(order): summarise(counts, order, manifest.vocabulary, config.top)
            for order, counts in counted.items()
        },
    }


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel per order: how often the n-gram of each rank came; dotted: published ones."""
    panels = []
    for order in map(str, ORDERS):
        lines = []
        for name, result in results.items():
            found = result["ngrams"][order]
            label = f"{name}: {found['distinct']:,} of {found['possible']:.3g}"
            lines.append(Line(label=label, x=found["curve"]["rank"], y=found["curve"]["count"]))
        published = PUBLISHED["distinct"].items()
        marks = {f"published, ImageNet: {name}": float(row[order]) for name, row in published}
        x, y = "rank, commonest first", "times seen"
        panels.append(Panel(title=f"{order}-grams", x=x, y=y, lines=lines, marks=marks, log="xy"))
    plot_panels(panels, path)


def main(config: Config) -> None:
    folders = paths_in(config.data)
    results = {
        name: study(folder, config) for name, folder in zip(names_of(folders), folders, strict=True)
    }
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "ngrams.json"
    write_json(path, {"split": config.split, "measured": results, "published": PUBLISHED})
    plot(results, path.with_suffix(".png"))
    for name, result in results.items():
        for order, found in result["ngrams"].items():
            print(
                f"{name}, {order}-grams: {found['distinct']} distinct of {found['total']} seen, "
                f"{100 * found['share_of_possible']:.3g} % of the possible"
            )
    print(f"{path} and .png")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
