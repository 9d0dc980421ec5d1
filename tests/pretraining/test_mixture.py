"""Mixtures: exact shares, whole epochs, the same batches for any number of ranks, refused mixes."""

import dataclasses
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pretraining import index, train
from pretraining.mixture import (
    Mixture,
    data_folders,
    open_mixture,
    parse_shares,
    to_counts,
)
from pretraining.samples import Batch, PictureSamples, ShardSamples, open_shards
from pretraining.shards import CodedVideo, Manifest, write_shard
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START
from toto_robot.backbone.tokenizers import load_tokenizer

TOKENS = 16
open_part = partial(open_shards, frames=2, stride=2)


def codes_of(source: int, frames: range) -> np.ndarray:
    """Frames that tell where they come from: data set, then their number in base 32."""
    codes = np.zeros((len(frames), TOKENS), np.uint16)
    codes[:, 0] = source
    codes[:, 1], codes[:, 2] = np.divmod(np.array(frames), 32)
    return codes


def frames_in(batch: Batch) -> list[tuple[int, int]]:
    """(data set, frame) of all frames in a batch."""
    codes = batch.codes.numpy().astype(int).reshape(-1, TOKENS)
    return list(zip(codes[:, 0].tolist(), (codes[:, 1] * 32 + codes[:, 2]).tolist(), strict=True))


def make_shards(
    folder: Path,
    tokenizer: Path,
    source: int,
    counts: list[int],
    kind: Literal["video", "image"] = "video",
) -> None:
    """One shard of videos with these numbers of frames; the last one is held out."""
    folder.mkdir(parents=True)
    _, info = load_tokenizer(tokenizer)
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        shutil.copyfile(tokenizer / name, folder / name)
    firsts = np.cumsum(counts) - counts
    clips = [
        CodedVideo(i, 0, 30.0, codes_of(source, range(first, first + n)))
        for i, (first, n) in enumerate(zip(firsts, counts, strict=True))
    ]
    shard = write_shard(folder, "shard_00000", clips)
    names, sha256 = [f"{i}" for i in range(len(counts))], info["sha256"]
    manifest = Manifest("dvae", sha256, 32, 32, 4, kind, videos=names, shards=[shard])
    manifest.held_out = [len(counts) - 1]
    manifest.save(folder)


