"""The Franka driver over libfranka's own protocol, against franky-sim on the loopback."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from envs.spec import FRANKA, SERVO_LAG_S
from real_world.contracts import Command, RobotError
from real_world.franka import INSTALL_HINT, Franka, _advice
from real_world.franka_twin import FrankaTwin
from real_world.gripper import GripperThread
from tests.real_world.makers import need

HOME = np.array(FRANKA.default_pose[:7])


def wait_until(condition, limit_s=15.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the state waited for did not come"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def twin():
    need("franky")
    need("franky_sim")
    with FrankaTwin() as twin:
        yield twin


@pytest.fixture
def arm(twin):
    arm = Franka(twin.host, realtime="ignore")
    arm.connect()
    yield arm
    arm.close()


def test_it_starts_at_the_tasks_pose_and_reaches_a_target(arm):
    start = arm.read()
    assert start.mode == "ready"
    np.testing.assert_allclose(start.q_rad, HOME, atol=0.01)
    target = start.q_rad + np.array([0.0, 0, 0, 0, 0, 0, 0.1])
    sent = arm.send(Command(target, 0.02))
    np.testing.assert_array_equal(sent.q_rad, target)
    wait_until(lambda: arm.read().q_rad[6] > start.q_rad[6] + 0.06)
    wait_until(lambda: abs(arm.read().gripper_m - 0.02) < 0.003)


def test_it_trails_behind_a_moving_target_as_the_simulated_arms_do(arm):
    start, joint, speed_rad_s = arm.read(), 3, 0.2
    behind_s, gone_s = [], 0.0
    while gone_s < 1.5:
        state = arm.read()
        gone_s = (
            state.robot_time_s - start.robot_time_s
        )  # the arm's clock: a busy machine is slower
        target = start.q_rad.copy()
        target[joint] += speed_rad_s * gone_s
        arm.send(Command(target, 0.07))
        if gone_s > 1.0:
            behind_s.append((target - state.q_rad)[joint] / speed_rad_s)
        time.sleep(0.01)
    # 0.27 s here: friction adds to it. Springs of half the stiffness trail behind by 0.1 s more.
    assert 0.8 * SERVO_LAG_S < np.mean(behind_s) < 1.6 * SERVO_LAG_S


def test_what_is_not_a_command_is_refused_and_nothing_is_sent(arm):
    here = arm.read().q_rad
    sent = []
    arm._tracker.set_target = sent.append
    for bad in (Command(here * np.nan, 0.0), Command(here[:6], 0.0), Command(here, np.inf)):
        with pytest.raises(ValueError, match="nothing was sent"):
            arm.send(bad)
    assert sent == []
    del arm._tracker.set_target


def test_stop_from_another_thread_holds_until_connect(arm):
    thread = threading.Thread(target=arm.stop, args=("space bar",))
    thread.start()
    thread.join()
    arm.stop("again")
    with pytest.raises(RobotError, match="space bar"):
        arm.send(Command(arm.read().q_rad, 0.02))
    arm.connect()
    arm.send(Command(arm.read().q_rad, 0.02))
    arm.close()
    arm.close()
    assert arm.read().mode == "lost"


@pytest.mark.parametrize("width", [0.0, 0.08])
def test_a_stop_stops_the_fingers_too(arm, width):
    here = arm.read()
    arm.send(Command(here.q_rad, 0.04))
    wait_until(lambda: not arm._gripper._busy and abs(arm.read().gripper_m - 0.04) < 0.005)
    arm.send(Command(here.q_rad, width))
    wait_until(lambda: abs(arm.read().gripper_m - 0.04) > 0.008)
    arm.stop("space bar")
    time.sleep(1.2)  # in which they would be there: 0.03 m at 0.05 m/s
    assert abs(arm.read().gripper_m - width) > 0.015
    assert not arm._gripper._busy, "what is stopped is over"
    arm.connect()
    arm.send(Command(arm.read().q_rad, 0.04))
    wait_until(lambda: abs(arm.read().gripper_m - 0.04) < 0.005)


def test_another_servers_library_replaces_the_one_that_is_there():
    assert "--force-reinstall" in INSTALL_HINT
    assert "--force-reinstall" in _advice(RuntimeError("IncompatibleVersionException"))


class Hand:
    """A hand whose calls last until `ends`, and that notes what it is told."""

    def __init__(self, **state):
        self.calls, self.ends = [], threading.Event()
        self._state = {"width": 0.04, "is_grasped": False, **state}

    def __getattr__(self, name):
        return self._state[name]

    @property
    def state(self):
        self._state["width"] -= self._state.get("closes_m", 0.0)
        return SimpleNamespace(**self._state)

    def grasp(self, width, *_):
        self.calls.append(width)
        self.ends.wait(5)

    move = grasp

    def stop(self):
        self.calls.append("stop")
        if self.calls.count("stop") < self._state.get("deaf", 0):
            raise RuntimeError("command aborted")
        self._state["closes_m"] = 0.0
        self.ends.set()


@pytest.mark.parametrize(
    ("state", "stops"),
    [
        ({"closes_m": 0.001}, ["stop"]),
        ({"closes_m": 0.001, "deaf": 3}, ["stop"] * 3),
        ({}, []),
        ({"closes_m": 0.001, "is_grasped": True}, []),
    ],
)
def test_a_stop_lets_nothing_fall(state, stops):
    """The real hand's own stop takes the force off what it holds, and does not go on by itself."""
    hand = Hand(**state)
    thread = GripperThread(hand, 0.05, 0.005)
    thread.move(0.0)
    wait_until(lambda: hand.calls)
    thread.move(0.08)  # waits for the grasp to end
    thread.stop()
    thread.move(0.02)
    time.sleep(0.2)
    hand.ends.set()
    thread.close()
    assert hand.calls == [0.0, *stops]


