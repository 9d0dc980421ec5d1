"""Franka pick (PixMC): grasp the cube on the table and hold it near 0.8 m.

Everything below is a pure function of batched state; formulas and constants are those of PixMC
(Xiao et al. 2022, arXiv 2203.06173, as recorded in its released task code).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.scenes import CUBE_EDGE_M, TABLE_TOP_M, franka_pick_scene
from envs.spec import FRANKA

CUBE_REST_Z_M = TABLE_TOP_M + CUBE_EDGE_M / 2
GOAL_Z_M = 0.8
LIFTED_M, DROPPED_M = 0.015, 0.04
BONUS_TOLERANCE_M, SUCCESS_TOLERANCE_M = 0.04, 0.1
RESET_NOISE_RAD = 0.125
ARM_CONTACT_LIMIT_N = 1.0


@dataclass(frozen=True)
class State:
    """What the task reads from N worlds; positions in the world frame, m, rad, N."""

    joint_pos: Float[Tensor, "N 9"]
    joint_vel: Float[Tensor, "N 9"]
    left_grasp_w: Float[Tensor, "N 3"]
    right_grasp_w: Float[Tensor, "N 3"]
    object_w: Float[Tensor, "N 3"]
    arm_contact_n: Float[Tensor, "N 8"]


class FrankaPick:
    """The task as a namespace of pure functions; `VecTask` is the only caller."""

    name = "FrankaPick"
    robot = FRANKA
    num_obs = 34
    scene = staticmethod(franka_pick_scene)
    sites: tuple[str, ...] = ("left_grasp", "right_grasp", "cube_centre")
    num_reset_draws = 11

    @staticmethod
    def sample_reset(u: Float[Tensor, "K 11"]) -> Float[Tensor, "K 16"]:
        """Uniform draws to qpos: default pose +- 0.125 rad clamped to limits, cube on the table."""
        limits = torch.tensor([FRANKA.lower, FRANKA.upper])
        noise = (2 * u[:, :9] - 1) * RESET_NOISE_RAD
        joints = (torch.tensor(FRANKA.default_pose) + noise).clamp(*limits)
        cube = torch.zeros(len(u), 7)
        cube[:, 0] = 0.4 + 0.2 * u[:, 9]
        cube[:, 1] = -0.2 + 0.4 * u[:, 10]
        cube[:, 2] = CUBE_REST_Z_M
        cube[:, 3] = 1.0  # identity quaternion, w first
        return torch.cat([joints, cube], dim=1)

    @staticmethod
    def read(fields: dict[str, Tensor], site_ids: list[int]) -> State:
        left, right, cube = (fields["site_pos"][:, i] for i in site_ids)
        forces = fields["sensors"].reshape(len(left), 8, 3).norm(dim=-1)
        return State(fields["qpos"][:, :9], fields["qvel"][:, :9], left, right, cube, forces)

    @staticmethod
    def proprioception(s: State) -> Float[Tensor, "N 18"]:
        """[2 (q - lower) / (upper - lower) - 1, 0.1 qvel]."""
        lower, upper = torch.tensor([FRANKA.lower, FRANKA.upper])
        return torch.cat([2 * (s.joint_pos - lower) / (upper - lower) - 1, 0.1 * s.joint_vel], 1)

    @classmethod
    def observe(cls, s: State) -> Float[Tensor, "N 34"]:
        """PixMC's oracle vector: proprioception 18, then the task part 16."""
        return torch.cat(
            [
                cls.proprioception(s),
                s.left_grasp_w,
                s.right_grasp_w,
                s.object_w,
                s.object_w - s.left_grasp_w,
                s.object_w - s.right_grasp_w,
                GOAL_Z_M - s.object_w[:, 2:],
            ],
            dim=1,
        )

    @staticmethod
    def reward(s: State, actions: Float[Tensor, "N 9"]) -> Float[Tensor, " N"]:
        """0.08 sum 1/(0.04 + max(d, 0.02)) + 2 L + 1.28 L/(0.04 + h) + 2 G - 0.01 |a|^2."""
        reach = torch.zeros(len(actions))
        for grasp_w in (s.left_grasp_w, s.right_grasp_w):
            distance = (s.object_w - grasp_w).norm(dim=1)
            reach = reach + 0.08 / (0.04 + distance.clamp(min=0.02))
        height = s.object_w[:, 2]
        lifted = (height - CUBE_REST_Z_M > LIFTED_M).float()
        h = (GOAL_Z_M - height).abs()
        at_goal = (h <= BONUS_TOLERANCE_M).float()
        lift = 2.0 * lifted + 1.28 * lifted / (0.04 + h) + 2.0 * at_goal
        return reach + lift - 0.01 * actions.square().sum(1)

    @staticmethod
    def at_goal(s: State) -> Bool[Tensor, " N"]:
        """True within 0.1 m of the goal height; ten steps in a row make a success."""
        return (GOAL_Z_M - s.object_w[:, 2]).abs() <= SUCCESS_TOLERANCE_M

    @staticmethod
    def failed(s: State) -> Bool[Tensor, " N"]:
        """An arm link (not the hand) feels more than 1 N, or the cube has been dropped."""
        dropped = CUBE_REST_Z_M - s.object_w[:, 2] > DROPPED_M
        return dropped | (s.arm_contact_n > ARM_CONTACT_LIMIT_N).any(1)
