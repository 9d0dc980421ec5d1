"""PixMC's formulas of the four tasks, by hand."""

from dataclasses import replace

import pytest
import torch

from envs import spec
from envs.cabinet import FRANKA_CABINET, KUKA_CABINET, Cabinet, CabinetState
from envs.furniture import PROP_OFFSETS_M
from envs.pick import FRANKA_PICK, KUKA_PICK, Pick
from envs.task import State, proprioception
from envs.tasks import TASKS

ALL = list(TASKS.values())


def fingers_at(task, target_w: torch.Tensor, distance: float) -> torch.Tensor:
    """Grasp points at one distance from the target: the first above, the second below, ..."""
    directions = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0]])
    return (target_w + distance * directions[: len(task.fingers)])[None]


def common(task, target_w: torch.Tensor, distance: float, contact: float) -> dict:
    return {
        "joint_pos": torch.tensor([task.robot.default_pose]),
        "joint_vel": torch.zeros(1, task.robot.num_actions),
        "grasp_w": fingers_at(task, target_w, distance),
        "target_w": target_w[None],
        "palm_w": torch.tensor([[0.8, 0.1, 0.9]]) if task.has_palm else None,
        "arm_contact_n": torch.tensor([[0.0] * 7 + [contact]]),
    }


def pick_state(task: Pick, distance=0.1, height=None, contact=0.0) -> State:
    target_w = torch.tensor([0.5, 0.0, task.rest_z_m if height is None else height])
    return State(**common(task, target_w, distance, contact))


def cabinet_state(task: Cabinet, distance=0.1, opening=0.0, contact=0.0) -> CabinetState:
    target_w = torch.tensor([0.4065 + opening, 0.0, 0.7772])
    opening_m = torch.tensor([opening])
    return CabinetState(opening_m=opening_m, **common(task, target_w, distance, contact))


def state(task: Pick | Cabinet, **kwargs):
    return pick_state(task, **kwargs) if isinstance(task, Pick) else cabinet_state(task, **kwargs)


def reward(task, s) -> float:
    return task.reward(s, torch.zeros(1, task.robot.num_actions)).item()