@pytest.fixture(scope="module")
def data(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films and pictures: 37 clips of 2 frames (stride 2), 23 pictures, and what is held out."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "films", tokenizer, 1, [20, 21, 6])
    pictures = [1] * 23
    make_shards(folder / "pictures", tokenizer, 2, pictures + [4], kind="image")
    return folder


def opened(data: Path, mixture: str | None = None) -> tuple[Mixture, Mixture]:
    training, held_out = open_mixture(data, mixture, open_part)
    assert isinstance(training, Mixture) and isinstance(held_out, Mixture)
    return training, held_out


def test_shares_of_the_paper() -> None:
    counts = to_counts(parse_shares("paper"))
    assert counts == {"imagenet": 2, "kinetics600": 1, "ego4d": 1, "howto100m": 6}
    assert to_counts(parse_shares("a:1,b:0.5")) == {"a": 2, "b": 1}


@pytest.mark.parametrize("text", ["papr", "a", "a:x", "a:0", "a:1,b:-1", "a:1,a:2", "a:1,"])
def test_wrong_shares(text: str) -> None:
    with pytest.raises(ValueError, match="name:weight.*or one of paper"):
        parse_shares(text)


@pytest.mark.parametrize("weights", ["paper", "films:3,pictures:7", "films:1001,pictures:13"])
def test_shares_are_exact_and_own_numbers_whole(data: Path, weights: str) -> None:
    """In every cycle, and over several each data set sees its samples 0, 1, 2, … once each."""
    training, _ = opened(data)
    counts = to_counts(parse_shares(weights))
    parts = {name: training.parts["films"] for name in counts}
    mixture = Mixture(parts, counts)
    source, own = mixture.deal(5, np.arange(3 * mixture.cycle))
    for cycle in source.reshape(3, -1):
        assert np.bincount(cycle).tolist() == list(counts.values())
    for i, count in enumerate(counts.values()):
        assert sorted(own[source == i]) == list(range(3 * count))
    again, _ = mixture.deal(6, np.arange(3 * mixture.cycle))
    assert not np.array_equal(source, again), "another seed is another order"


def test_pictures_make_sequences(data: Path) -> None:
    """Each picture once in an epoch of pictures, also where 23 pictures do not divide into twos."""
    pictures = opened(data)[0].parts["pictures"]
    assert isinstance(pictures, PictureSamples) and len(pictures) == 11
    batch = pictures.draw(3, np.arange(23))
    assert batch.codes.shape == (23, 2, TOKENS) and batch.starts == IMAGE_START
    assert batch.sequence.shape == (23, 1 + 2 * TOKENS) and (batch.sequence[:, 0] == 3).all()
    seen = frames_in(batch)
    for epoch in (seen[:23], seen[23:]):
        assert sorted(epoch) == [(2, i) for i in range(23)]
    assert seen[:23] != seen[23:]
    fixed = frames_in(pictures.at(np.arange(11)))
    assert len(set(fixed)) == 22


def test_start_tokens_tell_pictures_from_films(data: Path) -> None:
    batch = opened(data)[0].draw(0, np.arange(64))
    kinds = batch.codes[:, 0, 0].long()
    assert set(kinds.tolist()) == {1, 2}
    expected = torch.where(kinds == 1, VIDEO_START, IMAGE_START)
    assert torch.equal(batch.sequence[:, 0], expected)
    clips = batch.codes[kinds == 1].long()
    assert (clips[:, 1, 2] - clips[:, 0, 2] + 32 * (clips[:, 1, 1] - clips[:, 0, 1]) == 2).all()


def test_no_clip_twice_in_its_epoch(data: Path) -> None:
    training, _ = opened(data, "films:0.7,pictures:0.3")
    films = training.parts["films"]
    assert isinstance(films, ShardSamples) and len(films) == 18 + 19
    batch = training.draw(1, np.arange(110))  # 11 cycles: 77 films, two epochs and a bit
    starts = [frame for frame in frames_in(Batch(batch.codes[:, :1])) if frame[0] == 1]
    assert len(starts) == 77
    assert max(Counter(starts).values()) == 3 and min(Counter(starts).values()) == 2
    assert len(Counter(starts)) == 37


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 3])
def test_any_number_of_ranks_sees_the_same_batch(data: Path, ranks: int, micro: int) -> None:
    training, _ = opened(data, "films:0.6,pictures:0.4")
    whole = training.draw(7, np.arange(24, 48)).sequence  # step 2 of batches of 12, and step 3
    shares = []
    for step in (2, 3):
        for rank in range(ranks):
            first, share = step * 12 + rank * (12 // ranks), 12 // ranks
            numbers = np.arange(first, first + share)
            shares += [
                training.draw(7, part) for part in np.split(numbers, range(micro, share, micro))
            ]
    assert torch.equal(torch.cat([batch.sequence for batch in shares]), whole)


def test_held_out_samples(data: Path) -> None:
    _, held_out = opened(data)
    assert len(held_out) == 4 + 2  # clips of the film of 6 frames; pairs of 4 pictures
    seen = frames_in(held_out.at(np.arange(6)))
    assert seen[:8] == [(1, 41 + i + j) for i in range(4) for j in (0, 2)]
    assert sorted(seen[8:]) == [(2, 23 + i) for i in range(4)]
    backwards = frames_in(held_out.at(np.arange(5, -1, -1)))
    assert backwards[-2:] == seen[:2]


def test_in_proportion_to_tokens(data: Path) -> None:
    assert opened(data)[0].counts == {"films": 47, "pictures": 27}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocabulary", 64),
        ("resolution", 64),
        ("tokens_per_side", 2),
        ("tokenizer_sha256", "0" * 64),
    ],
)
def test_refused_mixes(data: Path, key: str, value: Any) -> None:
    training, _ = opened(data)
    films = training.parts["films"]
    assert isinstance(films, ShardSamples)
    stranger = ShardSamples(films.clips)
    stranger.manifest = dataclasses.replace(films.manifest, **{key: value})
    with pytest.raises(ValueError, match=f"films and other cannot be mixed: {key} is"):
        Mixture({"films": films, "other": stranger}, {"films": 1, "other": 1})


