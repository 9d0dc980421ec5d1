"""An index of videos or pictures that are tokenized while training instead of beforehand.

    python -m pretraining.index data=data/films tokenizer=data/tokenizer out=data/live
    python -m pretraining.train model=tiny data=data/live out=data/toto-tiny steps=1000

Every source is decoded once, so that what cannot be decoded is known before training: as with
shards, a run's samples depend on nothing that is found out on the way.

    index.json       what is where and how long, what is held out and skipped; its own SHA-256
    keyframes.npy    int64 rows (video, frame, presentation time): where a clip's decoding may start

Models of patches need no tokenizer: leave it away and give a resolution.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from pretraining.readers import PyAVReader
from pretraining.shards import Manifest
from pretraining.sources import Kind, Source
from pretraining.tokenize_plan import decide_held_out, list_sources
from pretraining.video import CorruptSourceError, frames_of
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.backbone.weights import replace_atomically, sha256_of, temporary_name, write_json
from toto_robot.cli import parse

INDEX, KEYFRAMES = "index.json", "keyframes.npy"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Index videos or pictures that are to be tokenized while training."""

    data: Path
    out: Path
    layout: str = "auto"  # videos, images, webdataset, or a data set's name
    tokenizer: Path | None = None  # folder with tokenizer.safetensors and tokenizer.json
    resolution: int | None = None  # pixels; None: the tokenizer's
    held_out: float = 0.05  # share of the sources, where the data set has no split of its own
    threads: int = 0  # sources decoded at a time; 0: one per core


@dataclass
class Index(Manifest):
    """A manifest without shards. `root` may change, everything else is part of the hash."""

    root: str = ""
    places: list[tuple[str, int | None, int]] = field(default_factory=list)  # path, offset, bytes
    lengths: list[int] = field(default_factory=list)  # frames of each; 0: skipped
    keyframes_sha256: str = ""

    def digest(self) -> str:
        content = {k: v for k, v in dataclasses.asdict(self).items() if k != "root"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        write_json(folder / INDEX, dataclasses.asdict(self) | {"sha256": self.digest()})

    def source(self, number: int) -> Source:
        path, offset, size = self.places[number]
        return Source(self.videos[number], Path(self.root) / path, self.kind, size, offset)


def read_index(folder: Path) -> tuple[Index, Int[np.ndarray, "K 3"]]:
    """The index and its keyframes.

    Raises:
        ValueError: it is damaged, or a file is gone or has another size than when it was indexed.
    """
    advice = f"make it again: python -m pretraining.index data=<folder> out={folder}"
    try:
        content = json.loads((folder / INDEX).read_text())
        digest = content.pop("sha256")
        index = Index(**content)
        whole = digest == index.digest()
        whole = whole and sha256_of(folder / KEYFRAMES) == index.keyframes_sha256
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error}); {advice}") from error
    if not whole:
        raise ValueError(f"{folder} does not have the SHA-256 in {INDEX}; {advice}")
    sizes: dict[Path, int] = {}  # of archives, only whether they are there and long enough
    for number in np.flatnonzero(index.lengths):
        source = index.source(int(number))
        if source.path not in sizes:
            sizes[source.path] = source.path.stat().st_size if source.path.is_file() else -1
        size, needed = sizes[source.path], (source.offset or 0) + source.bytes
        if size < needed or (source.offset is None and size != needed):
            state = "is gone" if size < 0 else f"has {size} bytes"
            raise ValueError(
                f"{source.path} {state}, it had {needed} when it was indexed; {advice}"
            )
    return index, np.load(folder / KEYFRAMES)


@dataclass(frozen=True)
class Scan:
    """What one pass over a source finds: its length and (frame, presentation time) of keyframes."""

    frames: int = 0
    keyframes: Sequence[tuple[int, int]] = ()
    problem: str = ""


def scan(source: Source) -> Scan:
    """Decode a whole video or picture; a problem is reported, not raised."""
    frames, keyframes, latest = 0, [], None
    try:
        for frame in frames_of(source):
            pts = frame.pts
            if frame.key_frame and pts is not None and (latest is None or pts > latest):
                keyframes.append((frames, pts))
            latest = pts if latest is None else max(latest, pts or latest)
            frames += 1
    except CorruptSourceError as error:
        return Scan(problem=str(error))
    return Scan(frames, keyframes)


def describe(config: Config) -> dict[str, Any]:
    """The manifest's entries about the tokenizer, or about its absence."""
    if config.tokenizer is None:
        if config.resolution is None:
            raise SystemExit("give tokenizer=<folder>, or resolution= for models of patches")
        return {"tokenizer": "", "tokenizer_sha256": "", "vocabulary": 0,
                "resolution": config.resolution, "tokens_per_side": 0}  # fmt: skip
    _, about = load_tokenizer(config.tokenizer)
    resolution, stride = config.resolution or about["resolution"], about["stride"]
    if resolution % stride:
        raise SystemExit(f"resolution={resolution} is no multiple of the tokenizer's {stride} px")
    return {"tokenizer": about["kind"], "tokenizer_sha256": about["sha256"],
            "vocabulary": about["vocabulary"], "resolution": resolution,
            "tokens_per_side": resolution // stride}  # fmt: skip


def main(config: Config) -> None:
    described = describe(config)
    layout, sources = list_sources(config.data, config.layout)
    sources = decide_held_out(sources, config.held_out)
    with ThreadPoolExecutor(config.threads or os.cpu_count() or 1) as pool:
        scans = list(tqdm(pool.map(scan, sources), total=len(sources), desc="index"))
    if not any(s.frames for s in scans):
        raise CorruptSourceError(f"none of the {len(sources)} sources could be decoded")

    config.out.mkdir(parents=True, exist_ok=True)
    rows = [(video, *key) for video, s in enumerate(scans) for key in s.keyframes]
    temporary = temporary_name(config.out / KEYFRAMES)
    with open(temporary, "wb") as file:
        np.save(file, np.array(rows, np.int64).reshape(-1, 3))
    replace_atomically(temporary, config.out / KEYFRAMES)
    if config.tokenizer is not None:
        for suffix in (".safetensors", ".json"):  # the index's folder is all that training names
            source = config.tokenizer / f"tokenizer{suffix}"
            shutil.copyfile(source, config.out / f"tokenizer{suffix}")
    kind: Kind = next(s.kind for s in sources if not s.broken_archive)
    index = Index(
        **described,
        kind=kind,
        layout=layout,
        frames=sum(s.frames for s in scans),
        decoder=PyAVReader(torch.device("cpu")).version,
        videos=[source.name for source in sources],
        labels=[source.label for source in sources],
        held_out=[i for i, source in enumerate(sources) if source.held_out],
        skipped={x.name: s.problem for x, s in zip(sources, scans, strict=True) if s.problem},
        root=str(config.data.absolute()),
        places=[place_of(source, config.data) for source in sources],
        lengths=[s.frames for s in scans],
        keyframes_sha256=sha256_of(config.out / KEYFRAMES),
    )
    index.save(config.out)
    count = len(sources) - len(index.skipped)
    print(
        f"{config.out / INDEX}: {count} {kind}s, {index.frames} frames, "
        f"{len(index.skipped)} {kind}s skipped"
    )
    for reason in index.skipped.values():
        print(f"skipped: {reason}")


def place_of(source: Source, root: Path) -> tuple[str, int | None, int]:
    """Path (below the root where it is there), offset and bytes."""
    below = source.path.is_relative_to(root)
    path = source.path.relative_to(root) if below else source.path.absolute()
    return path.as_posix(), source.offset, source.bytes


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
