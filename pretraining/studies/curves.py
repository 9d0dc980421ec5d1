"""Loss of several training runs against the tokens that they have read (paper, Fig. 2).

    python -m pretraining.studies.curves runs=data/toto-base,data/toto-large out=outputs/curves

Reads each run's metrics.jsonl; the run need not be finished. Writes curves.json and curves.png.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.pictures import Line, Panel, plot_panels
from pretraining.studies.common import names_of, paths_in
from toto_robot.backbone.weights import write_json
from toto_robot.cli import parse

POINTS = 300  # of a smoothed curve
BILLION = 1_000_000_000

PUBLISHED = {
    "source": "arXiv 2501.05453, Fig. 2; read off the figure, approximate",
    "data": "training loss on the paper's mixture, nats per token, against tokens",
    "curves": {
        "base": {"tokens": [100, 200, 600, 1050], "loss": [3.74, 3.66, 3.60, 3.575]},
        "large": {"tokens": [100, 200, 600, 1050], "loss": [3.62, 3.56, 3.50, 3.47]},
        "1b": {"tokens": [100, 200, 600, 1050], "loss": [3.48, 3.45, 3.39, 3.31]},
    },
    "unit_of_tokens": BILLION,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Loss curves of training runs against tokens."""

    runs: str  # folders with metrics.jsonl, separated by commas
    out: Path
    window: float = 0.02  # share of a run over which its training loss is averaged


def tokens_per_step(run: Path) -> int:
    """Of a finished run from before metrics.jsonl held tokens."""
    path = run / "backbone.json"
    if not path.is_file():
        raise ValueError(
            f"{run / 'metrics.jsonl'} has no tokens in its lines and {path} is not there yet; "
            "finish the run (the same command again), or start it anew"
        )
    about = json.loads(path.read_text())
    return about["tokens_seen"] // int(about["trained"]["steps"])


def read_run(run: Path, window: float) -> dict[str, Any]:
    """Tokens, smoothed training loss and held-out loss of a run.

    Raises:
        FileNotFoundError: no metrics.jsonl.
        ValueError: it is empty, or does not say how many tokens a step has.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a folder of pretraining.train")
    # A line may be cut in half while the run goes on.
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    if not lines:
        raise ValueError(f"{path} is empty; nothing to draw yet")
    if "tokens" not in lines[0]:
        per_step = tokens_per_step(run)
        lines = [line | {"tokens": (line["step"] + 1) * per_step} for line in lines]
    tokens = np.array([line["tokens"] for line in lines])
    loss = smooth(np.array([line["loss"] for line in lines]), max(1, round(window * len(lines))))
    shown = np.unique(np.linspace(0, len(lines) - 1, min(POINTS, len(lines))).round().astype(int))
    held_out = [line for line in lines if "held_out_loss" in line]
    return {
        "run": str(run),
        "tokens": tokens[shown].tolist(),
        "loss": loss[shown].round(4).tolist(),
        "held_out_tokens": [line["tokens"] for line in held_out],
        "held_out_loss": [round(line["held_out_loss"], 4) for line in held_out],
        "steps": len(lines),
        "final_loss": float(loss[-1]),
    }


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values (fewer at the start)."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Left the runs, right the published curves: other data, so other axes."""
    lines = []
    for i, (name, run) in enumerate(results.items()):
        lines.append(Line(label=name, x=run["tokens"], y=run["loss"], style=f"C{i}-"))
        if run["held_out_loss"]:
            x, y = run["held_out_tokens"], run["held_out_loss"]
            lines.append(Line(label=f"{name}, held out", x=x, y=y, style=f"C{i}.:"))
    published = [
        Line(
            label=f"Toto-{name}", x=[BILLION * t for t in row["tokens"]], y=row["loss"], style="o-"
        )
        for name, row in PUBLISHED["curves"].items()
    ]
    x, y = "tokens", "loss, nats per token"
    panels = [
        Panel(title="measured here", x=x, y=y, lines=lines, log="x"),
        Panel(title="published (Fig. 2, read off)", x=x, y=y, lines=published, log="x"),
    ]
    plot_panels(panels, path)


def main(config: Config) -> None:
    runs = paths_in(config.runs)
    results = {
        name: read_run(run, config.window) for name, run in zip(names_of(runs), runs, strict=True)
    }
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "curves.json"
    write_json(path, {"measured": results, "published": PUBLISHED})
    plot(results, path.with_suffix(".png"))
    for name, run in results.items():
        print(f"{name}: {run['final_loss']:.3f} nats per token after {run['tokens'][-1]:,} tokens")
    print(f"{path} and .png")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
