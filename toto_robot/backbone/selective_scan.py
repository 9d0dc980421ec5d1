"""Mamba's selective state space: mamba-ssm's CUDA kernel where installed, else plain PyTorch.

    h_t = exp(d_t A) h_{t-1} + d_t B_t x_t,   y_t = C_t h_t + D x_t,   d = softplus(step + bias)

(Gu and Dao 2023, arXiv 2312.00752, algorithm 2). In PyTorch the recurrence is scanned by doubling
inside chunks and step by step between them. Only the chunks' inputs are kept for the backward pass,
which scans each chunk again: the states of 4,096 tokens alone would take 256 KB per channel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

try:
    from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
        selective_scan_fn,
    )

    fused: Any = torch.compiler.disable(selective_scan_fn)
except ImportError:
    fused = None

FUSED_DEVICES = {"cuda"}  # where the kernel runs
CHUNK = 64  # tokens scanned at once; memory grows with it, speed too


def scan(
    decay: Float[Tensor, "B N ..."], drive: Float[Tensor, "B N ..."], first: Float[Tensor, "B ..."]
) -> Float[Tensor, "B N ..."]:
    """h_t = decay_t h_{t-1} + drive_t for all t, from h_{-1} = first."""
    return Scan.apply(decay, drive, first)


def double(decay: Tensor, drive: Tensor) -> Tensor:
    """The recurrence from nothing, in place of `drive`; overwrites `decay` as well.

    Doubling (Hillis and Steele 1986): after k rounds an element holds the last 2^k steps.
    """
    reach = 1
    while reach < drive.shape[1]:
        drive[:, reach:] += decay[:, reach:] * drive[:, :-reach]
        decay[:, reach:] = decay[:, reach:] * decay[:, :-reach]
        reach *= 2
    return drive


class Scan(torch.autograd.Function):
    """The gradient of a recurrence is the same recurrence backwards: g_t = dh_t + decay_{t+1} g_{t+1}."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, first: Tensor) -> Tensor:
        states = drive.clone()
        states[:, 0] += decay[:, 0] * first
        double(decay.clone(), states)
        ctx.save_for_backward(decay, first, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, first, states = ctx.saved_tensors
        ddrive = double(decay.roll(-1, dims=1).flip(1), gradients[0].flip(1)).flip(1)
        before = torch.cat([first[:, None], states[:, :-1]], dim=1)
        return ddrive * before, ddrive, ddrive[:, 0] * decay[:, 0]


def selective_scan(
    x_BNE: Float[Tensor, "B N E"],
    step_BNE: Float[Tensor, "B N E"],
    bias_E: Float[Tensor, " E"],
    A_ES: Float[Tensor, "E S"],
    B_BNS: Float[Tensor, "B N S"],
    C_BNS: Float[Tensor, "B N S"],
    D_E: Float[Tensor, " E"],
    h_BES: Float[Tensor, "B E S"] | None = None,
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B E S"]]:
    """Outputs y, and the float32 state after the last token; from the state `h`, or from none.

    Rates and states are float32 whatever the types of the rest.
    """
    if fused is not None and h_BES is None and x_BNE.device.type in FUSED_DEVICES:
        x, step, B, C = (t.to(x_BNE.dtype).mT for t in (x_BNE, step_BNE, B_BNS, C_BNS))
        y, last = fused(x, step, A_ES, B, C, D_E.float(), delta_bias=bias_E.float(),
                        delta_softplus=True, return_last_state=True)  # fmt: skip
        return y.mT, last
    state = A_ES.new_zeros(len(x_BNE), *A_ES.shape) if h_BES is None else h_BES
    dt_BNE = F.softplus(step_BNE.float() + bias_E.float())
    outputs = []
    for first in range(0, x_BNE.shape[1], CHUNK):
        part = slice(first, first + CHUNK)
        inputs = (A_ES, state, *(t[:, part] for t in (x_BNE, dt_BNE, B_BNS, C_BNS)))
        y, state = again_for_gradients(inputs) if torch.is_grad_enabled() else scan_chunk(*inputs)
        outputs.append(y)
    y_BNE = torch.cat(outputs, dim=1) + D_E.float() * x_BNE.float()
    return y_BNE.to(x_BNE.dtype), state


def again_for_gradients(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """`scan_chunk`, which the backward pass calls a second time instead of keeping what it makes."""
    options: Any = {"use_reentrant": False, "preserve_rng_state": False}
    result = checkpoint(scan_chunk, *inputs, **options)
    assert result is not None
    return result


def scan_chunk(
    A_ES: Tensor, h_BES: Tensor, x_BNE: Tensor, dt_BNE: Tensor, B_BNS: Tensor, C_BNS: Tensor
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B E S"]]:
    """C h of each token, and the state after the last."""
    drive = (dt_BNE * x_BNE)[..., None] * B_BNS[:, :, None].float()
    h_BNES = scan((dt_BNE[..., None] * A_ES).exp(), drive, h_BES)
    y_BNE = torch.einsum("bnes,bns->bne", h_BNES, C_BNS.float())
    return y_BNE, h_BNES[:, -1].clone()  # a view would keep all of them
