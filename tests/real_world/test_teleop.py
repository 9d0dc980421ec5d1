"""Devices give twists, operators turn them into actions that a guarded arm follows."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs.spec import FRANKA
from real_world.contracts import RobotError
from real_world.devices import (
    GRIPPER_M_S,
    Device,
    DeviceError,
    Keyboard,
    SpaceMouse,
    Twist,
    load_pyspacemouse,
)
from real_world.guard import Guard
from real_world.kinematics import hand_jacobian, hand_position
from real_world.limits import Limits
from real_world.loop import EpisodeLoop, LoopOptions, observation
from real_world.pacing import VirtualClock
from real_world.teleop import LEAD_RAD, HandGuide, Teleoperator, guiding, joints_of
from tests.real_world.fakes import HOME, Arm, Eye, Typist

BOX = ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
HZ = 30


class Puppet:
    """A device that does what a list says."""

    name = "puppet"

    def __init__(self, *twists):
        self.twists = list(twists)

    def connect(self): ...

    def read(self):
        return self.twists.pop(0) if self.twists else None

    def close(self): ...


def guard(arm):
    robot = Guard(arm, Limits(box_m=BOX), clock=arm.clock)
    robot.connect()
    return robot


def play(operator, robot, clock, seconds, rows=None):
    options = LoopOptions(policy_hz=HZ, command_hz=HZ, max_seconds=seconds)
    record = (lambda row: None) if rows is None else rows.append
    return EpisodeLoop(robot, [Eye(clock)], operator, options, clock, record=record).run()


def test_the_hand_moves_as_the_twist_says():
    clock = VirtualClock()
    arm = Arm(clock)
    robot = guard(arm)
    twist = Twist(np.array([0.05, -0.1, 0.02]), np.zeros(3), gripper_m_s=-0.03)
    outcome = play(Teleoperator(Puppet(*[twist] * 30), robot, HZ), robot, clock, 1.5)
    assert not outcome.fault, outcome
    moved = hand_position(arm.q) - hand_position(HOME)
    # the acceleration limit takes a little at the start
    assert np.allclose(moved, (0.05, -0.1, 0.02), atol=0.006)
    assert arm.sent[-1].gripper_m == pytest.approx(0.07 - 0.03, abs=1e-6)
    still = [c.q_rad for c in arm.sent[31:]]  # nobody touches it: it holds
    assert len(still) > 10 and np.ptp(still, axis=0).max() < 0.02
    robot.close()


def test_what_is_recorded_is_what_a_policy_would_have_said():
    clock, rows = VirtualClock(), []
    robot = guard(Arm(clock))
    twist = Twist(np.array([0.1, 0.0, 0.0]))
    play(Teleoperator(Puppet(*[twist] * 20), robot, HZ), robot, clock, 0.5, rows)
    for row in rows[5:15]:
        change = 2 * np.array(FRANKA.action_step[:7]) * row["actions"][:7]
        assert np.abs(row["actions"]).max() <= 1
        hand = hand_jacobian(row["q_wanted_rad"][:7]) @ change * HZ
        assert np.allclose(hand[:3], (0.1, 0, 0), atol=2e-3)


def test_a_faster_twist_than_actions_can_say_keeps_its_direction():
    clock = VirtualClock()
    robot = guard(Arm(clock))
    operator = Teleoperator(Puppet(Twist(np.array([9.0, 0.0, 0.0]))), robot, HZ, rest_rad=HOME)
    obs = observation([np.zeros((8, 8, 3), np.uint8)], robot.read(), robot.target)
    robot.limits = Limits(box_m=BOX, lower_rad=(-9,) * 7, upper_rad=(9,) * 7)
    action = operator.plan(obs)[0, 0].numpy()
    fastest = np.abs(action[:7]) * 60 * np.array(FRANKA.action_step[:7]) / robot.limits.speed_rad_s
    assert fastest.max() == pytest.approx(1)
    hand = hand_jacobian(HOME) @ (action[:7] * np.array(FRANKA.action_step[:7]))
    assert hand[0] > 0 and np.abs(hand[1:]).max() < 1e-5


def test_targets_stay_near_an_arm_that_is_held():
    clock = VirtualClock()

    class Held(Arm):
        def read(self):
            self.q = HOME.copy()
            return super().read()

    robot = guard(Held(clock))
    play(Teleoperator(Puppet(*[Twist(np.array([0.3, 0, 0]))] * 90), robot, HZ), robot, clock, 3.0)
    away = np.abs(robot.target.q_rad - HOME)
    assert 0.5 * LEAD_RAD < away.max() < LEAD_RAD + 0.05


def test_the_dead_man_key_lets_the_arm_move():
    clock, down = VirtualClock(), [False]
    arm = Arm(clock)
    robot = guard(arm)
    twists = [Twist(np.array([0.1, 0, 0]), gripper_m_s=-0.05)] * 60
    operator = Teleoperator(Puppet(*twists), robot, HZ, deadman=lambda: down[0])
    play(operator, robot, clock, 0.5)
    assert np.allclose(arm.q, HOME) and robot.target.gripper_m == pytest.approx(0.07)
    down[0] = True
    play(operator, robot, clock, 0.5)
    assert not np.allclose(arm.q, HOME, atol=0.01)


def test_a_lost_device_holds_the_arm():
    class Lost(Puppet):
        def read(self):
            raise DeviceError("the SpaceMouse is lost: unplugged")

    clock = VirtualClock()
    robot = guard(arm := Arm(clock))
    outcome = play(Teleoperator(Lost(), robot, HZ), robot, clock, 0.5)
    assert outcome.fault and "unplugged" in outcome.end_reason and arm.stops


def test_led_by_hand_the_actions_are_the_arms_own_motion():
    clock, rows = VirtualClock(), []

    class Led(Arm):
        guided: list = []

        def guide(self, on):
            self.guided.append(on)

        def read(self):
            self.q = HOME + np.array([0.3, 0, 0, 0, 0, 0, 0]) * np.sin(self.clock.now())
            return super().read()

    robot = guard(arm := Led(clock))
    operator = HandGuide(robot, Typist(held=lambda step: ["c"]), HZ)
    play(operator, robot, clock, 1.0, rows)
    operator.done()
    assert arm.guided == [True, False]
    actions = np.array([row["actions"][0] for row in rows])[3:]
    times = np.array([row["t_due_s"] for row in rows])[3:]
    speed = actions * FRANKA.action_step[0] * 60
    assert np.allclose(speed, 0.3 * np.cos(times - 0.5 / HZ), atol=0.01)  # of the step before
    assert rows[-1]["q_sent_rad"][7] < 0.07 - 0.05  # the fingers close


def test_the_measured_joints_come_out_of_an_observation():
    robot = guard(Arm(VirtualClock()))
    obs = observation([np.zeros((8, 8, 3), np.uint8)], robot.read(), robot.target)
    assert np.allclose(joints_of(obs), HOME, atol=1e-6)


def test_an_arm_that_cannot_be_led_is_refused():
    with pytest.raises(RobotError, match="robot=fake cannot be led"):
        guiding(guard(Arm(VirtualClock())))


@pytest.mark.parametrize(
    ("down", "linear", "angular", "gripper"),
    [
        (["up", "left"], (0.1, 0.1, 0), (0, 0, 0), 0),
        (["page down", "j"], (0, 0, -0.1), (0, 0, 0.4), 0),
        (["up", "down", "i"], (0, 0, 0), (0, -0.4, 0), 0),
        (["v"], (0, 0, 0), (0, 0, 0), GRIPPER_M_S),
    ],
)
def test_keys_are_directions(down, linear, angular, gripper):
    twist = Keyboard(Typist(held=lambda step: down)).read()
    assert twist is not None
    assert np.allclose(twist.linear_m_s, linear) and np.allclose(twist.angular_rad_s, angular)
    assert twist.gripper_m_s == gripper


def test_nobody_at_the_keyboard_is_none_and_fingers_go_on_closing():
    keys = Typist(held=lambda step: ["c"] if step == 2 else [])
    board = Keyboard(keys)
    assert board.read() is None and board.read() is not None
    twist = board.read()
    assert twist is not None and twist.gripper_m_s == -GRIPPER_M_S and not twist.linear_m_s.any()


class Mouse:
    """As pyspacemouse's device: one report a read."""

    def __init__(self):
        self.reports, self.closed, self.error = [], False, None
        self.state = SimpleNamespace(t=-1, x=0, y=0, z=0, roll=0, pitch=0, yaw=0, buttons=[0, 0])

    def report(self, **change):
        self.reports.append(change)

    def read(self):
        if self.error:
            raise self.error
        if self.reports:
            vars(self.state).update(self.reports.pop(0), t=self.state.t + 1)
        return self.state

    def close(self):
        self.closed = True


