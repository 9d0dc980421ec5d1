"""What every causal model over visual tokens has in common: embedding, blocks, next-token head.

A sequence is [start, frame 1 in raster order, frame 2, ...]; the model reads all but its last token
and predicts all but its first. Token ids (the paper shows ids 1, 2, 3 and leaves the rest open): 0
padding, 1 start of a video, 2 end, 3 start of an image sequence, and code + 4 for a visual code.

A model with `patch` in its configuration reads rows of pixels instead of ids (see patches.py); its
`tokens` are float32 [B, N, W] and everything else stays as it is.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor, nn

from toto_robot.backbone.memory import KeyValues, Memory
from toto_robot.backbone.patches import (
    PatchEmbedding,
    normalised,
    patch_width,
    to_patch_sequence,
    to_patches,
)

PAD, VIDEO_START, END, IMAGE_START = range(4)
NUM_SPECIALS = 4


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """What the size tables of all families hold."""

    dim: int
    layers: int
    vocabulary: int = 8192  # visual codes, without the four special ids
    tied: bool = True  # output projection = embedding; counted once, the paper's sizes come out
    norm_eps: float = 1e-5
    output_scale: float = 1.0  # of the logits; muP's 1 / width multiplier
    residual_scale: float = 1.0  # of what a block adds; CompleteP's 1 / depth multiplier
    patch: int = 0  # pixels a side of the patches that are read; 0: token ids are read
    predicts: Literal["code", "patch"] = "code"  # a model that reads codes predicts codes

    @property
    def rows(self) -> int:
        """Rows of the embedding table: special ids and visual codes."""
        return self.vocabulary + NUM_SPECIALS

    @property
    def outputs(self) -> int:
        """Width of a prediction: scores of the token ids, or the values of a patch."""
        return patch_width(self.patch) if self.predicts == "patch" else self.rows


class CausalModel(nn.Module):
    """Embedding and blocks; with `head` also the final norm and the output projection.

    Without the head it is what a frozen backbone runs. A family defines `make_block`, `make_norm`,
    and, where a block needs more than the states, `begin`.
    """

    def __init__(self, config: Any, *, head: bool = True) -> None:
        super().__init__()
        self.config = config
        if config.patch:
            self.embedding = PatchEmbedding(config.patch, config.dim)
        else:
            self.embedding = nn.Embedding(config.rows, config.dim)
        self.make_positions()
        self.blocks = nn.ModuleList(self.make_block() for _ in range(config.layers))
        if head:
            self.norm = self.make_norm()
            self.head = nn.Linear(config.dim, config.outputs, bias=False)
            if config.tied:
                assert not config.patch, "an embedding of patches does not fit the output"
                self.head.weight = self.embedding.weight
            self.initialise()

    def make_positions(self) -> None:
        """Learned positions, for families that have them."""

    def make_block(self) -> nn.Module:
        raise NotImplementedError

    def make_norm(self) -> nn.Module:
        return nn.RMSNorm(self.config.dim, eps=self.config.norm_eps)

    def initialise(self) -> None:
        """Initial weights; called with a head only, a trunk gets weights from elsewhere."""
        raise NotImplementedError

    def begin(
        self, tokens: Int[Tensor, "B N"], places: Int[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], tuple[Any, ...]]:
        """States before the first block, and what each block is given besides the states.

        `places`: positions of the tokens in their sequences; None: 0 to N - 1.
        """
        return self.embedding(tokens), ()

    def hidden_states(
        self, tokens: Int[Tensor, "B N"], depth: int | None = None
    ) -> list[Float[Tensor, "B N D"]]:
        """States after 0, 1, ..., L blocks (or `depth` of them); the first are the embeddings.

        It is the residual stream itself: the final norm is not applied to the last one.
        """
        x_BND, more = self.begin(tokens)
        states = [x_BND]
        for block in self.blocks[:depth]:
            states.append(block(states[-1], *more))
        return states

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits of each position's next token."""
        x_BND, more = self.begin(tokens)
        for block in self.blocks:
            x_BND = block(x_BND, *more)
        return self.logits(x_BND)

    def logits(self, x_BND: Float[Tensor, "B N D"]) -> Float[Tensor, "B N V"]:
        """Next-token logits from the states after the last block."""
        return self.head(self.norm(x_BND)) * self.config.output_scale

    def remember(self, batch: int, capacity: int, depth: int | None = None) -> Memory:
        """An empty memory of `depth` (all) blocks for `batch` sequences of `capacity` tokens."""
        layers: int = self.config.layers if depth is None else depth
        return KeyValues(layers, batch, capacity, self.embedding.weight.device)

    def extend(self, tokens: Int[Tensor, "B n"], memory: Memory) -> Float[Tensor, "B n D"]:
        """States of tokens that follow what `memory` holds; it then holds them too.

        After as many blocks as it was made for, and the same as in one pass over all the tokens.

        Raises:
            ValueError: the memory is too small for them.
        """
        x_BND, more = self.begin(tokens, memory.place(tokens.shape[1]))
        for block, past in zip(self.blocks, memory.layers, strict=False):
            x_BND = block(x_BND, *more, past)
        return x_BND

    def forget(self, memory: Memory, rows: Bool[Tensor, " B"], count: int) -> None:
        """Drop the oldest `count` tokens after the start token from some rows of a memory.

        What is left has seen what is dropped: states that follow are near those of a pass over the
        window alone, not equal to them.
        """
        raise NotImplementedError

    def token_losses(self, sequence: Int[Tensor, "B N"]) -> Float[Tensor, "B N-1"]:
        """Next-token loss in nats of each position: [start, t1..] are read, [t1..tn] predicted."""
        return surprise(self(sequence[:, :-1]), sequence[:, 1:])

    def clip_losses(
        self,
        codes: Integer[Tensor, "B T N"],
        starts: int | Int[Tensor, " B"] = VIDEO_START,
        frames: UInt8[Tensor, "B T R R 3"] | None = None,
    ) -> Float[Tensor, "B L"]:
        """The loss at each code or patch of B clips of T frames, of whatever this model predicts.

        Nats for codes; for patches the mean squared error of their normalised values, where 1 is as
        good as knowing nothing.

        Raises:
            ValueError: it reads patches and there are no frames, or no code to each patch.
        """
        if not self.config.patch:
            return self.token_losses(to_sequence(codes, starts))
        if frames is None:
            raise ValueError("this model reads patches; it was given codes without their frames")
        patches = to_patches(frames.flatten(0, 1), self.config.patch).unflatten(0, frames.shape[:2])
        outputs = self(self.sequence(patches, starts)[:, :-1])
        if self.config.predicts == "patch":
            return (outputs.float() - normalised(patches.flatten(1, 3))).square().mean(dim=-1)
        if codes.shape[1:].numel() != outputs.shape[1]:
            raise ValueError(
                f"{outputs.shape[1]} patches and {codes.shape[1:].numel()} codes a clip"
            )
        return surprise(outputs, codes.flatten(1).long() + NUM_SPECIALS)

    def sequence(self, visual: Tensor, start: int | Tensor = VIDEO_START) -> Tensor:
        """What is read: start and codes (any shape after the batch), or start and patches [..., P].

        Raises:
            ValueError: it reads patches and was given codes, or the other way round.
        """
        if visual.is_floating_point() != bool(self.config.patch):
            wanted = "float32 patches" if self.config.patch else "codes"
            raise ValueError(f"this model reads {wanted}, it was given {visual.dtype}")
        if self.config.patch:
            return to_patch_sequence(visual, start == IMAGE_START)
        return to_sequence(visual, start)

    def loss(self, sequence: Int[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Mean next-token loss in nats."""
        return self.token_losses(sequence).mean()

    def compile_parts(self) -> None:
        """Compile each block in place: names in the state dict stay, FSDP may come afterwards."""
        for block in self.blocks:
            block.compile(fullgraph=True)

    def truncate(self, blocks: int) -> Self:
        """A model of the first `blocks` blocks without head, with copies of their weights."""
        if not 0 <= blocks <= self.config.layers:
            raise ValueError(f"layer {blocks} asked for, the model has 0 to {self.config.layers}")
        trunk = type(self)(replace(self.config, layers=blocks), head=False)
        wanted = trunk.state_dict().keys()
        trunk.load_state_dict({name: t for name, t in self.state_dict().items() if name in wanted})
        return trunk.to(self.embedding.weight.device)


def surprise(logits: Float[Tensor, "B N V"], ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Cross-entropy in nats."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
    return losses.view(ids.shape)


def to_sequence(codes: Int[Tensor, "B ..."], start: int | Tensor = VIDEO_START) -> Tensor:
    """Codes in raster order (any shape after the batch) -> start token followed by code + 4.

    `start` is one id for all, or int64 [B].
    """
    codes = codes.flatten(1)
    sequence = codes.new_empty(len(codes), 1 + codes.shape[1], dtype=torch.int64)
    sequence[:, 0] = torch.as_tensor(start, device=codes.device)
    sequence[:, 1:] = codes  # widens 16-bit codes on the way
    sequence[:, 1:] += NUM_SPECIALS
    return sequence
