"""LLaMA-style causal decoder over visual tokens (paper, section 3.2 and Table 1).

Pre-norm RMSNorm, SwiGLU, rotary positions, no bias, causal attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from toto_robot.backbone.attention import causal_attention
from toto_robot.backbone.causal import CausalConfig, CausalModel
from toto_robot.backbone.memory import KeyValues, LayerKeyValues, Memory


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(CausalConfig):
    """One row of the size table, with the switches the paper leaves open."""

    heads: int
    mlp: int
    rope_base: float = 10_000.0
    attention_scale: float | None = (
        None  # of the scores; None: 1 / sqrt(head width). muP: 1 / width
    )

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim {self.dim} must be heads {self.heads} times an even head width")


SIZES = {
    "tiny": DecoderConfig(dim=128, heads=4, layers=8, mlp=512, vocabulary=512),
    "base": DecoderConfig(dim=768, heads=12, layers=12, mlp=3072),
    "large": DecoderConfig(dim=1024, heads=16, layers=16, mlp=4096),
    "1b": DecoderConfig(dim=2048, heads=16, layers=22, mlp=5632),
    # The scaling family (Table 15), read VQGAN codes. Its rows follow from Fig. 9 as far as they
    # can; an MLP of 8/3 of the width does too, here rounded to whole 64s.
    "a1": DecoderConfig(dim=256, heads=16, layers=12, mlp=704, vocabulary=16384),
    "a2": DecoderConfig(dim=512, heads=16, layers=16, mlp=1344, vocabulary=16384),
    "a3": DecoderConfig(dim=768, heads=16, layers=20, mlp=2048, vocabulary=16384),
    "a4": DecoderConfig(dim=1024, heads=16, layers=24, mlp=2752, vocabulary=16384),
    "a5": DecoderConfig(dim=1536, heads=16, layers=28, mlp=4096, vocabulary=16384),
    "a6": DecoderConfig(dim=1792, heads=16, layers=32, mlp=4800, vocabulary=16384),
}


def rotations(
    places: Int[Tensor, "*B N"], width: int, base: float
) -> tuple[Float[Tensor, "*B N K"], Float[Tensor, "*B N K"]]:
    """Cosines and sines of the rotary angles at these positions (the two halves of K alike).

    Angles in double precision: a camera that streams for minutes reaches positions of a million,
    where a float32 has no decimals left that a sine could use.
    """
    exponents = torch.arange(0, width, 2, device=places.device, dtype=torch.float64) / width
    angles = places[..., None] * base**-exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHNK: Tensor, cos_NK: Tensor, sin_NK: Tensor) -> Tensor:
    """Rotate pairs (i, i + K/2) of each head by their position's angles (Su et al. 2021)."""
    half = x_BHNK.shape[-1] // 2
    # To float32 once: a product of mixed types is slow on a CPU (a trunk took 20 % longer).
    first, second = x_BHNK.float().chunk(2, dim=-1)
    cos, sin = cos_NK[..., :half], sin_NK[..., :half]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x_BHNK.dtype)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, config.attention_scale
        self.causal = True  # False: every token sees all (fine-tuning for classes, Table 13)
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x_BND: Tensor, cos_NK: Tensor, sin_NK: Tensor, past: LayerKeyValues | None = None
    ) -> Tensor:
        B, N, D = x_BND.shape
        qkv = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads)
        q_BHNK, k_BHNK, v_BHNK = qkv.permute(2, 0, 3, 1, 4)
        q_BHNK, k_BHNK = rotate(q_BHNK, cos_NK, sin_NK), rotate(k_BHNK, cos_NK, sin_NK)
        if not self.causal:
            assert past is None, "a memory is of causal models"
            y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, scale=self.scale)
        elif past is None:
            y_BHNK = causal_attention(q_BHNK, k_BHNK, v_BHNK, self.scale)
        else:
            y_BHNK = past.attend(q_BHNK, k_BHNK, v_BHNK, self.scale)
        return self.out(y_BHNK.transpose(1, 2).reshape(B, N, D))


class SwiGLU(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.dim, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BND).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderBlock(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(config)
        self.scale = config.residual_scale

    def forward(
        self, x_BND: Tensor, cos_NK: Tensor, sin_NK: Tensor, past: LayerKeyValues | None = None
    ) -> Tensor:
        added = self.attention(self.attention_norm(x_BND), cos_NK, sin_NK, past)
        x_BND = torch.add(x_BND, added, alpha=self.scale)
        return torch.add(x_BND, self.mlp(self.mlp_norm(x_BND)), alpha=self.scale)


class Decoder(CausalModel):
    """The LLaMA-style model; `Decoder(config, head=False)` is its trunk."""

    def make_block(self) -> nn.Module:
        return DecoderBlock(self.config)

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def begin(
        self, tokens: Int[Tensor, "B N"], places: Int[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], tuple[Any, ...]]:
        if places is None:
            return self.embedding(tokens), self.rotations(
                torch.arange(tokens.shape[1], device=tokens.device)
            )
        cos_BNK, sin_BNK = self.rotations(places)
        return self.embedding(tokens), (cos_BNK[:, None], sin_BNK[:, None])  # alike for all heads

    def rotations(self, places: Int[Tensor, "*B N"]) -> tuple[Tensor, Tensor]:
        return rotations(places, self.config.dim // self.config.heads, self.config.rope_base)

    def forget(self, memory: Memory, rows: Bool[Tensor, " B"], count: int) -> None:
        """The start token stays at the distance it always had from the oldest frame.

        Rotary positions are relative, so nothing else has to move, and no distance beyond the
        memory's capacity ever occurs, however long the stream.
        """
        assert isinstance(memory, KeyValues)
        memory.forget(rows, count)
        cos_sin = self.rotations(torch.tensor([count], device=memory.device))
        for layer in memory.layers:
            layer.keys_BHSK[rows, :, :1] = rotate(layer.keys_BHSK[rows, :, :1], *cos_sin)
