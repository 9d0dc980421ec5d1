"""The frozen image encoders: MAE against transformers' own, file layouts, read-outs, timm."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="not installed: pip install -e '.[compare]'")
from transformers import ViTMAEConfig, ViTMAEModel

from toto_robot import load_backbone
from toto_robot.backbone import encoders
from toto_robot.backbone.names import WeightsNotFoundError
from toto_robot.backbone.vit import EPS, VIT_SIZES, ViTConfig, from_transformers
from toto_robot.backbone.weights import save_weights, sha256_of

SMALL = ViTConfig(dim=24, layers=3, heads=3, mlp=48, patch=8, resolution=32)
FRAMES = torch.randint(
    256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIT_SIZES, "mae-base", SMALL)


@pytest.fixture
def theirs() -> ViTMAEModel:
    """transformers' encoder that masks nothing, with weights that are nowhere zero or one."""
    torch.manual_seed(1)
    model = ViTMAEModel(
        ViTMAEConfig(
            hidden_size=SMALL.dim,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            intermediate_size=SMALL.mlp,
            image_size=SMALL.resolution,
            patch_size=SMALL.patch,
            layer_norm_eps=EPS,
            mask_ratio=0.0,
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def checkpoint(theirs: ViTMAEModel, tmp_path: Path) -> Path:
    """As MVP releases them: a pickle of {"model": tensors by MAE's names}."""
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": from_transformers(theirs.state_dict())}, path)
    return path


def test_states_are_those_of_transformers(theirs: ViTMAEModel, checkpoint: Path) -> None:
    pixels = (FRAMES / 255 - torch.tensor(SMALL.mean)) / torch.tensor(SMALL.std)
    in_order = torch.arange(16.0).expand(3, 16)
    with torch.no_grad():
        out = theirs(pixels.permute(0, 3, 1, 2).float(), noise=in_order, output_hidden_states=True)
    options: dict[str, Any] = {"weights": str(checkpoint), "precision": "float32"}
    backbone = load_backbone("mae-base", readout="tokens", all_layers=True, **options)
    for ours, expected in zip(backbone.hidden_states(FRAMES), out.hidden_states, strict=True):
        torch.testing.assert_close(ours, expected[:, 1:], atol=1e-5, rtol=1e-4)
    cls = load_backbone("mae-base", readout="cls", **options)(FRAMES)
    torch.testing.assert_close(cls, out.hidden_states[-1][:, 0], atol=1e-5, rtol=1e-4)


def test_mvps_small_model_has_twelve_heads() -> None:
    """timm's vit_small_patch16_224 has six, and its weights would load all the same."""
    assert VIT_SIZES["mae-small"].heads == 12 and VIT_SIZES["mae-large"].resolution == 256


def test_transformers_checkpoint_loads_too_by_either_of_its_names(
    theirs: ViTMAEModel, checkpoint: Path, tmp_path: Path
) -> None:
    expected = load_backbone("mae-base", weights=str(checkpoint), grid=4)(FRAMES)
    old = {}
    for name, tensor in theirs.state_dict().items():
        for new, before in (
            ("layers.", "encoder.layer."), ("q_proj", "attention.query"), ("k_proj", "attention.key"),
            ("v_proj", "attention.value"), ("o_proj", "output.dense"), ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):  # fmt: skip
            name = name.replace(new, before)
        old["vit." + name] = tensor
    for number, tensors in enumerate((theirs.state_dict(), old)):
        path = tmp_path / f"{number}.pth"
        torch.save(tensors, path)
        assert torch.equal(load_backbone("mae-base", weights=str(path), grid=4)(FRAMES), expected)


def test_interface_of_the_frozen_backbone(checkpoint: Path) -> None:
    backbone = load_backbone("mae-base", weights=str(checkpoint), grid=2)
    assert (backbone.layer, backbone.num_layers, backbone.context) == (3, 3, 1)
    assert backbone.feature_shape == (4, 24) and not backbone.untrained
    assert backbone.weights_hash == sha256_of(checkpoint)
    before = backbone.digest()
    assert backbone.train().training is False and not backbone(FRAMES).requires_grad
    videos = torch.stack([FRAMES, FRAMES.flip(0)])
    torch.testing.assert_close(backbone(videos)[1], backbone(FRAMES.flip(0)))
    assert torch.equal(backbone.stream(3).push(FRAMES), backbone(FRAMES))
    assert backbone.digest() == before
    with pytest.raises(ValueError, match="not codes"):
        backbone.tokenize(FRAMES)
    tokens = load_backbone("mae-base", weights=str(checkpoint), readout="tokens")(FRAMES)
    cells = tokens.view(3, 2, 2, 2, 2, 24).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(backbone(FRAMES), cells)


def test_a_grid_that_does_not_divide_has_cells_that_overlap(checkpoint: Path) -> None:
    """14 tokens a side into 8, as MAE's base; here 4 into 3: cells are tokens (i, i + 1)."""
    options: dict[str, Any] = {"weights": str(checkpoint), "precision": "float32"}
    tokens = load_backbone("mae-base", readout="tokens", **options)(FRAMES).view(3, 4, 4, 24)
    cells = load_backbone("mae-base", grid=3, **options)(FRAMES).view(3, 3, 3, 24)
    torch.testing.assert_close(cells[:, 1, 2], tokens[:, 1:3, 2:4].mean(dim=(1, 2)))
    with pytest.raises(ValueError, match="grid=5"):
        load_backbone("mae-base", weights=str(checkpoint), grid=5)


def test_an_earlier_layer_is_the_same_with_and_without_the_later_blocks(checkpoint: Path) -> None:
    options: dict[str, Any] = {"weights": str(checkpoint), "layer": 1, "readout": "tokens"}
    cut, whole = (
        load_backbone("mae-base", **options),
        load_backbone("mae-base", all_layers=True, **options),
    )
    assert len(cut.trunk.blocks) == 1 and len(whole.trunk.blocks) == 3
    assert torch.equal(cut(FRAMES), whole(FRAMES))


def test_random_weights_are_called_untrained_and_are_the_same_each_time() -> None:
    one, other = (load_backbone("mae-base", weights="random", grid=4) for _ in range(2))
    assert one.untrained and one.weights_hash == other.weights_hash
    assert torch.equal(one(FRAMES), other(FRAMES)) and one(FRAMES).std() > 0.01


def test_mvps_files_are_known_by_their_md5(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5 = hashlib.md5(checkpoint.read_bytes()).hexdigest()
    options: dict[str, Any] = {"weights": str(checkpoint), "readout": "mean"}
    assert load_backbone("mae-base", **options).source == ""
    monkeypatch.setitem(encoders.MVP_MD5, md5, ("MVP vitb-mae-egosoup", "mae-base"))
    assert load_backbone("mae-base", **options).source == "MVP vitb-mae-egosoup"
    monkeypatch.setitem(encoders.MVP_MD5, md5, ("MVP vits-mae-hoi", "mae-small"))
    with pytest.raises(ValueError, match="use backbone=mae-small"):
        load_backbone("mae-base", weights=str(checkpoint))


class Trap:
    def __reduce__(self):
        return (print, ("run by a pickle",))


@pytest.mark.parametrize("content", [{"model": Trap()}, {"model": [1, 2]}, {"model": {}}])
def test_what_is_no_checkpoint_is_refused_and_not_run(content, tmp_path: Path, capsys) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_backbone("mae-base", weights=str(tmp_path / "x.pth"))
    assert "run by" not in capsys.readouterr().out


def test_a_file_of_another_size_says_what_it_holds(checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setitem(VIT_SIZES, "mae-base", replace(SMALL, dim=48))
    with pytest.raises(ValueError, match=r"of shape \(1, 1, 24\), expected \(1, 1, 48\)"):
        load_backbone("mae-base", weights=str(checkpoint))


def test_blocks_of_another_kind_are_not_taken_for_maes(checkpoint: Path) -> None:
    tensors = torch.load(checkpoint, weights_only=True)["model"]
    torch.save({"model": tensors | {"blocks.0.ls1.gamma": torch.ones(SMALL.dim)}}, checkpoint)
    with pytest.raises(ValueError, match=r"holds blocks\.0\.ls1\.gamma, .*backbone=timm"):
        load_backbone("mae-base", weights=str(checkpoint))


def test_our_own_file_carries_its_configuration(theirs: ViTMAEModel, tmp_path: Path) -> None:
    tensors = {k: t.half() for k, t in from_transformers(theirs.state_dict()).items()}
    about = {"kind": "vit", "model": "mae-tiny", "vit": vars(SMALL)}
    digest = save_weights(tmp_path / "backbone.safetensors", tensors, about)
    backbone = load_backbone("mae-tiny", weights=str(tmp_path), readout="mean")
    assert backbone.resolution == 32 and backbone.weights_hash == digest
    assert backbone(FRAMES).shape == (3, 24)
    with pytest.raises(ValueError, match="model 'mae-tiny'; expected kind 'vit', model 'mae-base'"):
        load_backbone("mae-base", weights=str(tmp_path))


def test_names_that_need_something_else() -> None:
    with pytest.raises(WeightsNotFoundError, match="MVP's or MAE's .pth"):
        load_backbone("mae-large")
    with pytest.raises(ValueError, match="timm_name goes with backbone=timm"):
        load_backbone("timm")
    with pytest.raises(ValueError, match="has no class token"):
        load_backbone("random-tiny", readout="cls")
    with pytest.raises(ValueError, match="backbone=toto-tiny takes them"):
        load_backbone("random-tiny", weights="file.safetensors")
    assert torch.equal(
        load_backbone("random-tiny")(FRAMES), load_backbone("toto-tiny", weights="random")(FRAMES)
    )


# timm wants a torchvision of the same build as torch; where it cannot be had, these are skipped.


def timm_or_skip():
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    return timm


@pytest.mark.parametrize(
    ("timm_name", "side", "cls"),
    [
        ("vit_tiny_patch16_224", 14, True),
        ("vit_tiny_patch16_dinov3_qkvb", 16, True),  # rotary positions, four registers
        ("vit_wee_patch16_reg1_gap_256", 16, False),
    ],
)
def test_timm_features_are_timms(timm_name: str, side: int, cls: bool) -> None:
    timm = timm_or_skip()
    options: dict[str, Any] = {"timm_name": timm_name, "weights": "random", "precision": "float32"}
    backbone = load_backbone("timm", readout="tokens", layer=1, **options)
    model = backbone.trunk.model
    assert backbone.tokens_per_side == side and len(model.blocks) == 1 and backbone.untrained
    frames = np.random.default_rng(0).integers(
        0, 256, (2, *backbone.resolution * np.ones(2, int), 3)
    )
    frames = torch.from_numpy(frames.astype(np.uint8))
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    with torch.no_grad():
        model.norm = nn.Identity()
        expected = model.forward_features(((frames / 255 - mean) / std).permute(0, 3, 1, 2).float())
    prefix = model.num_prefix_tokens
    torch.testing.assert_close(backbone(frames), expected[:, prefix:], atol=1e-4, rtol=1e-4)
    if cls:
        seen = load_backbone("timm", readout="cls", layer=1, **options)(frames)
        torch.testing.assert_close(seen, expected[:, 0], atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(ValueError, match="no class token"):
            load_backbone("timm", readout="cls", layer=1, **options)
    assert timm.is_model(timm_name)


def test_a_shortened_timm_model_hands_out_the_states_of_the_blocks_it_has() -> None:
    timm_or_skip()
    backbone = load_backbone("dinov2-small", weights="random", layer=2)
    frames = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    states = backbone.hidden_states(frames)
    assert len(states) == 3 and backbone.num_layers == 12
    torch.testing.assert_close(backbone.read_out(states[-1][:, None])[:, 0], backbone(frames))


def test_timm_weights_come_from_a_file(tmp_path: Path) -> None:
    timm = timm_or_skip()
    torch.manual_seed(3)
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    path = str(tmp_path / "x.pth")
    backbone = load_backbone("timm", timm_name="vit_tiny_patch16_224", weights=path, layer=2)
    assert not backbone.untrained and backbone.num_layers == 12 and backbone.layer == 2
    assert torch.equal(backbone.trunk.model.patch_embed.proj.weight, model.patch_embed.proj.weight)


def test_timm_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    timm_or_skip()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFoundError, match=r"(?s)timm's hub .*weights=random"):
        load_backbone("dinov2-small")
    with pytest.raises(ValueError, match="Did you mean 'vit_tiny_patch16_224'"):
        load_backbone("timm", timm_name="vit_tiny_patch16_22")
