"""PixMC's formulas, by hand."""

from dataclasses import replace

import pytest
import torch

from envs.franka_pick import CUBE_REST_Z_M, FrankaPick, State
from envs.spec import FRANKA


def state(distance=0.1, height=CUBE_REST_Z_M, contact=0.0) -> State:
    cube = torch.tensor([[0.5, 0.0, height]])
    return State(
        joint_pos=torch.tensor([FRANKA.default_pose]),
        joint_vel=torch.zeros(1, 9),
        left_grasp_w=cube + torch.tensor([[distance, 0, 0]]),
        right_grasp_w=cube - torch.tensor([[distance, 0, 0]]),
        object_w=cube,
        arm_contact_n=torch.tensor([[0.0] * 7 + [contact]]),
    )


NO_ACTION = torch.zeros(1, 9)


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (state(0.1), 2 * 0.08 / 0.14),  # 1.142857 in pixmc.md
        (state(0.01, 0.8), 38.6667),  # 2*.08/.06 + 2 + 1.28/.04 + 2
        (state(0.1, 0.44), 1.142857 + 2.0 + 1.28 / (0.04 + 0.36)),  # lifted by 17.5 mm
        (state(0.1, 0.435), 1.142857),  # 12.5 mm: not lifted
        (state(0.1, 0.75), 1.142857 + 2.0 + 1.28 / 0.09),  # 50 mm below the goal: no bonus
    ],
)
def test_reward(s, expected):
    assert FrankaPick.reward(s, NO_ACTION).item() == pytest.approx(expected, rel=1e-4)


def test_reward_pays_for_large_actions():
    full = FrankaPick.reward(state(), torch.ones(1, 9))
    assert (FrankaPick.reward(state(), NO_ACTION) - full).item() == pytest.approx(0.09, rel=1e-4)


@pytest.mark.parametrize(("height", "expected"), [(0.69, 0), (0.701, 1), (0.899, 1), (0.91, 0)])
def test_goal_band(height, expected):
    assert FrankaPick.at_goal(state(height=height)).item() == expected


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (state(), False),
        (state(contact=0.9), False),
        (state(contact=1.1), True),
        (state(height=CUBE_REST_Z_M - 0.039), False),
        (state(height=CUBE_REST_Z_M - 0.041), True),
    ],
)
def test_failure(s, expected):
    assert FrankaPick.failed(s).item() is expected


def test_proprioception_spans_minus_one_to_one():
    def proprioception(joints):
        moving = replace(
            state(), joint_pos=torch.tensor([joints]), joint_vel=torch.full((1, 9), 2.0)
        )
        return FrankaPick.proprioception(moving)[0]

    low, high = proprioception(FRANKA.lower), proprioception(FRANKA.upper)
    torch.testing.assert_close(low[:9], -torch.ones(9))
    torch.testing.assert_close(high[:9], torch.ones(9))
    torch.testing.assert_close(low[9:], torch.full((9,), 0.2))


def test_observation_layout():
    s = state(0.1)
    obs = FrankaPick.observe(s)[0]
    assert obs.shape == (34,)
    torch.testing.assert_close(obs[18:21], s.left_grasp_w[0])
    torch.testing.assert_close(obs[24:27], s.object_w[0])
    torch.testing.assert_close(obs[27:30], torch.tensor([-0.1, 0.0, 0.0]))
    torch.testing.assert_close(obs[33], torch.tensor(0.8 - CUBE_REST_Z_M))


def test_reset_distribution_ends():
    low, high = FrankaPick.sample_reset(torch.tensor([[0.0] * 11, [1.0] * 11]))
    torch.testing.assert_close(low[9:11], torch.tensor([0.4, -0.2]))
    torch.testing.assert_close(high[9:11], torch.tensor([0.6, 0.2]))
    torch.testing.assert_close(low[0], torch.tensor(1.157 - 0.125))
    assert low[7] == 0.0 and high[7] == torch.tensor(0.04)  # fingers are clamped to their limits
