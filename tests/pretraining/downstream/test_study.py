"""The small study: what it draws is read as ImageNet and Kinetics, and what it counts is right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pretraining.datasets.imagenet import imagenet1k
from pretraining.datasets.kinetics import kinetics
from pretraining.downstream import study
from pretraining.downstream.study_data import MOTIONS, draw_motion
from pretraining.studies.shapes import SHAPES


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> study.Config:
    folder = tmp_path_factory.mktemp("study")
    config = study.Config(
        out=folder / "out",
        work=folder / "work",
        seeds=1,
        pictures=2,
        test_pictures=1,
        videos=2,
        test_videos=1,
        frames=4,
        video_px=64,
        own_epochs=1,
    )
    study.draw(config)
    return config


def test_pictures_are_an_imagenet(config):
    sources = imagenet1k(study.folder_of(config, "imagenet"))
    assert [s.label for s in sources if s.held_out] == list(range(8))
    assert [s.label for s in sources if not s.held_out] == [i // 2 for i in range(16)]


def test_videos_are_a_kinetics(config, capsys):
    sources = kinetics(study.folder_of(config, "kinetics"))
    assert sorted(s.label for s in sources if s.held_out) == list(range(8))  # type: ignore[type-var]
    assert "annotated clips are missing" not in capsys.readouterr().out
    part = study.read_part(config, "kinetics", held_out=False)
    assert part.pixels.shape == (16, 4, 32, 32, 3)
    assert part.classes.bincount().tolist() == [2] * 8


def shape_of(motion: str, seed: int) -> list[np.ndarray]:
    """Rows and columns that differ from the ground, of the first and the last of nine frames."""
    film = draw_motion(motion, np.random.default_rng(seed), 9, 64).astype(float)
    ground = np.median(film, axis=0)
    return [np.argwhere(np.abs(film[i] - ground).max(-1) > 40) for i in (0, -1)]


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_shape_moves_as_its_class_says(motion):
    right, down, turn, growth = MOTIONS[motion]
    if right or down:
        moved = []
        for seed in range(5):
            first, last = shape_of(motion, seed)
            moved.append(last.mean(0) - first.mean(0))
        along, across = np.array([down, right]), np.array([right, down])
        assert (np.array(moved) @ along > 6).all() and (abs(np.array(moved) @ across) < 2).all()
    else:
        assert (turn != 0) != (growth != 0)
    middles = [draw_motion(name, np.random.default_rng(7), 9, 64)[4] for name in (motion, "up")]
    assert (middles[0] == middles[1]).all()  # one frame says nothing of the motion


def test_frames_lie_side_by_side():
    clips = torch.arange(4, dtype=torch.uint8).view(1, 4, 1, 1, 1).expand(2, 4, 3, 5, 3)
    picture = study.as_one_picture(clips)
    assert picture.shape == (2, 3, 6, 10)
    corners = (picture[0, 0, ::3, ::5] + 1) * 127.5
    assert corners.round().tolist() == [[0, 1], [2, 3]]
    assert study.as_one_picture(clips[:, :1]).shape == (2, 3, 3, 5)
    assert study.as_one_token(clips).shape == (2, 1, 4 * 3 * 5 * 3)


@pytest.mark.parametrize("row", ["pixels", "cnn"])
def test_own_rows_are_written_as_all_rows_are(config, row):
    train, test = (study.read_part(config, "kinetics", held_out) for held_out in (False, True))
    study.fit_own(config, "kinetics", row, 0, train, test)
    content = json.loads((config.out / "kinetics" / f"{row}_s0" / "result.json").read_text())
    assert content["backbone"] is None and content["metrics"]["top1_%"]["count"] == 8
    assert content["extra"]["rate"] in (study.PIXEL_RATES if row == "pixels" else study.CNN_RATES)
    words = study.own_words(config, "kinetics", row, 0)
    assert study.is_done(config, "kinetics", row, 0, words)
    longer = study.own_words(replace(config, own_epochs=2), "kinetics", row, 0)
    assert not study.is_done(config, "kinetics", row, 0, longer)
    assert not study.is_done(config, "kinetics", row, 1, words)


def test_seeds_are_averaged_and_the_interval_is_of_the_test_examples():
    found = study.layer_of([40.0, 60.0], 100)
    assert (found["mean"], found["least"], found["most"]) == (50, 40, 60)
    assert found["low"] == pytest.approx(40.4, abs=0.1)  # Wilson, 50 of 100
    assert found["high"] == pytest.approx(59.6, abs=0.1)
    layers = [study.layer_of([value], 100) for value in (20.0, 30.0, 25.0)]
    summary = {"imagenet": {"toto-tiny": layers, "pixels": layers[:1]}}
    table = study.as_table(summary).splitlines()
    assert "| 1 of 2 | 30.0 [" in table[2] and table[2].endswith("| 25.0 |")
    assert "|  | 20.0 [" in table[3]
    assert len(SHAPES) == len(MOTIONS) == 8
