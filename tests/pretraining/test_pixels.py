"""Tokenized on the fly: the same samples as from shards, whatever decodes them, and none by chance."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import index, tokenize, train
from pretraining.index import read_index, scan
from pretraining.pixels import Ahead, PixelSamples, crops_of, open_pixels, read_clip
from pretraining.samples import PictureSamples, ShardSamples
from pretraining.shards import Clips
from pretraining.sources import Source
from pretraining.video import Crop, frames_of, read_frames
from tests.pretraining.conftest import write_film, write_noise
from tests.pretraining.test_training import SMALL, losses


def open_live(folder: Path, **changes: object) -> tuple[PixelSamples, PixelSamples]:
    options = {
        "frames": 2,
        "stride": 4,
        "augment": "none",
        "device": torch.device("cpu"),
        "threads": 2,
        **changes,
    }
    return open_pixels(folder, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("held_out", [False, True])
def test_codes_are_those_of_the_shards(live: Path, shards: Path, held_out: bool) -> None:
    ours = open_live(live)[held_out]
    theirs = ShardSamples(Clips(shards, frames=2, stride=4, held_out=held_out))
    assert len(ours) == len(theirs)
    every = np.arange(len(theirs))
    batch, expected = ours.at(every), theirs.at(every)
    assert torch.equal(batch.codes, expected.codes.long())
    assert torch.equal(ours.draw(3, every + 5).codes, theirs.draw(3, every + 5).codes.long())
    assert batch.frames is not None and batch.frames.shape == (len(ours), 2, 32, 32, 3)


def test_training_is_that_on_shards(live: Path, shards: Path, tmp_path: Path) -> None:
    """Also in two parts, of which the second goes on from a checkpoint; bit by bit."""
    for data, out in ((shards, "shards"), (live, "live")):
        train.main(config(data, tmp_path / out))
    with pytest.MonkeyPatch.context() as patch:
        original, calls = Ahead.draw, []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(Ahead, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(config(live, tmp_path / "parts"))
    train.main(config(live, tmp_path / "parts", readers=1))
    assert len(losses(tmp_path / "live")) == 6
    assert losses(tmp_path / "live") == losses(tmp_path / "shards") == losses(tmp_path / "parts")


def config(data: Path, out: Path, **changes: object) -> train.Config:
    options = {"model": "tiny", "data": data, "out": out, "steps": 6, "layers": 2, **SMALL}
    return train.Config(**{**options, **changes})  # pyright: ignore[reportArgumentType]


def test_threads_and_batches_do_not_matter(wide: Path) -> None:
    """Random crops too follow from seed and number alone."""
    options = {"augment": "crop-mirror", "codes": False}
    numbers = np.arange(40, 52)
    at_once = open_live(wide, threads=3, **options)[0].draw(1, numbers).frames
    samples = open_live(wide, threads=1, **options)[0]
    parts = [numbers[:5], numbers[5:6], numbers[6:]]
    ahead = Ahead(samples, 1, iter(parts))
    one_by_one = [ahead.draw(1, part).frames for part in parts]
    assert at_once is not None
    assert torch.equal(at_once, torch.cat([f for f in one_by_one if f is not None]))
    other = samples.draw(2, numbers).frames
    assert other is not None and not torch.equal(at_once, other)


def test_draws_in_another_order_are_noticed(wide: Path) -> None:
    samples = open_live(wide, codes=False)[0]
    ahead = Ahead(samples, 0, [np.arange(2), np.arange(2, 4)])
    with pytest.raises(AssertionError, match="out of order"):
        ahead.draw(0, np.arange(2, 4))


def test_crops(wide: Path, tmp_path: Path) -> None:
    source = read_index(wide)[0].source(0)
    whole = next(f.to_ndarray(format="rgb24") for f in frames_of(source))
    none = np.empty((0, 2), np.int64)
    for crop, left in ((Crop(), 16), (Crop(0.0, 0.0), 0), (Crop(0.999, 0.999), 32)):
        assert np.array_equal(read_clip(source, [0], none, 32, crop)[0], whole[:, left : left + 32])
    mirrored = read_clip(source, [0], none, 32, Crop(mirrored=True))[0]
    assert np.array_equal(mirrored, whole[:, 47:15:-1])
    drawn = crops_of(0, np.arange(1000), "crop-mirror")
    assert 450 < sum(crop.mirrored for crop in drawn) < 550
    for places in ([crop.down for crop in drawn], [crop.right for crop in drawn]):
        counts = np.histogram(np.array(places, float), bins=4, range=(0, 1))[0]
        assert counts.min() > 200
    assert not any(crop.mirrored for crop in crops_of(0, np.arange(50), "crop"))


@pytest.mark.parametrize("options", [{}, {"x264-params": "open-gop=1"}, {"bf": "0", "g": "1"}])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_seeking_finds_the_same_frames(tmp_path: Path, options: dict, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    write_noise(path, frames=40, width=32, **options)
    source = Source("film", path, "video", path.stat().st_size)
    found = scan(source)
    assert found.frames == 40 and len(found.keyframes) >= 40 // 7
    whole = list(read_frames(path, 32))
    for first in range(0, 36):
        clip = read_clip(source, [first, first + 4], np.array(found.keyframes), 32)
        assert np.array_equal(clip, np.stack([whole[first], whole[first + 4]])), first
    with pytest.raises(ValueError, match="film does not give frames 39 to 40, which were"):
        read_clip(source, [39, 40], np.array(found.keyframes), 32)


def test_corrupt_films_are_in_the_index_and_never_drawn(
    films: Path, tokenizer: Path, shards: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(films, tmp_path / "films")
    content = (data / "wrist" / "clip_1.mp4").read_bytes()
    (data / "wrist" / "clip_1.mp4").write_bytes(content[: len(content) // 2])
    (data / "wrist" / "empty.mp4").write_bytes(b"")
    options = index.Config(data=data, tokenizer=tokenizer, out=tmp_path / "live", held_out=0.4)
    index.main(options)
    found, _ = read_index(tmp_path / "live")
    assert set(found.skipped) == {"wrist/clip_1.mp4", "wrist/empty.mp4"}
    assert all("cannot be decoded" in reason for reason in found.skipped.values())
    training, held_out = open_live(tmp_path / "live")
    assert len(training) + len(held_out) == 4 * (12 - 4)
    training.at(np.arange(len(training)))


@pytest.mark.parametrize("layout", ["images", "webdataset"])
def test_pictures_are_those_of_the_shards(tokenizer: Path, tmp_path: Path, layout: str) -> None:
    """Sequences of pictures drawn alike; one that is damaged is in neither."""
    data = tmp_path / "pictures"
    data.mkdir()
    random = np.random.default_rng(0)
    for i in range(20):
        picture = random.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(picture).save(data / f"{i}.png")
    (data / "7.png").write_bytes((data / "7.png").read_bytes()[:3000])
    if layout == "webdataset":
        (tmp_path / "tars").mkdir()
        with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
            for path in sorted(data.iterdir()):
                archive.add(path, path.name)
        data = tmp_path / "tars"
    common = {"data": data, "tokenizer": tokenizer, "held_out": 0.2}
    index.main(index.Config(**common, out=tmp_path / "live"))
    tokenize.main(tokenize.Config(**common, out=tmp_path / "shards"))
    for held_out, ours in enumerate(open_live(tmp_path / "live", frames=3)):
        clips = Clips(tmp_path / "shards", frames=1, stride=1, held_out=bool(held_out))
        theirs = PictureSamples(clips, 3)
        assert len(ours) == len(theirs) == (1 if held_out else 5)
        for seed, numbers in ((0, np.arange(len(ours))), (4, np.arange(9, 19))):
            batch, expected = ours.draw(seed, numbers), theirs.draw(seed, numbers)
            assert torch.equal(batch.sequence, expected.sequence)
        every = np.arange(len(ours))
        assert torch.equal(ours.at(every).codes, theirs.at(every).codes.long())


def test_changed_films_and_index(live: Path, films: Path, tmp_path: Path) -> None:
    data = shutil.copytree(films, tmp_path / "films")
    copy = shutil.copytree(live, tmp_path / "live")
    content = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(content | {"root": str(data)}))
    assert read_index(copy)[0].digest() == read_index(live)[0].digest()  # films may move
    write_film(data / "wrist" / "clip_2.mp4", seed=9, frames=30)
    with pytest.raises(ValueError, match="clip_2.mp4 has .* bytes, it had"):
        read_index(copy)
    (data / "wrist" / "clip_2.mp4").unlink()
    with pytest.raises(ValueError, match="clip_2.mp4 is gone"):
        read_index(copy)
    (copy / "index.json").write_text(json.dumps(content | {"held_out": [0]}))
    with pytest.raises(ValueError, match="SHA-256"):
        read_index(copy)


def test_wrong_combinations(live: Path, shards: Path, films: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="augment=crop needs pixels"):
        train.main(config(shards, tmp_path, augment="crop"))
    with pytest.raises(ValueError, match="no video of 13 frames, which frames=4 stride=4"):
        open_live(live, frames=4)
    with pytest.raises(SystemExit, match="give tokenizer"):
        index.main(index.Config(data=films, out=tmp_path))