@pytest.mark.parametrize(("says", "mode"), [("Reflex", "reflex"), ("UserStopped", "user_stopped")])
def test_modes_that_take_no_targets(arm, says, mode):
    class Said:
        robot_mode = getattr(arm._franky.RobotMode, says)
        last_motion_errors = current_errors = "joint_reflex"

    assert arm._mode(arm._robot, arm._tracker, Said(), 0.0)[0] == mode
    ready = arm.read()
    arm.read = lambda: replace(ready, mode=mode)
    with pytest.raises(RobotError, match=mode):
        arm.send(Command(ready.q_rad, 0.02))


def test_another_thread_may_read_while_it_connects_anew(arm):
    modes, failed, over = set(), [], threading.Event()

    def read_on():
        try:
            while not over.is_set():
                modes.add(arm.read().mode)
                time.sleep(0.001)
        except Exception as error:  # noqa: BLE001 - whatever it is
            failed.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    for _ in range(2):
        arm.stop("the episode is over")
        arm.connect()
    time.sleep(0.1)
    over.set()
    reader.join()
    assert not failed and modes == {"ready", "lost"}


def test_a_dead_robot_shows_within_a_tenth_of_a_second_of_its_last_state():
    need("franky_sim")
    with FrankaTwin() as twin:
        arm = Franka(twin.host, realtime="ignore")
        arm.connect()
        wait_until(lambda: arm.read().robot_time_s > 0.1)
        twin.kill()
        wait_until(lambda: arm.read().mode == "lost")
        lost = arm.read()
        assert 0.05 < time.monotonic() - lost.received_s < 0.2
        with pytest.raises(RobotError, match="lost"):
            arm.send(Command(lost.q_rad, 0.02))
        time.sleep(
            1.5
        )  # the controller has ended by then: franky asks the arm, in vain, for a second
        times_s = []
        for _ in range(20):
            start_s = time.monotonic()
            assert arm.read().mode == "lost"
            times_s.append(time.monotonic() - start_s)
            time.sleep(0.1)
        assert np.median(times_s) < 0.006 and max(times_s) < 0.1
        np.testing.assert_allclose(arm.read().q_rad, lost.q_rad)
        arm.stop("lost")
        arm.close()


MOVER = """
import sys, time
from real_world.contracts import Command
from real_world.franka import Franka

arm = Franka(sys.argv[1], realtime="ignore")
arm.connect()
target = arm.read().q_rad.copy()
while True:
    target[6] += 0.02
    arm.send(Command(target, 0.04))
    state = arm.read()
    if state.dq_rad_s[6] > 0.2:
        print(state.q_rad[6], flush=True)
    time.sleep(1 / 30)
"""


def test_a_runner_that_is_killed_leaves_an_arm_that_stands_still(twin):
    """kill -9 in the middle of a motion. The simulated arm's time stands still without a client (a real
    one brakes by itself); the next client finds it where it was, and holds it there."""
    command = [sys.executable, "-c", MOVER, twin.host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as mover:
        assert mover.stdout is not None
        moving_rad = float(mover.stdout.readline())
        mover.kill()
    time.sleep(0.5)
    arm = Franka(twin.host, realtime="ignore")
    arm.connect()
    assert arm.read().mode == "ready"
    wait_until(lambda: abs(arm.read().dq_rad_s).max() < 0.01)
    assert abs(arm.read().q_rad[6] - moving_rad) < 0.05
    arm.send(Command(arm.read().q_rad, 0.04))  # takes targets again
    arm.close()


def test_led_by_hand_it_follows_the_hand_and_a_stop_makes_it_hold(twin, monkeypatch):
    import franky

    push = partial(franky.JointImpedanceTracker, constant_torque_offset=1.5 * np.eye(7)[0])
    monkeypatch.setattr(franky, "JointImpedanceTracker", push)  # a hand at the first joint
    arm = Franka(twin.host, realtime="ignore")
    arm.connect()
    try:
        time.sleep(0.5)
        held = arm.read().q_rad
        arm.guide(True)
        arm.send(Command(held - 0.5, 0.04))  # has no force
        wait_until(lambda: arm.read().q_rad[0] > held[0] + 0.15)
        assert np.abs(arm.read().q_rad - held)[1:].max() < 0.02
        arm.stop("space bar")
        time.sleep(0.8)
        stopped = arm.read().q_rad[0]
        time.sleep(0.5)
        assert abs(arm.read().q_rad[0] - stopped) < 0.02
        with pytest.raises(RobotError, match="space bar"):
            arm.guide(True)
    finally:
        arm.close()
