"""What the studies share: folders in options, and the tables' way from pictures to accuracies.

A table's row is a run of pretraining.train on tokens of labelled pictures (videos in class folders),
and a classifier on its frozen features (labelled.py). Tokens, runs and probes are shared by all rows,
and by all studies with the same `out=`, that have the same settings: every study resumes.
"""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool

from pretraining import index, tokenize, train
from pretraining.export import load_whole
from pretraining.flops import flops_per_token, forward_flops
from pretraining.index import INDEX
from pretraining.objectives import UNITS, Objective, tokens_per_frame
from pretraining.parallel import choose_device
from pretraining.pictures import Bar, plot_bars
from pretraining.shards import MANIFEST
from pretraining.studies.labelled import classes_of, correct_on_held_out, manifest_of
from toto_robot.backbone.causal import CausalModel
from toto_robot.backbone.models import make_model, num_parameters
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.backbone.weights import write_json
from toto_robot.intervals import wilson_interval

PICTURE_TOKENS = 256  # of the paper's unit of compute
RESAMPLES = 2000


def paths_in(text: str) -> list[Path]:
    """Folders of an option like `a,b,c`; FileNotFoundError names one that is not there."""
    paths = [Path(word) for word in text.split(",") if word]
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is no folder; expected folders separated by commas")
    return paths


def names_of(paths: list[Path]) -> list[str]:
    """A short name for each folder: its last parts, as many as tell them apart."""
    depth = 1
    while len({path.absolute().parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path.absolute().parts[-depth:]) for path in paths]


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Options of all tables."""

    data: Path  # labelled: a folder per class, with videos or pictures in it
    layout: str = "auto"  # as in pretraining.tokenize
    out: Path  # tokens, runs and probes are kept here; studies may share it
    steps: int = 200  # of each row's training
    batch_size: int = 32  # sequences
    frames: int = 1  # pictures per sequence; the paper's main recipe has 16
    lr: float | None = None
    warmup: int | None = None
    seeds: int = 2  # trainings (and probes) per row
    held_out: float = 0.25  # share of videos that the accuracies are of
    layer: int | None = None  # probed; None: half the depth
    epochs: int = 60  # of a probe
    probe_batch: int = 32  # pictures
    per_video: int = 2  # pictures of each training video that a probe learns from
    cache_gb: float = 4.0  # features above this are computed again in each epoch
    untrained: bool = True  # probe random weights too
    device: str = "auto"
    threads: int = 0  # 0: torch's choice
    checkpoint_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: what is trained on what, how it is read out, what was published for it."""

    name: str
    tokenizer: Path
    resolution: int  # px
    model: str
    layers: int | None = None
    rope_base: float = 10_000.0
    steps: int
    objective: Objective = "code"
    patch: int | None = None  # pixels a side, where patches are read
    start: "Row | None" = None  # begin from this row's weights
    pooling: Literal["mean", "attention"] = "mean"
    published: float | None = None  # top-1, %
    published_compute: float | None = None  # multiply-adds per token x pictures


def is_main() -> bool:
    """Whether this process writes; under torchrun the others only take part in trainings."""
    return int(os.environ.get("RANK", "0")) == 0


def data_of(row: Row, config: TableConfig) -> Path:
    """The row's tokens (or the index of its pixels), made now or found from before."""
    _, about = load_tokenizer(row.tokenizer)
    name = "pixels" if row.objective == "patch" else f"{about['kind']}-{about['sha256'][:8]}"
    reads_pixels = row.objective != "code"
    chosen = digest_of(config.data.absolute(), config.layout, config.held_out, reads_pixels)[:6]
    folder = config.out / "data" / f"{name}-{row.resolution}-{chosen}"
    done = folder / (INDEX if reads_pixels else MANIFEST)
    if is_main() and not done.is_file():
        common: dict[str, Any] = {
            "data": config.data,
            "out": folder,
            "layout": config.layout,
            "resolution": row.resolution,
            "held_out": config.held_out,
            "threads": config.threads,
        }
        if reads_pixels:
            tokenizer = None if row.objective == "patch" else row.tokenizer
            index.main(index.Config(tokenizer=tokenizer, **common))
        else:
            tokenize.main(tokenize.Config(tokenizer=row.tokenizer, device=config.device, **common))
    while not done.is_file():
        time.sleep(1)
    return folder


