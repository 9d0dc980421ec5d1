"""Launch templates: their syntax, their options, and as much of them as runs without a cluster."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pretraining import train
from pretraining.progress import requeue
from tests.pretraining.test_training import config, losses
from toto_robot.cli import parse

LAUNCH = Path(__file__).parents[2] / "docs" / "launch"
WORDS = {"model": "tiny", "layers": 1, "frames": 2, "batch_size": 2, "warmup": 2, "eval_every": 3,
         "steps": 6, "precision": "float32", "device": "cpu", "threads": 1,
         "checkpoint_s": 1e9}  # fmt: skip


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with a `scontrol` that notes what it is asked; its log."""
    folder, log = tmp_path / "bin", tmp_path / "scontrol.log"
    folder.mkdir()
    executable(folder / "scontrol", f'#!/bin/sh\necho "$@" >> {log}\necho 127.0.0.1\n')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    return log


def stopped_by(number: int, shards: Path, out: Path, patch: pytest.MonkeyPatch, **more) -> str:
    """What a training says that gets a signal in its third step."""
    original, calls = train.accumulate, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # launchers pass on what the rank has got as well
        return original(*arguments)

    with patch.context() as inner, pytest.raises(SystemExit) as caught:
        inner.setattr(train, "accumulate", interrupting)
        train.main(config(shards, out, layers=1, checkpoint_s=1e9, **more))
    return str(caught.value)


def test_time_limit_saves_and_requeues(
    shards: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = stopped_by(signal.SIGUSR1, shards, tmp_path / "run", monkeypatch)
    assert "stopped after step 3; SLURM job 4242 is in the queue again" in said
    assert slurm.read_text() == "requeue 4242\n"
    train.main(config(shards, tmp_path / "run", layers=1, checkpoint_s=1e9))
    train.main(config(shards, tmp_path / "whole", layers=1, checkpoint_s=1e9))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("number", "when", "asked"),
    [
        (signal.SIGTERM, "auto", False),  # scancel: whoever cancelled does not want it back
        (signal.SIGTERM, "always", True),
        (signal.SIGUSR1, "never", False),
    ],
)
def test_who_is_requeued(
    shards: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: int, when: str, asked: bool,
) -> None:  # fmt: skip
    said = stopped_by(number, shards, tmp_path / "run", monkeypatch, requeue=when)
    assert slurm.exists() == asked and ("in the queue again" in said) == asked


def test_requeue_that_fails(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(slurm.parent / "bin" / "scontrol", "#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert "scontrol requeue 4242 failed: no such job" in requeue("auto", time_is_up=True)
    monkeypatch.setenv("PATH", "")
    assert "scontrol requeue 4242 failed" in requeue("auto", time_is_up=True)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue("always", time_is_up=True) == "the same command continues there"


def commands() -> dict[str, str]:
    """The shell text of each template."""
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    texts = {path.name: path.read_text() for path in LAUNCH.glob("*.sbatch")}
    return texts | {"skypilot setup": sky["setup"], "skypilot run": sky["run"]}


@pytest.mark.parametrize("name", commands())
def test_shell_syntax(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=commands()[name], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["train.sbatch", "skypilot run"])
def test_options_exist(name: str) -> None:
    """Every word after `pretraining.train`, or of the template's example, is an option."""
    if name == "train.sbatch":
        line = next(x for x in commands()[name].splitlines() if "sbatch docs/launch" in x)
        words = line.split("train.sbatch ")[1].split()
    else:
        variables = {**yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["envs"]}
        text = commands()[name].split("pretraining.train ")[1].replace('"', "")
        for key, value in variables.items():
            text = text.replace(f"${key}", value)
        words = text.split()
    parsed = parse(train.Config, words)
    assert (parsed.model, parsed.steps) == ("base", 1_000_000)


SRUN = """#!{python}
# Two nodes on one machine: each gets its number, and a signal reaches the processes of both.
import os, subprocess, sys
nodes = [subprocess.Popen(sys.argv[1:], env={{**os.environ, "SLURM_NODEID": str(i)}},
                          start_new_session=True) for i in range(2)]
open({pids!r}, "w").write(" ".join(str(node.pid) for node in nodes))
sys.exit(max(node.wait() for node in nodes))
"""


@pytest.mark.slow
def test_sbatch_on_two_pretended_nodes(
    shards: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template as it is: torchrun on both nodes, SIGUSR1 to all, requeued, then to the end."""
    pids = tmp_path / "pids"
    executable(slurm.parent / "bin" / "srun", SRUN.format(python=sys.executable, pids=str(pids)))
    environment = {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_NNODES": "2", "RANKS_PER_NODE": "1",
                   "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}  # fmt: skip
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    out = tmp_path / "run"
    words = [f"{k}={v}" for k, v in {**WORDS, "steps": 40, "data": shards, "out": out}.items()]
    command = ["bash", str(LAUNCH / "train.sbatch"), *words]

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text():
            break
        time.sleep(0.02)
    for pid in pids.read_text().split():
        os.killpg(int(pid), signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "SLURM job 4242 is in the queue again" in output, output
    assert slurm.read_text().count("requeue 4242") == 1
    assert len(losses(out)) < 40

    subprocess.run(command, check=True, timeout=240)
    alone = config(shards, tmp_path / "alone", **(WORDS | {"steps": 40}))
    train.main(alone)
    assert losses(out) == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)


@pytest.mark.slow
def test_ray_train_on_a_local_cluster(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("Ray Train wants pip install 'ray[train]'")
    words = [f"{k}={v}" for k, v in {**WORDS, "data": shards, "out": tmp_path / "run"}.items()]
    root = LAUNCH.parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, LAUNCH / "ray_train.py", "workers=2", *words],
        check=True, timeout=300, cwd=root, env={**os.environ, "PYTHONPATH": ":".join(paths)},
    )  # fmt: skip
    train.main(config(shards, tmp_path / "alone", **WORDS))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
