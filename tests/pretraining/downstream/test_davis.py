"""DAVIS-2017 from folder to table, on a small set in the real layout."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import evaluate
from pretraining.downstream import davis
from pretraining.downstream.davis_data import (
    find_sequences,
    read_mask,
    score_folder,
    score_sequence,
    write_mask,
)
from tests.pretraining.downstream.davis_tiny import HEIGHT, WIDTH, write_davis
from toto_robot.backbone import load_backbone

OPTIONS = ["task=davis", "resolution=128", "device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_davis(tmp_path_factory.mktemp("davis"))


@pytest.fixture(scope="module")
def row(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate")
    evaluate.main([*OPTIONS, f"data={data}", f"out={out}", "films=1"])
    return out / "davis" / "toto-tiny"


def test_the_command_writes_a_row(row: Path) -> None:
    found = json.loads((row / "result.json").read_text())
    assert list(found["metrics"])[:2] == ["J&F_%", "J_%"]
    assert len(found["layers"]) == 9  # embeddings and eight blocks
    best = found["layers"][found["best_layer"]]["J&F_%"]
    assert best == found["metrics"]["J&F_%"]
    assert best["value"] == max(layer["J&F_%"]["value"] for layer in found["layers"])
    assert best["low"] <= best["value"] <= best["high"] and best["count"] == 3
    objects = found["extra"]["objects"]
    assert [(o["sequence"], o["object"]) for o in objects] == [
        ("one-square", 1),
        ("two-squares", 1),
        ("two-squares", 2),
    ]
    assert np.mean([o["J_%"] for o in objects]) == pytest.approx(found["metrics"]["J_%"]["value"])
    assert best["value"] > 50  # untrained weights: 39
    assert found["extra"]["rules"]["top_k"] == 10 and found["command"][3] == "task=davis"


def test_masks_on_disk_are_the_benchmarks(row: Path, data: Path) -> None:
    """Palette PNGs of every frame, the first one given; scored again they give the row."""
    found = json.loads((row / "result.json").read_text())
    masks = row / found["extra"]["masks"]
    assert [folder.name for folder in (row / "masks").iterdir()] == [masks.name]  # the best layer's
    sequences = find_sequences(data)
    for sequence in sequences:
        own = sorted(path.name for path in (masks / sequence.name).iterdir())
        assert own == [path.name for path in sequence.masks]
        with Image.open(masks / sequence.name / own[1]) as picture:
            assert picture.mode == "P" and picture.size == (WIDTH, HEIGHT)
            palette = picture.getpalette()
            assert palette is not None and palette[3:6] == [128, 0, 0]
        given = read_mask(sequence.masks[0])[0]
        assert np.array_equal(read_mask(masks / sequence.name / "00000.png")[0], given)
    again = davis.summarise(score_folder(sequences, masks), seed=0)
    assert again["J&F_%"].value == pytest.approx(found["metrics"]["J&F_%"]["value"])


def test_the_film(row: Path) -> None:
    with av.open(str(row / "films" / "one-square.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 6
    assert (frames[0].width, frames[0].height) == (2 * WIDTH + 4, HEIGHT + 18)


def test_training_shows(data: Path, tmp_path: Path) -> None:
    """The packaged weights against untrained ones, DINO's rules, one layer."""
    values = []
    for weights in (None, "random"):
        backbone = load_backbone("toto-tiny", weights=weights, all_layers=True)
        config = davis.Config(
            data=data, out=tmp_path, preset="dino", resolution=128, layers=(5,), films=0
        )
        result = davis.evaluate(config, backbone)
        assert result.best_layer == 5 and result.extra["layer_numbers"] == [5]
        values.append(result.metrics["J&F_%"].value)
    assert values[0] > values[1] + 10


def test_frames_begin_as_pictures_or_as_videos(data: Path) -> None:
    """The states of layers asked for, of the frame by itself, after either start token."""
    backbone = load_backbone("toto-tiny", all_layers=True)
    paths = find_sequences(data)[0].frames[:2]
    found = {
        name: davis.frame_states(paths, backbone, [0, 3], start)
        for name, start in davis.STARTS.items()
    }
    (first, second), (picture, _) = found["video"], found["image"]
    assert [state.shape for state in first] == [(256, 128)] * 2
    assert torch.equal(first[0], picture[0]) and not torch.allclose(first[1], picture[1])
    frame = davis.squeeze(np.array(Image.open(paths[1])), 128)
    torch.testing.assert_close(second[1], backbone.hidden_states(frame[None])[3][0])


