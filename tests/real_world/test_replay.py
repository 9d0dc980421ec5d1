"""A recorded episode sent again: the same arm does the same, another is refused."""

import json
import os
import shutil
import signal
from typing import Any

import h5py
import numpy as np
import pytest

from real_world import record_demos, replay
from real_world.record_demos import RecordConfig
from real_world.replay import Recorded, ReplayConfig, commands, main, read, run
from tests.real_world.fakes import Typist


@pytest.fixture(scope="module")
def episode(tmp_path_factory):
    """A second of a hand that goes forward, closing its fingers."""
    folder = tmp_path_factory.mktemp("recorded")
    typist = Typist(held=lambda step: ["up", "c"], typed=lambda step: "s" if step == 25 else "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_demos, "open_keys", lambda kind, on_stop, stop: typist)
        config = RecordConfig(paced=False, out=folder, start="key", n=1, hold_seconds=0.2, seed=3)
        config.device = "keyboard"
        record_demos.run(config)
    return folder / "episode_0000.hdf5"


def again(episode, **options):
    return run(ReplayConfig(episode=episode, paced=False, keys="none", **options))


def test_the_same_arm_does_the_same(episode, tmp_path):
    report = again(episode, out=tmp_path / "r/report.json")
    assert report["max_rad"] < 1e-5 and report["mean_rad"] <= report["max_rad"]
    assert report["most_changed_by_limits_rad"] < 1e-6 and report["steps"] >= 25
    assert report["missed"] == 0
    assert json.loads((tmp_path / "r/report.json").read_text()) == report


def test_from_elsewhere_it_goes_to_the_start_first(episode):
    fresh = again(episode, seed=77)  # the scene is the recorded one, whatever the seed
    assert fresh["max_rad"] < 1e-5
    moved = shutil.copy(episode, episode.with_name("moved.hdf5"))
    with h5py.File(moved, "a") as file:  # as if a real arm had recorded it, somewhere else
        file["data/demo_0"].attrs["robot"] = "franka"
        for key in ("q_rad", "q_sent_rad"):
            rows: Any = file[f"data/demo_0/{key}"]
            rows[:, 6] = rows[:, 6] + 0.5
    report = again(moved)
    assert report["max_rad"] < 0.05  # it began within the homing's tolerance of the start


def test_limits_hold_and_are_reported(episode):
    report = again(episode, speed_share=0.02)
    assert report["limit_events"]["speed"] > 10
    assert report["most_changed_by_limits_rad"] > 0.02 and report["max_rad"] > 0.02


def test_a_faster_command_rate_sends_straight_lines():
    rows = np.array([[0.0] * 8, [1.0] * 8, [3.0] * 8])
    recorded = Recorded(10.0, rows, rows, "franka_pick", None)
    assert commands(recorded, 2)[:, 0].tolist() == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert (commands(recorded, 1) == rows).all()


def test_at_twice_the_rate_the_arm_still_follows(episode):
    report = again(episode, command_hz=60.0)
    assert report["deadlines"] > 1.9 * report["steps"] - 2 and report["max_rad"] < 0.03


def change(episode, about=None, drop=()):
    other = shutil.copy(episode, episode.with_name("other.hdf5"))
    with h5py.File(other, "a") as file:
        attrs: Any = file["data"].attrs
        attrs["about"] = json.dumps(json.loads(attrs["about"]) | (about or {}))
        for key in drop:
            del file[f"data/demo_0/{key}"]
    return other


@pytest.mark.parametrize(
    ("about", "drop", "options", "words"),
    [
        ({"robot": "kuka"}, (), {}, "of robot kuka, this arm is a franka"),
        ({"robot": None, "options": {"env": "kuka_pick", "control_rate_hz": 30}}, (), {}, "kuka"),
        ({"action_space": "hand pose"}, (), {}, "'hand pose', expected 'joint target changes'"),
        ({}, ("q_sent_rad",), {}, "q_sent_rad.*is missing"),
        ({}, (), {"rate_hz": 20}, "recorded at 30 Hz, rate_hz=20"),
        ({"options": {"env": "franka_pick"}}, (), {}, "recorded at None Hz"),
    ],
)
def test_what_is_not_for_this_arm_is_refused(episode, about, drop, options, words):
    with pytest.raises(ValueError, match=words):
        read(ReplayConfig(episode=change(episode, about, drop), **options))


def test_a_stop_on_the_way_holds_the_arm(episode, monkeypatch):
    count = []

    class Hasty(replay.Deadlines):
        def count(self, tick, done_s):
            count.append(tick)
            if len(count) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(replay, "Deadlines", Hasty)
    with pytest.raises(SystemExit, match="stopped: signal"):
        main([f"episode={episode}", "paced=false", "keys=none"])
    assert len(count) == 5


def test_no_file_there(tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        main([f"episode={tmp_path / 'none.hdf5'}"])
