"""ImageNet's task on a small set in the real layout, with toto-tiny."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import evaluate
from pretraining.downstream.probes import accuracies, shuffled_rows

WNIDS = ("n01440764", "n01484850", "n01514668", "n02084071")
COLOURS = np.array([(230, 40, 40), (40, 200, 60), (50, 70, 230), (220, 210, 50)], np.uint8)
TIMM = ("backbone=timm", "backbone.timm_name=vit_tiny_patch16_224", "backbone.weights=random")
TILE, SIDE = 8, 8  # px, tiles


def plain(random: np.random.Generator, label: int) -> np.ndarray:
    """A square of the class's colour on a grey ground, somewhere."""
    picture = np.full((72, 64, 3), 128, np.uint8)
    top, left = random.integers(0, 40, 2)
    picture[top : top + 24, left : left + 24] = COLOURS[label]
    return picture


def clutter(random: np.random.Generator, label: int) -> np.ndarray:
    """Greyish tiles, one of which has the class's colour."""
    greys = random.integers(60, 200, (SIDE, SIDE, 1)) + random.integers(-25, 26, (SIDE, SIDE, 3))
    colours = greys.astype(np.uint8)
    row, column = random.integers(0, SIDE, 2)
    colours[row, column] = COLOURS[label]
    return colours.repeat(TILE, 0).repeat(TILE, 1)


def make_imagenet(root: Path, draw, train: int, validation: int) -> Path:
    """As Kaggle's archive unpacks: `train` and `validation` pictures of each of four classes."""
    random = np.random.default_rng(0)
    base = root / "ILSVRC/Data/CLS-LOC"
    rows = ["ImageId,PredictionString"]

    def save(path: Path, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(random, label)).save(path, "JPEG", quality=95, subsampling=0)

    for label, wnid in enumerate(WNIDS):
        for i in range(train):
            save(base / f"train/{wnid}/{wnid}_{i}.JPEG", label)
    for number in range(1, 4 * validation + 1):
        label = number % 4
        name = f"ILSVRC2012_val_{number:08d}"
        save(base / f"val/{name}.JPEG", label)
        rows.append(f"{name},{WNIDS[label]} 1 1 20 20 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


def run(data: Path, out: Path, *words: str) -> dict:
    evaluate.main(["task=imagenet", "backbone=toto-tiny", f"data={data}", f"out={out}",
                   f"cache={out.parent / 'features'}", "resolution=64", "threads=1", *words])  # fmt: skip
    (path,) = out.glob("imagenet/*/result.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def plain_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_imagenet(tmp_path_factory.mktemp("in1k"), plain, train=12, validation=5)


def test_every_layer_is_scored_and_corrupt_pictures_are_named(plain_set, tmp_path, capsys):
    base = plain_set / "ILSVRC/Data/CLS-LOC"
    (base / f"train/{WNIDS[1]}/{WNIDS[1]}_3.JPEG").write_bytes(b"no picture")
    broken = base / "val/ILSVRC2012_val_00000005.JPEG"
    broken.write_bytes(broken.read_bytes()[:500])
    result = run(plain_set, tmp_path / "out", "epochs=30", "pooling=mean")
    assert len(result["layers"]) == 9 and result["extra"]["layer_numbers"] == list(range(9))
    top1 = result["metrics"]["top1_%"]
    assert top1["count"] == 19 and top1["value"] == 100.0  # 4 colours: trivially separable
    assert top1["low"] < top1["value"]
    best = max(layer["top1_%"]["value"] for layer in result["layers"])
    assert result["layers"][result["best_layer"]]["top1_%"]["value"] == best == top1["value"]
    names = {Path(name).name for name in result["skipped"]}
    assert names == {f"{WNIDS[1]}_3.JPEG", "ILSVRC2012_val_00000005.JPEG"}
    assert (tmp_path / "out/imagenet/toto-tiny-mean-64px/layers.png").stat().st_size > 5000
    assert "top1_% 100 [" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("pooling=linear",), ("crops=2", "layers=0,4", "per_class=6")])
