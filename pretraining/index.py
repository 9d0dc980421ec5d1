"""An index of videos that are tokenized while training instead of beforehand.

    python -m pretraining.index data=data/films tokenizer=data/tokenizer out=data/live
    python -m pretraining.train model=tiny data=data/live out=data/toto-tiny steps=1000

Every video is decoded once, so that what cannot be decoded is known before training: as with shards,
a run's samples depend on nothing that is found out on the way.

    index.json       where the videos are, their lengths, held-out and skipped ones; its own SHA-256
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

import av
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from pretraining.cli import parse
from pretraining.shards import Manifest
from pretraining.video import CorruptVideoError, decode, find_videos, split_videos
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.backbone.weights import replace_atomically, sha256_of, write_json

INDEX, KEYFRAMES = "index.json", "keyframes.npy"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Index videos that are to be tokenized while training."""

    data: Path
    out: Path
    tokenizer: Path | None = None  # folder with tokenizer.safetensors and tokenizer.json
    resolution: int | None = None  # pixels; None: the tokenizer's
    held_out: float = 0.05  # share of videos
    threads: int = 0  # videos decoded at a time; 0: one per core


@dataclass
class Index(Manifest):
    """A manifest without shards. `root` may change, everything else is part of the hash."""

    root: str = ""
    lengths: list[int] = field(default_factory=list)  # frames of each video; 0: skipped
    bytes: list[int] = field(default_factory=list)
    keyframes_sha256: str = ""

    def digest(self) -> str:
        content = {k: v for k, v in dataclasses.asdict(self).items() if k != "root"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        write_json(folder / INDEX, dataclasses.asdict(self) | {"sha256": self.digest()})

    def path(self, video: int) -> Path:
        return Path(self.root) / self.videos[video]


def read_index(folder: Path) -> tuple[Index, Int[np.ndarray, "K 3"]]:
    """The index and its keyframes.

    Raises:
        ValueError: it is damaged, or a video is gone or has another size than when it was indexed.
    """
    advice = f"make it again: python -m pretraining.index data=<videos> out={folder}"
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
    for video, (length, size) in enumerate(zip(index.lengths, index.bytes, strict=True)):
        path = index.path(video)
        now = path.stat().st_size if path.is_file() else None
        if length and now != size:
            state = "is gone" if now is None else f"has {now} bytes"
            raise ValueError(f"{path} {state}, it had {size} when it was indexed; {advice}")
    return index, np.load(folder / KEYFRAMES)


@dataclass(frozen=True)
class Scan:
    """What one pass over a video finds: its length and (frame, presentation time) of keyframes."""

    frames: int = 0
    keyframes: Sequence[tuple[int, int]] = ()
    problem: str = ""


def scan(path: Path) -> Scan:
    """Decode a whole video; a problem is reported, not raised."""
    frames, keyframes, latest = 0, [], None
    try:
        for frame in decode(path):
            pts = frame.pts
            if frame.key_frame and pts is not None and (latest is None or pts > latest):
                keyframes.append((frames, pts))
            latest = pts if latest is None else max(latest, pts or latest)
            frames += 1
    except CorruptVideoError as error:
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
    videos = find_videos(config.data)
    held_out = set(split_videos(videos, config.data, config.held_out)[1])
    names = [video.relative_to(config.data).as_posix() for video in videos]
    with ThreadPoolExecutor(config.threads or os.cpu_count() or 1) as pool:
        scans = list(tqdm(pool.map(scan, videos), total=len(videos), unit="video", desc="index"))
    problems = [s.problem.replace(str(config.data), ".") for s in scans]
    skipped = {name: problem for name, problem in zip(names, problems, strict=True) if problem}
    if len(skipped) == len(videos):
        raise CorruptVideoError(f"none of the {len(videos)} videos could be decoded")

    config.out.mkdir(parents=True, exist_ok=True)
    rows = [(video, *key) for video, s in enumerate(scans) for key in s.keyframes]
    temporary = config.out / f"{KEYFRAMES}.tmp"
    with open(temporary, "wb") as file:
        np.save(file, np.array(rows, np.int64).reshape(-1, 3))
    replace_atomically(temporary, config.out / KEYFRAMES)
    if config.tokenizer is not None:
        for suffix in (".safetensors", ".json"):  # the index's folder is all that training names
            source = config.tokenizer / f"tokenizer{suffix}"
            shutil.copyfile(source, config.out / f"tokenizer{suffix}")
    index = Index(
        **described,
        videos=names,
        held_out=[i for i, video in enumerate(videos) if video in held_out],
        skipped=skipped,
        decoder=f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}",
        root=str(config.data.absolute()),
        lengths=[s.frames for s in scans],
        bytes=[video.stat().st_size for video in videos],
        frames=sum(s.frames for s in scans),
        keyframes_sha256=sha256_of(config.out / KEYFRAMES),
    )
    index.save(config.out)
    print(
        f"{config.out / INDEX}: {len(videos) - len(skipped)} videos, {index.frames} frames, "
        f"{len(skipped)} videos skipped"
    )
    for reason in skipped.values():
        print(f"skipped: {reason}")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
