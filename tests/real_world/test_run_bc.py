"""The command that a user types, on the policy that we ship."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from policies.demonstrations import DemonstrationFile
from policies.policy import read_spec
from policies.ppo_config import PPOConfig
from real_world import cell, run_bc
from real_world.contracts import RobotError
from real_world.recorder import Recorder
from real_world.run_bc import main, run
from real_world.run_config import LATEST, SHIPPED, RunConfig, check_policy, loop_options

SHORT = RunConfig(paced=False, episodes=2, seconds=0.5)


def test_a_run_leaves_report_episodes_and_films(tmp_path):
    report = run(replace(SHORT, out=tmp_path))
    assert json.loads((tmp_path / "report.json").read_text()) == report
    rate = report["rate_hz"]
    assert report["achieved_hz"] == pytest.approx(rate)
    assert (report["deadlines"], report["missed"]) == (2 * rate // 2, 0)
    assert set(report["latency_ms"]) >= {"look", "policy", "send", "frame_age", "jitter"}
    assert [e["end_reason"] for e in report["episodes"]] == ["time limit"] * 2
    with pytest.raises(ValueError, match="finished run"):
        run(replace(SHORT, out=tmp_path))
    assert (report["success_rate"], report["episodes"][0]["success"]) == (0.0, False)
    for episode in report["episodes"]:
        assert (tmp_path / episode["film"]).stat().st_size > 1000
        with DemonstrationFile(tmp_path / episode["file"]) as file:
            demo = file.read(file.names()[0])
        assert len(demo) == episode["steps"] and demo.images["wrist"].shape[1:] == (128, 128, 3)
        assert demo.columns["q_sent_rad"].shape == (len(demo), 8)


def test_the_same_seed_on_a_virtual_clock_is_the_same_run(tmp_path):
    moves = []
    for name in "ab":
        report = run(replace(SHORT, episodes=1, out=tmp_path / name))
        with DemonstrationFile(tmp_path / name / report["episodes"][0]["file"]) as file:
            moves.append(file.read(file.names()[0]).actions)
    assert (moves[0] == moves[1]).all()


def test_sigterm_holds_the_arm_and_keeps_the_episode(tmp_path, monkeypatch):
    append, steps = Recorder.append, []

    def terminate(recorder, row):
        steps.append(append(recorder, row))
        if len(steps) == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "append", terminate)
    slack = {"watchdog_ms": 5000.0, "max_age_ms": 5000.0, "missed_in_a_row": 1000}
    report = run(replace(SHORT, paced=True, seconds=60.0, out=tmp_path, **slack))
    (episode,) = report["episodes"]
    assert episode["end_reason"] == "stopped: signal"
    with DemonstrationFile(tmp_path / episode["file"]) as file:
        assert len(file.read(file.names()[0])) == episode["steps"] > 10


def test_a_fault_is_the_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell.SimCamera, "latest", _freezes(cell.SimCamera.latest))
    with pytest.raises(SystemExit, match="the arm holds: .*ms old"):
        main(["paced=false", "episodes=2", "seconds=3", f"out={tmp_path}"])
    report = json.loads((tmp_path / "report.json").read_text())
    (episode,) = report["episodes"]
    assert episode["fault"] and episode["success"] is False and report["success_rate"] == 0.0
    assert (tmp_path / episode["file"]).exists()


def test_a_full_disk_holds_the_arm_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(run_bc, "Recorder", partial(Recorder, free_bytes=10**18))
    slack = {"watchdog_ms": 5000.0, "max_age_ms": 5000.0, "missed_in_a_row": 1000}
    report = run(replace(SHORT, paced=True, seconds=5.0, out=tmp_path, **slack))
    (episode,) = report["episodes"]
    assert episode["fault"] and "disk full" in episode["end_reason"]
    assert "disk full" in episode["recording"] and (tmp_path / episode["file"]).exists()


def _freezes(latest):
    def frozen(self, newer_than=-1, timeout_s=0.0):
        if self._world.ticks > 20 and self._newest is not None:
            return self._newest
        return latest(self, newer_than, timeout_s)

    return frozen


def test_a_second_runner_in_the_same_folder_is_refused(tmp_path):
    lock = tmp_path / ".lock"
    with cell.only_one(lock, "it"), pytest.raises(ValueError, match="another runner"):
        run(replace(SHORT, out=tmp_path))


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({}, {"rate_hz": 7.0}, "rate_hz=7"),
        ({"env": "soup"}, {}, "env=soup"),
        ({"num_actions": 23}, {}, "23"),
        ({"obs": "state"}, {}, "reads state"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(change, config, words):
    spec = replace(read_spec(SHIPPED), **change)
    with pytest.raises(ValueError, match=words):
        check_policy(spec, RunConfig(**config))


def test_who_thinks_beside_the_loop():
    spec = read_spec(SHIPPED)
    assert spec.bc is not None and spec.bc.chunk > spec.bc.replan_every == 2
    options = loop_options(RunConfig(), spec, slowest_ms=10.0)
    assert options.threaded and options.replan_every == 2
    assert options.send_after_s == pytest.approx(0.015)
    assert loop_options(RunConfig(), spec, 99.0).send_after_s == pytest.approx(LATEST / 30)
    virtual = loop_options(RunConfig(paced=False), spec, 10.0)
    assert not virtual.threaded and virtual.send_after_s == 0
    remembers = replace(spec, bc=replace(spec.bc, context=4))  # has to see every frame
    options = loop_options(RunConfig(), remembers, 10.0)
    assert not options.threaded and options.replan_every == 1
    learned = replace(spec, bc=None, ppo=PPOConfig(action_repeat=4))  # its actions are held
    options = loop_options(RunConfig(), learned, 10.0)
    assert not options.threaded and options.replan_every == 4


@pytest.mark.parametrize(
    "word", ["episodes=0", "box_m=1,2", "speed_share=2", "log=hdf5", "robot=ur5", "polizy=x"]
)
def test_wrong_options_are_said(word):
    with pytest.raises(SystemExit, match=word.split("=")[0]):
        main([word])


def test_no_policy_there(tmp_path):
    with pytest.raises(SystemExit, match="no policy in"):
        main([f"policy={tmp_path}"])


class Script:
    """Keys that are typed at set calls of `pressed`, {call number: key}; q at the call `quits` and on."""

    def __init__(self, typed, held=lambda call: True, quits=10**6):
        self.typed, self.calls, self._held, self._quits = typed, 0, held, quits
        self.reason = ""

    def pressed(self):
        self.calls += 1
        key = self.typed.get(self.calls, "q" if self.calls >= self._quits else "")
        self.reason = "space was pressed" if key == "space" else self.reason
        return [key] if key else []

    def held(self, key):
        return self._held(self.calls)

    def stop_asked(self):
        return self.reason

    def close(self): ...


@pytest.fixture
def typed(monkeypatch):
    def of(keys):
        monkeypatch.setattr(run_bc, "open_keys", lambda *_: keys)
        return keys

    return of


def test_a_person_stops_judges_and_quits_by_key(tmp_path, typed):
    typed(Script({12: "space"}))
    report = run(replace(SHORT, out=tmp_path / "stop"))
    (episode,) = report["episodes"]
    assert episode["end_reason"] == "stopped: space was pressed" and 5 < episode["steps"] < 14
    assert not report["fault"]

    typed(Script({8: "s"}, quits=30))
    report = run(replace(SHORT, episodes=3, hold_seconds=0.2, out=tmp_path / "judge"))
    assert [e["success"] for e in report["episodes"]] == [True, False]  # and then quit
    assert report["episodes"][0]["end_reason"] == "success"


def test_an_episode_waits_for_enter(tmp_path, typed):
    keys = typed(Script({6: "enter"}, quits=60))
    report = run(replace(SHORT, start="key", out=tmp_path))
    assert len(report["episodes"]) == 1 and keys.calls >= 60


def test_a_dead_mans_key_that_is_let_go_stops_the_arm(tmp_path, typed):
    typed(Script({}, held=lambda call: call < 10))
    report = run(replace(SHORT, deadman_key="j", out=tmp_path))
    (episode,) = report["episodes"]
    assert episode["end_reason"] == "stopped: j was let go" and episode["steps"] < 12


@pytest.fixture
def homing(monkeypatch):
    """The simulated arm homes as a real one does; how many keys were asked for when it began."""
    began, go_to = [], cell.go_to
    monkeypatch.setattr(cell.Cell, "homes", True)

    def of(keys):
        def go(*args, **options):
            began.append(keys.calls)
            return go_to(*args, **options)

        monkeypatch.setattr(cell, "go_to", go)
        return began

    return of


def test_nothing_moves_before_the_key(tmp_path, typed, homing, capsys):
    keys = typed(Script({6: "enter", 12: "enter"}, quits=40))
    began = homing(keys)
    report = run(replace(SHORT, start="key", out=tmp_path))
    assert began[0] >= 6 and report["episodes"][0]["steps"] and keys.calls >= 12
    said = capsys.readouterr().out
    assert said.index("enter opens the hand") < said.index("enter starts it")

    keys = typed(Script({}, quits=3))
    began = homing(keys)
    began.clear()
    assert run(replace(SHORT, start="key", out=tmp_path / "quit"))["episodes"] == []
    assert began == []


def test_a_dead_mans_key_counts_on_the_way_home_and_is_waited_for(tmp_path, typed, homing):
    looks = iter(range(10**6))
    keys = typed(Script({}, held=lambda call: call >= 5 and next(looks) < 10))
    began = homing(keys)
    report = run(replace(SHORT, deadman_key="j", out=tmp_path))
    assert len(began) == 1 and began[0] >= 5
    assert report["fault"] == "homing: j was let go" and report["episodes"][0]["steps"] == 0


def test_a_dry_run_records_what_would_be_sent_and_moves_nothing(tmp_path):
    report = run(replace(SHORT, episodes=1, dry_run=True, out=tmp_path))
    with DemonstrationFile(tmp_path / report["episodes"][0]["file"]) as file:
        columns = file.read(file.names()[0]).columns
    assert np.ptp(columns["q_sent_rad"], axis=0).max() > 0.01
    assert np.ptp(columns["q_rad"], axis=0).max() < 0.005


def test_a_library_that_is_missing_is_one_line(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("behaviour cloning needs robomimic")

    monkeypatch.setattr("policies.policy.load_policy", missing)
    with pytest.raises(SystemExit, match="run_bc: behaviour cloning needs robomimic"):
        main([f"out={tmp_path}"])


def test_waiting_for_a_key_without_keys_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="need keys"):
        main([f"out={tmp_path / 'none'}", "paced=false", "keys=none", "start=key"])


def test_an_arm_that_does_not_get_home_is_a_fault_with_a_report(tmp_path, monkeypatch):
    def stuck(*_):
        raise RobotError("homing: 0.3 rad away")

    monkeypatch.setattr(cell.Cell, "begin_episode", stuck)
    report = run(replace(SHORT, out=tmp_path))
    assert report["fault"].startswith("homing") and report["episodes"][0]["steps"] == 0
    assert json.loads((tmp_path / "report.json").read_text()) == report