def test_folders(data: Path, tmp_path: Path) -> None:
    assert list(data_folders(data)) == ["films", "pictures"]
    assert data_folders(data / "films") == {"films": data / "films"}
    several = Path(f"{data}/pictures,{data}/films")
    assert list(data_folders(several)) == ["pictures", "films"]
    with pytest.raises(FileNotFoundError, match="pretraining.tokenize"):
        data_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match="pretraining.tokenize"):
        data_folders(Path(f"{data}/pictures,{tmp_path}"))
    with pytest.raises(ValueError, match="same name"):
        data_folders(Path(f"{data}/films,{data}/films"))
    with pytest.raises(ValueError, match="no shards 'picture'.*Did you mean 'pictures'"):
        open_mixture(data, "films:1,picture:1", open_part)
    with pytest.raises(ValueError, match="4 pictures do not make one sequence of frames=5"):
        open_shards(data / "pictures", frames=5, stride=1)


def test_one_of_several_is_as_if_alone(data: Path) -> None:
    chosen, _ = open_mixture(data, "films:1", open_part)
    alone, _ = open_shards(data / "films", frames=2, stride=2)
    assert chosen.manifest_sha256 == alone.manifest_sha256
    numbers = np.arange(5)
    assert torch.equal(chosen.draw(0, numbers).sequence, alone.draw(0, numbers).sequence)


def test_training_on_a_mixture_resumes_exactly(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: str, **changes: Any) -> list[dict]:
        options: dict[str, Any] = {"model": "tiny", "layers": 1, "frames": 2, "stride": 2, "batch_size": 5,
                   "warmup": 1, "steps": 4, "eval_every": 3, "checkpoint_s": 0.0,
                   "mixture": "films:0.8,pictures:0.2", "threads": 1}  # fmt: skip
        train.main(train.Config(data=data, out=tmp_path / out, **options | changes))
        return [json.loads(x) for x in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]

    whole = run("whole")
    mean = 0.8 * whole[0]["held_out_loss_films"] + 0.2 * whole[0]["held_out_loss_pictures"]
    assert whole[0]["held_out_loss"] == pytest.approx(mean)
    original, calls = Mixture.draw, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "draw", failing)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    parts = run("parts")
    assert [x["loss"] for x in parts] == [x["loss"] for x in whole]
    with pytest.raises(ValueError, match="mixture: films:0.8,pictures:0.2 then, films:1,pict"):
        run("parts", mixture="films:1,pictures:1")


def test_sources_tokenized_now_mix_with_shards(
    shards: Path, films: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """An index of films beside shards of the same films: both halves of a batch hold their codes."""
    index.main(
        index.Config(
            data=films, tokenizer=tokenizer, out=tmp_path / "live", held_out=0.2, threads=1
        )
    )
    config = train.Config(
        model="tiny", data=Path(f"{shards},{tmp_path}/live"), out=tmp_path, steps=1, frames=2,
        mixture=f"{shards.name}:1,live:1", readers=1,
    )  # fmt: skip
    training, held_out = train.open_samples(config, torch.device("cpu"))
    assert isinstance(training, Mixture) and isinstance(held_out, Mixture)
    numbers = np.arange(8)
    source, own = training.deal(0, numbers)
    codes = training.draw(0, numbers).codes.long()
    alone, _ = open_shards(shards, frames=2, stride=4)
    assert len(alone) == len(training.parts["live"])
    assert np.bincount(source).tolist() == [4, 4]
    assert torch.equal(codes, alone.draw(0, own).codes.long())
    assert held_out.at(np.arange(2)).codes.shape == (2, 2, TOKENS)
