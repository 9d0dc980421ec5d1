"""The tables end to end on a few drawn shapes; intervals, labels and costs by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretraining.probing import Split, fit_classes
from pretraining.studies import (
    architectures,
    common,
    labelled,
    pooling,
    resolution,
    shapes,
    tokenizers,
)
from pretraining.video import read_frames
from toto_robot.backbone.models import model_config
from toto_robot.backbone.patches import to_patches
from toto_robot.backbone.tokenizers import save_tokenizer
from toto_robot.backbone.vqgan import VQGAN, VQGANConfig

SMALL: dict[str, Any] = {"steps": 4, "batch_size": 4, "seeds": 2, "epochs": 2, "held_out": 0.4, "threads": 1,
         "resolution": 32, "layers": 2}  # fmt: skip


def small(**changes: Any) -> dict[str, Any]:
    return SMALL | changes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.main(shapes.Config(out=folder, videos=3, frames=2, size=64))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def read(path: Path) -> dict:
    assert path.with_suffix(".png").stat().st_size > 1000
    return json.loads(path.read_text())


def test_shapes_do_not_give_their_class_away_by_their_mean_colour():
    """A linear classifier of mean and spread of the colours stays near chance, 12.5 %."""
    features, classes = [], []
    for number, name in enumerate(shapes.SHAPES):
        for i in range(40):
            random = np.random.default_rng((1, number, i))
            picture = shapes.draw_video(name, random, frames=1, size=16)[0].reshape(-1, 3)
            features.append(np.concatenate([picture.mean(0), picture.std(0)]) / 255)
            classes.append(number)
    order = np.random.default_rng(0).permutation(len(classes))
    x = torch.tensor(np.array(features), dtype=torch.float32)[order, None]
    y = torch.tensor(classes)[order]
    split = Split(x[:240], y[:240], x[240:], y[240:])
    logits, _ = fit_classes(split, len(shapes.SHAPES), "mean", lambda part: part, 6, epochs=15)
    assert (logits.argmax(1) == split.test_y).float().mean() < 0.3


def test_shapes_are_the_same_again_and_move(pictures: Path):
    assert sorted(p.name for p in pictures.iterdir()) == sorted(shapes.SHAPES)
    frames = list(read_frames(pictures / "star" / "0001.mp4", 64))
    drawn = shapes.draw_video(
        "star", np.random.default_rng((0, list(shapes.SHAPES).index("star"), 1)), 2, 64
    )
    error = np.abs(np.stack(frames).astype(float) - drawn).mean()
    assert len(frames) == 2 and error < 6
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 50


def test_plain_shapes_are_light_on_dark():
    picture = shapes.draw_video("disc", np.random.default_rng(0), 1, 64, plain=True)[0]
    corner, brightest = picture[0, 0], picture.reshape(-1, 3).max(0)
    assert (corner < 60).all() and (brightest >= 190).all()
    share = (picture.min(2) > 125).mean()  # a disc of radius 0.75 r, r 0.2 to 0.36 of the side
    assert np.pi * 0.15**2 * 0.9 < share < np.pi * 0.27**2 * 1.1


def test_orders():
    random = np.random.default_rng(0)
    good, bad = random.random((2, 300)) < 0.9, random.random((2, 300)) < 0.5
    rows = {"a": {"name": "a", "correct": good}, "b": {"name": "b", "correct": bad}}
    assert common.compare(rows["a"], rows["b"])["here"] == "as published"
    assert common.compare(rows["b"], rows["a"])["here"] == "the other way round"
    assert common.compare(rows["a"], rows["a"])["here"] == "undecided"


def test_pooling(pictures: Path, tokenizer: Path, out: Path):
    config = pooling.Config(data=pictures, tokenizer=tokenizer, out=out, **SMALL)
    pooling.main(config)
    result = read(out / "pooling.json")
    assert [row["pooling"] for row in result["rows"]] == ["mean", "attention"]
    assert result["chance"] == 1 / 8 and len(list((out / "runs").iterdir())) == 2
    for row in result["rows"]:
        assert len(row["top1_of_seeds"]) == 2 and row["low"] <= row["top1"] <= row["high"]
        assert row["pictures"] == 10 and row["tokens"] == "4x4"
    # Nothing is done twice.
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.parent.name in ("runs", "probes")}
    weights = {p: p.stat().st_mtime_ns for p in out.rglob("backbone.safetensors")}
    pooling.main(config)
    assert files == {p: p.stat().st_mtime_ns for p in files}
    assert weights == {p: p.stat().st_mtime_ns for p in weights}
    assert read(out / "pooling.json") == result


def test_resolution(pictures: Path, tokenizer: Path, out: Path):
    options = small(seeds=1, resolution=16, untrained=False)
    resolution.main(resolution.Config(data=pictures, tokenizer=tokenizer, out=out, **options))
    rows = read(out / "resolution.json")["rows"]
    assert [row["tokens"] for row in rows] == ["2x2", "4x4", "4x4", "4x4"]
    low, high, tuned, turned = (row["paper_unit"] for row in rows)
    assert high == pytest.approx(4 * low) and tuned == turned == pytest.approx(2 * low)
    runs = [json.loads(p.read_text()) for p in (out / "runs").glob("*/backbone.json")]
    started = [run for run in runs if run["trained"]["init_from"] != "None"]
    assert sorted(run["decoder"]["rope_base"] for run in started) == [10_000, 50_000]


def test_costs_of_table_4():
    """Its compute column is (16 L d^2 + 8192 d) times pictures: 1.42e17 for 400 epochs."""
    large = model_config("large")
    parts = common.forward_flops(large, 256)
    macs = (parts["linear"] + parts["head"]) / 2
    assert macs * 1_281_167 * 400 == pytest.approx(1.42e17, rel=0.003)


def test_architectures_have_equal_blocks():
    llama = model_config("tiny")
    wanted = llama.layers * architectures.block_parameters(llama)
    for name in ("gpt2-tiny", "mamba-tiny"):
        config = model_config(name)
        depth = architectures.matched_layers(name, llama)
        assert depth * architectures.block_parameters(config) == pytest.approx(wanted, rel=0.06)


@pytest.mark.slow
def test_architectures(pictures: Path, tokenizer: Path, out: Path):
    options = small(seeds=1)
    architectures.main(architectures.Config(data=pictures, tokenizer=tokenizer, out=out, **options))
    rows = read(out / "architectures.json")["rows"]
    assert [row["model"] for row in rows] == ["gpt2-tiny", "mamba-tiny", "tiny"]


@pytest.mark.slow
def test_tokenizers(pictures: Path, tokenizer: Path, out: Path):
    narrow = VQGANConfig(vocabulary=32, channels=32, multipliers=(1, 1, 2), blocks=1,
                         attention_levels=(), code_channels=8)  # fmt: skip
    save_tokenizer(VQGAN(narrow).eval(), out / "vqgan", resolution=32)
    tokenizers.main(
        tokenizers.Config(
            data=pictures, dvae=tokenizer, vqgan=str(out / "vqgan"), out=out, **small(seeds=1)
        )
    )
    result = read(out / "tokenizers.json")
    reads = [(row["reads"], row["predicts"], row["tokens"]) for row in result["rows"]]
    assert reads == [("codes", "code", "8x8"), ("codes", "code", "8x8"), ("codes", "code", "4x4"),
                     ("patches of 8 px", "patch", "4x4"), ("patches of 8 px", "code", "4x4")]  # fmt: skip
    assert len(result["orders"]) == 4


def test_features_on_the_fly_are_the_cached_ones(pictures: Path, tokenizer: Path, out: Path):
    """A cache too small for them changes no answer but for float16."""
    config = pooling.Config(data=pictures, tokenizer=tokenizer, out=out, **SMALL)
    options = common.pretrain(pooling.rows(config)[1], 0, config)
    model, _ = common.load_whole(options.out, options.data)
    held_out = labelled.labelled(options.data, held_out=True, per_video=1, seed=0)
    cpu = torch.device("cpu")
    prepare = labelled.features_of(model, options.data, 1, cpu)
    kept = []
    for cache_gb in (1.0, 0.0):
        x, read_x = labelled.cached(prepare, held_out.inputs, "attention", cache_gb, cpu)
        kept.append(read_x(x))
    assert torch.allclose(kept[0], kept[1], atol=1e-2)
    expected = model.hidden_states(model.sequence(held_out.inputs), 1)[1][:, 1:]
    assert torch.allclose(kept[1], expected, atol=2e-2)


def test_labels_come_from_folders(pictures: Path, tokenizer: Path, out: Path):
    config = pooling.Config(data=pictures, tokenizer=tokenizer, out=out, **SMALL)
    shards = common.data_of(pooling.rows(config)[0], config)
    train = labelled.labelled(shards, held_out=False, per_video=2, seed=0)
    test = labelled.labelled(shards, held_out=True, per_video=1, seed=0)
    assert len(train.inputs) == 28 and len(test.inputs) == 10 and train.num_classes == 8
    assert max(Counter(train.classes.tolist()).values()) <= 6
    assert torch.equal(train.classes[::2], train.classes[1::2]), "pictures of a video together"
    other = labelled.labelled(shards, held_out=False, per_video=2, seed=1)
    assert not torch.equal(train.classes, other.classes), "another order of videos"
    manifest = labelled.manifest_of(shards)
    names = sorted(shapes.SHAPES)
    held_out = [manifest.videos[i].split("/")[0] for i in sorted(manifest.held_out)]
    assert [names[c] for c in test.classes] == held_out


def test_rows_that_read_pixels(pictures: Path, tokenizer: Path, out: Path):
    """Their index holds out the same videos, and a probe reads the patches of the right frame."""
    config = tokenizers.Config(data=pictures, dvae=tokenizer, vqgan="", out=out, **small(seeds=1))
    rows = {row.name: row for row in tokenizers.rows(config)}
    options = common.pretrain(rows["patch to patch"], 0, config)
    index = labelled.manifest_of(options.data)
    shards = labelled.manifest_of(common.data_of(rows[tokenizers.FEW], config))
    assert [index.videos[i] for i in index.held_out] == [shards.videos[i] for i in shards.held_out]
    assert index.resolution == 32 and rows["patch to patch"].patch == 8
    test = labelled.labelled(options.data, held_out=True, per_video=1, seed=0)
    model, _ = common.load_whole(options.out, options.data)
    states = labelled.features_of(model, options.data, 0, torch.device("cpu"))(test.inputs[:1])
    video, frame = test.inputs[0].tolist()
    picture = list(read_frames(pictures / index.videos[video], 32))[frame]
    patches = to_patches(torch.from_numpy(picture)[None], 8)
    assert torch.allclose(states, model.embedding(model.sequence(patches))[:, 1:], atol=2e-2)
