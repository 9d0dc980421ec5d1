"""GPT-2 style decoder over visual tokens, to compare with (paper, Table 6).

Learned absolute positions, LayerNorm with bias before each part, GELU (tanh), biases everywhere,
output projection tied to the embedding (Radford et al. 2019).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from toto_robot.backbone.attention import causal_attention
from toto_robot.backbone.causal import CausalConfig, CausalModel
from toto_robot.backbone.memory import LayerKeyValues, Memory


@dataclass(frozen=True, kw_only=True)
class GPT2Config(CausalConfig):
    heads: int
    context: int = 4097  # the longest sequence with positions of its own: start and 16 frames
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head width)

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} does not divide into {self.heads} heads")


# The paper gives 280 M and no shape: 21 blocks of width 1024 come nearest, and within 0.1 % of large.
GPT2_SIZES = {
    "gpt2-tiny": GPT2Config(dim=128, heads=4, layers=4, vocabulary=512),
    "gpt2-280m": GPT2Config(dim=1024, heads=16, layers=21),
}


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        dim, self.heads, self.scale = config.dim, config.heads, config.attention_scale
        self.residual_scale = config.residual_scale
        self.attention_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BND: Tensor, past: LayerKeyValues | None = None) -> Tensor:
        B, N, D = x_BND.shape
        qkv = self.qkv(self.attention_norm(x_BND)).view(B, N, 3, self.heads, D // self.heads)
        q_BHNK, k_BHNK, v_BHNK = qkv.permute(2, 0, 3, 1, 4)
        if past is None:
            y_BHNK = causal_attention(q_BHNK, k_BHNK, v_BHNK, self.scale)
        else:
            y_BHNK = past.attend(q_BHNK, k_BHNK, v_BHNK, self.scale)
        added = self.out(y_BHNK.transpose(1, 2).reshape(B, N, D))
        x_BND = torch.add(x_BND, added, alpha=self.residual_scale)
        hidden = F.gelu(self.up(self.mlp_norm(x_BND)), approximate="tanh")
        return torch.add(x_BND, self.down(hidden), alpha=self.residual_scale)


class GPT2(CausalModel):
    """The GPT-2 style model; `GPT2(config, head=False)` is its trunk."""

    def make_positions(self) -> None:
        self.positions = nn.Embedding(self.config.context, self.config.dim)

    def make_block(self) -> nn.Module:
        return GPT2Block(self.config)

    def make_norm(self) -> nn.Module:
        return nn.LayerNorm(self.config.dim, eps=self.config.norm_eps)

    def initialise(self) -> None:
        # What adds to the residual stream starts smaller, as there are 2 of it per block.
        small = (2 * self.config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 * (small if adds else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def begin(
        self, tokens: Int[Tensor, "B N"], places: Int[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], tuple[Any, ...]]:
        """Raises ValueError for a sequence longer than the positions."""
        if places is None:
            self._check_length(tokens.shape[1])
            places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.embedding(tokens) + self.positions(places), ()

    def remember(self, batch: int, capacity: int, depth: int | None = None) -> Memory:
        """Raises ValueError for a capacity beyond the positions."""
        self._check_length(capacity)
        return super().remember(batch, capacity, depth)

    def forget(self, memory: Memory, rows: Bool[Tensor, " B"], count: int) -> None:
        """Raises ValueError: each key was made at a position of its own and cannot move."""
        raise ValueError(
            "GPT-2's positions are absolute: what it remembers cannot move up when the oldest "
            "frame leaves; recompute the window instead (cached=False)"
        )

    def _check_length(self, length: int) -> None:
        if length > self.config.context:
            raise ValueError(
                f"a sequence of {length} tokens; this model has {self.config.context} positions"
            )
