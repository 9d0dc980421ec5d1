"""The paper's evaluations: `python -m pretraining.evaluate task=imagenet backbone=toto-tiny data=…`

Each task is a module of pretraining.downstream with a `Config` (an EvaluateConfig) and an
`evaluate(config, backbone) -> Result`; `--help` after `task=` lists its options.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

from pretraining.downstream.common import Metric, write_result
from pretraining.parallel import choose_device
from toto_robot.backbone import FrozenBackbone, load_backbone
from toto_robot.backbone.weights import nearest
from toto_robot.cli import parse

TASKS: dict[str, str] = {  # name -> module, imported when asked for
    "cater": "pretraining.downstream.cater",
    "davis": "pretraining.downstream.davis",
    "ego4d-sta": "pretraining.downstream.ego4d_sta",
    "imagenet": "pretraining.downstream.imagenet",
    "kinetics": "pretraining.downstream.kinetics",
    "robot": "pretraining.downstream.robot",
}


def task_module(name: str) -> Any:
    if name not in TASKS:
        raise SystemExit(f"task={name!r}: expected {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return importlib.import_module(TASKS[name])


def as_text(name: str, metric: Metric) -> str:
    interval = "" if metric.low is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
    return f"{name} {metric.value:.4g}{interval}" + (f" of {metric.count}" if metric.count else "")


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = [word.partition("=")[2] for word in words if word.startswith("task=")]
    if len(chosen) != 1:
        raise SystemExit(f"{__doc__}\ntask= one of {', '.join(TASKS)}")
    module = task_module(chosen[0])
    config = parse(module.Config, [word for word in words if not word.startswith("task=")])
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        backbone = load_backbone(
            config.backbone,
            weights=config.weights,
            timm_name=config.timm_name,
            readout="tokens",
            all_layers=True,
        )
        if not isinstance(backbone, FrozenBackbone):
            raise ValueError(f"backbone={config.backbone} has no features until it is trained")
        backbone = backbone.to(choose_device(config.device))
        result = module.evaluate(config, backbone)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"task={chosen[0]}: {error}") from None
    path = write_result(result, config, backbone, words)
    layer = "" if result.best_layer is None else f" at layer {result.best_layer}"
    print("; ".join(as_text(name, metric) for name, metric in result.metrics.items()) + layer)
    print(path)


if __name__ == "__main__":
    main()
