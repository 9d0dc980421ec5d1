"""Many trainings, one after the other; finished ones are not repeated."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining import train
from pretraining.optimizer import Diverged
from pretraining.parallel import World
from pretraining.progress import Interrupt, requeue
from toto_robot.backbone.weights import write_json

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a training.

    Attributes:
        about: `backbone.json`, empty when it diverged.
        losses: (steps done, held-out loss in nats per token), oldest first; empty when it diverged.
        diverged: why it was given up, if it was.
    """

    folder: Path
    about: dict[str, Any]
    losses: list[tuple[int, float]]
    diverged: str | None = None


def train_all(configs: Sequence[train.Config], world: World) -> list[Outcome]:
    """Train what is not finished. Interrupted, the same call goes on where it stopped.

    Raises:
        ValueError: a folder holds a finished training with other settings.
    """
    interrupt = Interrupt()
    for number, config in enumerate(configs):
        config = train.with_recipe(config)
        if is_finished(config, world):
            continue
        if world.sum(interrupt.requested)[0]:  # too late for the training before this one
            news = requeue(config.requeue, interrupt.time_is_up) if world.is_main else ""
            raise SystemExit(f"stopped before {config.out.name}; {news}")
        if world.is_main:
            print(f"[{number + 1}/{len(configs)}] {config.out.name}")
        try:
            train.run(config, world, interrupt)
        except Diverged as error:
            if world.is_main:
                data, _ = train.open_samples(config, world.device)
                content = {"trained": train.identity_of(config, data), "why": str(error)}
                write_json(config.out / DIVERGED, content)
        world.barrier()
        if world.is_main:
            shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
    return [outcome_of(config.out) for config in configs]


def is_finished(config: train.Config, world: World) -> bool:
    """Whether the folder holds this training's end; ValueError when it holds another's, or one on other
    data."""
    for name in ("backbone.json", DIVERGED):
        if (config.out / name).is_file():
            settings = train.identity_of(config, train.open_samples(config, world.device)[0])
            before = json.loads((config.out / name).read_text())["trained"]
            changed = [f"{k}: {before.get(k)} then, {v} now"
                       for k, v in settings.items() if before.get(k) != v]  # fmt: skip
            if changed:
                raise ValueError(
                    f"{config.out} holds a training with other settings ({'; '.join(changed)}); "
                    "delete it or choose another out="
                )
            return True
    return False


def outcome_of(folder: Path) -> Outcome:
    if (folder / DIVERGED).is_file():
        return Outcome(folder, {}, [], json.loads((folder / DIVERGED).read_text())["why"])
    about = json.loads((folder / "backbone.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(x["step"] + 1, x["held_out_loss"]) for x in lines if "held_out_loss" in x]
    return Outcome(folder, about, losses)
