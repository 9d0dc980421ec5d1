"""Features on disk: equal to the backbone's own, never stale, whole after a kill."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretraining.downstream import features as module
from pretraining.downstream.clips import Clip, View, read_clip
from pretraining.downstream.features import FeatureOptions, cached_features, to_grid
from pretraining.sources import Source, images, videos
from pretraining.video import Crop
from toto_robot.backbone import FrozenBackbone, load_backbone
from toto_robot.backbone.causal import IMAGE_START


@pytest.fixture(scope="module")
def tiny() -> FrozenBackbone:
    return load_backbone("toto-tiny", all_layers=True, readout="tokens").at_resolution(
        32
    )  # 16 tokens


@pytest.fixture
def pictures(tmp_path: Path) -> list[Source]:
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.png")
    return images(folder)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that were given to the backbone, call by call; two of them are a chunk."""
    counts, real = [], module.encode

    def counting(backbone, frames, *rest):
        counts.append(len(frames))
        return real(backbone, frames, *rest)

    monkeypatch.setattr(module, "encode", counting)
    monkeypatch.setattr(module, "CHUNK_ROWS", 2)
    return counts


def clips_of(sources: list[Source], **view) -> list[Clip]:
    return [Clip(source, View(**view)) for source in sources]


def test_pictures_give_the_states_of_every_layer_once(tiny, pictures, tmp_path, encoded):
    options = FeatureOptions(folder=tmp_path / "cache")
    found = cached_features(tiny, clips_of(pictures), options)
    assert sum(encoded) == 5 and list(found.layers) == list(range(9)) and found.kept.all()
    frames = torch.from_numpy(np.stack([read_clip(Clip(s), 32) for s in pictures]))
    expected = tiny.hidden_states(frames)
    for layer, rows in found.layers.items():
        assert rows.shape == (5, 16, 128)
        assert torch.equal(found.rows(layer, np.arange(5)), expected[layer].half().float())
    again = cached_features(tiny, clips_of(pictures), options)
    assert sum(encoded) == 5 and np.array_equal(again.layers[8], found.layers[8])


def test_a_clip_is_one_sequence_and_images_are_read_one_by_one(tiny, films, tmp_path):
    sources = videos(films)[:2]
    options = FeatureOptions(folder=tmp_path, layers=(4,), grid=2)
    found = cached_features(tiny, clips_of(sources, frames=3, stride=4), options)
    frames = torch.from_numpy(np.stack([read_clip(Clip(s, View(frames=3, stride=4)), 32) for s in sources]))  # fmt: skip
    expected = to_grid(tiny.hidden_states(frames)[4], 3, 2)
    assert found.layers[4].shape == (2, 12, 128)
    assert torch.allclose(found.rows(4, [0, 1]), expected, atol=0.02, rtol=0.002)
    mae = load_backbone("mae-tiny", all_layers=True)
    one = cached_features(mae, clips_of(sources), replace(options, layers=(2,)))
    all3 = cached_features(
        mae, clips_of(sources, frames=3, stride=1), replace(options, layers=(2,))
    )
    assert all3.layers[2].shape[1] == 12
    middle = all3.rows(2, [0, 1])[:, 4:8]  # of frames 4, 5, 6 of 12
    assert torch.allclose(middle, one.rows(2, [0, 1]), atol=0.05)


