"""Many seeds by one command: folders, failures that stop nobody, going on with half-done sweeps."""

import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import envs
from policies.ppo import PPO
from toto_robot import rl, sweeps
from toto_robot.conf import register
from toto_robot.runs import read_metrics
from toto_robot.sweeps import complete_sweep, is_sweep

register()
NOON = datetime(2026, 11, 25, 12, 0, 0)
SMALL = [
    "obs=state", "num_envs=4", "ppo.num_steps=8", "ppo.epochs=1", "ppo.minibatches=2",
    "ppo.hidden=[8]", "eval_episodes=2", "film_episodes=0", "threads=1", "total_steps=96",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fakes(doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(task: str, num_envs: int, seed: int, obs: str, image_size: int, **_: Any) -> Any:
        return doubles.FakeTask(num_envs, obs, seed, image_size, max_episode_length=12)

    monkeypatch.setattr(envs, "make", make)
    monkeypatch.setattr(sweeps, "_stopped", False)


def sweep(monkeypatch: pytest.MonkeyPatch, folder: Path, seeds: str = "0,1,2") -> int | str | None:
    """Run it and return the exit code."""
    monkeypatch.setattr(sweeps, "_stopped", False)  # as in a new process
    words = ["toto-rl", "-m", f"seed={seeds}", *SMALL, f"hydra.sweep.dir={folder}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        rl.main()
    return ended.value.code


def folders_of(*words: str) -> dict[str, str]:
    completed = complete_sweep(["-m", *words], NOON)
    assert completed[0] == "-m" and completed[1 : 1 + len(words)] == list(words)
    return dict(word.split("=", 1) for word in completed[1:] if word.startswith("hydra.sweep"))


def test_folders_are_named_by_what_is_swept() -> None:
    assert folders_of("seed=0,1", "obs=state") == {
        "hydra.sweep.dir": "'outputs/2026-11-25/12-00-00_franka_pick_state_sweep'",
        "hydra.sweep.subdir": "'s${seed}'",
    }
    both = folders_of(
        "seed=range(0,3)", "env=franka_pick,kuka_pick", "backbone=toto-tiny,toto-base"
    )
    assert both["hydra.sweep.dir"] == "'outputs/2026-11-25/12-00-00_sweep'"
    assert both["hydra.sweep.subdir"] == "'${env.name}_${backbone.name}_s${seed}'"
    gammas = folders_of("ppo.gamma=0.9,0.99")["hydra.sweep.subdir"]
    assert gammas == "'gamma_${file_name:${ppo.gamma}}_s${seed}'"
    assert folders_of("seed=1,2", "hydra.sweep.dir=mine")["hydra.sweep.dir"] == "mine"


def test_a_value_has_the_same_name_in_any_sweep_and_none_that_a_path_would_have_to_escape() -> None:
    assert sweeps.file_name(0.99) == "0.99" and sweeps.file_name("toto-tiny") == "toto-tiny"
    long = sweeps.file_name("/data/run 7/checkpoints/model.safetensors")
    assert re.fullmatch(r"[\w.+-]+", long) and "model.safetensors" in long
    assert long != sweeps.file_name("/data/run 8/checkpoints/model.safetensors")
    assert re.fullmatch(r"8-8-\w{6}", sweeps.file_name([8, 8]))


def test_a_list_may_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word for word in SMALL if not word.startswith("ppo.hidden")]
    argv = ["toto-rl", "-m", "ppo.hidden=[8],[8,8]", *words, f"hydra.sweep.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        rl.main()
    assert ended.value.code == 0
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert names == sorted(f"hidden_{sweeps.file_name(v)}_s0" for v in ([8], [8, 8]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("backbone=toto-tiny,toto-bse",), "did you mean 'toto-base'"),
        (("seed=0,1", "env=franka_pik"), "did you mean 'franka_pick'"),
        (("seed=0,x",), "seed: .*'x'.*Integer"),
        (("seed=0,1", "resume=somewhere"), "resume= goes on with one run"),
        (("ppo.gamma=0.9,2",), "ppo.gamma=2.0: expected 0 to 1"),
    ],
)
def test_a_wrong_value_is_told_before_anything_runs(words: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete_sweep(["-m", *words], NOON)


def test_what_is_a_sweep() -> None:
    assert is_sweep(["-m", "seed=0,1"]) and is_sweep(["seed=0,1", "--multirun"])
    assert not is_sweep(["seed=0"]) and not is_sweep(["-m", "--help"])


def test_a_failing_job_stops_nobody_and_the_same_command_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran, train = [], rl.train

    def train_or_fail(config: Any, *more: Any) -> bool:
        ran.append(config.seed)
        if config.seed == 1 and len(ran) <= 3:
            raise RuntimeError("out of luck")
        return train(config, *more)

    monkeypatch.setattr(rl, "train", train_or_fail)
    assert sweep(monkeypatch, tmp_path) == 1
    assert ran == [0, 1, 2]
    told = capsys.readouterr().out
    assert "2 finished, 1 failed" in told and "RuntimeError: out of luck" in told
    assert "train_or_fail" in (tmp_path / "s1/error.txt").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["s0", "s1", "s2"]

    assert sweep(monkeypatch, tmp_path) == 0
    assert ran == [0, 1, 2, 1]  # what is finished is not done again
    assert not (tmp_path / "s1/error.txt").exists()
    assert "3 finished" in capsys.readouterr().out


def test_ctrl_c_saves_one_begins_no_other_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    iterate = PPO.iterate

    def iterate_then_signal(ppo: Any) -> bool:
        if ppo.num_timesteps >= 32:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(ppo)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "iterate", iterate_then_signal)
        assert sweep(patch, tmp_path, "0,1") == 130
    before = read_metrics(tmp_path / "s0/metrics.jsonl")
    assert [r["steps"] for r in before] == [32] and not (tmp_path / "s1/metrics.jsonl").exists()
    told = capsys.readouterr().out
    assert "2 stopped" in told and f"hydra.sweep.dir={tmp_path}" in told

    assert sweep(monkeypatch, tmp_path, "0,1") == 0
    after = read_metrics(tmp_path / "s0/metrics.jsonl")
    assert after[0] == before[0] and after[-1]["steps"] >= 96
    assert read_metrics(tmp_path / "s1/metrics.jsonl")[0]["steps"] == 32


def test_a_folder_with_another_run_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert sweep(monkeypatch, tmp_path, "0") == 0
    config = tmp_path / "s0/config.yaml"
    config.write_text(config.read_text().replace("total_steps: 96", "total_steps: 97"))
    assert sweep(monkeypatch, tmp_path, "0") == 1
    assert "holds another run: total_steps is 97 there, 96 here" in capsys.readouterr().out


def test_an_evaluation_of_a_half_done_run_does_not_finish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(monkeypatch, tmp_path, "0") == 0
    progress = tmp_path / "s0/checkpoints/last/progress.json"
    ended = progress.read_text()
    progress.write_text(ended.replace('"steps": 96', '"steps": 64'))
    assert progress.read_text() != ended
    began: list[int] = []
    monkeypatch.setattr(rl, "train", lambda config, *_: began.append(config.seed) or True)
    sweep(monkeypatch, tmp_path, "0")
    assert began == [0]
