"""Pick (PixMC): grasp the cube on the table and hold it near 0.8 m. Franka and Kuka."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import scenes
from envs.furniture import TABLE_TOP_M
from envs.options import Fidelity
from envs.spec import FRANKA, KUKA, RobotSpec
from envs.task import (
    State,
    arm_hit,
    at_rest,
    oracle,
    oracle_size,
    reach,
    read_common,
    sample_joints,
)

GOAL_Z_M = 0.8
SUCCESS_TOLERANCE_M = 0.1
REACH_OFFSET_M = 0.04
CUBE_X_M, CUBE_Y_M = (0.4, 0.6), (-0.2, 0.2)  # where the cube is put, uniformly


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Pick with one robot. A grasp point `x` is the site `x_grasp`; lengths in m."""

    name: str
    robot: RobotSpec
    scene: Callable[[], Any]
    fingers: tuple[str, ...]
    finger_weights: tuple[float, ...]
    nearest_m: float  # a finger gains nothing by being nearer to the cube's centre
    cube_edge_m: float
    lifted_m: float  # height above the table that counts as lifted
    dropped_m: float  # depth below it that counts as dropped
    bonus_tolerance_m: float  # distance from the goal height that earns the bonus
    has_palm: bool = False
    fidelity: Fidelity = "corrected"

    @property
    def sites(self) -> tuple[str, ...]:
        palm = ("palm",) if self.has_palm else ()
        return (*palm, *(f"{finger}_grasp" for finger in self.fingers), "cube_centre")

    @property
    def num_obs(self) -> int:
        return oracle_size(self.robot, len(self.fingers), self.has_palm)

    @property
    def num_reset_draws(self) -> int:
        return self.robot.num_actions + 2

    @property
    def rest_z_m(self) -> float:
        """Height of the cube's centre on the table."""
        return TABLE_TOP_M + self.cube_edge_m / 2

    def sample_reset(self, u: Float[Tensor, "K D"]) -> tuple[Float[Tensor, "K Q"], None]:
        """Uniform draws to qpos: noisy default pose, cube anywhere in its rectangle."""
        joints, (x, y) = u[:, : self.robot.num_actions], u[:, self.robot.num_actions :].T
        (x_low, x_high), (y_low, y_high) = CUBE_X_M, CUBE_Y_M
        cube_w = torch.stack(
            [
                x_low + (x_high - x_low) * x,
                y_low + (y_high - y_low) * y,
                torch.full_like(x, self.rest_z_m),
            ],
            dim=1,
        )
        return torch.cat([sample_joints(self.robot, joints), at_rest(cube_w)], dim=1), None

    def read(self, fields: dict[str, Tensor]) -> State:
        return State(**read_common(fields, self.robot, self.has_palm, self.fidelity))

    def observe(self, s: State) -> Float[Tensor, "N O"]:
        """The oracle vector: 34 numbers for Franka, 77 for Kuka."""
        return oracle(self.robot, s, GOAL_Z_M - s.target_w[:, 2])

    def reward(self, s: State, actions: Float[Tensor, "N A"]) -> Float[Tensor, " N"]:
        """reach + 2 L + 1.28 L / (0.04 + h) + 2 G - 0.01 |a|^2; h = |0.8 - z|, L: lifted,
        G: near the goal height."""
        height = s.target_w[:, 2]
        h = (GOAL_Z_M - height).abs()
        lifted = (height - self.rest_z_m > self.lifted_m).float()
        bonus = (h <= self.bonus_tolerance_m).float()
        lift = 2.0 * lifted + 1.28 * lifted / (0.04 + h) + 2.0 * bonus
        near = reach(s, self.finger_weights, REACH_OFFSET_M, self.nearest_m)
        return near + lift - 0.01 * actions.square().sum(dim=1)

    def at_goal(self, s: State) -> Bool[Tensor, " N"]:
        """The cube is within 0.1 m of the goal height."""
        return (GOAL_Z_M - s.target_w[:, 2]).abs() <= SUCCESS_TOLERANCE_M

    def failed(self, s: State) -> Bool[Tensor, " N"]:
        """The arm hit something, or the cube has been dropped off the table."""
        return arm_hit(s) | (self.rest_z_m - s.target_w[:, 2] > self.dropped_m)


FRANKA_PICK = Pick(
    name="FrankaPick",
    robot=FRANKA,
    scene=scenes.franka_pick_scene,
    fingers=("left", "right"),
    finger_weights=(0.08, 0.08),
    nearest_m=0.02,
    cube_edge_m=scenes.CUBE_EDGE_M,
    lifted_m=0.015,
    dropped_m=0.04,
    bonus_tolerance_m=0.04,
)
KUKA_PICK = Pick(
    name="KukaPick",
    robot=KUKA,
    scene=scenes.kuka_pick_scene,
    fingers=("index", "middle", "ring", "thumb"),
    finger_weights=(0.04, 0.04, 0.04, 0.08),
    nearest_m=0.03,
    cube_edge_m=scenes.KUKA_CUBE_EDGE_M,
    lifted_m=0.02,
    dropped_m=0.06,
    bonus_tolerance_m=0.06,
    has_palm=True,
)
