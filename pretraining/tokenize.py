"""Videos into token shards.

    python -m pretraining.tokenize data=data/films tokenizer=data/tokenizer out=data/shards

Restartable: finished shards are kept, and the folder is usable only once the manifest is written.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tqdm import tqdm

from pretraining.cli import parse
from pretraining.shards import MANIFEST, CodedVideo, Manifest, check_shard, write_shard
from pretraining.video import CorruptVideoError, find_videos, read_frames, split_videos
from toto_robot.backbone.tokenizers import TokenEncoder, load_tokenizer
from toto_robot.backbone.weights import write_json


@dataclass(frozen=True, kw_only=True)
class Config:
    """Videos into token shards."""

    data: Path
    tokenizer: Path  # folder with tokenizer.safetensors and tokenizer.json
    out: Path
    held_out: float = 0.05  # share of videos
    videos_per_shard: int = 100
    batch_size: int = 64
    threads: int = 0  # 0: torch's choice


@torch.inference_mode()
def encode_video(encoder: TokenEncoder, path: Path, resolution: int, batch_size: int) -> np.ndarray:
    """uint16 codes [frames, tokens] of a whole video; CorruptVideoError if it does not decode."""
    frames = torch.from_numpy(np.stack(list(read_frames(path, resolution))))
    codes = [encoder.encode(batch).flatten(1) for batch in frames.split(batch_size)]
    return torch.cat(codes).numpy().astype(np.uint16)


def frames_per_second(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 0)


def read_progress(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Finished shards of an earlier, interrupted run over the same inputs, or an empty record."""
    if path.exists():
        progress = json.loads(path.read_text())
        if progress["key"] == key:
            return progress
        raise ValueError(
            f"{path.parent} holds shards of other videos or of another tokenizer; choose another "
            "out= or delete that folder"
        )
    return {"key": key, "shards": [], "skipped": {}}


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    model, about = load_tokenizer(config.tokenizer)
    side = about["resolution"] // about["stride"]
    videos = find_videos(config.data)
    _, held_out = split_videos(videos, config.data, config.held_out)
    names = [video.relative_to(config.data).as_posix() for video in videos]
    manifest = Manifest(
        tokenizer=about["kind"],
        tokenizer_sha256=about["sha256"],
        vocabulary=about["vocabulary"],
        resolution=about["resolution"],
        tokens_per_side=side,
        videos=names,
        held_out=[i for i, video in enumerate(videos) if video in set(held_out)],
        decoder=f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}",
    )

    config.out.mkdir(parents=True, exist_ok=True)
    sizes = [video.stat().st_size for video in videos]
    per_shard = config.videos_per_shard
    key = {"tokenizer": about["sha256"], "videos": names, "bytes": sizes, "per_shard": per_shard}
    progress_path = config.out / "progress.json"
    progress = read_progress(progress_path, key)
    started, encoded = time.monotonic(), 0
    bar = tqdm(total=len(videos), unit="video", desc="tokenize")
    for number, first in enumerate(range(0, len(videos), per_shard)):
        members = range(first, min(first + per_shard, len(videos)))
        if number < len(progress["shards"]):
            check_shard(config.out, progress["shards"][number], manifest.tokens_per_frame)
            bar.update(len(members))
            continue
        clips = []
        for i in members:
            try:
                codes = encode_video(
                    model.encoder, videos[i], manifest.resolution, config.batch_size
                )
                clips.append(CodedVideo(i, 0, frames_per_second(videos[i]), codes))
                encoded += len(codes)
            except CorruptVideoError as error:
                progress["skipped"][names[i]] = str(error)
                tqdm.write(f"skipped: {error}")
            bar.update()
            bar.set_postfix(frames_s=f"{encoded / (time.monotonic() - started):.0f}")
        if not clips:
            raise CorruptVideoError(f"none of the videos {names[first]} … could be decoded")
        progress["shards"].append(write_shard(config.out, f"shard_{number:05d}", clips))
        write_json(progress_path, progress)
    bar.close()

    for suffix in (".safetensors", ".json"):  # the shards' folder is all that training needs
        shutil.copyfile(config.tokenizer / f"tokenizer{suffix}", config.out / f"tokenizer{suffix}")
    manifest.shards, manifest.skipped = progress["shards"], progress["skipped"]
    manifest.frames = sum(entry["frames"] for entry in manifest.shards)
    manifest.tokens = manifest.frames * manifest.tokens_per_frame
    manifest.save(config.out)
    print(
        f"{config.out / MANIFEST}: {len(manifest.shards)} shards, {manifest.frames} frames, {manifest.tokens} tokens, "
        f"{len(manifest.skipped)} videos skipped"
    )


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
