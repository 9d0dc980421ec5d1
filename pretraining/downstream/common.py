"""What the evaluations share: their options, and the folder that holds what was found.

`<out>/<task>/<label>/result.json` is one row: the metrics with their intervals, and per layer where
there are layers; files beside it (plots, films) are named in it. The report reads nothing else.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.weights import write_json


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of every evaluation."""

    backbone: str = "toto-tiny"  # as in load_backbone
    weights: str | None = field(default=None, metadata={"alias": "backbone.weights"})
    timm_name: str | None = field(default=None, metadata={"alias": "backbone.timm_name"})
    data: Path  # the data set's folder as it is distributed
    out: Path = Path("outputs/evaluate")
    label: str | None = None  # of the row; None: the backbone's name
    seed: int = 0
    device: str = "auto"
    threads: int = 0  # 0: torch's choice

    def folder(self, task: str) -> Path:
        """Where the row goes."""
        own = self.timm_name or self.backbone
        name = self.label or own + ("-random" if self.weights == "random" else "")
        return self.out / task / name


@dataclass(frozen=True)
class Metric:
    """A number with its 95 % interval, in the unit of its name ("top1_%", "J&F_%", "loss_nats")."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None  # of pictures, videos, objects that it is a mean of


@dataclass
class Result:
    """One row.

    Attributes:
        metrics: the first is the one that rows are compared by.
        layers: the same metrics of every layer, 0 (embeddings) to the last, or of those that
            `extra["layer_numbers"]` names; empty without layers.
        best_layer: the one that `metrics` are of.
        files: plots and films, relative to the row's folder.
        skipped: files that could not be used, and why.
        notes: what a reader must know (small data, another recipe than the paper's).
        extra: whatever else a task wants to keep.
    """

    task: str
    metrics: dict[str, Metric]
    layers: list[dict[str, Metric]] = field(default_factory=list)
    best_layer: int | None = None
    files: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def write_result(
    result: Result, config: EvaluateConfig, backbone: FrozenBackbone | None, words: Sequence[str]
) -> Path:
    """Write `result.json`, which says what it is of; returns its path.

    Args:
        backbone: None where the row is of something else (raw pixels, a supervised network).
        words: the command line, so that the row can be made again; of a backbone what follows
            `python -m pretraining.evaluate`.
    """
    path = config.folder(result.task) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "label": path.parent.name,
        "backbone": backbone.name if backbone else None,
        "weights_hash": backbone.weights_hash if backbone else None,
        "untrained": backbone.untrained if backbone else False,
        "blocks": backbone.num_layers if backbone else None,
        "command": ["python", "-m", "pretraining.evaluate", *words] if backbone else list(words),
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
    }
    write_json(path, dataclasses.asdict(result) | about)
    return path
