"""The same training as Ray Train workers, on a Ray cluster that is already there.

    python docs/launch/ray_train.py workers=16 model=base data=/data/shards out=/data/toto-base steps=1_000_000

`workers=` is the number of ranks, one GPU each (on the CPU with device=cpu); every other word goes to
pretraining.train. `data` and `out` must be the same folders on every node. After a failure Ray starts
the workers again and the run goes on from its last checkpoint.
"""

import os
import sys
from dataclasses import dataclass
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pretraining import train
from toto_robot.cli import parse, split


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Train on Ray workers. Further options: those of pretraining.train."""

    workers: int
    failures: int = 3  # after which Ray gives up


def worker(settings: dict[str, Any]) -> None:
    os.chdir(settings["folder"])  # Ray starts workers in a folder of its own
    train.main(parse(train.Config, settings["words"]))


def main(arguments: list[str]) -> None:
    mine, words = split(Workers, arguments)
    options = parse(Workers, mine)
    on_gpu = parse(train.Config, words).device != "cpu"  # and errors come before Ray is asked
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    TorchTrainer(
        worker,
        train_loop_config={"words": words, "folder": os.getcwd()},
        torch_config=TorchConfig(backend=backend),
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=on_gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.failures)),
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1:])