def digest_of(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:10]


def pretrain(row: Row, seed: int, config: TableConfig) -> train.Config:
    """Train the row, or find it trained under the same settings; the training's options."""
    start = None if row.start is None else pretrain(row.start, seed, config).out
    data = data_of(row, config)
    settings: dict[str, Any] = {
        "model": row.model,
        "layers": row.layers,
        "steps": row.steps,
        "objective": row.objective,
        "patch": row.patch,
        "frames": config.frames,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "warmup": max(1, row.steps // 10) if config.warmup is None else config.warmup,
        "rope_base": row.rope_base,
        "init_from": start,
        "seed": seed,
    }
    digest = digest_of(settings | {"init_from": start and start.name}, data.name)
    out = config.out / "runs" / f"{row.model}-{data.name}-{digest}"
    options = train.Config(
        data=data,
        out=out,
        eval_every=max(1, row.steps // 10),
        device=config.device,
        threads=config.threads,
        checkpoint_s=config.checkpoint_s,
        **settings,
    )
    if not (out / "backbone.json").is_file():
        train.main(options)
    return options


def probe(
    row: Row, seed: int, options: train.Config, config: TableConfig, *, untrained: bool = False
) -> Bool[np.ndarray, " M"]:
    """`correct_on_held_out` of the trained model (or of random weights), kept on disk."""
    kept = ("layer", "epochs", "per_video", "probe_batch")
    settings = {name: getattr(config, name) for name in kept}
    digest = digest_of(options.out.name, row.pooling, seed, untrained, settings)
    path = config.out / "probes" / f"{digest}.json"
    if not path.is_file():
        model, _ = load_whole(options.out, options.data)
        if untrained:
            torch.manual_seed(seed)
            model = make_model(model.config)
        correct = correct_on_held_out(
            model,
            options.data,
            row.pooling,
            layer=layer_of(model, config),
            epochs=config.epochs,
            batch_size=config.probe_batch,
            per_video=config.per_video,
            cache_gb=config.cache_gb,
            seed=seed,
            device=choose_device(config.device),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        bits = "".join("01"[bit] for bit in correct.astype(int))
        write_json(path, {"run": options.out.name, "pooling": row.pooling, "correct": bits})
    bits = json.loads(path.read_text())["correct"]
    return np.array([bit == "1" for bit in bits])


def layer_of(model: CausalModel, config: TableConfig) -> int:
    return model.config.layers // 2 if config.layer is None else config.layer


def compute_of(row: Row, options: train.Config, config: TableConfig) -> dict[str, float]:
    """What a run costs, its start included.

    `paper_unit` is the one of Table 4, multiply-adds of a forward pass per token (without
    attention) times pictures of 256 tokens; `training_flops` is everything, backward pass too.
    """
    model, _ = load_whole(options.out, options.data)
    per_frame = tokens_per_frame(model.config, manifest_of(options.data))
    length = config.frames * per_frame
    tokens = row.steps * config.batch_size * length
    parts = forward_flops(model.config, length)
    macs = sum(flops for name, flops in parts.items() if name != "attention") / 2
    cost = {
        "paper_unit": macs * tokens / PICTURE_TOKENS,
        "training_flops": flops_per_token(model.config, length)["causal"] * tokens,
    }
    if row.start is not None:
        before = compute_of(row.start, pretrain(row.start, options.seed, config), config)
        cost = {name: value + before[name] for name, value in cost.items()}
    return cost


def summarise(row: Row, runs: list[train.Config], config: TableConfig) -> dict[str, Any]:
    """A row of the table, from its trained runs. The interval is that of one run's pictures: other
    seeds see the same ones, so they make it no narrower."""
    correct = np.stack([probe(row, options.seed, options, config) for options in runs])
    model, about = load_whole(runs[0].out, runs[0].data)
    manifest = manifest_of(runs[0].data)
    side = math.isqrt(tokens_per_frame(model.config, manifest))
    top1 = float(correct.mean())
    low, high = wilson_interval(top1 * correct.shape[1], correct.shape[1])
    result = {
        "name": row.name,
        "reads": f"patches of {model.config.patch} px" if model.config.patch else "codes",
        "predicts": model.config.predicts,
        "tokenizer": manifest.tokenizer,
        "vocabulary": manifest.vocabulary,
        "tokens": f"{side}x{side}",
        "model": row.model,
        "layers": model.config.layers,
        "probed_layer": layer_of(model, config),
        "parameters": num_parameters(model.config),
        "pooling": row.pooling,
        **compute_of(row, runs[0], config),
        "held_out_loss": about["held_out_loss"],
        "unit_of_loss": UNITS[model.config.predicts],
        "pictures": correct.shape[1],
        "top1": top1,
        "low": low,
        "high": high,
        "top1_of_seeds": correct.mean(1).tolist(),
        "published_top1": None if row.published is None else row.published / 100,
        "published_paper_unit": row.published_compute,
        "correct": correct,
    }
    if config.untrained:
        random = [probe(row, o.seed, o, config, untrained=True).mean() for o in runs]
        result["untrained_top1"] = float(np.mean(random))
    return result


def compare(better: dict[str, Any], worse: dict[str, Any]) -> dict[str, Any]:
    """Whether a published order shows here: the difference over the same pictures, bootstrapped."""
    difference = better["correct"].mean(0) - worse["correct"].mean(0)
    random = np.random.default_rng(0)
    picked = random.integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[picked].mean(1), [0.025, 0.975]).tolist()
    return {
        "published": f"{better['name']} above {worse['name']}",
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "here": "as published" if low > 0 else "the other way round" if high < 0 else "undecided",
    }


def as_text(result: dict[str, Any]) -> str:
    """The table and the comparisons in Markdown."""
    lines = [
        "| row | tokens | parameters | compute (paper's unit) | held-out loss | top-1 [95 %] | "
        "untrained | published top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        percent = [f"{100 * row[key]:.1f}" for key in ("top1", "low", "high")]
        untrained = f"{100 * row['untrained_top1']:.1f}" if "untrained_top1" in row else ""
        published = row["published_top1"]
        lines.append(
            f"| {row['name']} | {row['tokens']} | {row['parameters'] / 1e6:.2f} M | "
            f"{row['paper_unit']:.2e} | {row['held_out_loss']:.3f} | "
            f"{percent[0]} [{percent[1]}, {percent[2]}] | {untrained} | "
            f"{'' if published is None else f'{100 * published:.1f}'} |"
        )
    lines += [f"\nChance: {100 * result['chance']:.1f} %. Published orders, seen here:"]
    for pair in result["orders"]:
        span = [f"{100 * pair[key]:+.1f}" for key in ("difference", "low", "high")]
        lines.append(f"* {pair['published']}: {pair['here']} ({span[0]} [{span[1]}, {span[2]}])")
    return "\n".join(lines) + "\n"


def run_table(
    study: str,
    title: str,
    rows: Sequence[Row],
    orders: Sequence[tuple[str, str]],
    published: dict[str, Any],
    config: TableConfig,
) -> None:
    """Train all rows, probe them, write <study>.json, .md and .png.

    Args:
        orders: names of rows, the one that was published as better first.
        published: what the paper reports, with its source; goes into the file as it is.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    runs = [[pretrain(row, seed, config) for seed in range(config.seeds)] for row in rows]
    if not is_main():
        return
    found = {r.name: summarise(r, o, config) for r, o in zip(rows, runs, strict=True)}
    compared = [compare(found[a], found[b]) for a, b in orders]
    chance = 1 / len(set(classes_of(manifest_of(runs[0][0].data))))
    result = {
        "study": title,
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "chance": chance,
        "rows": [{k: v for k, v in row.items() if k != "correct"} for row in found.values()],
        "orders": compared,
        "published": published,
    }
    write_json(config.out / f"{study}.json", result)
    (config.out / f"{study}.md").write_text(as_text(result))
    bars = [
        Bar(label=r["name"], value=r["top1"], low=r["low"], high=r["high"],
            published=r["published_top1"])
        for r in result["rows"]
    ]  # fmt: skip
    plot_bars(bars, chance, config.out / f"{study}.png", title)
    print(as_text(result))
    print(f"{config.out / study}.json, .md and .png")
