"""Run folders as a report reads them: found, grouped by what was trained, compared over seeds."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from toto_robot.conf import INCIDENTAL
from toto_robot.overrides import flatten
from toto_robot.runs import read_metrics


@dataclass
class Run:
    """One run folder. `evaluation` is None while it trains; `shifts` has a row for each suite."""

    folder: Path
    env: str
    algo: str
    backbone: str  # "state" for a policy that reads the state
    seed: int
    options: dict[str, Any]  # the flattened config
    reports: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    shifts: list[dict[str, Any]]
    facts: dict[str, str]
    variant: str = ""  # what else differs from the runs beside it

    @property
    def label(self) -> str:
        parts = (self.algo, self.backbone, self.variant)
        return " · ".join(part for part in parts if part)

    @property
    def steps(self) -> int:
        return self.reports[-1]["steps"] if self.reports else 0

    @property
    def wall_time_s(self) -> float:
        """Of training, without evaluation and without the pauses of a resumed run."""
        time_s, before = 0.0, 0
        for report in self.reports:
            time_s += (report["steps"] - before) / max(report["steps_per_s"], 1e-9)
            before = report["steps"]
        return time_s

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.wall_time_s if self.steps else 0.0

    @property
    def encodes_per_step(self) -> float | None:
        """Backbone forwards (frames) per environment step; None without a backbone."""
        if self.backbone == "state" or not self.reports:
            return None
        return self.reports[-1]["encodes_per_step"]

    def film(self) -> Path | None:
        path = self.folder / "eval.mp4"
        return path if path.exists() else None


@dataclass
class Group:
    """Runs that differ by their seed alone."""

    env: str
    label: str
    runs: list[Run] = field(default_factory=list)

    @property
    def final_rates(self) -> list[float]:
        """Success of the final evaluations that are there."""
        return [r.evaluation["success_rate"] for r in self.runs if r.evaluation is not None]

    @property
    def repeated_seeds(self) -> list[int]:
        seeds = [run.seed for run in self.runs]
        return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Run folders that the patterns (folders or globs) name or contain, sorted.

    Raises ValueError if there is none.
    """
    found: set[Path] = set()
    for pattern in patterns:
        for place in map(Path, glob.glob(pattern, recursive=True)):
            found |= {
                path.parent
                for path in (place / "metrics.jsonl", *place.rglob("metrics.jsonl"))
                if path.exists() and (path.parent / "config.yaml").exists()
            }
    if not found:
        raise ValueError(
            f"runs={','.join(patterns)}: no run folder there (one holds config.yaml and "
            "metrics.jsonl)"
        )
    return sorted(found)


def load_run(folder: Path) -> Run:
    """The one door from a run folder's files. Raises ValueError for another config."""
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    try:
        assert isinstance(config, dict)
        backbone = "state" if config["obs"] == "state" else config["backbone"]["name"]
        if config["backbone"]["weights"] == "random" and backbone != "state":
            backbone += " (random weights)"
        env, algo, seed = config["env"]["name"], config["algo"], config["seed"]
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.yaml is not one of toto_robot.rl: {error!r}") from error
    return Run(
        folder=folder,
        env=env,
        algo=algo,
        backbone=backbone,
        seed=seed,
        options=_options(config),
        reports=read_metrics(folder / "metrics.jsonl"),
        evaluation=_evaluation(folder / "eval.json"),
        shifts=_shifts(folder / "eval_shifts.json"),
        facts=_facts(folder / "env.txt"),
    )


def _evaluation(path: Path) -> dict[str, Any] | None:
    """`eval.json`; what older ones do not say is None."""
    if not path.exists():
        return None
    newer = (
        "success_at_end_rate", "success_at_end_low", "success_at_end_high", "time_to_success_s",
        "stop_at_success",
    )  # fmt: skip
    return dict.fromkeys(newer) | json.loads(path.read_text())


def _shifts(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _facts(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


def _options(config: dict[Any, Any]) -> dict[str, Any]:
    """Flattened. Of `init` only whether there is one: each seed may start from its own policy."""
    options = flatten(config)
    if options.get("init") is not None:
        options["init"] = "policy"
    return options


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of env and label. Runs of one env, algo and backbone whose options differ
    are told apart by the options that do (an option that some lack is newer than they are)."""
    by_kind: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        by_kind.setdefault((run.env, run.algo, run.backbone), []).append(run)
    groups: dict[tuple[str, str], Group] = {}
    for alike in by_kind.values():
        keys = _differing(alike)
        for run in alike:
            run.variant = ", ".join(f"{key}={_short(run.options[key])}" for key in keys)
            group = groups.setdefault((run.env, run.label), Group(run.env, run.label))
            group.runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: (run.seed, run.folder))
    return [groups[key] for key in sorted(groups)]


def _short(value: Any) -> str:
    """A long whole number in millions."""
    return f"{value / 1e6:g}M" if isinstance(value, int) and value >= 100_000 else str(value)


def _differing(runs: Sequence[Run]) -> list[str]:
    shared = set.intersection(*(set(run.options) for run in runs)) - {"seed", *INCIDENTAL}
    return sorted(k for k in shared if len({str(run.options[k]) for run in runs}) > 1)
