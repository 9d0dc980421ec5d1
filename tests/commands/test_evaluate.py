"""`python -m toto_robot.evaluate` on the fake task: results, shifts, Ctrl-C, wrong options."""

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import envs
from policies.evaluation import Episode
from toto_robot import evaluate as command
from toto_robot import rl
from toto_robot.conf import register
from toto_robot.episodes import (
    EVAL_SEED_OFFSET,
    EpisodeLog,
    Suite,
    choose_filmed,
    episode_names,
    summarise,
)
from toto_robot.overrides import check_config

register()


@pytest.fixture(autouse=True)
def made(doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Fake tasks; what they were asked for."""
    asked: list[dict[str, Any]] = []

    def make(task: str, num_envs: int, obs: str, image_size: int, **more: Any) -> Any:
        asked.append({"num_envs": num_envs, **more})
        return doubles.FakeTask(num_envs, obs, 0, image_size, max_episode_length=12)

    monkeypatch.setattr(envs, "make", make)
    return asked


SMALL = [
    "num_envs=4", "ppo.num_steps=8", "ppo.epochs=1", "ppo.minibatches=2", "ppo.hidden=[8]",
    "eval_episodes=6", "film_episodes=0", "threads=1", "obs=state", "total_steps=96",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rl.train(check_config(SMALL), tmp_path / "run", None)
    return tmp_path / "run"


def evaluate(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["toto-evaluate", *words])
    command.main()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_writes_results_film_and_sheet(
    run: Path, made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(monkeypatch, f"run={run}", "episodes=10", "seeds=3", "num_envs=4", "film_episodes=2")
    result = read(run / "eval.json")
    assert result["episodes"] == 10 and result["shift"] == "none"
    assert result["success_low"] <= result["success_rate"] <= result["success_high"]
    assert 0 <= result["success_at_end_rate"] <= 1 and result["stop_at_success"] is False
    rows = result["per_seed"]
    assert [r["seed"] for r in rows] == [k * EVAL_SEED_OFFSET for k in (1, 2, 3)]
    assert [r["episodes"] for r in rows] == [4, 3, 3]
    wins = sum(r["success_rate"] * r["episodes"] for r in rows)
    assert wins == pytest.approx(10 * result["success_rate"])
    assert (run / "eval.mp4").stat().st_size > 0 and (run / "eval.png").exists()
    assert not list(run.glob("*.part*"))
    assert all(options["steps_after_success"] is None for options in made)


def test_a_suite_for_every_shift(run: Path, made: list, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"run={run}", "episodes=4", "film_episodes=1")
    evaluate(monkeypatch, *words, "shift=colour,light+camera")
    rows = read(run / "eval_shifts.json")["rows"]  # `none`: from the end of the training
    assert [row["shift"] for row in rows] == ["none", "colour", "light+camera"]
    made.clear()
    evaluate(monkeypatch, *words, "shift=every")
    rows = {row["shift"]: row for row in read(run / "eval_shifts.json")["rows"]}
    assert list(rows) == ["none", "light", "colour", "camera", "distractors", "all", "light+camera"]
    assert all(row["episodes"] == 4 for row in rows.values())
    assert {o["visuals"] for o in made} == {
        "fixed",
        "light",
        "camera",
        "distractors",
        "all",
        "colour",
    }
    made.clear()
    evaluate(monkeypatch, *words, "shift=fixed,strong")
    assert {o["visuals"] for o in made} == {"fixed", "strong"}
    for name in ("eval_light.mp4", "eval_light.png", "eval_shifts.png", "eval_strong.mp4"):
        assert (run / name).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_run_from_a_gpu_is_tested_on_a_laptop(
    run: Path, made: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("sim_device: cpu", "sim_device: cuda"))
    words = (f"run={run}", "episodes=2", "film_episodes=0")
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, *words)
    assert "sim_device='cuda'" in capsys.readouterr().err
    evaluate(monkeypatch, *words, "sim_device=cpu")
    assert made[-1]["sim_device"] == "cpu"


def test_a_policy_alone_is_tested_in_the_task_that_it_learned(
    tmp_path: Path, made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {"visuals": "strong", "dynamics": "mild", "clip_actions": 0.5,
               "fidelity": "pixmc", "reward": "sparse"}  # fmt: skip
    words = [f"env.{key}={value}" for key, value in learned.items()]
    rl.train(check_config([*SMALL, *words]), tmp_path / "run", None)
    made.clear()
    policy, out = tmp_path / "run/checkpoints/last", tmp_path / "out"
    words = (f"policy={policy}", "episodes=2", "film_episodes=0", f"out={out}")
    evaluate(monkeypatch, *words)
    assert learned.items() <= made[-1].items()
    (out / "eval.json").unlink()
    evaluate(monkeypatch, *words, "shift=fixed")
    assert made[-1]["visuals"] == "fixed" and made[-1]["clip_actions"] == 0.5
    assert [row["shift"] for row in read(out / "eval_shifts.json")["rows"]] == ["fixed"]


def test_every_suite_and_other_looks_besides() -> None:
    plan = command.EvaluateConfig(run=("x",), shift=("every", "light", "strong"))
    assert plan.shifts == (*command.SUITES, "strong")


def test_stop_at_success_is_said_and_kept_apart(
    run: Path, made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(monkeypatch, f"run={run}", "episodes=4", "stop_at_success=true", "film_episodes=0")
    result = read(run / "eval.json")
    assert result["stop_at_success"] is True and result["success_at_end_rate"] is None
    assert result["episode_length"] is None
    assert made[-1]["steps_after_success"] == 0


def test_ctrl_c_keeps_finished_episodes_and_the_same_command_goes_on(
    run: Path, made: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = (f"run={run}", "episodes=12", "num_envs=2", "film_episodes=0")
    (run / "eval.json").unlink()
    (run / "eval_episodes.jsonl").unlink()
    with monkeypatch.context() as patch:
        add, count = EpisodeLog.add, 0

        def add_then_signal(*given: Any) -> None:
            nonlocal count
            add(*given)
            count += 1
            if count == 5:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(EpisodeLog, "add", add_then_signal)
        with pytest.raises(SystemExit) as stopped:
            evaluate(patch, *words)
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().out
    before = (run / "eval_episodes.jsonl").read_text()
    assert 5 <= len(before.splitlines()) < 12 and not (run / "eval.json").exists()

    evaluate(monkeypatch, *words)
    after = (run / "eval_episodes.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 12
    assert read(run / "eval.json")["episodes"] == 12
    made.clear()
    evaluate(monkeypatch, *words)
    assert not made  # all there: nothing is played again
    evaluate(monkeypatch, *words, "fresh=true")
    assert made and len((run / "eval_episodes.jsonl").read_text().splitlines()) == 12


def test_another_policy_starts_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = run / "checkpoints/last"
    evaluate(monkeypatch, f"policy={policy}", "episodes=3", "film_episodes=0", f"out={run / 'o'}")
    weights = policy / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    evaluate(monkeypatch, f"policy={policy}", "episodes=3", "film_episodes=0", f"out={run / 'o'}")
    lines = (run / "o/eval_episodes.jsonl").read_text().splitlines()
    suites = {json.loads(line)[0]["policy"] for line in lines}
    assert len(suites) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run=x", "shift=colur"), "shift=colur does not exist; did you mean 'colour'"),
        (("run=no/such/run",), "no/such/run is not a run folder"),
        ((), "give run=<run folder>"),
        (("run=a,b", "out=c"), "out=c takes the results of one policy"),
        (("run=x", "episodes=0"), "episodes=0: expected at least 1"),
        (("policy=no/such",), "no policy in no/such"),
    ],
)
def test_wrong_options_are_named(
    words: tuple, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, *words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def episode(world: int, success: bool, at_end: bool = True, step: int = 30) -> Episode:
    return Episode(1, world, success, success and at_end, step if success else 0, 500, 2.0)


def test_the_summary_by_hand() -> None:
    episodes = [episode(0, True), episode(1, True, at_end=False, step=90), episode(2, False)]
    summary = summarise(episodes, rate_hz=60, stop_at_success=False)
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["success_at_end_rate"] == pytest.approx(1 / 3)
    assert summary["time_to_success_s"] == {"mean": 1.0, "median": 1.0, "max": 1.5}
    assert summary["per_seed"][0]["episodes"] == 3 and summary["episode_return"] == 2.0


def test_films_show_both_kinds_where_there_are_both() -> None:
    wins, losses = [episode(i, True) for i in range(9)], [episode(10 + i, False) for i in range(9)]
    assert choose_filmed([*wins, *losses], 4) == [(1, 0), (1, 1), (1, 10), (1, 11)]
    assert choose_filmed([*wins, losses[0]], 4) == [(1, 0), (1, 1), (1, 2), (1, 10)]
    assert choose_filmed([wins[0], *losses], 4) == [(1, 0), (1, 10), (1, 11), (1, 12)]
    assert len(choose_filmed(wins, 4)) == 4 and len(choose_filmed(losses[:1], 4)) == 1


def test_names_never_meet_the_training_seed() -> None:
    names = episode_names(run_seed=3, episodes=200, seeds=4)
    assert len(set(names)) == 200 and len({seed for seed, _ in names}) == 4
    assert all(seed > EVAL_SEED_OFFSET for seed, _ in names)
    assert set(episode_names(3, 50, 4)) < set(names)  # more episodes: the first ones are kept


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    suite, path = Suite("abc", "none", False), tmp_path / "log.jsonl"
    log = EpisodeLog(path)
    log.add(suite, episode(0, True))
    with path.open("a") as file:
        file.write('[{"policy": "a')
    again = EpisodeLog(path)
    again.add(suite, episode(1, False))
    names = [(1, 0), (1, 1), (1, 2)]
    assert [e.world for e in EpisodeLog(path).finished(suite, names)] == [0, 1]
    assert not EpisodeLog(path).finished(Suite("abc", "light", False), names)
