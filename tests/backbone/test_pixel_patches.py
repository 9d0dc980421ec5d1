"""`backbone=pixels`: patches of the frame in the place of features."""

import pytest
import torch

from toto_robot import load_backbone
from toto_robot.backbone.patches import DEVIATION, MEAN

FRAMES = torch.randint(
    256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_tokens_are_patches_in_raster_order() -> None:
    features = load_backbone("pixels")(FRAMES)
    assert features.shape == (2, 64, 192)
    patch = FRAMES[1, 8:16, 24:32].flatten().float() / 255  # second row, fourth column
    assert torch.allclose(features[1, 8 + 3] * DEVIATION + MEAN, patch, atol=1e-6)


def test_larger_frames_are_made_smaller_first() -> None:
    backbone = load_backbone("pixels")
    ramp = torch.arange(128, dtype=torch.uint8).expand(1, 128, 128)[..., None].repeat(1, 1, 1, 3)
    small = ramp[:, ::2, ::2]  # of each pair of columns the darker, by half a step
    difference = (backbone(ramp) - backbone(small)).abs() * DEVIATION * 255
    assert backbone(ramp).shape == (1, 64, 192) and difference.max() < 1.01


def test_other_sizes_have_other_patches():
    backbone = load_backbone("pixels", readout="tokens").at_resolution(16)
    assert torch.equal(backbone(FRAMES[:, :16, :16])[:, 3], load_backbone("pixels")(FRAMES)[:, 9])
    with pytest.raises(ValueError, match="multiple of 8"):
        backbone.at_resolution(12)


def test_it_is_neither_untrained_nor_trainable() -> None:
    backbone = load_backbone("pixels")
    assert not backbone.untrained and not getattr(backbone, "trainable", False)
    assert backbone.weights_hash == backbone.digest()
    assert not list(backbone.parameters()) and backbone.device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weights": "random"}, "no weights"), ({"layer": 1}, "has layers 0"),
     ({"readout": "cls"}, "no class token"), ({"weights": "x.pth"}, "no weights"),
     ({"timm_name": "vit_tiny"}, "goes with backbone=timm")],
)  # fmt: skip
def test_what_it_cannot_do(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone("pixels", **options)
