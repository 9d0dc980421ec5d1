"""Mamba decoder over visual tokens, to compare with (paper, Table 6).

Selective state spaces (Gu and Dao 2023, arXiv 2312.00752), in plain PyTorch: the recurrence
h_t = a_t h_{t-1} + b_t is scanned by doubling inside chunks and step by step between them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from toto_robot.backbone.causal import CausalConfig, CausalModel
from toto_robot.backbone.memory import LayerState, Memory, States

CHUNK = 64  # tokens scanned at once; memory grows with it, speed too


@dataclass(frozen=True, kw_only=True)
class MambaConfig(CausalConfig):
    state: int = 16
    expand: int = 2
    kernel: int = 4

    @property
    def inner(self) -> int:
        return self.expand * self.dim

    @property
    def rank(self) -> int:
        """Width from which the step sizes are projected."""
        return math.ceil(self.dim / 16)


# The paper gives 290 M and no shape: 42 blocks of width 1024 come nearest.
MAMBA_SIZES = {
    "mamba-tiny": MambaConfig(dim=128, layers=4, vocabulary=512),
    "mamba-290m": MambaConfig(dim=1024, layers=42),
}


def scan(
    decay: Float[Tensor, "B N ..."], drive: Float[Tensor, "B N ..."], first: Float[Tensor, "B ..."]
) -> Float[Tensor, "B N ..."]:
    """h_t = decay_t h_{t-1} + drive_t for all t, from h_{-1} = first.

    Doubling (Hillis and Steele 1986): after k rounds an element holds the last 2^k steps.
    """
    drive = torch.cat([drive[:, :1] + decay[:, :1] * first[:, None], drive[:, 1:]], dim=1)
    reach = 1
    while reach < drive.shape[1]:
        drive = torch.cat(
            [drive[:, :reach], drive[:, reach:] + decay[:, reach:] * drive[:, :-reach]], dim=1
        )
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    return drive


class MambaBlock(nn.Module):
    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config, inner = config, config.inner
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.in_proj = nn.Linear(config.dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, config.kernel, groups=inner)  # left padding in forward
        self.x_proj = nn.Linear(inner, config.rank + 2 * config.state, bias=False)
        self.dt_proj = nn.Linear(config.rank, inner)
        rates = torch.arange(1, config.state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(rates.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x_BND: Tensor, past: LayerState | None = None) -> Tensor:
        x_BNE, gate_BNE = self.in_proj(self.norm(x_BND)).chunk(2, dim=-1)
        tail_BET, h_BES = past.tensors if past and past.tensors else self._nothing_read(x_BNE)
        inputs_BEN = torch.cat([tail_BET.to(x_BNE.dtype), x_BNE.transpose(1, 2)], dim=2)
        x_BEN = F.conv1d(inputs_BEN, self.conv.weight, self.conv.bias, groups=self.config.inner)
        x_BNE = F.silu(x_BEN.transpose(1, 2))
        y_BNE, h_BES = self._select(x_BNE, h_BES)
        y_BNE = y_BNE + self.D * x_BNE
        if past is not None:
            past.tensors = [inputs_BEN[..., 1 - self.config.kernel :].clone(), h_BES.clone()]
        return x_BND + self.out_proj(y_BNE * F.silu(gate_BNE))

    def _nothing_read(self, x_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the convolution and state from before the first token."""
        c, batch = self.config, len(x_BNE)
        tail_BET = x_BNE.new_zeros(batch, c.inner, c.kernel - 1)
        return tail_BET, x_BNE.new_zeros(batch, c.inner, c.state, dtype=torch.float32)

    def _select(self, x_BNE: Tensor, h_BES: Tensor) -> tuple[Tensor, Tensor]:
        """The selective state space: step size, input and output depend on the token.

        From the state before the first token; returns outputs and the state after the last.
        """
        c = self.config
        dt, B_BNS, C_BNS = self.x_proj(x_BNE).split([c.rank, c.state, c.state], dim=-1)
        dt_BNE = F.softplus(self.dt_proj(dt)).float()
        A_ES = -self.A_log.float().exp()
        outputs = []
        for first in range(0, x_BNE.shape[1], CHUNK):
            part = slice(first, first + CHUNK)
            step_BNE1 = dt_BNE[:, part, :, None]
            drive = step_BNE1 * B_BNS[:, part, None] * x_BNE[:, part, :, None]
            h_BNES = scan((step_BNE1 * A_ES).exp(), drive.float(), h_BES)
            outputs.append(torch.einsum("bnes,bns->bne", h_BNES, C_BNS[:, part].float()))
            h_BES = h_BNES[:, -1]
        return torch.cat(outputs, dim=1).to(x_BNE.dtype), h_BES


class Mamba(CausalModel):
    """The Mamba model; `Mamba(config, head=False)` is its trunk."""

    def make_block(self) -> nn.Module:
        return MambaBlock(self.config)

    def remember(self, batch: int, capacity: int, depth: int | None = None) -> Memory:
        """Its state has one size for any past; `batch` and `capacity` bound nothing."""
        return States(self.config.layers if depth is None else depth)

    def forget(self, memory: Memory, rows: Bool[Tensor, " B"], count: int) -> None:
        """Nothing to do: a state space has no window, the past fades by itself."""

    def initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, MambaBlock)
            _init_steps(block.dt_proj)
            with torch.no_grad():  # what adds to the residual stream starts smaller
                block.out_proj.weight /= self.config.layers**0.5


def _init_steps(projection: nn.Linear) -> None:
    """Step sizes log-uniform from 0.001 to 0.1 at first (section 3.6 of the paper)."""
    nn.init.uniform_(
        projection.weight, -(projection.in_features**-0.5), projection.in_features**-0.5
    )
    low, high = math.log(1e-3), math.log(1e-1)
    steps = torch.rand(projection.out_features).mul_(high - low).add_(low).exp()
    with torch.no_grad():
        projection.bias.copy_(steps + (-torch.expm1(-steps)).log())  # inverse of softplus
