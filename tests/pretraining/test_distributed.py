"""The same training under torchrun: any number of ranks, accumulated or not, stopped and resharded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from toto_robot.backbone.weights import read_weights

COMMON = {"model": "tiny", "layers": 2, "frames": 2, "batch_size": 6, "warmup": 2, "eval_every": 3,
          "precision": "float32", "device": "cpu", "threads": 1, "checkpoint_s": 1e9}  # fmt: skip


def command(ranks: int, shards: Path, out: Path, **changes: object) -> list[str]:
    words = [f"{k}={v}" for k, v in {**COMMON, "data": shards, "out": out, **changes}.items()]
    if ranks == 1:
        return [sys.executable, "-m", "pretraining.train", *words]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={ranks}", "-m", "pretraining.train", *words]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(ranks: int, shards: Path, out: Path, **changes: object) -> list[dict]:
    process = start(command(ranks, shards, out, **changes))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return metrics(out)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_alike(ours: list[dict], expected: list[dict]) -> None:
    assert [x["step"] for x in ours] == [x["step"] for x in expected]
    for name in ("loss", "norm"):
        ours_n, expected_n = ([x[name] for x in lines] for lines in (ours, expected))
        assert ours_n == pytest.approx(expected_n, abs=1e-5, rel=1e-5)


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    run(1, shards, out, steps=6)
    return out


def test_two_ranks_and_accumulation_equal_one_process(
    shards: Path, alone: Path, tmp_path: Path
) -> None:
    assert_alike(run(2, shards, tmp_path, steps=6, micro_batch=2), metrics(alone))
    ours, theirs = (read_weights(p / "backbone.safetensors")[0] for p in (tmp_path, alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=1e-3, msg=name)


def test_two_ranks_then_one_then_three(shards: Path, alone: Path, tmp_path: Path) -> None:
    """Stopped by SIGTERM twice; every continuation reads what another number of ranks wrote."""
    for ranks, until in ((2, 2), (1, 4)):
        process = start(command(ranks, shards, tmp_path, steps=6, eval_every=1))
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            log = tmp_path / "metrics.jsonl"
            if log.exists() and log.read_text().count("\n") >= until - 1:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=90)
        assert process.returncode != 0 and "the same command continues" in output, output
        assert not (tmp_path / "backbone.safetensors").exists(), "finished before it was stopped"
    assert_alike(run(3, shards, tmp_path, steps=6, eval_every=1), metrics(alone))


def test_replicas_of_shards(shards: Path, alone: Path, tmp_path: Path) -> None:
    """HSDP: two groups of two ranks, as on two nodes."""
    lines = run(4, shards, tmp_path, steps=6, replicas=2, batch_size=12)
    other = run(1, shards, tmp_path / "one", steps=6, batch_size=12)
    assert_alike(lines, other)


def test_killed_while_a_checkpoint_is_written(shards: Path, alone: Path, tmp_path: Path) -> None:
    """SIGKILL with a half-written checkpoint on disk: the one before it is gone on from."""
    process = start(command(1, shards, tmp_path, steps=6, checkpoint_s=0.0))
    folder = tmp_path / "checkpoints"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        complete = list(folder.glob("step_*[0-9]")) if folder.exists() else []
        if complete and list(folder.glob("*.partial")):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    newest = max(folder.glob("step_*[0-9]"))
    (folder / "step_00000099.partial").mkdir()  # whatever moment the kill met, one half is there
    (folder / "step_00000099.partial" / "state.json").write_text("{")
    assert newest.name < "step_00000006"
    assert_alike(run(1, shards, tmp_path, steps=6, checkpoint_s=0.0), metrics(alone))
    assert not list(folder.glob("*.partial"))


def test_batch_that_does_not_divide(shards: Path, tmp_path: Path) -> None:
    process = start(command(2, shards, tmp_path, steps=2, batch_size=3))
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "batch_size=3 does not divide over 2" in output
