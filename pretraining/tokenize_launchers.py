"""Ways to run the tasks of tokenizing: this machine's processes, a SLURM array, a Ray cluster.

All run the same `run_task`, in any order and as often as need be.
"""

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from pretraining.pool import ATTEMPTS, Pool
from pretraining.tokenize_plan import Plan
from pretraining.tokenize_task import Job, Report, ranges, run_task

ELEMENTS = 1000  # of an array; SLURM's default limit is 1001


class Progress(AbstractContextManager["Progress"]):
    """A bar over the sources, with frames/s and the time left."""

    def __init__(self, plan: Plan, tasks: list[int]) -> None:
        sources = plan.settings.sources
        ahead = sum(len(plan.numbers(task)) for task in tasks)
        unit = "picture" if plan.settings.kind == "image" else "video"
        self.bar = tqdm(total=sources, initial=sources - ahead, unit=unit, desc="tokenize")
        self.started, self.frames = time.monotonic(), 0

    def report(self, source: str, frames: int) -> None:
        self.frames += frames
        # A task that is run again reports its sources again.
        self.bar.update(1 if source and not frames and self.bar.n < (self.bar.total or 0) else 0)
        rate = self.frames / (time.monotonic() - self.started)
        self.bar.set_postfix(frames_s=f"{rate:.0f}", refresh=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()


def show_skipped(record: dict[str, Any]) -> None:
    for reason in record["skipped"].values():
        tqdm.write(f"skipped: {reason}")


def run_local(job: Job, plan: Plan, tasks: list[int], workers: int) -> dict[int, str]:
    """One worker is this process; more are processes of their own. Returns what failed and how."""
    with Progress(plan, tasks) as progress:
        if workers == 1:
            for task in tasks:
                show_skipped(run_task(job, task, progress.report))
            return {}
        threads = job.threads or max(1, (os.cpu_count() or 1) // workers)
        work = partial(work_on, replace(job, threads=threads))
        return Pool(work, workers, progress.report, lambda _: None).run(tasks)


def work_on(job: Job, worker: int, task: int, report: Report, avoid: dict[str, str]) -> None:
    """What a worker of the pool does; the workers take turns on the machine's GPUs."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and job.device in ("auto", "cuda"):
        job = replace(job, device=f"cuda:{worker % gpus}")
    show_skipped(run_task(job, task, report, avoid))


def run_ray(job: Job, plan: Plan, tasks: list[int], workers: int) -> dict[int, str]:
    """On the cluster that RAY_ADDRESS names, else on one that is started here for the time being.

    `workers` share each GPU; without GPUs there are as many as there are cores.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise SystemExit("launcher=ray needs Ray: pip install 'toto-robot[ray]'") from error
    ray.init(logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    gpus = ray.cluster_resources().get("GPU", 0) if job.device != "cpu" else 0
    remote = ray.remote(  # a worker that dies is replaced, an error of Python's is not
        num_cpus=max(1, job.threads), num_gpus=1 / workers if gpus else 0, max_retries=ATTEMPTS
    )(run_task)
    failed: dict[int, str] = {}
    try:
        waiting = {remote.remote(job, task): task for task in tasks}
        with Progress(plan, tasks) as progress:
            while waiting:
                for done in ray.wait(list(waiting), num_returns=1)[0]:
                    task = waiting.pop(done)
                    try:
                        record = ray.get(done)
                    except RayError as error:
                        failed[task] = str(error)
                        continue
                    show_skipped(record)
                    for _ in plan.numbers(task):
                        progress.report("source", 0)
                    progress.report("", record["shard"]["frames"])
    finally:
        ray.shutdown()
    return failed


LAUNCHERS: dict[str, Callable[[Job, Plan, list[int], int], dict[int, str]]] = {
    "local": run_local,
    "ray": run_ray,
}

ARRAY = """\
#!/usr/bin/env bash
#SBATCH --job-name=tokenize
#SBATCH --array={array}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpu}#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={folder}/%A_%a.log
# Element i does the tasks i, i + {elements}, i + {double}, ... that are not done yet, so that it may be
# preempted, requeued and submitted again at will.
set -euo pipefail
cd {here}
exec {command} task="${{SLURM_ARRAY_TASK_ID}}/{elements}"
"""

FINISH = """\
#!/usr/bin/env bash
#SBATCH --job-name=tokenize-finish
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output={folder}/finish_%j.log
# Checks every shard and writes the manifest; says which tasks are missing if any is.
set -euo pipefail
cd {here}
exec {command} task=finish
"""


def write_slurm(plan: Plan, tasks: list[int], words: list[str], workers: int, device: str) -> str:
    """Write array.sbatch and finish.sbatch below `plan.out`; returns the command that submits both.

    The finishing job starts however the array ends (afterany): after a failure it says what is
    missing, where afterok would leave it in the queue for ever.

    Args:
        tasks: those not done yet; only their elements are submitted.
        words: the options, as key=value.
        workers: processes in each element.
    """
    folder = (plan.out / "slurm").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    elements = min(plan.tasks, ELEMENTS)
    values = {
        "array": ranges(sorted({task % elements for task in tasks})),
        "elements": elements,
        "double": 2 * elements,
        "cpus": max(4, workers),
        "gpu": "" if device == "cpu" else "#SBATCH --gpus=1\n",
        "folder": folder,
        "here": shlex.quote(str(Path.cwd())),
        "command": shlex.join([sys.executable, "-m", "pretraining.tokenize", *words]),
    }
    array, end = folder / "array.sbatch", folder / "finish.sbatch"
    array.write_text(ARRAY.format(**values))
    end.write_text(FINISH.format(**values))
    first = f"sbatch --parsable {shlex.quote(str(array))}"
    return f'sbatch --dependency=afterany:"$({first})" {shlex.quote(str(end))}'
