"""Kinematics against MuJoCo's own, the experts' decisions by hand, and whole episodes."""

import mujoco
import numpy as np
import pytest
import torch

import envs
from envs.chain import Chain, turn_between
from envs.experts import TOOL_M, ScriptedExpert, Seen, cabinet_goal, pick_goal
from envs.scenes import franka_pick_scene

DOWN = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
FORWARD = torch.tensor([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]])


@pytest.fixture(scope="module")
def model():
    return franka_pick_scene().compile()


@pytest.fixture(scope="module")
def chain(model):
    return Chain(model, "panda_hand", 7, TOOL_M)


@pytest.fixture(scope="module")
def joints(model):
    low, high = model.jnt_range[:7].T
    return np.random.default_rng(0).uniform(low, high, (20, 7))


def test_the_chain_agrees_with_mujoco(model, chain, joints):
    points, rotations, jacobians = chain.forward(torch.from_numpy(joints).float())
    data, linear, angular = mujoco.MjData(model), np.zeros((3, model.nv)), np.zeros((3, model.nv))
    hand = model.body("panda_hand").id
    for i, q in enumerate(joints):
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        rotation = data.xmat[hand].reshape(3, 3)
        point = data.xpos[hand] + rotation @ TOOL_M
        mujoco.mj_jac(model, data, linear, angular, point, hand)
        np.testing.assert_allclose(points[i], point, atol=1e-5)
        np.testing.assert_allclose(rotations[i], rotation, atol=1e-5)
        expected = np.concatenate([linear, angular])[:, :7]
        np.testing.assert_allclose(jacobians[i], expected, atol=1e-5)


def test_inverse_kinematics_reaches_a_pose_that_can_be_reached(chain):
    points = torch.tensor([[0.45, 0.15, 0.42], [0.6, -0.2, 0.5], [0.5, 0.0, 0.6]])
    seed = torch.tensor([0.0, -0.6, 0.0, -2.4, 0.0, 1.9, 0.785]).expand(3, 7)
    reached, rotation, _ = chain.forward(chain.solve(points, DOWN, seed))
    assert (reached - points).norm(dim=1).max() < 1e-3
    assert turn_between(rotation, DOWN).norm(dim=1).max() < 1e-3


def test_a_chain_that_is_not_the_first_joints_is_refused(model):
    with pytest.raises(ValueError, match="expected 6"):
        Chain(model, "panda_hand", 6, TOOL_M)


@pytest.mark.parametrize(("angle", "length"), [(0.3, np.sin(0.3)), (2.5, 1 - np.cos(2.5))])
def test_the_turn_between_two_rotations(angle, length):
    axis = np.array([1.0, 2.0, -2.0]) / 3
    quat, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quat, axis, angle)
    mujoco.mju_quat2Mat(matrix, quat)
    turned = torch.from_numpy(matrix.reshape(3, 3)).float() @ DOWN
    vector = turn_between(DOWN[None], turned)[0]
    np.testing.assert_allclose(vector, length * axis, atol=1e-5)


def seen(hand, offset, fingers_m, remaining=0.3) -> Seen:
    """The target at (0.5, 0, 0.4225) and the tool `offset` (world, m) from it."""
    target = torch.tensor([[0.5, 0.0, 0.4225]])
    return Seen(
        fingers=torch.full((1, 2), fingers_m), target=target, remaining=torch.tensor([remaining]),
        tool=target + torch.tensor([offset]), hand=hand[None],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "offset", "fingers_m", "way", "closes"),
    [
        ("far off: to a place above", (-0.1, 0.1, 0.2), 0.04, (0.1, -0.1, -0.1), False),
        ("above and open: down", (0.0, 0.0, 0.1), 0.04, (0, 0, -0.1), False),
        ("above and shut: not yet", (0.0, 0.0, 0.1), 0.0, (0, 0, 0), False),
        ("around it: close", (0.0, 0.0, 0.0), 0.04, (0, 0, 0), True),
        ("shut around it: up", (0.0, 0.0, 0.0), 0.02, (0, 0, 0.1), True),
        ("shut without it: open, and off", (0.03, 0.0, 0.01), 0.0, (-0.03, 0, 0.09), False),
    ],
)
def test_what_to_do_about_the_cube(stage, offset, fingers_m, way, closes):
    s = seen(DOWN, offset, fingers_m)
    goal = pick_goal(s)
    np.testing.assert_allclose((goal.tool - s.tool)[0], way, atol=1e-6)
    assert (goal.fingers_m[0] < 0.02) == closes


@pytest.mark.parametrize(
    ("stage", "offset", "fingers_m", "way", "closes"),
    [
        ("beside it: before it first", (0.0, 0.05, 0.0), 0.04, (0.1, -0.05, 0), False),
        ("before it and open: forward", (0.1, 0.0, 0.0), 0.04, (-0.1, 0, 0), False),
        ("around it: close", (0.0, 0.0, 0.0), 0.04, (0, 0, 0), True),
        ("shut around it: pull", (0.0, 0.0, 0.0), 0.008, (0.07, 0, 0), True),
        ("shut before it: open, and off", (0.012, 0.0, 0.0), 0.0, (0.088, 0, 0), False),
    ],
)
def test_what_to_do_about_the_handle(stage, offset, fingers_m, way, closes):
    s = seen(FORWARD, offset, fingers_m)
    goal = cabinet_goal(s)
    np.testing.assert_allclose((goal.tool - s.tool)[0], way, atol=1e-6)
    assert (goal.fingers_m[0] < 0.02) == closes


def episodes(name: str, steps: int, wander: int = 0, **options) -> torch.Tensor:
    """Which of 4 worlds are done within `steps`, after `wander` steps of random motion."""
    task = envs.make(name, 4, seed=3, oracle=True, **options)
    expert, obs = ScriptedExpert(task), task.reset()
    generator, done = torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.bool)
    drift = torch.zeros(4, 9)
    for step in range(wander + steps):
        actions = expert.act(obs)
        if step < wander:
            drift = 0.9 * drift + 0.1 * torch.randn(4, 9, generator=generator)
            actions = drift.clamp(-1, 1)
        obs, _, _, extras = task.step(actions)
        done |= extras["successes"] > 0
        if done.all():
            break
    task.close()
    return done


@pytest.mark.parametrize("name", ["FrankaPick", "FrankaCabinet"])
def test_an_expert_succeeds(name):
    assert episodes(name, steps=220).all()


def test_an_expert_takes_over_from_another_policy():
    assert episodes("FrankaPick", steps=240, wander=60).all()


def test_an_expert_keeps_to_the_control_rate():
    assert episodes("FrankaPick", steps=70, control_rate_hz=20).all()


def test_labels_depend_on_the_present_alone():
    task = envs.make("FrankaPick", 2, oracle=True)
    obs = task.reset()
    expert = ScriptedExpert(task)
    first = expert.act(obs)
    assert torch.equal(first, expert.act(obs))
    assert torch.equal(first, ScriptedExpert(task).act(obs))
    assert first.shape == (2, 9)
    assert first.dtype == torch.float32


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match="KukaPick has no scripted expert.*FrankaPick"):
        ScriptedExpert(envs.make("KukaPick", 1))
    task = envs.make("FrankaPick", 2)
    with pytest.raises(ValueError, match="oracle=True"):
        ScriptedExpert(task).act(task.reset())
    task = envs.make("FrankaPick", 2, oracle=True)
    obs = task.reset()
    with pytest.raises(ValueError, match="1 observations, the task has 2 worlds"):
        ScriptedExpert(task).act({"oracle": obs["oracle"][:1]})
