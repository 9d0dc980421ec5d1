"""The robot's commands run layer by layer, and their JSON collected."""

import json
from pathlib import Path

import pytest

from pretraining import evaluate
from pretraining.downstream import robot
from pretraining.downstream.robot import success

WINS = {2: 0.5, 4: 0.75}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; it leaves the files that the commands leave."""
    made: list[list[str]] = []

    def call(module: str, words: list[str]) -> None:
        made.append([module, *words])
        given = dict(word.split("=", 1) for word in words)
        if module == "toto_robot.probe":
            folder = Path(given["out"])
            folder.mkdir(parents=True)
            scores = [{r: {"r2_image": i / 10} for r in ("grid", "attention")} for i in range(9)]
            (folder / "probe.json").write_text(json.dumps({"layers": scores}))
            return
        folder = Path(given.get("hydra.run.dir") or given["resume"])
        if given.get("backbone.layer") == "4" and not folder.exists():  # stopped, to be resumed
            (folder / "checkpoints/last").mkdir(parents=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        rate = WINS[4 if "resume" in given else int(given["backbone.layer"])]
        (folder / "eval.json").write_text(json.dumps({"episodes": 40, "success_rate": rate}))

    monkeypatch.setattr(robot, "call", call)
    return made


def run(tmp_path: Path, *words: str) -> dict:
    evaluate.main(["task=robot", f"data={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", "layers=2,4",
                   "threads=1", "rl=num_envs=8 eval_episodes=40", *words])  # fmt: skip
    return json.loads((tmp_path / "out/robot/toto-tiny/result.json").read_text())


def test_layers_are_collected_and_what_was_stopped_goes_on(tmp_path, calls):
    with pytest.raises(SystemExit, match="layer 4, seed 0 was stopped; the same command goes on"):
        run(tmp_path)
    first = calls[0]
    assert first[0] == "toto_robot.rl" and "algo=dagger" in first and "backbone.layer=2" in first
    assert {"num_envs=8", "eval_episodes=40", "backbone=toto-tiny", "seed=0"} <= set(first)
    assert len(calls) == 2
    result = run(tmp_path)
    assert [words[0] for words in calls[2:]] == ["toto_robot.rl", "toto_robot.probe"]
    assert calls[2][1].startswith("resume=") and len(calls[2]) == 2
    assert result["best_layer"] == 4 and result["extra"]["layer_numbers"] == [2, 4]
    assert [row["success_%"]["value"] for row in result["layers"]] == [50.0, 75.0]
    assert result["metrics"]["cube_grid_R2"]["value"] == 0.4
    assert (tmp_path / "out/robot/toto-tiny/layers.png").is_file()
    run(tmp_path)
    assert len(calls) == 4  # all was there
    run(tmp_path, "backbone.weights=random", "label=toto-tiny", "total_steps=0")
    assert len(calls) == 5 and "backbone.weights=random" in calls[4]


def test_success_by_hand():
    found = success([True] * 8 + [False] * 2)
    assert (found.value, found.count) == (80.0, 10)
    assert (found.low, found.high) == pytest.approx((49.02, 94.33), abs=0.01)


def test_a_command_that_fails_is_named():
    with pytest.raises(ValueError, match="-m toto_robot.nothing a=1 ended with 1"):
        robot.call("toto_robot.nothing", ["a=1"])


def test_nothing_to_do_is_refused(tmp_path, calls):
    with pytest.raises(SystemExit, match="nothing to do"):
        run(tmp_path, "total_steps=0", "frames=0")
