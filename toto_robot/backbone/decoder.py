"""LLaMA-style causal decoder over visual tokens (paper, section 3.2 and Table 1).

Pre-norm RMSNorm, SwiGLU, rotary positions, no bias, causal attention. A sequence is
[start, frame 1 in raster order, frame 2, ...]; the model reads all but its last token and predicts
all but its first.

Token ids (the paper shows ids 1, 2, 3 and leaves the rest open): 0 padding, 1 start of a video,
2 end, 3 start of an image sequence, and code + 4 for a visual code.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from toto_robot.backbone.weights import nearest

PAD, VIDEO_START, END, IMAGE_START = range(4)
NUM_SPECIALS = 4


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One row of the size table, with the switches the paper leaves open."""

    dim: int
    heads: int
    layers: int
    mlp: int
    vocabulary: int = 8192  # visual codes, without the four special ids
    rope_base: float = 10_000.0
    tied: bool = True  # output projection = embedding; counted once, the paper's sizes come out
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim {self.dim} must be heads {self.heads} times an even head width")

    @property
    def rows(self) -> int:
        """Rows of the embedding table: special ids and visual codes."""
        return self.vocabulary + NUM_SPECIALS


SIZES = {
    "tiny": DecoderConfig(dim=128, heads=4, layers=8, mlp=512, vocabulary=512),
    "base": DecoderConfig(dim=768, heads=12, layers=12, mlp=3072),
    "large": DecoderConfig(dim=1024, heads=16, layers=16, mlp=4096),
    "1b": DecoderConfig(dim=2048, heads=16, layers=22, mlp=5632),
}


def decoder_size(name: str) -> DecoderConfig:
    """A row of `SIZES`; ValueError with the nearest name for any other."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}, known: {', '.join(SIZES)}.{nearest(name, SIZES)}")
    return SIZES[name]


def num_parameters(config: DecoderConfig) -> int:
    """Parameters as the paper counts them: tables of `vocabulary` rows, without the special ids."""
    with torch.device("meta"):
        total = sum(p.numel() for p in Decoder(config).parameters())
    tables = 1 if config.tied else 2
    return total - tables * NUM_SPECIALS * config.dim


def rotations(length: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each [length, width] (the two halves alike)."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), base**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHNK: Tensor, cos_NK: Tensor, sin_NK: Tensor) -> Tensor:
    """Rotate pairs (i, i + K/2) of each head by their position's angles (Su et al. 2021)."""
    first, second = x_BHNK.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BHNK * cos_NK + turned * sin_NK).to(x_BHNK.dtype)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x_BND: Tensor, cos_NK: Tensor, sin_NK: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        qkv = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads)
        q_BHNK, k_BHNK, v_BHNK = qkv.permute(2, 0, 3, 1, 4)
        q_BHNK, k_BHNK = rotate(q_BHNK, cos_NK, sin_NK), rotate(k_BHNK, cos_NK, sin_NK)
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, is_causal=True)
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

    def forward(self, x_BND: Tensor, cos_NK: Tensor, sin_NK: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.attention_norm(x_BND), cos_NK, sin_NK)
        return x_BND + self.mlp(self.mlp_norm(x_BND))


class Trunk(nn.Module):
    """Embedding and the first blocks, no head: what a frozen backbone runs."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.rows, config.dim)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))

    def hidden_states(
        self, tokens: Int[Tensor, "B N"], depth: int | None = None
    ) -> list[Float[Tensor, "B N D"]]:
        """States after 0, 1, ..., L blocks (or `depth` of them); the first are the embeddings.

        It is the residual stream itself: the final norm is not applied to the last one.
        """
        x_BND = self.embedding(tokens)
        head_width = self.config.dim // self.config.heads
        cos_NK, sin_NK = rotations(
            tokens.shape[1], head_width, self.config.rope_base, tokens.device
        )
        states = [x_BND]
        for block in self.blocks[:depth]:
            states.append(block(states[-1], cos_NK, sin_NK))
        return states

    def truncate(self, blocks: int) -> "Trunk":
        """A trunk of the first `blocks` blocks, with copies of their weights."""
        if not 0 <= blocks <= self.config.layers:
            raise ValueError(f"layer {blocks} asked for, the model has 0 to {self.config.layers}")
        trunk = Trunk(replace(self.config, layers=blocks))
        wanted = trunk.state_dict().keys()
        trunk.load_state_dict({name: t for name, t in self.state_dict().items() if name in wanted})
        return trunk.to(self.embedding.weight.device)


class Decoder(Trunk):
    """The trunk with the final norm and the output projection: next-token logits."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, config.rows, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits of each position's next token."""
        return self.head(self.norm(self.hidden_states(tokens)[-1]))

    def loss(self, sequence: Int[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Mean next-token loss in nats: [start, t1..t_{n-1}] are read, [t1..t_n] predicted."""
        logits = self(sequence[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), sequence[:, 1:].flatten())


def to_sequence(codes: Int[Tensor, "B ..."], start: int = VIDEO_START) -> Int[Tensor, "B N"]:
    """Codes in raster order (any shape after the batch) -> start token followed by code + 4."""
    tokens = codes.flatten(1).long() + NUM_SPECIALS
    return F.pad(tokens, (1, 0), value=start)