def test_grid_averages_each_frame_by_hand():
    state = torch.arange(2 * 16.0).view(1, 32, 1)  # two frames of 4 x 4
    assert to_grid(state, 2, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    assert to_grid(state, 2, None) is state


def test_every_change_gives_new_features(tiny, pictures, tmp_path, encoded):
    options = FeatureOptions(folder=tmp_path / "cache", layers=(0, 3))

    def made(backbone=tiny, clips=None, options=options) -> int:
        before = sum(encoded)
        cached_features(backbone, clips or clips_of(pictures), options)
        return sum(encoded) - before

    assert made() == 5 and made() == 0
    other = load_backbone("random-tiny", all_layers=True, readout="tokens")
    assert made(other.at_resolution(32)) == 5
    other.trunk.blocks[0].attention_norm.weight.data += 0.5  # the same name and hash, other tensors
    assert made(other.at_resolution(32)) == 5
    assert made(tiny.at_resolution(64)) == 5
    assert made(clips=clips_of(pictures, crop=Crop(0.0, 0.0))) == 5
    assert made(clips=clips_of(pictures[:4])) == 4
    assert made(options=replace(options, grid=2)) == 5
    assert made(options=replace(options, start=IMAGE_START)) == 5
    assert made(options=replace(options, layers=(0, 2, 3))) == 5  # layer 2 alone is written
    assert made(options=replace(options, layers=(2, 3))) == 0
    status = pictures[0].path.stat()
    os.utime(pictures[0].path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert made() == 5


def test_a_new_preprocessing_gives_new_features(tiny, pictures, tmp_path, encoded, monkeypatch):
    options = FeatureOptions(folder=tmp_path / "cache", layers=(0,))
    cached_features(tiny, clips_of(pictures), options)
    monkeypatch.setattr(module, "PREPROCESSING", -1)
    cached_features(tiny, clips_of(pictures), options)
    assert sum(encoded) == 10


def test_an_interrupted_write_goes_on(tiny, pictures, tmp_path, encoded, monkeypatch):
    options = FeatureOptions(folder=tmp_path / "cache", layers=(0, 3))
    whole = cached_features(tiny, clips_of(pictures), replace(options, folder=tmp_path / "whole"))
    counting, calls = module.encode, len(encoded)

    def killed(*arguments):
        if len(encoded) - calls == 2:
            raise KeyboardInterrupt
        return counting(*arguments)

    monkeypatch.setattr(module, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_features(tiny, clips_of(pictures), options)
    monkeypatch.setattr(module, "encode", counting)
    found = cached_features(tiny, clips_of(pictures), options)
    assert encoded[calls:] == [2, 2, 1]
    assert all(np.array_equal(found.layers[i], whole.layers[i]) for i in (0, 3))


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "deleted", "journal cut"])
def test_a_torn_file_is_noticed(tiny, pictures, tmp_path, encoded, damage, capsys):
    options = FeatureOptions(folder=tmp_path / "cache", layers=(3,))
    found = cached_features(tiny, clips_of(pictures), options)
    whole = np.array(found.layers[3])
    (path,) = tmp_path.glob("cache/*/layer_03.f16")
    if damage == "truncated":
        os.truncate(path, 2 * 2 * 16 * 128 + 7)  # all rows of the first chunk
    elif damage == "overwritten":
        with open(path, "r+b") as file:
            file.seek(2 * 4 * 16 * 128 + 100)  # in the last row
            file.write(b"garbage")
    elif damage == "deleted":
        path.unlink()
    else:
        journal = path.with_suffix(".jsonl")
        journal.write_bytes(journal.read_bytes()[:-9])
    del found
    again = cached_features(tiny, clips_of(pictures), options)
    made = {"truncated": [2, 1], "overwritten": [1], "deleted": [2, 2, 1], "journal cut": [1]}
    assert encoded[3:] == made[damage] and np.array_equal(again.layers[3], whole)
    assert ("damaged" in capsys.readouterr().out) == (damage != "journal cut")
    cached_features(tiny, clips_of(pictures), options)
    assert encoded[3:] == made[damage]  # and it is whole again


def test_corrupt_clips_are_named_and_their_rows_left_out(tiny, pictures, tmp_path, films):
    pictures[1].path.write_bytes(b"no picture")
    sources = images(pictures[0].path.parent)
    options = FeatureOptions(folder=tmp_path / "cache", layers=(2,))
    for _ in range(2):  # made, and found from before
        found = cached_features(tiny, clips_of(sources), options)
        assert found.kept.tolist() == [True, False, True, True, True]
        assert list(found.skipped) == ["1.png"] and "is no picture" in found.skipped["1.png"]
    film = tmp_path / "films" / "torn.mp4"
    film.parent.mkdir()
    film.write_bytes(videos(films)[0].path.read_bytes()[:900])
    clips = clips_of([*videos(films)[:1], *videos(film.parent)], frames=2, stride=1)
    found = cached_features(tiny, clips, options)
    assert list(found.skipped) == ["torn.mp4"] and found.kept.tolist() == [True, False]
    with pytest.raises(ValueError, match="none of the 1 features can be read"):
        cached_features(tiny, clips[1:], options)


def test_sizes_are_told_and_too_large_ones_refused(tiny, pictures, tmp_path, capsys):
    options = FeatureOptions(folder=tmp_path / "cache", limit_gb=1e-4)
    with pytest.raises(ValueError, match=r"take 0.000184 GB.*cache_gb=0.0001.*grid=2 fits"):
        cached_features(tiny, clips_of(pictures), options)
    assert "5 x 9 layers x 16 tokens x 128 = 0.000184 GB in" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    found = cached_features(tiny, clips_of(pictures), replace(options, grid=2))
    assert found.layers[8].shape == (5, 4, 128)
    (key,) = tmp_path.glob("cache/*/key.json")
    assert json.loads(key.read_text())["grid"] == 2


def test_frames_of_a_view_by_hand():
    assert View().places(9) == [4]
    assert View(frames=4, stride=2).places(11) == [2, 4, 6, 8]
    assert View(frames=4, stride=2, share=0.0).places(11) == [0, 2, 4, 6]
    assert View(frames=4, stride=2, share=1.0).places(11) == [4, 6, 8, 10]
    assert View(frames=4, stride=2).places(4) == [0, 2, 3, 3]  # the last frame stays
    assert View(frames=4).places(10) == [0, 3, 6, 9]


def test_other_resolutions_are_for_causal_models(tiny):
    assert tiny.at_resolution(64).tokens_per_side == 8 and tiny.tokens_per_side == 4
    with pytest.raises(ValueError, match="expected a multiple of 8 px"):
        tiny.at_resolution(60)
    with pytest.raises(ValueError, match="mae-tiny has learned positions"):
        load_backbone("mae-tiny").at_resolution(64)
