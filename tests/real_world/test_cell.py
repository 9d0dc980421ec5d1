"""Which robots and cameras go together, and that each combination opens, plays and closes."""

import itertools
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.spec import FRANKA
from real_world.cell import (
    HOME_GRIPPER_M,
    HOME_RAD,
    Shadowed,
    fit_picture,
    only_one,
    open_cell,
)
from real_world.cell_config import CellConfig
from real_world.contracts import CameraError, Command, Frame, RobotError
from real_world.guard import Guard
from real_world.homing import NEAR_RAD, go_to
from real_world.limits import FR3_LOWER, FR3_UPPER
from real_world.pacing import VirtualClock, WallClock
from real_world.realsense_twin import write_recording
from real_world.replay import ReplayConfig
from real_world.run_bc import main, run
from real_world.run_config import RunConfig
from real_world.sim import SimWorld
from tests.real_world.fakes import Arm
from tests.real_world.makers import need

BOX = (0.0, -0.5, 0.0, 0.8, 0.5, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"robot": "franka", "box_m": BOX, "camera": "realsense"}, "needs host="),
        ({"robot": "franka", "host": "h", "camera": "realsense"}, "needs box_m="),
        ({"robot": "franka", "host": "h", "box_m": BOX}, "needs a real camera"),
        (
            {"robot": "franka", "host": "h", "box_m": BOX, "camera": "realsense", "limits": "task"},
            "limits=task is for simulated",
        ),
        (
            {
                "robot": "franka",
                "host": "h",
                "box_m": BOX,
                "camera": "recording",
                "recording": ("a",),
            },
            "dry_run=true",
        ),
        ({"robot": "franky-sim", "paced": False}, "real time"),
        ({"camera": "recording"}, "go together"),
        ({"serial": ("1",)}, "camera=realsense"),
        ({"camera_px": (640,)}, "width,height"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CellConfig(**options)


def test_a_replay_needs_no_camera_not_even_of_a_real_arm():
    config = ReplayConfig(robot="franka", host="h", box_m=BOX, episode=Path("episode.hdf5"))
    assert config.camera == "sim" and not config.looks
    with open_cell(
        replace(simulated(), paced=True, camera="realsense"), "franka_pick", [], 32, 30
    ) as c:
        assert c.cameras == []  # nothing was looked for


def test_a_real_arm_keeps_to_its_limits_and_a_simulated_one_may_do_what_its_task_allows():
    arm = CellConfig(robot="franka", host="h", box_m=BOX, camera="realsense").arm_limits()
    assert max(arm.speed_rad_s) < 2.61 and arm.box_m == (BOX[:3], BOX[3:])
    task = CellConfig().arm_limits()
    assert task.speed_rad_s == pytest.approx([60 * s for s in FRANKA.action_step[:7]])
    assert CellConfig(limits="arm").arm_limits().speed_rad_s == arm.speed_rad_s
    assert CellConfig(robot="franky-sim").arm_limits().speed_rad_s == arm.speed_rad_s


def test_joints_of_an_arm_behind_the_driver_stay_where_panda_and_fr3_may_both_be():
    simulated, driven = CellConfig().arm_limits(), CellConfig(robot="franky-sim").arm_limits()
    assert simulated.lower_rad == FRANKA.lower[:7] and simulated.upper_rad == FRANKA.upper[:7]
    assert driven.lower_rad == (-2.7437, -1.7628, -2.8973, -3.0421, -2.8065, 0.5445, -2.8973)
    assert driven.upper_rad == (2.7437, 1.7628, 2.8973, -0.1518, 2.8065, 3.7525, 2.8973)
    real = CellConfig(robot="franka", host="h", box_m=BOX, camera="realsense").arm_limits()
    assert (real.lower_rad, real.upper_rad) == (driven.lower_rad, driven.upper_rad)
    room = np.minimum(HOME_RAD - real.lower_rad, real.upper_rad - HOME_RAD)
    assert (room > real.margin_rad).all()  # home is inside


def test_fr3s_ends_are_those_of_the_simulated_one():
    need("franky_sim")
    import franky_sim

    text = (Path(franky_sim.__file__).parent / "assets/fr3.xml").read_text()
    ends = re.findall(r'joint name="fr3_joint\d"[^>]*? range="(\S+) (\S+)"', text)
    assert [tuple(map(float, pair)) for pair in ends] == list(
        zip(FR3_LOWER, FR3_UPPER, strict=True)
    )


def test_the_policy_is_shown_the_middle_square():
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 8:56] = 200  # the square
    picture[:24, 8:56, 0] = 100  # its upper half
    shown = fit_picture(16)(Frame(picture, 0, 0.0, 0.0))
    assert shown.shape == (16, 16, 3) and shown.dtype == np.uint8
    assert (shown[:7, :, 0] == 100).all() and (shown[9:, :, 0] == 200).all()
    assert (shown[:, :, 1] == 200).all()
    square = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(fit_picture(16)(Frame(square, 0, 0.0, 0.0)), square)


