"""The command that records: by the expert, by keys, stopped, and gone on with."""

import json
import os
import signal

import numpy as np
import pytest

from policies.demonstrations import DemonstrationFile
from real_world import record_demos
from real_world.cell import Cell
from real_world.contracts import RobotError
from real_world.kinematics import hand_position
from real_world.record_demos import RecordConfig, main, run
from tests.real_world.fakes import Typist
from tests.real_world.makers import need


def files(folder):
    demos = []
    for path in sorted(folder.glob("episode_*.hdf5")):
        with DemonstrationFile(path) as file:
            demos.append((file.read("demo_0"), file.about))
    return demos


def by_hand(monkeypatch, typist, out, **options):
    """A person's session on the virtual clock."""
    monkeypatch.setattr(record_demos, "open_keys", lambda kind, on_stop, stop: typist)
    config = RecordConfig(paced=False, out=out, start="key", **options)
    config.device = "keyboard"  # refused where time is not real: the typist needs none
    return run(config)


def test_the_expert_records_and_the_same_command_goes_on(tmp_path, capsys):
    need("rerun")
    main(["paced=false", "n=1", f"out={tmp_path}", "keys=none", "log=rrd"])
    assert "1 demonstrations of 1; 1 episodes, success 100.0%" in capsys.readouterr().out
    main(["paced=false", "n=2", f"out={tmp_path}", "keys=none", "log=rrd"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kept"], report["episodes"], report["success_rate"]) == (2, 2, 1.0)
    (one, about), (two, _) = files(tmp_path)
    assert about["options"] == {"env": "franka_pick", "control_rate_hz": 30, "image_size": 128,
                                "cameras": ["wrist"]}  # fmt: skip
    assert about["robot"] == "franka" and about["action_space"] == record_demos.ACTION_SPACE
    assert one.success and one.facts["attempt"] == 0 and two.facts["attempt"] == 1
    assert (one.images["wrist"][0] != two.images["wrist"][0]).any()  # another scene
    # what was really sent stands beside what was wanted
    assert np.allclose(one.columns["q_sent_rad"], one.columns["q_wanted_rad"], atol=1e-6)
    assert one.columns["latency_ms"].shape == (len(one), len(about["stages"]))
    logs = [tmp_path / name for name in ("run.rrd", "run_1.rrd")]  # neither over the other
    assert all(log.stat().st_size > 10_000 for log in logs)
    with pytest.raises(SystemExit, match="rate_hz|another out="):
        main(["paced=false", "n=3", "rate_hz=20", f"out={tmp_path}", "keys=none"])


def test_when_everything_is_recorded_it_says_how_to_go_on(tmp_path, capsys):
    options = ["paced=false", "n=1", f"out={tmp_path}", "keys=none"]
    main(options)
    assert "nothing to record" not in capsys.readouterr().out
    main(options)
    said = capsys.readouterr().out
    assert "nothing to record" in said and "n=" in said and "out=" in said
    assert len(files(tmp_path)) == 1


def test_nothing_moves_before_the_key(monkeypatch, tmp_path, capsys):
    """The way home opens the hand, which may hold something of the episode before."""
    typist = Typist()
    monkeypatch.setattr(typist, "pressed", lambda: ["q"])
    monkeypatch.setattr(Cell, "homes", True)
    monkeypatch.setattr(Cell, "begin_episode", lambda *_: pytest.fail("it moves"))
    by_hand(monkeypatch, typist, tmp_path, n=1)
    assert "enter opens the hand" in capsys.readouterr().out


def test_a_person_moves_the_hand_and_says_success(monkeypatch, tmp_path):
    typist = Typist(
        held=lambda step: ["up"] if step <= 30 else [],
        typed=lambda step: "s" if step == 40 else "",
    )
    report, ended = by_hand(monkeypatch, typist, tmp_path, n=1)
    assert (ended, report["kept"]) == ("", 1)
    ((demo, _),) = files(tmp_path)
    assert demo.success and demo.facts["end_reason"] == "success"
    q = demo.columns["q_sent_rad"][:, :7]
    moved = hand_position(q[-1]) - hand_position(q[0])
    assert moved[0] == pytest.approx(0.1 * 29 / 30, abs=0.01) and abs(moved[1:]).max() < 0.02
    assert np.ptp(q[34:], axis=0).max() < 0.01  # let go, it holds


def test_failures_and_what_is_discarded_are_not_kept(monkeypatch, tmp_path):
    said = iter(["d", "f", "s"])
    typist = Typist(typed=lambda step: next(said) if step % 10 == 9 else "")
    typed = typist.pressed

    def once():  # a letter, once a hundred steps
        keys = typed()
        typist.step += keys[1:] != []
        return keys

    monkeypatch.setattr(typist, "pressed", once)
    report, ended = by_hand(monkeypatch, typist, tmp_path, n=1, hold_seconds=0.1)
    rows = record_demos.read_attempts(tmp_path / "attempts.jsonl")
    assert [row["success"] for row in rows] == [None, False, True], ended
    assert [row["end_reason"] for row in rows] == ["discarded", "failure", "success"]
    assert [bool(row["file"]) for row in rows] == [False, False, True]
    assert len(files(tmp_path)) == 1 and (report["episodes"], report["kept"]) == (2, 1)


def test_the_stop_key_ends_it_and_the_episode_is_on_disk(monkeypatch, tmp_path):
    typist = Typist(held=lambda step: ["up"])

    def stops(step):
        typist.stop = "the space key" if step > 20 else ""
        return ""

    typist._typed = stops
    report, ended = by_hand(monkeypatch, typist, tmp_path, n=1)
    assert ended == "stopped: the space key" and report["kept"] == 0
    ((demo, _),) = files(tmp_path)
    assert not demo.success and demo.facts["end_reason"] == ended and len(demo) >= 20


def test_quit_before_the_start(monkeypatch, tmp_path):
    typist = Typist()
    monkeypatch.setattr(typist, "pressed", lambda: ["q"])
    report, ended = by_hand(monkeypatch, typist, tmp_path, n=1)
    assert (report["episodes"], ended, files(tmp_path)) == (0, "", [])


def test_an_arm_that_is_not_at_home_is_not_started(monkeypatch, tmp_path):
    monkeypatch.setattr(Cell, "begin_episode", lambda *args: None)
    monkeypatch.setattr(record_demos, "NEAR_RAD", 1e-4)
    config = RecordConfig(paced=False, out=tmp_path, keys="none", home_rad=(0.0,) * 7)

    def opened(*args):
        cell = open_cell(*args)
        config.robot = "franky-sim"  # whose reset does not put the arm anywhere
        return cell

    open_cell = record_demos.open_cell
    monkeypatch.setattr(record_demos, "open_cell", opened)
    with pytest.raises(RobotError, match="rad from home: not started"):
        run(config)


def test_sigterm_in_an_episode_ends_it_and_keeps_what_was_recorded(monkeypatch, tmp_path):
    plan, calls = record_demos.SceneExpert.plan, []

    def killed(self, obs):
        calls.append(obs)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return plan(self, obs)

    monkeypatch.setattr(record_demos.SceneExpert, "plan", killed)
    _, ended = run(RecordConfig(out=tmp_path, n=50, keys="none", paced=False))
    assert ended == "stopped: signal"
    ((demo, _),) = files(tmp_path)
    assert demo.facts["end_reason"] == ended and len(demo) in (20, 21) and not demo.success


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("device=keyboard paced=false", "real time"),
        ("device=keyboard keys=none", "needs keys"),
        ("device=spacemouse start=auto keys=none", "pyspacemouse|SpaceMouse"),
        ("device=kinesthetic start=auto keys=none", "cannot be led by hand"),
        ("device=kinesthetic dry_run=true", "an arm that is led moves"),
        ("home_rad=1,2", "7 numbers"),
        ("env=franka_pik", "franka_pick"),
        ("n=0", "n=0"),
        ("device=expert robot=franka host=h box_m=0,0,0,1,1,1 camera=realsense", "whole scene"),
    ],
)
def test_what_is_missing_is_said(tmp_path, word, told):
    with pytest.raises(SystemExit, match=told):
        main([*word.split(), f"out={tmp_path}"])
