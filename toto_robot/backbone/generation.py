"""Continue a video token by token: the model's own next-token distribution, drawn from again and again."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toto_robot.backbone.causal import NUM_SPECIALS, CausalModel, to_sequence


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn. ValueError for values that mean nothing."""

    temperature: float = 1.0  # 0: always the most probable token
    top_k: int = 0  # only the k most probable tokens; 0: all
    top_p: float = 1.0  # of these, the most probable ones that together reach this share

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a share above 0, up to 1")


def probabilities(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """What is drawn from: softmax at the temperature, cut to top_k, then to top_p, sums to 1.

    Top-p keeps the token that crosses the share (Holtzman et al. 2020), so at least one remains.
    """
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    ranked, order = (logits.float() / sampling.temperature).softmax(dim=-1).sort(descending=True)
    if 0 < sampling.top_k < ranked.shape[-1]:
        ranked[:, sampling.top_k :] = 0
        ranked /= ranked.sum(dim=-1, keepdim=True)
    if sampling.top_p < 1:  # (a sum of all shares may round to more than 1)
        ranked[ranked.cumsum(dim=-1) - ranked >= sampling.top_p] = 0
        ranked /= ranked.sum(dim=-1, keepdim=True)
    return torch.zeros_like(ranked).scatter_(-1, order, ranked)


def draw(
    logits: Float[Tensor, "B V"], sampling: Sampling, generator: torch.Generator
) -> Int[Tensor, "B 1"]:
    """One token per row, never a special one: frames have no end inside a video."""
    visual = probabilities(logits[:, NUM_SPECIALS:], sampling)
    return torch.multinomial(visual, 1, generator=generator) + NUM_SPECIALS


def next_tokens(
    model: CausalModel,
    sequence: Int[Tensor, "B N"],
    count: int,
    sampling: Sampling,
    generator: torch.Generator,
    cached: bool = True,
) -> Int[Tensor, "B count"]:
    """`count` tokens after a sequence; without `cached` each reads all tokens before it anew."""
    memory = model.remember(len(sequence), sequence.shape[1] + count) if cached else None
    unread = sequence
    for _ in range(count):
        states = (
            model.hidden_states(sequence)[-1] if memory is None else model.extend(unread, memory)
        )
        unread = draw(model.logits(states[:, -1:])[:, 0], sampling, generator)
        sequence = torch.cat([sequence, unread], dim=1)
    return sequence[:, -count:]


@torch.no_grad()
def continue_video(
    model: CausalModel,
    codes: Int[Tensor, "B T N"],
    frames: int,
    *,
    context: int,
    sampling: Sampling,
    generator: torch.Generator,
    cached: bool = True,
    on_frame: Callable[[], object] = lambda: None,
) -> Int[Tensor, "B frames N"]:
    """Codes of `frames` more frames.

    Every frame is made with the last `context` - 1 frames before it, read again as a sequence of
    their own after the start token: no position and no length occur that training did not have.

    Args:
        codes: of the frames to continue, N per frame in raster order, without special tokens.
        context: frames per sequence in training, at least 2.
        on_frame: called after each frame.

    Raises:
        ValueError: `context` is below 2 or there is no frame to continue.
    """
    if context < 2 or codes.shape[1] == 0:
        raise ValueError(
            f"context={context}, {codes.shape[1]} frames: continuing takes a context of 2 frames or "
            "more and one frame to continue"
        )
    count = codes.shape[2]
    for _ in range(frames):
        window = to_sequence(codes[:, -(context - 1) :])
        tokens = next_tokens(model, window, count, sampling, generator, cached)
        codes = torch.cat([codes, (tokens - NUM_SPECIALS)[:, None]], dim=1)
        on_frame()
    return codes[:, codes.shape[1] - frames :]