def test_other_ways_to_probe(plain_set, tmp_path, words):
    result = run(plain_set, tmp_path / "out", "epochs=30", *words)
    assert result["metrics"]["top1_%"]["value"] > 80
    if "crops=2" in words:
        assert result["extra"]["layer_numbers"] == [0, 4] and result["extra"]["pictures"] == 24


@pytest.mark.parametrize("mode", ["probe", "live"])
@pytest.mark.parametrize("words", [("backbone=mae-tiny",), TIMM], ids=["mae", "timm"])
def test_other_encoders_go_through_the_same_command(plain_set, tmp_path, words, mode):
    if words == TIMM:
        pytest.importorskip("timm")
    words = (*words, f"mode={mode}", "layers=0,4", "epochs=5", "rates=0.01", "label=other")
    out = tmp_path / "out"
    base = ("task=imagenet", f"data={plain_set}", f"out={out}", f"cache={tmp_path}", "threads=1")
    evaluate.main([*base, *words])
    result = json.loads((out / "imagenet/other/result.json").read_text())
    assert result["extra"]["layer_numbers"] == [0, 4] and result["metrics"]["top1_%"]["value"] > 80
    assert result["untrained"] == (words[: len(TIMM)] == TIMM)


@pytest.mark.parametrize("mode", ["live", "hybrid", "finetune"])
def test_whole_models_are_trained(plain_set, tmp_path, mode):
    words = (
        f"mode={mode}",
        "epochs=3",
        "lr=1e-3",
        "batch_size=8",
        "layers=0,8",
        "mixup=0",
        "cutmix=0",
    )
    result = run(plain_set, tmp_path / "out", *words)
    assert result["label"] == f"toto-tiny-64px-{mode}" and result["extra"]["mode"] == mode
    assert result["best_layer"] in (0, 8) and result["metrics"]["top1_%"]["value"] > 60


@pytest.mark.slow  # 600 pictures are encoded twice
def test_attention_finds_the_marked_tile_that_the_mean_dilutes(tmp_path):
    data = make_imagenet(tmp_path / "data", clutter, train=100, validation=50)
    found = {
        pooling: run(
            data,
            tmp_path / pooling,
            f"pooling={pooling}",
            "layers=2",
            "epochs=12",
            "rates=0.003,0.01",
        )  # fmt: skip
        for pooling in ("mean", "attention")
    }
    top1 = {pooling: result["metrics"]["top1_%"] for pooling, result in found.items()}
    assert top1["attention"]["value"] > top1["mean"]["value"] + 10


def test_validation_without_classes_is_refused(tmp_path):
    data = make_imagenet(tmp_path / "data", plain, train=1, validation=1)
    (data / "LOC_val_solution.csv").unlink()
    with pytest.raises(SystemExit, match="4 training and 0 labelled validation"):
        run(data, tmp_path / "out")


def test_accuracies_by_hand():
    logits = torch.tensor([[3.0, 2, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    found = accuracies(logits, torch.tensor([0, 1, 5]))
    assert found["top1_%"].value == pytest.approx(100 / 3)
    assert found["top5_%"].value == pytest.approx(200 / 3)
    assert found["top1_%"].low == pytest.approx(6.149, abs=0.01)  # Wilson, 1 of 3
    assert found["top1_%"].high == pytest.approx(79.234, abs=0.01)
    assert "top5_%" not in accuracies(torch.eye(4), torch.arange(4))


def test_views_of_a_picture_stay_together():
    kept = np.array([True] * 12)
    kept[5] = False
    rows = shuffled_rows(kept, 3, seed=1)
    assert sorted(rows) == [i for i in range(12) if i != 5]
    assert len(set((rows // 3).tolist())) == 4 and (np.diff(rows // 3) != 0).sum() == 3