def test_perfect_and_empty_predictions(data: Path, tmp_path: Path) -> None:
    sequence = find_sequences(data, only=("two-squares",))[0]
    shutil.copytree(sequence.masks[0].parent, tmp_path / sequence.name)
    assert all((score == 1).all() for score in score_sequence(sequence, tmp_path))
    for path in (tmp_path / sequence.name).iterdir():
        write_mask(path, np.zeros((HEIGHT, WIDTH), np.uint8), None)
    assert all((score == 0).all() for score in score_sequence(sequence, tmp_path))


def test_objects_that_leave_or_come_later(data: Path, tmp_path: Path) -> None:
    """Gone and not predicted: 1. Gone and predicted: 0. Ids above the first mask's and void: ground."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    sequence = find_sequences(root, only=("one-square",))[0]
    results = tmp_path / "results"
    shutil.copytree(sequence.masks[0].parent, results / sequence.name)
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in (2, 3):
        write_mask(sequence.masks[number], empty, None)
    write_mask(results / sequence.name / "00002.png", empty, None)
    later = read_mask(sequence.masks[4])[0]
    later[:8, -8:], later[-8:, -8:] = 2, 255
    write_mask(sequence.masks[4], later, None)
    similarity, accuracy = score_sequence(sequence, results)
    assert similarity.tolist() == [[1, 1, 0, 1]] and accuracy.tolist() == [[1, 1, 0, 1]]


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="val.txt"):
        find_sequences(tmp_path)
    with pytest.raises(ValueError, match="three-squares"):
        find_sequences(data, only=("three-squares",))
    root = tmp_path / "davis"
    shutil.copytree(data, root)
    (root / "JPEGImages/480p/one-square/00003.jpg").unlink()
    (root / "Annotations/480p/one-square/00003.png").unlink()
    (root / "Annotations/480p/one-square/00005.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"of 6 frames lacks .*00003.jpg.*03.png.*05.png$"):
        find_sequences(root)
    shutil.rmtree(root / "JPEGImages/480p/two-squares")
    with pytest.raises(FileNotFoundError, match=r"00000.jpg, .* and 3 more"):
        find_sequences(root, only=("two-squares",))


def test_damaged_and_wrong_files_are_named(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "davis"
    shutil.copytree(data, root)
    sequence = find_sequences(root, only=("one-square",))[0]
    backbone = load_backbone("toto-tiny", all_layers=True)
    config = davis.Config(
        data=root, out=tmp_path / "out", resolution=128, sequences=("one-square",)
    )
    frame = sequence.frames[2]
    frame.write_bytes(frame.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"00002.jpg cannot be read"):
        davis.evaluate(config, backbone)
    Image.new("RGB", (WIDTH, HEIGHT)).save(sequence.masks[0])
    with pytest.raises(ValueError, match=r"00000.png is a picture of mode RGB"):
        davis.evaluate(config, backbone)
    results = tmp_path / "results"
    shutil.copytree(data / "Annotations/480p/one-square", results / "one-square")
    other = find_sequences(data, only=("one-square",))[0]
    write_mask(results / "one-square/00001.png", np.full((HEIGHT, WIDTH), 2, np.uint8), None)
    with pytest.raises(ValueError, match="has id 2, objects are 1"):
        score_sequence(other, results)
    write_mask(results / "one-square/00001.png", np.zeros((8, 8), np.uint8), None)
    with pytest.raises(ValueError, match="8, 8"):
        score_sequence(other, results)
    (results / "one-square/00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001.png is not there"):
        score_sequence(other, results)


def test_options_are_checked(data: Path, tmp_path: Path) -> None:
    assert davis.Config(data=data, preset="dino", top_k=3).rules().top_k == 3
    assert davis.Config(data=data, first_everywhere=False).rules().first_everywhere is False
    for word, message in (
        ("layers=9", "has 0 .embeddings. to 8"),
        ("resolution=100", "multiple of 8 px"),
        ("neighbourhood=disc", "Did you mean 'disk'"),
    ):
        options = [*OPTIONS, word] if "resolution" not in word else ["task=davis", word]
        with pytest.raises(SystemExit, match=message):
            evaluate.main([*options, f"data={data}", f"out={tmp_path}"])
    for name, message in (("cnn", "no features until"), ("timm", "timm_name goes with")):
        with pytest.raises(SystemExit, match=message):
            evaluate.main(["task=davis", f"backbone={name}", f"data={data}"])
    named = davis.Config(data=data, backbone="timm", timm_name="vit_x", weights="random")
    assert named.folder("davis").name == "vit_x-random"
    with pytest.raises(SystemExit, match=r"mae-tiny has learned positions for 128 px"):
        evaluate.main(["task=davis", "backbone=mae-tiny", "resolution=256", f"data={data}"])
