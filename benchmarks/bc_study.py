"""Behaviour cloning against the number of demonstrations, for several backbones and seeds.

    python -m benchmarks.bc_study data=pick.hdf5 out=runs/bc_study keep=benchmarks/results/bc

Every cell is two commands that a user would type (toto_robot.bc, toto_robot.evaluate); cells that are
there already are not made again, so it may be stopped. `keep=` gets the table, the plot and what each
cell was made with.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from policies.demonstrations import DemonstrationFile
from toto_robot.cli import parse
from toto_robot.intervals import wilson_interval
from toto_robot.runs import write_json
from toto_robot.themes import COLOURS, THEMES, paint

BACKBONES = {
    "toto-tiny": ["backbone=toto-tiny"],
    "random": ["backbone=toto-tiny", "backbone.weights=random"],
    "pixels": ["backbone=pixels"],  # its patches, by the same read-out
    "cnn": ["backbone=cnn"],
    "mae-tiny": ["backbone=mae-tiny"],
}
LABELS = {
    "random": "toto-tiny, random weights",
    "pixels": "patches of pixels",
    "cnn": "CNN, end to end",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Success of behaviour cloning by demonstrations, backbones, seeds."""

    data: Path
    out: Path
    keep: Path | None = None
    backbones: tuple[str, ...] = ("toto-tiny", "random", "pixels")
    demonstrations: tuple[int, ...] = (240, 120, 60, 30)
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 200
    epochs: int = 50
    steps_per_epoch: int = 200
    replan_every: int = 2

    def __post_init__(self) -> None:
        if unknown := set(self.backbones) - set(BACKBONES):
            raise SystemExit(f"backbones={unknown}: expected some of {', '.join(BACKBONES)}")


def cell(config: Config, backbone: str, count: int, seed: int) -> Path:
    """Train and evaluate if that was not done; returns the run folder."""
    folder = config.out / f"{backbone}_{count}_s{seed}"
    if (folder / "evaluation/eval.json").is_file():
        return folder
    options = [f"data={config.data}", *BACKBONES[backbone], f"n={count}", f"seed={seed}",
               f"epochs={config.epochs}", f"steps_per_epoch={config.steps_per_epoch}",
               f"replan_every={config.replan_every}", "eval_every=0", f"out={folder}"]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        call("toto_robot.bc", options, log)
        call("toto_robot.evaluate", [f"policy={folder}/checkpoints/last", "film_episodes=0",
             f"episodes={config.episodes}", f"out={folder}/evaluation"], log)  # fmt: skip
    return folder


def call(module: str, options: Sequence[str], log: Any) -> None:
    command = [sys.executable, "-m", module, *options]
    if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
        raise SystemExit(f"{' '.join(command)} failed: see {log.name}")


def rows_of(config: Config) -> list[dict[str, Any]]:
    """One row for each cell that is done."""
    rows = []
    for backbone, count, seed in product(config.backbones, config.demonstrations, config.seeds):
        path = config.out / f"{backbone}_{count}_s{seed}/evaluation/eval.json"
        if path.is_file():
            found = json.loads(path.read_text())
            kept = {k: v for k, v in found.items() if k.startswith("success") or k == "episodes"}
            rows.append({"backbone": backbone, "demonstrations": count, "seed": seed, **kept})
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean over seeds with the Wilson interval of all their episodes, and every seed as a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = list(dict.fromkeys(row["backbone"] for row in rows))
    for colour, backbone in zip(COLOURS[: len(names)], names, strict=True):
        mine = [row for row in rows if row["backbone"] == backbone]
        counts = sorted({row["demonstrations"] for row in mine})
        groups = [[r for r in mine if r["demonstrations"] == count] for count in counts]
        totals = [sum(r["episodes"] for r in group) for group in groups]
        wins = [sum(r["success_rate"] * r["episodes"] for r in group) for group in groups]
        spans = [wilson_interval(w, t) for w, t in zip(wins, totals, strict=True)]
        shares = [w / t for w, t in zip(wins, totals, strict=True)]
        axis.plot(counts, shares, color=colour, label=LABELS.get(backbone, backbone))
        lows, highs = [low for low, _ in spans], [high for _, high in spans]
        axis.fill_between(counts, lows, highs, alpha=0.2, color=colour, linewidth=0)
        axis.plot([r["demonstrations"] for r in mine], [r["success_rate"] for r in mine], "o",
                  color=colour, markersize=4)  # fmt: skip
    axis.set(xscale="log", ylim=(-0.02, 1.02), xlabel="demonstrations of Franka pick",
             ylabel="success in fresh episodes (points: seeds)")  # fmt: skip
    ticks = sorted({row["demonstrations"] for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axis.minorticks_off()
    paint(figure, axis, THEMES["light"], legend_columns=4)
    figure.savefig(str(path), dpi=110)


def publish(config: Config) -> None:
    rows = rows_of(config)
    with DemonstrationFile(config.data) as file:
        about = file.about["options"]
    for folder in filter(None, (config.out, config.keep)):
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"epochs": config.epochs, "steps_per_epoch": config.steps_per_epoch,
                    "replan_every": config.replan_every}  # fmt: skip
        facts = {"settings": settings, "demonstrations": about, "rows": rows}
        write_json(folder / "study.json", facts)
        draw(rows, folder / "study.png")


def main(config: Config) -> None:
    cells = list(product(config.seeds, config.demonstrations, config.backbones))
    for seed, count, backbone in tqdm(cells, unit="cell"):
        folder = cell(config, backbone, count, seed)
        found = json.loads((folder / "evaluation/eval.json").read_text())
        low, high = found["success_low"], found["success_high"]
        tqdm.write(f"{folder.name}: {found['success_rate']:.1%} [{low:.1%}, {high:.1%}]")
        publish(config)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
