"""Work of a causal model, counted once for the utilisation shown and for the scaling laws.

A multiply-add is two FLOPs, a backward pass twice its forward pass. Attention is counted two ways:
"full" as PaLM's utilisation does (Chowdhery et al. 2022, appendix B: 6 N + 12 L d T per token),
"causal" with the pairs alone that a causal mask leaves. Norms, activations and softmax are left out.
"""

import re
from typing import Any

import torch
from torch import nn

from toto_robot.backbone.causal import CausalConfig
from toto_robot.backbone.mamba import MambaConfig
from toto_robot.backbone.models import make_model

# Dense bfloat16 FLOP/s from the makers' data sheets; the first pattern found in the name counts.
PEAKS = {
    r"\bG?B200\b": 2250e12,
    r"\bH100 PCIe\b": 756e12,
    r"\bH100 NVL\b": 835e12,
    r"\b(H100|H200|GH200)\b": 989e12,
    r"\bA100\b": 312e12,
    r"\bL40S\b": 362e12,
    r"\bA40\b": 149.7e12,
    r"\bA10\b": 125e12,
    r"\bL4\b": 121e12,
    r"\bRTX 4090\b": 165.2e12,
}


def forward_flops(config: CausalConfig, length: int) -> dict[str, float]:
    """FLOPs per token of a forward pass over `length` tokens, by part.

    Parts: `linear` (every matrix of the blocks), `head`, `attention` (all pairs of tokens), for a
    model that reads patches `embedding` (a table costs nothing), and for
    Mamba `conv` and `scan`: per channel and state a step of h = a h + b x with a = dt A, b = dt B
    is four FLOPs, and `readout`, the sum over states, two.
    """
    with torch.device("meta"):
        model: Any = make_model(config)
    matrices = [m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    parts = {"linear": 2.0 * sum(matrices), "head": 2.0 * model.head.weight.numel()}
    if config.patch:
        parts["embedding"] = 2.0 * model.embedding.weight.numel()
    if isinstance(config, MambaConfig):
        channels = config.layers * config.inner
        parts["conv"] = 2.0 * channels * config.kernel
        parts["scan"] = 4.0 * channels * config.state
        parts["readout"] = 2.0 * channels * config.state
    else:
        parts["attention"] = 4.0 * config.layers * config.dim * length
    return parts


def flops_per_token(config: CausalConfig, length: int) -> dict[str, float]:
    """FLOPs per token of forward and backward pass, attention counted "full" and "causal"."""
    parts = forward_flops(config, length)
    attention = parts.pop("attention", 0.0)
    rest = 3 * sum(parts.values()) - parts.get("embedding", 0.0)  # pixels have no gradient
    kept = (length + 1) / (2 * length)  # a token sees itself and those before it
    return {"full": rest + 3 * attention, "causal": rest + 3 * kept * attention}


def macs_per_token(config: CausalConfig, length: int) -> float:
    """Multiply-adds per token of a forward pass, attention in full: the x axis of Fig. 9."""
    return sum(forward_flops(config, length).values()) / 2


def peak_flops(device: torch.device, *, bfloat16: bool) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU; None where no utilisation can be claimed.

    That is on the CPU, in float32, and on a GPU that `PEAKS` does not hold.
    """
    if device.type != "cuda" or not bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    return next((peak for pattern, peak in PEAKS.items() if re.search(pattern, name)), None)
