"""GPT-2 style decoder over visual tokens, to compare with (paper, Table 6).

Learned absolute positions, LayerNorm with bias before each part, GELU (tanh), biases everywhere,
output projection tied to the embedding (Radford et al. 2019). Hidden states as in `decoder.Trunk`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from toto_robot.backbone.decoder import NUM_SPECIALS
from toto_robot.backbone.weights import nearest


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    dim: int
    heads: int
    layers: int
    context: int = 4096  # tokens: the longest sequence with a position of its own
    vocabulary: int = 8192  # visual codes, without the four special ids
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} does not divide into {self.heads} heads")

    @property
    def rows(self) -> int:
        """Rows of the embedding table: special ids and visual codes."""
        return self.vocabulary + NUM_SPECIALS


# The paper gives 280 M and no shape: 22 blocks of width 1024 come nearest.
GPT2_SIZES = {
    "gpt2-tiny": GPT2Config(dim=128, heads=4, layers=4, vocabulary=512),
    "gpt2-280m": GPT2Config(dim=1024, heads=16, layers=22),
}


def gpt2_size(name: str) -> GPT2Config:
    """A row of `GPT2_SIZES`; ValueError with the nearest name for any other."""
    if name not in GPT2_SIZES:
        raise ValueError(
            f"unknown size {name!r}, known: {', '.join(GPT2_SIZES)}.{nearest(name, GPT2_SIZES)}"
        )
    return GPT2_SIZES[name]


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.attention_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        qkv = self.qkv(self.attention_norm(x_BND)).view(B, N, 3, self.heads, D // self.heads)
        y_BHNK = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x_BND = x_BND + self.out(y_BHNK.transpose(1, 2).reshape(B, N, D))
        hidden = F.gelu(self.up(self.mlp_norm(x_BND)), approximate="tanh")
        return x_BND + self.down(hidden)


class GPT2(nn.Module):
    """Next-token logits, and the states after every block for probes."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.rows, config.dim)
        self.positions = nn.Embedding(config.context, config.dim)
        self.blocks = nn.ModuleList(GPT2Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, config.rows, bias=False)
        self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # What adds to the residual stream starts smaller, as there are 2 of it per block.
                scale = (
                    (2 * config.layers) ** -0.5
                    if name.endswith(("out.weight", "down.weight"))
                    else 1
                )
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def hidden_states(
        self, tokens: Int[Tensor, "B N"], depth: int | None = None
    ) -> list[Float[Tensor, "B N D"]]:
        """States after 0, 1, ..., L blocks (or `depth` of them), before the final norm.

        Raises ValueError for a sequence longer than the positions."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"a sequence of {length} tokens; this model has {self.config.context} positions"
            )
        places = torch.arange(length, device=tokens.device)
        states = [self.embedding(tokens) + self.positions(places)]
        for block in self.blocks[:depth]:
            states.append(block(states[-1]))
        return states

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits of each position's next token."""
        return self.head(self.norm(self.hidden_states(tokens)[-1]))

    def loss(self, sequence: Int[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Mean next-token loss in nats: [start, t1..t_{n-1}] are read, [t1..t_n] predicted."""
        logits = self(sequence[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), sequence[:, 1:].flatten())
