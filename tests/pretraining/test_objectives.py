"""Training on patches: from films to frozen features, stopped, resumed, sharded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining import train
from pretraining.export import decoder_part
from pretraining.index import Index
from pretraining.objectives import with_objective
from pretraining.pixels import Ahead
from tests.pretraining.test_distributed import assert_alike, metrics, run
from tests.pretraining.test_pixels import config, open_live
from tests.pretraining.test_training import losses
from toto_robot.backbone import load_backbone
from toto_robot.backbone.models import MODELS, config_from_json, make_model
from toto_robot.backbone.patches import to_patches
from toto_robot.backbone.precision import fast_matmul
from toto_robot.backbone.weights import read_weights, sha256_of

PATCHES = {"objective": "patch", "patch": 8, "augment": "crop"}


@pytest.fixture(scope="module")
def uninterrupted(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train.main(config(wide, out, **PATCHES))
    return out


def test_stopped_and_resumed_equals_uninterrupted(
    wide: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = Ahead.draw, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(Ahead, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(config(wide, tmp_path, **PATCHES))
    train.main(config(wide, tmp_path, **PATCHES, readers=1))
    assert losses(tmp_path) == losses(uninterrupted) and len(losses(tmp_path)) == 6
    digests = [sha256_of(p / "backbone.safetensors") for p in (tmp_path, uninterrupted)]
    assert digests[0] == digests[1]


def test_exported_backbone_has_the_states_of_the_trained_model(
    wide: Path,
    uninterrupted: Path,
) -> None:
    tensors, about = read_weights(uninterrupted / "backbone.safetensors")
    assert about["tokenizer_kind"] == "patches" and about["tokens_seen"] == 6 * 2 * 2 * 16
    trained = make_model(config_from_json("llama", about["decoder"], "here"))
    trained.load_state_dict(decoder_part(tensors, tied=False))
    frames = open_live(wide, codes=False)[1].at(np.arange(3)).frames
    assert frames is not None
    backbone = load_backbone("toto-tiny", weights=str(uninterrupted), layer=2, all_layers=True,
                             grid=2)  # fmt: skip
    assert backbone(frames).shape == (3, 2, 4, 128) and not backbone.untrained
    patches = to_patches(frames.flatten(0, 1), 8).unflatten(0, (3, 2))
    with torch.no_grad(), fast_matmul("cpu"):
        expected = trained.hidden_states(trained.sequence(patches))
    states = backbone.hidden_states(frames)
    assert len(states) == len(expected) == 3
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs[:, 1:].float())


def test_codes_from_patches(live: Path, tmp_path: Path) -> None:
    train.main(config(live, tmp_path, objective="patch-code", steps=30, lr=3e-3, checkpoint_s=1e9))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 1
    about = read_weights(tmp_path / "backbone.safetensors")[1]
    assert about["decoder"]["patch"] == 8 and about["decoder"]["predicts"] == "code"
    backbone = load_backbone("toto-tiny", weights=str(tmp_path), layer=1, readout="mean")
    assert backbone(torch.zeros(2, 50, 40, 3, dtype=torch.uint8)).shape == (2, 128)


def test_two_ranks_equal_one(wide: Path, tmp_path: Path) -> None:
    """FSDP2 and videos decoded by each rank for itself."""
    options = {**PATCHES, "steps": 4, "batch_size": 4, "precision": "float32"}
    train.main(config(wide, tmp_path / "one", **options))
    assert_alike(
        run(2, wide, tmp_path / "two", **options, micro_batch=1), metrics(tmp_path / "one")
    )


def test_wrong_combinations(shards: Path, wide: Path, tmp_path: Path) -> None:
    for objective in ("patch", "patch-code"):
        with pytest.raises(SystemExit, match=f"objective={objective} reads pixels"):
            train.main(config(shards, tmp_path, objective=objective))
    for objective in ("code", "patch-code"):
        with pytest.raises(ValueError, match="without a tokenizer"):
            train.main(config(wide, tmp_path, objective=objective))
    with pytest.raises(ValueError, match="patch=5 does not divide frames of 32 px"):
        train.main(config(wide, tmp_path, objective="patch", patch=5))


def test_patches_of_each_objective() -> None:
    manifest = Index("dvae", "", vocabulary=8192, resolution=128, tokens_per_side=16)
    size = MODELS["tiny"]
    assert with_objective(size, "code", None, manifest) == size
    assert with_objective(size, "patch", None, manifest).patch == 16
    assert with_objective(size, "patch-code", None, manifest).patch == 8
    with pytest.raises(ValueError, match="patch=16: .* one per 8 px"):
        with_objective(size, "patch-code", 16, manifest)
    with pytest.raises(ValueError, match="patch=8 goes with objective=patch"):
        with_objective(size, "code", 8, manifest)
