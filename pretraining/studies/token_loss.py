"""Next-token loss at each position of a sequence (paper, Fig. 10).

    python -m pretraining.studies.token_loss backbone=data/toto-base data=data/shards out=outputs/loss

Held-out clips, teacher forcing: position k is the loss of token k given all tokens before it.
Writes token_loss.json and token_loss.png.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pretraining.export import load_whole
from pretraining.parallel import choose_device
from pretraining.pictures import Line, Panel, plot_panels
from pretraining.shards import Clips
from toto_robot.backbone.causal import CausalModel, to_sequence
from toto_robot.backbone.weights import write_json
from toto_robot.cli import parse

PUBLISHED = {
    "source": "arXiv 2501.05453, Fig. 10; read off the figure, approximate",
    "data": "Kinetics-400 validation, Toto-large, 16 frames of 256 tokens",
    "first_token": 8.4,
    "frame_1": {"mean": 6.6, "range": [6.0, 7.0], "end": 5.6},
    "frame_2": {"range": [3.2, 3.9]},
    "frame_3": {"range": [2.8, 3.55]},
    "frame_8": {"range": [2.5, 3.2]},
    "first_token_of_later_frames": [3.4, 3.7],
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Loss per token position of an exported backbone on held-out clips."""

    backbone: Path  # folder with backbone.safetensors, or the file
    data: Path  # shards made with the same tokenizer
    out: Path
    frames: int | None = None  # per clip; None: as in the backbone's training
    stride: int = 4
    clips: int = 64  # evenly spaced over the held-out ones
    batch_size: int = 4
    device: str = "auto"
    threads: int = 0  # 0: torch's choice


@torch.no_grad()
def position_losses(
    model: CausalModel, clips: Clips, count: int, batch_size: int, device: torch.device
) -> Float[Tensor, "C N"]:
    """Loss in nats of each of a clip's N = frames * tokens tokens, for evenly spaced clips."""
    chosen = np.unique(np.linspace(0, len(clips) - 1, count).round().astype(int))
    losses = []
    for first in tqdm(range(0, len(chosen), batch_size), desc="clips", unit="batch"):
        sequence = to_sequence(clips.batch(chosen[first : first + batch_size]))
        losses.append(model.token_losses(sequence.to(device)).cpu())
    return torch.cat(losses)


def summarise(losses: Float[Tensor, "C N"], frames: int, side: int) -> dict[str, Any]:
    """Curve over the positions, and its means by frame, by row, and at the first tokens."""
    curve = losses.mean(0)
    by_frame = curve.view(frames, side * side)
    first, rest = by_frame[:, 0], by_frame[:, 1:].mean(1)
    rows = by_frame.view(frames, side, side).mean(2)
    columns = by_frame.view(frames, side, side).mean(1)
    return {
        "clips": len(losses),
        "loss": curve.mean().item(),
        "standard_error": (losses.mean(1).std() / len(losses) ** 0.5).item()
        if len(losses) > 1
        else None,
        "per_frame": by_frame.mean(1).tolist(),
        "first_token": first.tolist(),  # of each frame
        "spike": (first - rest).tolist(),  # above the rest of its frame
        "per_row_of_frame_1": rows[0].tolist(),
        "per_row_of_later_frames": rows[1:].mean(0).tolist() if frames > 1 else None,
        "per_column_of_frame_1": columns[0].tolist(),
        "per_column_of_later_frames": columns[1:].mean(0).tolist() if frames > 1 else None,
        "curve": [round(value, 4) for value in curve.tolist()],
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """The curve, the means of the frames, and the means of rows and columns."""
    measured, tokens = result["measured"], result["tokens_per_frame"]
    frames = range(1, len(measured["per_frame"]) + 1)
    starts = [(i - 1) * tokens for i in frames]
    curve = [
        Line(label="each token", x=range(len(measured["curve"])), y=measured["curve"]),
        Line(label="first of a frame", x=starts, y=measured["first_token"], style="r."),
    ]
    means = [
        Line(label="whole frame", x=frames, y=measured["per_frame"], style="-o"),
        Line(label="its first token", x=frames, y=measured["first_token"], style=":x"),
    ]
    lines = []
    for axis in ("row", "column"):
        for where, style in (("frame_1", "-o"), ("later_frames", ":x")):
            values = measured[f"per_{axis}_of_{where}"]
            if values:
                label = f"{axis}s, {where.replace('_', ' ')}"
                places = range(1, len(values) + 1)
                lines.append(Line(label=label, x=places, y=values, style=style))
    nats = "loss, nats"
    title = f"{result['model']}, {measured['clips']} held-out clips"
    plot_panels(
        [
            Panel(title=title, x="position in the sequence", y=nats, lines=curve),
            Panel(title="frames", x="frame", y=nats, lines=means),
            Panel(title="rows and columns", x="row (down), column (right)", y=nats, lines=lines),
        ],
        path,
    )


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    model, about = load_whole(config.backbone, config.data)
    trained = int(about["trained"]["frames"])
    frames = config.frames or trained
    clips = Clips(config.data, frames=frames, stride=config.stride, held_out=True)
    losses = position_losses(model.to(device), clips, config.clips, config.batch_size, device)
    result = {
        "model": about["model"],
        "weights_sha256": about["sha256"],
        "data": str(config.data),
        "frames": frames,
        "frames_in_training": trained,
        "tokens_per_frame": clips.manifest.tokens_per_frame,
        "measured": summarise(losses, frames, clips.manifest.tokens_per_side),
        "published": PUBLISHED,
    }
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "token_loss.json"
    write_json(path, result)
    plot(result, path.with_suffix(".png"))
    measured = result["measured"]
    for i, (mean, first) in enumerate(
        zip(measured["per_frame"], measured["first_token"], strict=True), 1
    ):
        print(f"frame {i}: {mean:.3f} nats per token, its first token {first:.3f}")
    print(f"{path} and .png")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
