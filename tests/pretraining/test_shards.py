"""Films to shards and back; damage is found."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining.shards import Clips, CodedVideo, read_manifest, write_shard
from pretraining.tokenize_plan import decide_held_out, list_sources
from pretraining.video import CorruptVideoError, read_frames
from tests.pretraining.conftest import write_film
from toto_robot.backbone.tokenizers import load_tokenizer


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shards, tmp_path / "shards")


def test_clips_are_the_codes_of_the_films(shards: Path, films: Path, tokenizer: Path) -> None:
    manifest = read_manifest(shards)
    assert manifest.tokens_per_frame == 16 and manifest.vocabulary == 32
    assert len(manifest.shards) == 3 and len(manifest.held_out) == 1
    model, about = load_tokenizer(tokenizer)
    assert manifest.tokenizer_sha256 == about["sha256"]
    clips = Clips(shards, frames=3, stride=4)
    assert len(clips) == 4 * (12 - 8)  # 4 training films of 12 frames, a clip spans 9
    training = [v for i, v in enumerate(manifest.videos) if i not in manifest.held_out]
    frames = torch.from_numpy(np.stack(list(read_frames(films / training[1], 32))))
    expected = model.encoder.encode(frames).flatten(1)
    assert len(frames) == len(expected) == 12
    assert np.array_equal(clips[4 + 2], expected[[2, 6, 10]])
    assert clips.batch(np.array([0, 5])).shape == (2, 3, 16)


def test_held_out_films_are_other_films(shards: Path) -> None:
    training = Clips(shards, frames=1, stride=1)
    held_out = Clips(shards, frames=1, stride=1, held_out=True)
    assert len(training) == 4 * 12 and len(held_out) == 12
    places = [set(zip(*c.places(np.arange(len(c))), strict=True)) for c in (training, held_out)]
    assert [len(p) for p in places] == [48, 12] and not places[0] & places[1]


def test_clips_are_numbered_video_after_video(copy: Path) -> None:
    """As in a list of all (shard, first frame), with videos of several lengths and too short ones."""
    counts = [[7, 2, 9], [1], [3, 5]]
    manifest = read_manifest(copy)
    manifest.shards, manifest.held_out = [], [5]
    expected, video = [], 0
    for number, frames in enumerate(counts):
        clips = [
            CodedVideo(video + i, 0, 30.0, np.zeros((n, 16), np.uint16))
            for i, n in enumerate(frames)
        ]
        manifest.shards.append(write_shard(copy, f"other_{number}", clips))
        begins = np.cumsum(frames) - frames
        for i, (begin, n) in enumerate(zip(begins, frames, strict=True)):
            if video + i not in manifest.held_out:
                expected += [(number, begin + start) for start in range(n - 2)]  # a clip spans 3
        video += len(frames)
    manifest.save(copy)
    clips = Clips(copy, frames=2, stride=2)
    assert list(zip(*clips.places(np.arange(len(clips))), strict=True)) == expected
    for wrong in (-1, len(clips)):
        with pytest.raises(IndexError, match="there are 13"):
            clips.places(np.array([wrong]))


def test_index_of_100_000_hours(copy: Path) -> None:
    """10.8 billion frames at 30 Hz: the index is a few numbers per video, not per frame."""
    clips = Clips(copy, frames=3, stride=4)
    minutes = np.full(6_000_000, 30 * 60 - clips.span + 1)
    clips.ends = np.cumsum(minutes)
    clips.shards = clips.firsts = np.zeros(len(minutes), np.int64)
    assert len(clips) == 6_000_000 * 1792
    _, firsts = clips.places(np.array([0, 1791, 1792, len(clips) - 1]))
    assert firsts.tolist() == [0, 1791, 0, 1791]


def test_clip_longer_than_the_films(shards: Path) -> None:
    with pytest.raises(ValueError, match="13 frames that frames=4 stride=4 spans"):
        Clips(shards, frames=4, stride=4)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index"])
def test_damaged_shard(copy: Path, damage: str) -> None:
    path = copy / ("shard_00001.npy" if damage == "index" else "shard_00001.bin")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-32])
    elif damage == "delete":
        path.unlink()
    else:
        content[-8] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}.*tokenize"):
        Clips(copy, frames=1, stride=1)


def test_manifest_damaged_or_absent(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="pretraining.tokenize"):
        read_manifest(copy)


def test_films_are_resized_and_cropped(tmp_path: Path) -> None:
    write_film(tmp_path / "wide.mp4", seed=0, frames=2, width=96, height=64)
    frames = list(read_frames(tmp_path / "wide.mp4", 32))
    assert [frame.shape for frame in frames] == [(32, 32, 3)] * 2


def test_no_films(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="toto_robot.film"):
        list_sources(tmp_path, "auto")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(CorruptVideoError, match="text.mp4"):
        list(read_frames(tmp_path / "text.mp4", 32))
    with pytest.raises(ValueError, match="cannot be split"):
        decide_held_out(list_sources(tmp_path, "auto")[1], 0.1)
