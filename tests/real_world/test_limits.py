"""Whatever is asked of an arm, what it is told stays within every limit."""

import math

import numpy as np
import pytest
import torch

import envs
from envs.chain import Chain
from envs.spec import FRANKA
from real_world.contracts import Command
from real_world.kinematics import hand_position
from real_world.limits import Limits, limit

HOME = np.array(FRANKA.default_pose[:7])
EVERYWHERE = ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
ROOM = ((0.1, -0.5, 0.05), (0.75, 0.5, 0.9))
DT = 1 / 30


def run(targets, limits, start=HOME, dt=DT, gripper=0.04):
    """Send targets one after the other; rows of q and speed, and all events."""
    last, speed, rows, speeds, events = Command(start, 0.04), np.zeros(7), [], [], []
    for target in targets:
        limited = limit(Command(np.asarray(target), gripper), last, speed, dt, limits)
        last, speed = limited.command, limited.speed_rad_s
        rows.append(last.q_rad)
        speeds.append(speed)
        events.append(limited.events)
    return np.array(rows), np.array(speeds), events


def test_hand_position_is_that_of_the_simulated_arm():
    task = envs.make(task="FrankaPick", num_envs=1, sim_device="cpu", seed=0)
    chain = Chain(task.engine.model, "panda_hand", 7, (0.0, 0.0, 0.1034))
    base = task.engine.model.body("panda_link0")
    turned = np.array([-1.0, -1.0, 1.0])  # in our scenes the arm stands at x = 1 m and looks back
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = rng.uniform(FRANKA.lower[:7], FRANKA.upper[:7])

        there = chain.forward(torch.tensor(q[None], dtype=torch.float32))[0][0].numpy()
        assert np.allclose(turned * hand_position(q) + base.pos, there, atol=2e-5)
    task.close()


def test_a_target_within_all_limits_passes_unchanged():
    target = HOME + 0.005
    limited = limit(Command(target, 0.041), Command(HOME, 0.04), np.zeros(7), DT,
                    Limits(box_m=EVERYWHERE))  # fmt: skip
    assert limited.events == ()
    assert np.allclose(limited.command.q_rad, target, atol=1e-12)
    assert limited.command.gripper_m == 0.041


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rate_hz", [10, 30, 60])
def test_random_targets_never_leave_joints_speed_or_acceleration(seed, rate_hz):
    rng, dt = np.random.default_rng(seed), 1 / rate_hz
    limits = Limits(box_m=EVERYWHERE)
    targets = np.repeat(rng.uniform(-5, 5, (40, 7)), rng.integers(1, 30), axis=0)
    q, speed, events = run(targets, limits, dt=dt)
    assert (q >= np.array(limits.lower_rad) + limits.margin_rad - 1e-9).all()
    assert (q <= np.array(limits.upper_rad) - limits.margin_rad + 1e-9).all()
    assert (np.abs(speed) <= np.array(limits.speed_rad_s) + 1e-9).all()
    change = np.diff(speed, axis=0, prepend=np.zeros((1, 7)))
    assert (np.abs(change) <= np.array(limits.acceleration_rad_s2) * dt + 1e-7).all()
    assert np.allclose(np.diff(q, axis=0, prepend=HOME[None]), speed * dt)
    assert any("speed" in e for e in events)


def test_a_joint_reaches_the_end_of_its_range_and_stays_there():
    limits = Limits(box_m=EVERYWHERE)
    q, speed, _ = run([[9.0] * 7] * 200, limits)
    assert np.allclose(q[-1], np.array(limits.upper_rad) - limits.margin_rad, atol=1e-6)
    assert np.abs(speed[-1]).max() < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_random_targets_never_take_the_hand_out_of_its_box(seed):
    rng = np.random.default_rng(seed)
    limits = Limits(box_m=ROOM)
    start = np.array([0.0, -0.6, 0.0, -2.4, 0.0, 1.9, 0.785])
    assert (hand_position(start) > ROOM[0]).all() and (hand_position(start) < ROOM[1]).all()
    targets = np.repeat(start + rng.uniform(-1.5, 1.5, (30, 7)), 15, axis=0)
    q, speed, events = run(targets, limits, start=start)
    hands = np.array([hand_position(row) for row in q])
    assert (hands >= np.array(ROOM[0]) - 1e-6).all() and (hands <= np.array(ROOM[1]) + 1e-6).all()
    assert (np.abs(speed) <= np.array(limits.speed_rad_s) + 1e-9).all()
    assert any("box" in e for e in events)


def test_a_hand_that_starts_outside_its_box_may_only_come_back():
    limits = Limits(box_m=((0.5, -0.1, 0.3), (0.7, 0.1, 0.5)))
    start = np.array([1.2, -0.6, 0.0, -2.4, 0.0, 1.9, 0.785])
    farther, _, events = run([start + [1.0, 0, 0, 0, 0, 0, 0]] * 10, limits, start=start)
    assert np.allclose(farther[-1], start, atol=1e-3) and "box" in events[0]
    back, _, _ = run([start - [1.2, 0, 0, 0, 0, 0, 0]] * 60, limits, start=start)
    assert abs(back[-1][0]) < 1e-3


def test_an_arm_beyond_its_joint_limits_may_only_come_back():
    limits = Limits(box_m=EVERYWHERE)
    start = HOME.copy()
    start[0] = limits.upper_rad[0] + 0.1
    q, _, _ = run([start + 0.5] * 5, limits, start=start)
    assert (q[:, 0] <= start[0] + 1e-12).all()
    q, _, _ = run([HOME] * 100, limits, start=start)
    assert np.allclose(q[-1], HOME, atol=1e-6)


def test_the_gripper_keeps_to_its_width_and_speed():
    limits = Limits(box_m=EVERYWHERE)
    wide = limit(Command(HOME, 0.5), Command(HOME, 0.04), np.zeros(7), DT, limits)
    assert wide.command.gripper_m == pytest.approx(0.04 + 0.2 * DT)
    assert wide.events == ("gripper",)
    shut = limit(Command(HOME, -1.0), Command(HOME, 0.001), np.zeros(7), DT, limits)
    assert shut.command.gripper_m == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_command_that_is_not_finite_is_refused(bad):
    q = HOME.copy()
    q[3] = bad
    for command in (Command(q, 0.04), Command(HOME, bad)):
        with pytest.raises(ValueError, match="finite"):
            limit(command, Command(HOME, 0.04), np.zeros(7), DT, Limits(box_m=EVERYWHERE))


@pytest.mark.parametrize("q", [HOME[:6], np.zeros(9), HOME[None]])
def test_a_command_of_another_shape_is_refused(q):
    with pytest.raises(ValueError, match="shape"):
        limit(Command(q, 0.04), Command(HOME, 0.04), np.zeros(7), DT, Limits(box_m=EVERYWHERE))


@pytest.mark.parametrize(
    "wrong",
    [
        {"box_m": ((0, 0, 0), (0, 1, 1))},
        {"box_m": EVERYWHERE, "margin_rad": 2.0},
        {"box_m": EVERYWHERE, "speed_rad_s": (1.0,) * 6},
        {"box_m": EVERYWHERE, "acceleration_rad_s2": (0.0,) * 7},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        Limits(**wrong)