def simulated(**options) -> CellConfig:
    return CellConfig(paced=False, **options)


def test_homing_stays_within_limits_and_arrives():
    with open_cell(simulated(limits="arm"), "franka_pick", ["wrist"], 32, 30) as cell:
        away = HOME_RAD + np.array([0.4, 0.2, 0, 0.3, 0, 0, -0.5])
        go_to(cell.robot, away, 0.02, cell.clock)
        assert np.abs(cell.robot.read().q_rad - away).max() < NEAR_RAD
        sent, send = [], cell.robot.robot.send
        cell.robot.robot.send = lambda command: sent.append(command.q_rad) or send(command)
        error = go_to(cell.robot, HOME_RAD, HOME_GRIPPER_M, cell.clock)
        assert error < NEAR_RAD and "speed" not in cell.robot.events
        assert np.abs(np.diff(sent, axis=0)).max() * 30 < 0.9  # 1.875 times 0.4 rad/s
        assert cell.robot.read().gripper_m == pytest.approx(HOME_GRIPPER_M, abs=2e-3)


def test_homing_stops_when_asked_and_when_the_arm_does_not_come():
    with open_cell(simulated(), "franka_pick", ["wrist"], 32, 30) as cell:
        with pytest.raises(RobotError, match="homing: space bar"):
            go_to(cell.robot, HOME_RAD + 0.3, 0.0, cell.clock, stop_asked=lambda: "space bar")
        with pytest.raises(RobotError, match="stopped"):
            cell.robot.send(Command(HOME_RAD, 0.0))
        cell.robot.connect()
        cell.robot.robot.send = lambda command: command  # nothing arrives
        with pytest.raises(RobotError, match="rad away after homing"):
            go_to(cell.robot, HOME_RAD + 0.3, 0.0, cell.clock)


def test_homing_takes_the_time_that_the_limits_leave_it():
    with open_cell(simulated(limits="arm", speed_share=0.05), "franka_pick", [], 32, 30) as cell:
        start_s = cell.clock.now()
        go_to(cell.robot, HOME_RAD + 0.4, HOME_GRIPPER_M, cell.clock)
        assert cell.clock.now() - start_s > 0.4 / (0.05 * 1.95)
        assert "speed" not in cell.robot.events


def test_a_lost_arm_is_not_said_to_be_held_up():
    clock = VirtualClock()
    arm = Arm(clock)
    guard = Guard(arm, CellConfig().arm_limits(), clock=clock)
    guard.connect()
    arm.mode = "lost"
    with pytest.raises(RobotError, match="homing: lost") as said:
        go_to(guard, HOME_RAD + 0.3, 0.0, clock)
    assert "in the way" not in str(said.value)
    guard.close()


def test_a_dry_run_does_not_go_home():
    clock = VirtualClock()
    arm = Arm(clock)
    arm.q = HOME_RAD + 0.5
    guard = Guard(arm, CellConfig().arm_limits(), clock=clock, dry_run=True)
    guard.connect()
    assert go_to(guard, HOME_RAD, HOME_GRIPPER_M, clock) == pytest.approx(0.5)
    assert arm.sent == [] and not guard.stopped
    np.testing.assert_array_equal(guard.target.q_rad, arm.q)  # the policy begins from there
    guard.close()


def test_a_stop_of_the_simulated_arm_keeps_what_its_fingers_hold():
    with open_cell(simulated(), "franka_pick", [], 32, 30) as cell:
        assert cell.world is not None
        robot, clock = cell.robot.robot, cell.clock
        for gripper_m, wait_s in ((0.0, 0.1), (0.0, 1.0)):
            robot.send(Command(HOME_RAD, gripper_m))
            clock.sleep_until(clock.now() + wait_s)
            robot.stop("space")
            wanted_m = float(cell.world.target[7:].sum())
            is_m = robot.read().gripper_m
            moving = wait_s < 0.5
            assert wanted_m == pytest.approx(is_m if moving else gripper_m, abs=1e-6)
            robot.connect()


def test_an_arm_that_was_stopped_between_episodes_stays_stopped():
    with open_cell(simulated(), "franka_pick", ["wrist"], 32, 30) as cell:
        with pytest.raises(RobotError, match="no episode was begun: space was pressed"):
            cell.begin_episode(lambda: "space was pressed")
        with pytest.raises(RobotError, match="stopped"):
            cell.robot.send(Command(HOME_RAD, 0.0))


