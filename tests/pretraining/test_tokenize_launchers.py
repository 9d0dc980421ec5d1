"""The same shards from a pool whose workers are killed and from a SLURM array's script."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pretraining import tokenize
from pretraining.pool import Pool
from pretraining.tokenize_launchers import write_slurm
from pretraining.tokenize_plan import make_plan
from pretraining.tokenize_task import Job, Report, finish, run_task
from tests.pretraining.test_tokenize import contents

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def config(films: Path, tokenizer: Path, tmp_path: Path) -> tokenize.Config:
    """As the `shards` of conftest were made, into a folder of its own."""
    return tokenize.Config(
        data=films,
        tokenizer=tokenizer,
        out=tmp_path / "out folder",
        held_out=0.2,
        per_shard=2,
        threads=1,
        device="cpu",
    )


def shards_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if ".tmp" not in name}


def deadly(
    job: Job, folder: Path, worker: int, task: int, report: Report, avoid: dict[str, str]
) -> None:
    """The task, in which the first attempts at some tasks end by SIGKILL at a random moment."""
    with open(folder / f"{task}.attempts", "a") as file:
        file.write("x")
    attempt = (folder / f"{task}.attempts").stat().st_size
    random = np.random.default_rng(task)
    fatal = random.integers(1, 3) if attempt <= task else 0  # which report, if any
    calls = []

    def die_or_report(source: str, frames: int) -> None:
        calls.append(source)
        if len(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        report(source, frames)

    run_task(job, task, die_or_report, avoid)


def test_workers_killed_in_mid_task(
    config: tokenize.Config, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Task 1's worker once and task 2's twice; nothing is lost and nothing comes twice."""
    plan = make_plan(config.out, config.data, config.tokenizer, held_out=0.2, per_shard=2)
    job = Job(out=config.out, data=config.data, device="cpu", threads=1)
    pool = Pool(partial(deadly, job, tmp_path), 2, lambda *_: None, lambda _: None)
    assert pool.run(range(3)) == {}
    assert pool.deaths == {1: 1, 2: 2} and capsys.readouterr().out.count("SIGKILL") == 3
    finish(plan, config.data)
    assert shards_of(config.out) == shards_of(shards)


def test_whole_run_killed_and_started_again(config: tokenize.Config, shards: Path) -> None:
    """SIGKILL at the first record, wherever the second task is then; a pool goes on."""
    command = [sys.executable, "-m", "pretraining.tokenize", *tokenize.words_of(config)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (config.out / "shard_00000.json").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (config.out / "manifest.json").exists()
    tokenize.main(replace(config, workers=2))
    assert shards_of(config.out) == shards_of(shards)


def test_slurm_array(config: tokenize.Config, shards: Path, capsys: pytest.CaptureFixture) -> None:
    """The text that sbatch would get is bash, and does what an element of the array does."""
    tokenize.main(replace(config, task="1"))
    tokenize.main(replace(config, launcher="slurm", workers=1))
    said = capsys.readouterr().out.splitlines()
    array, end = (config.out / "slurm" / f"{name}.sbatch" for name in ("array", "finish"))
    assert said[-1] == (f"sbatch --dependency=afterany:\"$(sbatch --parsable '{array}')\" '{end}'")
    assert said[-2].startswith("2 of 3 tasks to do")
    text = array.read_text()
    assert "#SBATCH --array=0,2\n" in text and "--gpus" not in text and "--requeue" in text
    for script in (array, end):
        subprocess.run(["bash", "-n", script], check=True)
    tokenize.main(replace(config, task="0"))
    environment = {**ENVIRONMENT, "SLURM_ARRAY_TASK_ID": "2"}
    subprocess.run(["bash", array], check=True, env=environment, timeout=150, cwd="/")
    assert not (config.out / "manifest.json").exists()
    subprocess.run(["bash", end], check=True, env=ENVIRONMENT, timeout=150, cwd="/")
    assert shards_of(config.out) == shards_of(shards)
    tokenize.main(replace(config, launcher="slurm", device="auto"))
    assert "0 of 3 tasks" in capsys.readouterr().out


def test_slurm_array_of_many_tasks(config: tokenize.Config) -> None:
    """SLURM allows 1001 elements: more tasks than that share them."""
    tokenize.main(replace(config, launcher="slurm", device="auto", workers=6))
    text = (config.out / "slurm" / "array.sbatch").read_text()
    assert "--array=0-2\n" in text and "--gpus=1" in text and "--cpus-per-task=6" in text
    plan = make_plan(config.out, config.data, config.tokenizer, held_out=0.2, per_shard=2)
    many = replace(plan, settings=replace(plan.settings, sources=5000))
    write_slurm(many, [0, 7, 1007, 2400], ["data=x"], 1, "auto")
    text = (config.out / "slurm" / "array.sbatch").read_text()
    assert "--array=0,7,400\n" in text and '"${SLURM_ARRAY_TASK_ID}/1000"' in text
    assert tokenize.chosen("400/1000", many) == [400, 1400, 2400]
