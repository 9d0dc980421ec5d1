"""Cabinet (PixMC): open the top drawer by its handle. Franka and Kuka."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import scenes
from envs.furniture import PROP_OFFSETS_M
from envs.options import Fidelity
from envs.spec import FRANKA, KUKA, RobotSpec
from envs.task import (
    State,
    arm_hit,
    at_rest,
    finger_distances,
    oracle,
    oracle_size,
    reach,
    read_common,
    sample_joints,
)

GOAL_OPENING_M = 0.4  # the drawer's whole travel
SUCCESS_OPENING_M = 0.32
BONUS_OPENING_M = 0.3
AT_HANDLE_M = 0.04
CABINET_NOISE_M = (0.075, 0.075, 0.05)
NUM_CABINET_JOINTS, TOP_DRAWER = 4, 3
NEAREST_M = 0.008


@dataclass(frozen=True, kw_only=True)
class CabinetState(State):
    opening_m: Float[Tensor, " N"]


@dataclass(frozen=True, kw_only=True)
class Cabinet:
    """Cabinet with one robot. A grasp point `x` is the site `x_grasp`; lengths in m."""

    name: str
    robot: RobotSpec
    scene: Callable[[], Any]
    fingers: tuple[str, ...]
    finger_weights: tuple[float, ...]
    reach_offset_m: float
    around_weight: float = 0.0  # for the handle being between the first two grasp points
    pull_weight: float = 0.0  # per m, for opening while both of them are at the handle, around it
    success_at_handle: bool = False  # success asks for all grasp points at the handle as well
    has_palm: bool = False
    fidelity: Fidelity = "corrected"

    @property
    def sites(self) -> tuple[str, ...]:
        palm = ("palm",) if self.has_palm else ()
        return (*palm, *(f"{finger}_grasp" for finger in self.fingers), "handle")

    @property
    def num_obs(self) -> int:
        return oracle_size(self.robot, len(self.fingers), self.has_palm)

    @property
    def num_reset_draws(self) -> int:
        return self.robot.num_actions + 3

    def sample_reset(
        self, u: Float[Tensor, "K D"]
    ) -> tuple[Float[Tensor, "K Q"], Float[Tensor, "K 3"]]:
        """Uniform draws to qpos and the cabinet's place: drawer shut, props in it."""
        joints, place = u[:, : self.robot.num_actions], u[:, self.robot.num_actions :]
        noise_m = (2 * place - 1) * u.new_tensor(CABINET_NOISE_M)
        cabinet_w = u.new_tensor(scenes.CABINET_POS_M) + noise_m
        props = [at_rest(cabinet_w + u.new_tensor(offset)) for offset in PROP_OFFSETS_M]
        shut = u.new_zeros(len(u), NUM_CABINET_JOINTS)
        return torch.cat([sample_joints(self.robot, joints), shut, *props], dim=1), cabinet_w

    def read(self, fields: dict[str, Tensor]) -> CabinetState:
        opening_m = fields["qpos"][:, self.robot.num_actions + TOP_DRAWER]
        common = read_common(fields, self.robot, self.has_palm, self.fidelity)
        return CabinetState(opening_m=opening_m, **common)

    def observe(self, s: CabinetState) -> Float[Tensor, "N O"]:
        """The oracle vector: 34 numbers for Franka, 77 for Kuka."""
        return oracle(self.robot, s, GOAL_OPENING_M - s.opening_m)

    def reward(self, s: CabinetState, actions: Float[Tensor, "N A"]) -> Float[Tensor, " N"]:
        """reach + w_A A + 1[q > 0.01] + 6 q + w_P A K q + 1[q >= 0.3] - 0.01 |a|^2; q: opening,
        A: handle between the fingers in height, K: fingers at the handle."""
        q = s.opening_m
        first_z, second_z, handle_z = s.grasp_w[:, 0, 2], s.grasp_w[:, 1, 2], s.target_w[:, 2]
        around = ((first_z - handle_z) * (handle_z - second_z) > 0).float()
        held = self._all_at_handle(s).float()
        opened = (q > 0.01).float() + 6.0 * q + (q >= BONUS_OPENING_M).float()
        near = reach(s, self.finger_weights, self.reach_offset_m, NEAREST_M)
        grip = self.around_weight * around + self.pull_weight * around * held * q
        return near + grip + opened - 0.01 * actions.square().sum(dim=1)

    def at_goal(self, s: CabinetState) -> Bool[Tensor, " N"]:
        """The drawer is open by 0.32 m; for Franka with both fingers at the handle."""
        is_open = s.opening_m >= SUCCESS_OPENING_M
        return is_open & self._all_at_handle(s) if self.success_at_handle else is_open

    def failed(self, s: CabinetState) -> Bool[Tensor, " N"]:
        """The arm hit something."""
        return arm_hit(s)

    @staticmethod
    def _all_at_handle(s: CabinetState) -> Bool[Tensor, " N"]:
        return (finger_distances(s) < AT_HANDLE_M).all(dim=1)


FRANKA_CABINET = Cabinet(
    name="FrankaCabinet",
    robot=FRANKA,
    scene=scenes.franka_cabinet_scene,
    fingers=("left", "right"),
    finger_weights=(0.06, 0.06),
    reach_offset_m=0.016,
    around_weight=0.5,
    pull_weight=3.0,
    success_at_handle=True,
)
KUKA_CABINET = Cabinet(
    name="KukaCabinet",
    robot=KUKA,
    scene=scenes.kuka_cabinet_scene,
    fingers=("index", "middle", "ring", "thumb"),
    finger_weights=(0.04, 0.04, 0.04, 0.08),
    reach_offset_m=0.04,
    has_palm=True,
)