PICK_REWARDS = [
    (FRANKA_PICK, {"distance": 0.1}, 1.142857),  # pixmc.md: 2 * .08 / .14
    (FRANKA_PICK, {"distance": 0.01, "height": 0.8}, 38.6667),  # pixmc.md: 2*.08/.06 + 2 + 32 + 2
    (FRANKA_PICK, {"height": 0.44}, 1.142857 + 2.0 + 1.28 / 0.4),  # lifted by 17.5 mm
    (FRANKA_PICK, {"height": 0.435}, 1.142857),  # 12.5 mm: not lifted
    (FRANKA_PICK, {"height": 0.75}, 1.142857 + 2.0 + 1.28 / 0.09),  # no bonus at 50 mm
    (KUKA_PICK, {"distance": 0.1}, 1.428571),  # pixmc.md: (3*.04 + .08) / .14
    (KUKA_PICK, {"distance": 0.01, "height": 0.8}, 38.8571),  # pixmc.md: .2/.07 + 36
    (KUKA_PICK, {"height": 0.449}, 1.428571),  # 19 mm: not lifted
    (KUKA_PICK, {"height": 0.455}, 1.428571 + 2.0 + 1.28 / (0.04 + 0.345)),
    (KUKA_PICK, {"height": 0.75}, 1.428571 + 2.0 + 1.28 / 0.09 + 2.0),  # bonus at 50 mm
]
CABINET_REWARDS = [
    (FRANKA_CABINET, {"distance": 0.005, "opening": 0.4}, 11.1),  # pixmc.md
    (KUKA_CABINET, {"distance": 0.005, "opening": 0.4}, 8.566667),  # pixmc.md
    (FRANKA_CABINET, {}, 2 * 0.06 / 0.116 + 0.5),  # shut, fingers around but far
    (FRANKA_CABINET, {"opening": 0.2}, 2 * 0.06 / 0.116 + 0.5 + 1.0 + 1.2),  # no pull: far
    (FRANKA_CABINET, {"distance": 0.03, "opening": 0.2},
     2 * 0.06 / 0.046 + 0.5 + 1.0 + 1.2 + 0.6),  # with the pull term 3 * 0.2
    (KUKA_CABINET, {"opening": 0.005}, 0.2 / 0.14 + 6 * 0.005),  # below 1 cm: no opening bonus
    (KUKA_CABINET, {"opening": 0.31}, 0.2 / 0.14 + 1.0 + 6 * 0.31 + 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("task", "where", "expected"), PICK_REWARDS + CABINET_REWARDS)
def test_reward(task, where, expected):
    assert reward(task, state(task, **where)) == pytest.approx(expected, rel=1e-4)


def test_franka_cabinet_rewards_fingers_on_both_sides_of_the_handle():
    s = cabinet_state(FRANKA_CABINET)
    beside = replace(s, grasp_w=s.target_w[:, None] + torch.tensor([[0.0, 0.1, 0.0], [0, -0.1, 0]]))
    swapped = replace(s, grasp_w=s.grasp_w.flip(1))
    assert reward(FRANKA_CABINET, s) - reward(FRANKA_CABINET, beside) == pytest.approx(0.5)
    # either finger may be the upper one
    assert reward(FRANKA_CABINET, swapped) == pytest.approx(reward(FRANKA_CABINET, s))


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_reward_pays_for_large_actions(task):
    s, num_actions = state(task), task.robot.num_actions
    full = task.reward(s, torch.ones(1, num_actions)).item()
    assert reward(task, s) - full == pytest.approx(0.01 * num_actions, rel=1e-4)


@pytest.mark.parametrize("task", [FRANKA_PICK, KUKA_PICK], ids=lambda task: task.name)
@pytest.mark.parametrize(("height", "expected"), [(0.69, 0), (0.701, 1), (0.899, 1), (0.91, 0)])
def test_pick_goal_band(task, height, expected):
    assert task.at_goal(pick_state(task, height=height)).item() == expected


@pytest.mark.parametrize(
    ("task", "distance", "opening", "expected"),
    [
        (FRANKA_CABINET, 0.03, 0.33, True),
        (FRANKA_CABINET, 0.03, 0.31, False),
        (FRANKA_CABINET, 0.05, 0.33, False),  # the fingers have let go
        (KUKA_CABINET, 0.05, 0.33, True),  # Kuka's success does not ask where the hand is
        (KUKA_CABINET, 0.05, 0.31, False),
    ],
)
def test_cabinet_goal(task, distance, opening, expected):
    assert task.at_goal(cabinet_state(task, distance, opening)).item() is expected


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_arm_contact_ends_an_episode(task):
    assert not task.failed(state(task, contact=0.9)).item()
    assert task.failed(state(task, contact=1.1)).item()


@pytest.mark.parametrize(("task", "depth"), [(FRANKA_PICK, 0.04), (KUKA_PICK, 0.06)])
def test_a_dropped_cube_ends_an_episode(task, depth):
    assert not task.failed(pick_state(task, height=task.rest_z_m - depth + 1e-3)).item()
    assert task.failed(pick_state(task, height=task.rest_z_m - depth - 1e-3)).item()


@pytest.mark.parametrize("robot", [spec.FRANKA, spec.KUKA], ids=lambda robot: robot.name)
def test_proprioception_spans_minus_one_to_one(robot):
    task = FRANKA_PICK if robot is spec.FRANKA else KUKA_PICK
    n = robot.num_actions

    def ends(joints):
        s = state(task)
        s = replace(s, joint_pos=torch.tensor([joints]), joint_vel=torch.full((1, n), 2.0))
        return proprioception(robot, s)[0]

    torch.testing.assert_close(ends(robot.lower)[:n], -torch.ones(n))
    torch.testing.assert_close(ends(robot.upper)[:n], torch.ones(n))
    torch.testing.assert_close(ends(robot.lower)[n:], torch.full((n,), 0.2))


def test_observation_layout_of_franka():
    s = pick_state(FRANKA_PICK)
    obs = FRANKA_PICK.observe(s)[0]
    assert obs.shape == (34,) == (FRANKA_PICK.num_obs,) == (FRANKA_CABINET.num_obs,)
    torch.testing.assert_close(obs[18:24], s.grasp_w[0].flatten())
    torch.testing.assert_close(obs[24:27], s.target_w[0])
    torch.testing.assert_close(obs[27:30], torch.tensor([0.0, 0.0, -0.1]))  # cube minus left
    torch.testing.assert_close(obs[33], torch.tensor(0.8 - FRANKA_PICK.rest_z_m))
    drawer = FRANKA_CABINET.observe(cabinet_state(FRANKA_CABINET, opening=0.1))[0]
    torch.testing.assert_close(drawer[33], torch.tensor(0.3))


def test_observation_layout_of_kuka():
    s = cabinet_state(KUKA_CABINET, opening=0.1)
    obs = KUKA_CABINET.observe(s)[0]
    assert obs.shape == (77,) == (KUKA_CABINET.num_obs,) == (KUKA_PICK.num_obs,)
    torch.testing.assert_close(obs[46:49], torch.tensor([0.8, 0.1, 0.9]))
    torch.testing.assert_close(obs[49:61], s.grasp_w[0].flatten())
    torch.testing.assert_close(obs[61:64], s.target_w[0])
    torch.testing.assert_close(obs[73:76], s.target_w[0] - s.grasp_w[0, 3])
    torch.testing.assert_close(obs[76], torch.tensor(0.3))


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_reset_distribution_ends(task):
    n, draws = task.robot.num_actions, task.num_reset_draws
    (low, high), places = task.sample_reset(torch.tensor([[0.0] * draws, [1.0] * draws]))
    default, lower = (torch.tensor(v) for v in (task.robot.default_pose, task.robot.lower))
    upper = torch.tensor(task.robot.upper)
    torch.testing.assert_close(low[:n], (default - 0.125).clamp(lower, upper))
    torch.testing.assert_close(high[:n], (default + 0.125).clamp(lower, upper))
    if isinstance(task, Pick):
        assert places is None
        torch.testing.assert_close(low[n:], torch.tensor([0.4, -0.2, task.rest_z_m, 1, 0, 0, 0]))
        torch.testing.assert_close(high[n : n + 2], torch.tensor([0.6, 0.2]))
        return
    torch.testing.assert_close(places[0], torch.tensor([-0.025, -0.075, 0.4]))
    torch.testing.assert_close(places[1], torch.tensor([0.125, 0.075, 0.5]))
    assert (low[n : n + 4] == 0).all() and len(PROP_OFFSETS_M) == 4
    torch.testing.assert_close(
        low[n + 4 : n + 7], places[0] + torch.tensor(PROP_OFFSETS_M[0], dtype=torch.float)
    )


def test_cube_rests_at_the_published_height():
    assert FRANKA_PICK.rest_z_m == pytest.approx(0.4225)
    assert KUKA_PICK.rest_z_m == pytest.approx(0.43)


def test_palm_of_kuka_is_pixmcs_last_body_on_request():
    qpos = torch.arange(30.0)[None]  # 23 joints, then the cube
    sites = torch.arange(18.0).reshape(1, 6, 3)
    fields = {
        "qpos": qpos, "qvel": torch.zeros(1, 29), "site_pos": sites, "sensors": torch.zeros(1, 24)
    }  # fmt: skip
    corrected, pixmc = KUKA_PICK.read(fields), replace(KUKA_PICK, fidelity="pixmc").read(fields)
    torch.testing.assert_close(corrected.palm_w, torch.tensor([[0.0, 1.0, 2.0]]))
    torch.testing.assert_close(pixmc.palm_w, torch.tensor([[23.0, 24.0, 25.0]]))
    assert corrected.grasp_w[0, 0].tolist() == [3.0, 4.0, 5.0]
    assert corrected.target_w.tolist() == [[15.0, 16.0, 17.0]]
