"""Learning rates against widths under muP (paper, Fig. 11): the best rate does not move.

    python -m pretraining.sweep data=<shards> out=data/sweep model=tiny widths=32,64,128 \\
        log2_lrs=-10,-9,-8,-7,-6,-5 layers=2 frames=1 steps=200
    torchrun --nproc-per-node 8 -m pretraining.sweep data=<shards> out=data/sweep model=a1 steps=5000

All further options are those of pretraining.train; `mup=false` shows how the best rate moves without
it. Writes a training per width and rate (finished ones are not repeated), sweep.json and sweep.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from pretraining import train
from pretraining.parallel import join_world
from pretraining.pictures import save
from pretraining.series import Outcome, train_all
from toto_robot.backbone.weights import write_json
from toto_robot.cli import parse, split

PAPER_BEST = -7  # log2 of the rate that the paper found best at every width


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train at every width with every learning rate. Further options: those of pretraining.train."""

    out: Path
    widths: tuple[int, ...] = (64, 128, 256, 512, 768, 1024, 1536)  # the paper's
    log2_lrs: tuple[float, ...] = tuple(range(-16, 1))


DEFAULTS = ("model=a1", "steps=5000", "mup=true")


def trainings(config: Config, base: train.Config) -> list[train.Config]:
    return [
        replace(base, width=width, lr=2.0**power, out=config.out / f"w{width}_lr{power:g}")
        for width in config.widths
        for power in config.log2_lrs
    ]


def table(config: Config, outcomes: Sequence[Outcome], mup: bool) -> dict[str, Any]:
    """One row per training, and each width's best rate; a diverged training has no loss."""
    pairs = [(width, power) for width in config.widths for power in config.log2_lrs]
    runs = [
        {
            "width": width,
            "log2_lr": power,
            "loss": outcome.losses[-1][1] if outcome.losses else None,
            "diverged": outcome.diverged,
        }
        for (width, power), outcome in zip(pairs, outcomes, strict=True)
    ]
    kept = [run for run in runs if run["loss"] is not None]
    best = {}
    for width in config.widths:
        if own := [run for run in kept if run["width"] == width]:
            best[str(width)] = min(own, key=lambda run: run["loss"])["log2_lr"]
    settings = next((o.about["trained"] for o in outcomes if o.about), {})
    return {"mup": mup, "best_log2_lr": best, "runs": runs, "settings": settings}


def draw(results: dict[str, Any], path: Path) -> None:
    """Held-out loss against the rate, a line per width, its minimum marked; crosses diverged."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    top = max(run["loss"] for run in results["runs"] if run["loss"] is not None)
    for i, (width, best) in enumerate(results["best_log2_lr"].items()):
        own = [run for run in results["runs"] if run["width"] == int(width)]
        kept = [run for run in own if run["loss"] is not None]
        xs, ys = [run["log2_lr"] for run in kept], [run["loss"] for run in kept]
        axis.plot(xs, ys, marker=".", color=f"C{i}", label=f"width {width}, best 2^{best:g}")
        axis.plot(best, min(ys), marker="*", markersize=13, color=f"C{i}")
        lost = [run["log2_lr"] for run in own if run["loss"] is None]
        axis.plot(lost, [top] * len(lost), "x", color=f"C{i}")
    axis.axvline(PAPER_BEST, color="grey", linestyle=":", label="the paper's best, 2^-7")
    powers = sorted({run["log2_lr"] for run in results["runs"]})
    axis.set_xticks(powers, [f"$2^{{{power:g}}}$" for power in powers])
    axis.set(xlabel="peak learning rate", ylabel="held-out loss (nats per token)")
    axis.set_title("muP" if results["mup"] else "standard parametrisation")
    axis.legend(fontsize=8)
    save(figure, path)


def main(arguments: Sequence[str]) -> None:
    mine, theirs = split(Config, arguments)
    config = parse(Config, mine)
    given = {word.partition("=")[0] for word in theirs}
    defaults = [word for word in DEFAULTS if word.partition("=")[0] not in given]
    base = parse(train.Config, [*theirs, *defaults, f"out={config.out}"])
    if base.lr is not None or base.width is not None:
        raise SystemExit("lr= and width= are what the sweep varies; use log2_lrs= and widths=")
    with join_world(base.device, base.replicas) as world:
        outcomes = train_all(trainings(config, base), world)
        if world.is_main:
            results = table(config, outcomes, base.mup)
            write_json(config.out / "sweep.json", results)
            draw(results, config.out / "sweep.png")
            print(f"{config.out / 'sweep.png'}; best log2 rate by width: {results['best_log2_lr']}")


if __name__ == "__main__":
    main(sys.argv[1:])
