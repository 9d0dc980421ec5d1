"""FLOPs of every family against PyTorch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretraining.flops import flops_per_token, forward_flops, macs_per_token, peak_flops, peak_of
from toto_robot.backbone.models import make_model, model_config, resized

LENGTH, BATCH = 48, 2


def counted(name: str, backward: bool) -> dict[str, float]:
    """FLOPs per token by operator, as PyTorch counts them (attention in full, as products)."""
    config = resized(model_config(name), dim=64, layers=2)
    model = make_model(config)
    tokens = torch.randint(config.rows, (BATCH, LENGTH + 1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model.loss(tokens)
        if backward:
            loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return {str(name): flops / (BATCH * LENGTH) for name, flops in counts.items()}


@pytest.mark.parametrize("name", ["tiny", "gpt2-tiny"])
def test_attention_models_equal_the_counter(name: str) -> None:
    config = resized(model_config(name), dim=64, layers=2)
    assert sum(forward_flops(config, LENGTH).values()) == sum(counted(name, False).values())
    assert flops_per_token(config, LENGTH)["full"] == sum(counted(name, True).values())


def test_mamba_equals_the_counter() -> None:
    """It sees matrices, the convolution and the sum over states."""
    config = resized(model_config("mamba-tiny"), dim=64, layers=2)
    parts, counts = forward_flops(config, LENGTH), counted("mamba-tiny", False)
    assert counts["aten.mm"] == parts["linear"] + parts["head"]
    assert counts["aten.convolution"] == parts["conv"]
    assert counts["aten.bmm"] == parts["readout"]
    backward = counted("mamba-tiny", True)
    assert backward["aten.mm"] == 3 * counts["aten.mm"]
    assert backward["aten.bmm"] == 3 * counts["aten.bmm"]


def test_patches_equal_the_counter() -> None:
    """Patches are embedded by a matrix; their pixels get no gradient."""
    config = replace(
        resized(model_config("tiny"), dim=64, layers=2), patch=8, predicts="patch", tied=False
    )
    model = make_model(config)
    frames = torch.randint(256, (BATCH, 3, 32, 32, 3)).to(torch.uint8)  # 3 frames of 16 patches
    codes = torch.zeros(BATCH, 3, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.clip_losses(codes, frames=frames).mean().backward()
    assert flops_per_token(config, 48)["full"] == counter.get_total_flops() / (BATCH * 48)


def test_published_arithmetic() -> None:
    """Base at 4,096 tokens: 679 M in the blocks, 453 M for attention in full, half of it causally."""
    base = flops_per_token(model_config("base"), 4096)
    head = 6 * 768 * model_config("base").rows
    assert base["full"] - head == pytest.approx((679.5 + 453.0) * 1e6, rel=1e-4)
    assert base["full"] - base["causal"] == pytest.approx(226.4e6, rel=1e-3)
    assert macs_per_token(model_config("base"), 4096) == base["full"] / 6


def test_peaks() -> None:
    names = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB"]
    assert [peak_of(name) for name in names] == [989e12, 989e12, 756e12, 312e12]
    assert peak_of("NVIDIA A1000") is None and peak_of("Quadro T400") is None
    assert peak_flops(torch.device("cpu"), bfloat16=True) is None
