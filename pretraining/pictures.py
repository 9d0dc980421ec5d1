"""Pictures that show whether a training worked: reconstructions, code use, loss curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
    unit: str = "nats per token",
) -> None:
    """Next-token loss against optimiser steps."""
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(steps, losses, linewidth=0.6, alpha=0.6, label="training")
    if held_out:
        axis.plot(*zip(*held_out, strict=True), marker=".", label="held-out videos")
    axis.set_xlabel("step")
    axis.set_ylabel(f"next-token loss ({unit})")
    axis.set_title(title)
    axis.legend()
    save(figure, path)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a panel; `style` as matplotlib's format string, `low` and `high` of a band."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "-"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves over the same axes, and labelled vertical marks (published read-outs, say)."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    marks: Mapping[str, float] = field(default_factory=dict)
    log: Literal["", "x", "y", "xy"] = ""


def plot_panels(panels: Sequence[Panel], path: Path) -> None:
    """Panels side by side."""
    size = (5.2 * len(panels), 3.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        for line in panel.lines:
            (drawn,) = axis.plot(
                line.x, line.y, line.style, label=line.label, linewidth=1.2, markersize=3
            )
            if line.low is not None and line.high is not None:
                colour = drawn.get_color()
                axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, lw=0)
        for i, (label, x) in enumerate(panel.marks.items()):
            axis.axvline(x, color=f"C{len(panel.lines) + i}", linestyle=":", label=label)
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        if "x" in panel.log:
            axis.set_xscale("log")
        if "y" in panel.log:
            axis.set_yscale("log")
    labels = [[line.label for line in panel.lines] for panel in panels]
    if len(panels) > 1 and not any(own != labels[0] for own in labels):  # one for all
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=7)
    else:
        for axis in axes[0]:
            axis.legend(fontsize=7)
    save(figure, path)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of a table: a measured share with its interval, and the published one, if any."""

    label: str
    value: float
    low: float
    high: float
    published: float | None = None


def plot_bars(bars: Sequence[Bar], chance: float, path: Path, title: str) -> None:
    """Measured accuracies (%) with intervals, published ones as diamonds, chance as a line."""
    figure, axis = plt.subplots(figsize=(6.5, 1.5 + 0.5 * len(bars)), layout="constrained")
    places = range(len(bars))
    values = [100 * bar.value for bar in bars]
    errors = [[100 * (bar.value - bar.low) for bar in bars],
              [100 * (bar.high - bar.value) for bar in bars]]  # fmt: skip
    axis.barh(places, values, xerr=errors, height=0.6, color="C0", alpha=0.7, label="measured here")
    published = [(100 * b.published, i) for i, b in enumerate(bars) if b.published is not None]
    if published:
        axis.plot(*zip(*published, strict=True), "kD", label="published (other data and size)")
    axis.axvline(100 * chance, color="grey", linestyle="--", label="chance")
    axis.set(yticks=places, yticklabels=[bar.label for bar in bars], xlabel="top-1, %", title=title)
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncol=3, fontsize=7)
    save(figure, path)
