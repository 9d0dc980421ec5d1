"""Mamba decoder over visual tokens, to compare with (paper, Table 6).

Selective state spaces (Gu and Dao 2023, arXiv 2312.00752); the recurrence is in selective_scan.py.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from toto_robot.backbone.causal import CausalConfig, CausalModel
from toto_robot.backbone.memory import LayerState, Memory, States
from toto_robot.backbone.selective_scan import fused, selective_scan


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
        tail_BET, h_BES = past.tensors if past and past.tensors else (self._no_tail(x_BNE), None)
        inputs_BEN = torch.cat([tail_BET.to(x_BNE.dtype), x_BNE.transpose(1, 2)], dim=2)
        x_BEN = F.conv1d(inputs_BEN, self.conv.weight, self.conv.bias, groups=self.config.inner)
        y_BNE, h_BES = self._select(F.silu(x_BEN.transpose(1, 2)), h_BES)
        if past is not None:
            past.tensors = [inputs_BEN[..., 1 - self.config.kernel :].clone(), h_BES.clone()]
        return x_BND + self.out_proj(y_BNE * F.silu(gate_BNE))

    def _no_tail(self, x_BNE: Tensor) -> Tensor:
        """Inputs of the convolution from before the first token."""
        return x_BNE.new_zeros(len(x_BNE), self.config.inner, self.config.kernel - 1)

    def _select(self, x_BNE: Tensor, h_BES: Tensor | None) -> tuple[Tensor, Tensor]:
        """The selective state space: step size, input and output depend on the token."""
        c = self.config
        dt, B_BNS, C_BNS = self.x_proj(x_BNE).split([c.rank, c.state, c.state], dim=-1)
        step_BNE, A_ES = F.linear(dt, self.dt_proj.weight), -self.A_log.float().exp()
        return selective_scan(x_BNE, step_BNE, self.dt_proj.bias, A_ES, B_BNS, C_BNS, self.D, h_BES)


class Mamba(CausalModel):
    """The Mamba model; `Mamba(config, head=False)` is its trunk."""

    def make_block(self) -> nn.Module:
        return MambaBlock(self.config)

    def compile_parts(self) -> None:
        """As for all models, but mamba-ssm's kernel is not to be looked into."""
        for block in self.blocks:
            block.compile(fullgraph=fused is None)

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
