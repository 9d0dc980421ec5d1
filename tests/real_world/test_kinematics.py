"""From a twist of the hand to joint speeds: finite differences, singularities, ends of joints."""

import numpy as np
import pytest

from envs.spec import FRANKA
from real_world.kinematics import (
    POSTURE_HZ,
    SINGULAR,
    _joint_frames,
    hand_jacobian,
    hand_position,
    joint_speeds,
)

HOME = np.array(FRANKA.default_pose[:7])
LOWER, UPPER = np.array(FRANKA.lower[:7]), np.array(FRANKA.upper[:7])
STRETCHED = np.array([0.0, 0.0, 0.0, -0.07, 0.0, 1.5, 0.0])  # elbow out, wrist in line
DT = 1 / 30


def poses(count, seed=0):
    return np.random.default_rng(seed).uniform(LOWER + 0.1, UPPER - 0.1, (count, 7))


@pytest.mark.parametrize("q", [HOME, STRETCHED, *poses(5)])
def test_the_jacobian_is_the_slope_of_the_hand(q):
    h, jacobian = 1e-6, hand_jacobian(q)
    for joint in range(7):
        step = h * np.eye(7)[joint]
        slope = (hand_position(q + step) - hand_position(q - step)) / (2 * h)
        assert np.allclose(jacobian[:3, joint], slope, atol=1e-6)
        before, after = (_joint_frames(p)[-1][:3, :3] for p in (q - step, q + step))
        spin = (after - before) / (2 * h) @ _joint_frames(q)[-1][:3, :3].T  # [omega]x
        assert np.allclose(jacobian[3:, joint], (spin[2, 1], spin[0, 2], spin[1, 0]), atol=1e-6)


@pytest.mark.parametrize("rest", [None, np.zeros(7)])
def test_the_hand_does_what_it_is_told_in_the_open(rest):
    rng = np.random.default_rng(1)
    for q in HOME + rng.uniform(-0.2, 0.2, (10, 7)):
        assert np.linalg.svd(hand_jacobian(q))[1].min() > SINGULAR
        twist = rng.uniform(-0.2, 0.2, 6)
        speeds = joint_speeds(q, twist, LOWER, UPPER, DT, rest)
        assert np.allclose(hand_jacobian(q) @ speeds, twist, atol=1e-9)


def test_speeds_are_bounded_in_every_pose():
    rng = np.random.default_rng(2)
    near = STRETCHED + rng.uniform(-0.05, 0.05, (200, 7))
    assert min(np.linalg.svd(hand_jacobian(q))[1].min() for q in near) < SINGULAR / 3
    for q in [STRETCHED, *near, *poses(200, 3)]:
        twist = rng.normal(size=6)
        speeds = joint_speeds(q, twist, LOWER - 9, UPPER + 9, DT)
        assert np.linalg.norm(speeds) <= np.linalg.norm(twist) / SINGULAR * (1 + 1e-9)


def test_driven_against_a_singularity_the_arm_creeps_and_comes_back():
    q, out = HOME.copy(), np.array([0.3, 0.0, 0.3, 0, 0, 0])  # out of reach after a second
    for _ in range(300):
        speeds = joint_speeds(q, out, LOWER, UPPER, DT, HOME)
        assert np.linalg.norm(speeds) < np.linalg.norm(out) / SINGULAR + 2 * POSTURE_HZ
        q = q + speeds * DT
    far = hand_position(q)
    assert (q >= LOWER).all() and (q <= UPPER).all()
    for _ in range(30):
        q = q + joint_speeds(q, -out, LOWER, UPPER, DT, HOME) * DT
    assert (hand_position(q) - far)[[0, 2]] @ (-1, -1) > 0.1  # not stuck there


def test_a_joint_at_its_end_stays_and_the_others_carry_on():
    q = HOME.copy()
    q[5] = UPPER[5] - 0.001  # turning the hand up would take it beyond
    free = joint_speeds(q, np.array([0, 0.2, 0, 0, -0.5, 0]), LOWER - 9, UPPER + 9, DT)
    twist = np.array([0, 0.2, 0, 0, -0.5, 0]) * (1 if free[5] > 0 else -1)
    speeds = joint_speeds(q, twist, LOWER, UPPER, DT)
    assert abs(free[5]) * DT > 0.001 and speeds[5] <= 0.001 / DT
    moved = hand_jacobian(q) @ speeds
    assert np.sign(moved[1]) == np.sign(twist[1]) and abs(moved[1]) > 0.5 * abs(twist[1])


def test_outside_its_ends_a_joint_may_only_come_back():
    q = HOME.copy()
    q[3] = UPPER[3] + 0.05
    for seed in range(50):
        twist = np.random.default_rng(seed).normal(size=6)
        assert joint_speeds(q, twist, LOWER, UPPER, DT)[3] <= 0


def test_the_elbow_drifts_home_without_the_hand_noticing():
    q = HOME.copy()
    hand = hand_position(q)
    rest = q + 0.3 * np.linalg.svd(hand_jacobian(q))[2][-1]
    for _ in range(400):
        q = q + joint_speeds(q, np.zeros(6), LOWER, UPPER, DT, rest) * DT
    assert np.linalg.norm(hand_position(q) - hand) < 5e-3
    assert np.linalg.norm(q - rest) < 0.3 * np.exp(-POSTURE_HZ * 400 * DT) + 0.05