@pytest.fixture
def mouse():
    hid, now, asked = Mouse(), [0.0], {}

    def opens(**options):
        asked.update(options)
        return hid

    device: Device = SpaceMouse(
        0.2, 0.5, library=lambda: SimpleNamespace(open=opens), clock=lambda: now[0]
    )
    device.connect()
    assert asked == {"axis_convention": "ros"}  # the default is left-handed
    return device, hid, now


def test_the_cap_moves_the_hand_and_a_resting_hand_does_not(mouse):
    device, hid, _ = mouse
    assert device.read() is None
    hid.report(x=0.05, yaw=-0.06)
    assert device.read() is None
    hid.report(x=0.3)
    hid.report(x=1.0)  # the newest of those that wait
    hid.report(yaw=-1.2)
    twist = device.read()
    assert np.allclose(twist.linear_m_s, (0.2, 0, 0))
    assert np.allclose(twist.angular_rad_s, (0, 0, -0.5))
    hid.report(x=0.0)
    hid.report(yaw=0.0, buttons=[1, 0])
    assert device.read().gripper_m_s == -GRIPPER_M_S
    hid.report(buttons=[0, 0])
    assert device.read().gripper_m_s == -GRIPPER_M_S  # goes on
    hid.report(buttons=[0, 1])
    assert device.read().gripper_m_s == GRIPPER_M_S


