"""The scaling law (paper, section 4.9): train a family of models, fit L(C), draw Fig. 9.

    python -m pretraining.scaling data=<shards> out=data/scaling models=32x2,64x3,96x4 heads=4 \\
        frames=1 steps=400 batch_size=8 warmup=40 eval_every=20
    torchrun ... -m pretraining.scaling data=<shards> out=data/scaling steps=250_000
    python -m pretraining.scaling fit=data/scaling/scaling.json out=data/again

The default family is a1 to a6 (Table 15) at the paper's rate of 2^-7 under muP. Further options are
those of pretraining.train. Writes a training per model (finished ones are not repeated),
scaling.json (points, fits, intervals) and scaling.png. `fit=` fits points without training.

C counts multiply-adds of the forward pass over all tokens seen, attention in full. The paper's axis
counts multiply-adds per token times samples, and its printed law holds for C in millions of those:
exponents may be compared, positions may not.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from pretraining import train
from pretraining.flops import macs_per_token
from pretraining.laws import Law, fit_parametric, fit_power, frontier
from pretraining.parallel import join_world
from pretraining.pictures import save
from pretraining.series import Outcome, train_all
from toto_robot.backbone.models import MODELS, config_from_json, num_parameters
from toto_robot.backbone.weights import nearest, write_json
from toto_robot.cli import parse, split

FAMILY = ("a1", "a2", "a3", "a4", "a5", "a6")
DEFAULTS = ("mup=true", "lr=0.0078125", "steps=250000")
NOTE = (
    "Points of one training depend on each other, so that intervals are too narrow; and losses on the "
    "way down a cosine schedule are above those of trainings that end there. E near 0: no floor seen."
)
PAPER = {"a": 7.32, "b": 0.0378, "unit_of_C": "1e6 multiply-adds per token x samples"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a family, fit its scaling laws. Further options: those of pretraining.train."""

    out: Path
    models: tuple[str, ...] = FAMILY  # names, or widths x layers: 64x2,96x3
    fit: Path | None = None  # a scaling.json whose points are fitted again, without training
    samples: int = 200  # of the bootstrap
    bins: int = 40  # of log C, for the frontier: late points lie dense
    burn_in: float = 0.1  # share of each training that is left out of the fits


def of_family(word: str) -> dict[str, Any]:
    """Options of pretraining.train for one model; ValueError for what is none."""
    if word in MODELS:
        return {"model": word}
    if match := re.fullmatch(r"(\d+)x(\d+)", word):
        return {"model": "a1", "width": int(match[1]), "layers": int(match[2])}
    raise ValueError(
        f"models={word}: expected a model's name or width x layers like 64x2.{nearest(word, MODELS)}"
    )


