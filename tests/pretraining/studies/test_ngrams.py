"""n-grams: counts by hand, chunks that change nothing, and the command from shards to picture."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest

from pretraining.shards import Clips
from pretraining.studies import ngrams


def test_counts_by_hand():
    """Two frames; no pair reaches over from one into the other."""
    frames = np.array([[1, 2, 1, 2], [2, 2, 1, 9]])
    counts = ngrams.count_ngrams([frames], chunk=100)
    pairs = [ngrams.unpack(int(key), 2) for key in counts[2].keys]
    assert pairs == [[1, 2], [1, 9], [2, 1], [2, 2]]
    assert counts[2].counts.tolist() == [2, 1, 2, 1]
    triples = [ngrams.unpack(int(key), 3) for key in counts[3].keys]
    assert triples == [[1, 2, 1], [2, 1, 2], [2, 1, 9], [2, 2, 1]]
    found = ngrams.summarise(counts[1], order=1, vocabulary=10, top=2)
    assert found["distinct"] == 3 and found["total"] == 8 and found["once"] == 1
    assert found["share_of_possible"] == pytest.approx(0.3)
    assert found["top"] == [{"codes": [2], "count": 4}, {"codes": [1], "count": 3}]
    assert found["curve"] == {"rank": [1, 2, 3], "count": [4, 3, 1]}


@pytest.mark.parametrize("chunk", [1, 50, 10**9])
def test_chunks_change_nothing(chunk: int):
    """Against a counter of tuples, with the largest codes that fit into uint16."""
    random = np.random.default_rng(0)
    frames = random.choice([0, 1, 65534, 65535], size=(40, 16))
    counts = ngrams.count_ngrams(np.array_split(frames, 7), chunk)
    for order in ngrams.ORDERS:
        expected = collections.Counter(
            tuple(map(int, frame[i : i + order]))
            for frame in frames
            for i in range(len(frame) - order + 1)
        )
        found = zip(counts[order].keys, counts[order].counts, strict=True)
        assert {tuple(ngrams.unpack(int(k), order)): int(c) for k, c in found} == expected


def test_command(shards: Path, tmp_path: Path):
    ngrams.main(ngrams.Config(data=f"{shards},{shards}", out=tmp_path, split="all"))
    content = json.loads((tmp_path / "ngrams.json").read_text())
    (result,) = content["measured"].values()  # the same folder twice is one
    frames = sum(len(Clips(shards, frames=1, stride=1, held_out=h)) for h in (False, True))
    assert result["frames"] == frames == 60
    assert [result["ngrams"][n]["total"] for n in "123"] == [60 * 16, 60 * 15, 60 * 14]
    assert "read off" in content["published"]["source"]
    assert (tmp_path / "ngrams.png").stat().st_size > 1000


def test_evenly_spaced_frames(shards: Path, tmp_path: Path):
    config = ngrams.Config(data=str(shards), out=tmp_path, split="training", max_frames=10)
    frames = np.concatenate(list(ngrams.read_frames(shards, config)))
    clips = Clips(shards, frames=1, stride=1)
    chosen = np.linspace(0, len(clips) - 1, 10).round().astype(int)
    assert np.array_equal(frames, np.concatenate([clips[i] for i in chosen]))


def test_missing_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        ngrams.main(ngrams.Config(data=str(tmp_path / "nowhere"), out=tmp_path))
