"""Integer products by hand, and what rounding does to the features of a trained backbone."""

import numpy as np
import pytest
import torch
from torch import nn

from toto_robot.backbone import load_backbone
from toto_robot.backbone.int8 import Int8Linear, quantised


def test_rounding_by_hand() -> None:
    integers, scales = quantised(torch.tensor([[2.54, -0.5, 0.011], [0.0, 0.0, 0.0]]))
    assert integers.tolist() == [[127, -25, 1], [0, 0, 0]]  # 0.5 / 0.02 and 0.011 / 0.02
    torch.testing.assert_close(scales[0], torch.tensor([0.02]))


@pytest.mark.parametrize("bias", [True, False])
def test_product_is_that_of_the_rounded_matrices(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias)
    x = torch.randn(2, 9, 24, generator=generator)
    weight, w_scales = quantised(linear.weight.detach())
    rows, x_scales = quantised(x.flatten(0, 1))
    expected = (rows.double() * x_scales) @ (weight.double() * w_scales).T
    if bias:
        expected = expected + linear.bias.detach()
    y = Int8Linear(linear)(x)
    torch.testing.assert_close(y.double(), expected.view(2, 9, 40), atol=1e-5, rtol=1e-5)
    assert Int8Linear(linear)(x.bfloat16()).dtype == torch.bfloat16


def scene(count: int) -> torch.Tensor:
    """Something like a table with a coloured cube: the codes of noise are no test of features."""
    frames = np.full((count, 128, 128, 3), 120, np.uint8)
    frames[:, 40:] = 200
    for i in range(count):
        frames[i, 60 + i : 72 + i, 30 + 3 * i : 42 + 3 * i] = (30, 60, 200)
    return torch.from_numpy(frames)


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.9995), ("int8", 0.999)])
def test_features_stay_where_they_are(precision: str, least: float) -> None:
    exact = load_backbone(precision="float32")
    rounded = load_backbone(precision=precision)
    features, near = exact(scene(6)), rounded(scene(6))
    cosine = torch.nn.functional.cosine_similarity(features, near, dim=-1)
    assert least < cosine.min() and not torch.equal(features, near)
    # Differences between frames survive, too: that is what a policy lives on.
    change, near_change = features[5] - features[0], near[5] - near[0]
    assert torch.nn.functional.cosine_similarity(change, near_change, dim=-1).min() > 0.9
    assert torch.equal(exact.tokenize(scene(6)), rounded.tokenize(scene(6)))


def test_int8_names_the_file_and_keeps_its_integers() -> None:
    backbone = load_backbone(precision="int8")
    assert backbone.weights_hash == load_backbone().weights_hash
    assert load_backbone(weights="random", precision="int8").weights_hash == (
        load_backbone(weights="random").weights_hash
    )
    digest = backbone.digest()
    assert digest != load_backbone().digest()
    kinds = [type(m) for m in backbone.trunk.modules()]
    assert kinds.count(Int8Linear) == 4 * 4 and nn.Linear not in kinds
    backbone(scene(1))
    assert backbone.digest() == digest
    block = backbone.trunk.blocks[0]
    block.attention.out.weight[0, 0] += 1  # pyright: ignore
    assert backbone.digest() != digest


def test_streams_in_int8() -> None:
    backbone = load_backbone(precision="int8")
    stream, video = backbone.stream(), scene(3)[None]
    features = [stream.push(video[:, t]) for t in range(3)]
    cosine = torch.nn.functional.cosine_similarity(
        torch.stack(features, dim=1), backbone(video), dim=-1
    )
    assert cosine.min() > 0.999


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="Did you mean 'bfloat16'"):
        load_backbone(weights="random", precision="bfloat61")
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        load_backbone(weights="random", precision="int8", device="cuda")