def points_of(word: str, outcome: Outcome) -> list[dict[str, Any]]:
    """Held-out losses of one training with the compute spent until then; [] when it diverged."""
    if outcome.diverged:
        print(f"{word} diverged and is left out: {outcome.diverged}")
        return []
    about = outcome.about
    size = config_from_json(about["family"], about["decoder"], str(outcome.folder))
    steps, batch = int(about["trained"]["steps"]), int(about["trained"]["batch_size"])
    tokens_per_step = about["tokens_seen"] // steps
    macs = macs_per_token(size, tokens_per_step // batch)
    return [
        {
            "model": word,
            "parameters": num_parameters(size),
            "tokens": step * tokens_per_step,
            "macs": macs * step * tokens_per_step,
            "loss": loss,
            "share": step / steps,
        }
        for step, loss in outcome.losses
    ]


def on_frontier(points: Sequence[dict[str, Any]], bins: int) -> list[dict[str, Any]]:
    """Points that no other beats with as little compute, the best one of each bin of log C."""
    compute = np.array([point["macs"] for point in points])
    place = np.log(compute)
    step = max((place.max() - place.min()) / bins, 1e-9)
    best: dict[int, int] = {}
    for i in frontier(compute, [point["loss"] for point in points]):
        best[int((place[i] - place.min()) / step)] = i  # later ones are better
    return [points[i] for i in best.values()]


def fits_of(points: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    """Both laws with intervals. Too few models or points give a reason in the place of a law."""
    used = [point for point in points if point["share"] >= config.burn_in]
    if not used:
        raise ValueError("no points to fit: every training diverged or is in its burn-in")
    edge = on_frontier(used, config.bins)
    results: dict[str, Any] = {"frontier": edge, "paper": PAPER, "note": NOTE}
    n, d, losses = ([p[key] for p in used] for key in ("parameters", "tokens", "loss"))
    laws = {
        "L(C) = a C^-b": lambda: fit_power(
            [p["macs"] for p in edge], [p["loss"] for p in edge], config.samples
        ),
        "L(N, D) = E + A N^-alpha + B D^-beta": lambda: fit_parametric(
            n, d, losses, config.samples
        ),
    }
    for name, law in laws.items():
        try:
            results[name] = as_json(law())
        except ValueError as error:
            results[name] = {"missing": str(error)}
    return results


def as_json(law: Law) -> dict[str, Any]:
    return {k: {"value": v, "interval_95": law.intervals[k]} for k, v in law.values.items()}


def draw(results: dict[str, Any], path: Path) -> None:
    """Held-out loss against compute, a line per model; frontier, its law, and the paper's law."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    points = results["points"]
    for name in dict.fromkeys(point["model"] for point in points):
        own = [point for point in points if point["model"] == name]
        label = f"{name}, {own[0]['parameters'] / 1e6:.2g}M"
        axis.plot([p["macs"] for p in own], [p["loss"] for p in own], linewidth=1, label=label)
    edge = results["frontier"]
    axis.plot([p["macs"] for p in edge], [p["loss"] for p in edge], "k.", label="frontier")
    span = np.geomspace(min(p["macs"] for p in points), max(p["macs"] for p in points), 50)
    law = results["L(C) = a C^-b"]
    if "missing" not in law:
        a, b = law["a"]["value"], law["b"]["value"]
        low, high = law["b"]["interval_95"]
        label = f"{a:.3g} C^-{b:.3g} (b in {low:.3g} to {high:.3g})"
        axis.plot(span, a * span**-b, "k--", linewidth=1, label=label)
    label = "the paper's 7.32 (C / 10^6)^-0.0378: its C is\nMACs per token x samples, other data and codes"
    axis.plot(span, PAPER["a"] * (span / 1e6) ** -PAPER["b"], ":", color="grey", label=label)
    axis.set(xscale="log", yscale="log", ylabel="held-out loss (nats per token)")
    axis.set_xlabel("C: forward multiply-adds of all tokens seen, attention in full")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    axis.legend(fontsize=7)
    save(figure, path)


def train_family(config: Config, words: Sequence[str]) -> list[dict[str, Any]] | None:
    """Points of all models; None on every rank but the main one."""
    given = {word.partition("=")[0] for word in words}
    if clash := given & {"model", "width", "layers"}:
        raise SystemExit(f"{', '.join(sorted(clash))}: models= gives the sizes")
    defaults = [word for word in DEFAULTS if word.partition("=")[0] not in given]
    base = parse(train.Config, [*words, *defaults, "model=a1", f"out={config.out}"])
    configs = [replace(base, out=config.out / word, **of_family(word)) for word in config.models]
    with join_world(base.device, base.replicas) as world:
        outcomes = train_all(configs, world)
        if not world.is_main:
            return None
    pairs = zip(config.models, outcomes, strict=True)
    return [point for word, outcome in pairs for point in points_of(word, outcome)]


def main(arguments: Sequence[str]) -> None:
    mine, theirs = split(Config, arguments)
    config = parse(Config, mine)
    if config.fit is None:
        points = train_family(config, theirs)
        if points is None:
            return
    elif theirs:
        raise SystemExit(f"fit={config.fit} trains nothing; leave out {' '.join(theirs)}")
    else:
        points = json.loads(config.fit.read_text())["points"]
    results = {"points": points, **fits_of(points, config)}
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "scaling.json", results)
    draw(results, config.out / "scaling.png")
    for name in ("L(C) = a C^-b", "L(N, D) = E + A N^-alpha + B D^-beta"):
        print(name, json.dumps(results[name]))


if __name__ == "__main__":
    main(sys.argv[1:])
