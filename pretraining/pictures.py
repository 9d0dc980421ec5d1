"""Pictures that show whether a training worked: reconstructions, code use, loss curve."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def plot_reconstructions(
    originals: UInt8[Tensor, "N H W 3"], decoded: UInt8[Tensor, "N H W 3"], path: Path
) -> None:
    """Two rows of pictures: original above, reconstruction from hard codes below."""
    size = (1.3 * len(originals), 2.8)
    figure, axes = plt.subplots(2, len(originals), figsize=size, squeeze=False)
    for row, (name, frames) in enumerate((("original", originals), ("decoded", decoded))):
        for axis, frame in zip(axes[row], frames, strict=True):
            axis.imshow(frame.numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row][0].set_ylabel(name)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    save(figure, path)


def plot_codebook(counts: Float[Tensor, " V"], path: Path) -> None:
    """How often each code is used on held-out frames, commonest first."""
    share = counts / counts.sum()
    perplexity = math.exp(-(share * share.clamp_min(1e-12).log()).sum().item())
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.bar(range(len(share)), torch.sort(share, descending=True).values.numpy(), width=1.0)
    axis.set_yscale("log")
    axis.set_xlabel("code, commonest first")
    axis.set_ylabel("share of tokens")
    used = int((counts > 0).sum())
    axis.set_title(f"{used} of {len(counts)} codes used, perplexity {perplexity:.0f}")
    save(figure, path)


def plot_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    held_out: Sequence[tuple[int, float]],
    path: Path,
    title: str,
) -> None:
    """Next-token loss in nats against optimiser steps."""
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(steps, losses, linewidth=0.6, alpha=0.6, label="training")
    if held_out:
        axis.plot(*zip(*held_out, strict=True), marker=".", label="held-out videos")
    axis.set_xlabel("step")
    axis.set_ylabel("next-token loss (nats per token)")
    axis.set_title(title)
    axis.legend()
    save(figure, path)