def test_a_second_runner_of_the_same_arm_is_refused(tmp_path):
    with only_one(tmp_path / "arm", "the arm"), pytest.raises(ValueError, match="uses the arm"):
        only_one(tmp_path / "arm", "the arm")
    only_one(tmp_path / "arm", "the arm").close()
    assert (tmp_path / "arm").stat().st_mode & 0o777 == 0o666  # every user of the computer


def test_a_lock_that_may_not_be_opened_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match="another user's"):
        only_one(tmp_path / "arm", "the arm")


def test_a_cell_that_does_not_open_closes_what_was_open(tmp_path):
    need("pyrealsense2")
    config = CellConfig(camera="recording", recording=(tmp_path / "none.db3",))
    with pytest.raises(CameraError, match="does not exist"):
        open_cell(config, "franka_pick", ["wrist"], 32, 30)
    two = replace(config, recording=(tmp_path / "a.db3", tmp_path / "b.db3"))
    with pytest.raises(ValueError, match="gives 2 camera"):
        open_cell(two, "franka_pick", ["wrist"], 32, 30)


def wait_for_end(name):
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_scene_that_stands_still_does_not_pass_for_one_that_lives(monkeypatch):
    """Else a policy would be shown the same picture for ever and drive off."""
    clock = WallClock()
    world = SimWorld("franka_pick", clock)
    arm = Arm(clock)
    shadowed = Shadowed(arm, world)
    shadowed.connect()
    try:
        assert shadowed.read().mode == "ready"
        with monkeypatch.context() as patch:
            patch.setattr(arm, "read", lambda: None)  # a driver that breaks
            wait_for_end("shadow")
        with pytest.raises(RobotError, match="no longer follows: AttributeError"):
            shadowed.read()
        monkeypatch.setattr(world.task, "step", lambda actions: 1 / 0)
        wait_for_end("world")
        with pytest.raises(RobotError, match="stands still: ZeroDivisionError"):
            world.joints()
    finally:
        shadowed.close()
        world.close()


SLACK = {"watchdog_ms": 5000.0, "max_age_ms": 5000.0, "missed_in_a_row": 1000}


def test_the_whole_stack_without_hardware(tmp_path, monkeypatch):
    """Arm: our driver, libfranka's protocol, a simulated arm. Camera: our reader, librealsense."""
    for module in ("franka", "guard"):  # a busy machine holds the simulated arm up
        monkeypatch.setattr(f"real_world.{module}.FROZEN_S", 5.0)
    for module in ("franky", "franky_sim", "pyrealsense2"):
        need(module)
    config = RunConfig(robot="franky-sim", camera="realsense-software", episodes=2, seconds=1.0)
    report = run(replace(config, out=tmp_path, **SLACK))
    assert [row["end_reason"] for row in report["episodes"]] == ["time limit"] * 2
    assert {row["steps"] for row in report["episodes"]} <= {29, 30}
    assert report["latency_ms"]["frame_age"]["max"] > 1  # through the SDK's threads
    assert json.loads((tmp_path / "report.json").read_text())["robot"] == "franky-sim"
    assert (tmp_path / "episode_0001.mp4").stat().st_size > 1000


def test_a_recording_is_looked_at(tmp_path):
    need("pyrealsense2")
    greys = itertools.cycle(np.full((64, 64, 3), level, np.uint8) for level in range(60, 120))
    path = write_recording(tmp_path / "grey.db3", lambda: next(greys), 60)
    report = run(
        RunConfig(camera="recording", recording=(path,), camera_px=(64, 64), episodes=1,
                  seconds=0.5, out=tmp_path / "run", **SLACK)
    )  # fmt: skip
    assert report["episodes"][0]["steps"] >= 10


def test_options_are_said_on_the_command_line():
    with pytest.raises(SystemExit, match="limits=wide: expected one of task, arm"):
        main(["limits=wide"])
    with pytest.raises(SystemExit, match="needs host="):
        main(["robot=franka"])


def test_the_first_picture_of_an_episode_is_of_its_own_scene():
    with open_cell(simulated(), "franka_pick", ["wrist"], 64, 30) as cell:
        seen = []
        for number in range(3):
            cell.begin_episode(lambda: "", episode=(0, number))
            frame = cell.cameras[0].latest()
            assert frame is not None and cell.world is not None
            assert np.abs(frame.colour.astype(int) - cell.world.picture("wrist", 64)).mean() < 0.5
            seen.append(frame.colour)
        assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
