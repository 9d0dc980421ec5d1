"""Videos or pictures into token shards.

    python -m pretraining.tokenize data=data/films tokenizer=data/tokenizer out=data/shards

The sources are cut into tasks, one shard each, which run here, on SLURM or on Ray (docs/tokenizing.md).
The same command goes on after a kill; the folder is usable only once the manifest is written.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pretraining.shards import MANIFEST
from pretraining.tokenize_launchers import LAUNCHERS, write_slurm
from pretraining.tokenize_plan import Plan, make_plan
from pretraining.tokenize_task import Job, finish, read_record, unfinished
from toto_robot.cli import parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Videos or pictures into token shards."""

    data: Path
    tokenizer: Path  # folder with tokenizer.safetensors and tokenizer.json
    out: Path
    layout: str = "auto"  # videos, images, webdataset, or a data set's name
    held_out: float = 0.05  # share of the sources, where the data set has no split of its own
    resolution: int | None = None  # px; none: what the tokenizer was trained with
    crops: int = 1  # per source: the centre, then random places
    per_shard: int = field(default=0, metadata={"alias": "videos_per_shard"})  # 0: by their kind
    reader: Literal["pyav", "torchcodec"] = "pyav"  # torchcodec decodes on CUDA with NVDEC
    precision: Literal["float32", "float16"] = "float32"  # float16: fast on GPUs
    batch_size: int = 64  # frames
    device: str = "auto"
    threads: int = 0  # 0: torch's choice
    workers: int = 1  # processes: here, in each element of the array, or on each GPU of Ray
    launcher: Literal["local", "slurm", "ray"] = "local"
    task: str | None = None  # a number; "i/n": tasks i, i + n, i + 2n, ...; "finish"


def chosen(task: str, plan: Plan) -> list[int]:
    """The numbers of "7" or "7/500"; ValueError for anything else."""
    first, slash, step = task.partition("/")
    if not first.isdecimal() or (slash and not (step.isdecimal() and int(step) > 0)):
        raise ValueError(f"task={task}: expected a number, first/step, or finish")
    if int(first) >= plan.tasks:
        raise ValueError(f"task={task}: there are {plan.tasks} tasks, counted from 0")
    return list(range(int(first), plan.tasks, int(step))) if slash else [int(first)]


def words_of(config: Config) -> list[str]:
    """The command line that gives this config, without launcher= and task=."""
    return [
        f"{f.name}={getattr(config, f.name)}"
        for f in dataclasses.fields(config)
        if f.name not in ("launcher", "task") and getattr(config, f.name) != f.default
    ]


def close(plan: Plan, data: Path) -> None:
    manifest = finish(plan, data)
    print(
        f"{plan.out / MANIFEST}: {len(manifest.shards)} shards, {manifest.frames} frames, "
        f"{manifest.tokens} tokens, {len(manifest.skipped)} {manifest.kind}s skipped"
    )


def main(config: Config) -> None:
    plan = make_plan(
        config.out,
        config.data,
        config.tokenizer,
        layout=config.layout,
        held_out=config.held_out,
        resolution=config.resolution,
        crops=config.crops,
        per_shard=config.per_shard,
        reader=config.reader,
        precision=config.precision,
        trust=config.task is not None,  # thousands of tasks cannot all list the data
    )
    if config.task == "finish":
        close(plan, config.data)
        return
    if config.task is None:
        tasks = unfinished(plan)
    else:
        tasks = [t for t in chosen(config.task, plan) if read_record(plan, t) is None]
    if config.launcher == "slurm" and config.task is None:
        command = write_slurm(plan, tasks, words_of(config), config.workers, config.device)
        print(f"{len(tasks)} of {plan.tasks} tasks to do. Add your partition and account, then:")
        print(command)
        return

    launcher = "local" if config.launcher == "slurm" else config.launcher
    job = Job(
        out=config.out.absolute(),
        data=config.data.absolute(),
        batch_size=config.batch_size,
        device=config.device,
        threads=config.threads,
    )
    failed = LAUNCHERS[launcher](job, plan, tasks, config.workers) if tasks else {}
    if failed:
        task, how = next(iter(failed.items()))
        raise SystemExit(
            f"{len(failed)} tasks failed, first task {task}: {how}; the same command tries them again"
        )
    if config.task is None:
        close(plan, config.data)


if __name__ == "__main__":
    try:
        main(parse(Config, sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