def test_a_deflection_that_nothing_renews_ends(mouse):
    device, hid, now = mouse
    hid.report(z=0.8)
    assert device.read().linear_m_s[2] > 0
    now[0] = 0.2
    assert device.read() is not None
    now[0] = 0.3
    assert device.read() is None
    hid.report(z=0.8)
    assert device.read() is not None


def test_an_unplugged_mouse_is_an_error_and_close_may_be_called_twice(mouse):
    device, hid, _ = mouse

    class HIDException(Exception): ...

    hid.error = HIDException("Failed to read from HID device: -1")
    with pytest.raises(DeviceError, match="lost: Failed to read"):
        device.read()
    device.close()
    device.close()
    assert hid.closed
    with pytest.raises(DeviceError, match="not connected"):
        device.read()


def test_what_a_space_mouse_lacks_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspacemouse", None)
    with pytest.raises(DeviceError, match="teleop.*libhidapi"):
        load_pyspacemouse()

    def opens(**_):
        raise RuntimeError("No connected or supported devices found.")

    with pytest.raises(DeviceError, match="udev rule"):
        SpaceMouse(library=lambda: SimpleNamespace(open=opens)).connect()


def test_a_twist_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Twist(np.array([np.nan, 0, 0]))


def test_plans_have_the_shape_of_a_policys():
    robot = guard(Arm(VirtualClock()))
    obs = observation([np.zeros((8, 8, 3), np.uint8)], robot.read(), robot.target)
    plan = Teleoperator(Puppet(), robot, HZ).plan(obs)
    assert plan.shape == (1, 1, FRANKA.num_actions) and plan.dtype == torch.float32
