"""What a task is: pure functions of batched state. No task knows its engine.

Formulas and constants of the four tasks are those of PixMC (Xiao et al. 2022, arXiv 2203.06173, as
recorded in its released task code). A tensor argument decides the device of every result.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.options import Fidelity
from envs.spec import RobotSpec

RESET_NOISE_RAD = 0.125  # and m, for sliding fingers
ARM_CONTACT_LIMIT_N = 1.0


@dataclass(frozen=True, kw_only=True)
class State:
    """What a task reads from N worlds; positions in the world frame, m, rad, N.

    `target_w` is what the hand must reach: the cube's centre, or the drawer's handle.
    """

    joint_pos: Float[Tensor, "N A"]
    joint_vel: Float[Tensor, "N A"]
    grasp_w: Float[Tensor, "N F 3"]
    target_w: Float[Tensor, "N 3"]
    arm_contact_n: Float[Tensor, "N 8"]
    palm_w: Float[Tensor, "N 3"] | None = None


class Task(Protocol):
    """One task over batched worlds."""

    @property
    def name(self) -> str: ...
    @property
    def robot(self) -> RobotSpec: ...
    @property
    def fidelity(self) -> Fidelity: ...
    @property
    def scene(self) -> Callable[[], Any]:
        """Makes the mujoco.MjSpec."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose positions `read` gets, in this order."""
        ...

    @property
    def num_obs(self) -> int: ...
    @property
    def num_reset_draws(self) -> int: ...
    def sample_reset(self, u: Tensor) -> tuple[Tensor, Tensor | None]: ...
    def read(self, fields: dict[str, Tensor]) -> Any: ...
    def observe(self, s: Any) -> Tensor: ...
    def reward(self, s: Any, actions: Tensor) -> Tensor: ...
    def at_goal(self, s: Any) -> Tensor: ...
    def failed(self, s: Any) -> Tensor: ...


class RobotTensors(NamedTuple):
    lower: Float[Tensor, " A"]
    upper: Float[Tensor, " A"]
    default_pose: Float[Tensor, " A"]
    action_step: Float[Tensor, " A"]


@functools.cache
def robot_tensors(robot: RobotSpec, device: torch.device) -> RobotTensors:
    """The numbers of a robot on a device, made once."""
    rows = (robot.lower, robot.upper, robot.default_pose, robot.action_step)
    return RobotTensors(*(torch.tensor(row, device=device) for row in rows))


def sample_joints(robot: RobotSpec, u: Float[Tensor, "K A"]) -> Float[Tensor, "K A"]:
    """Uniform draws to joint positions: default pose +- 0.125, clamped to the limits."""
    r = robot_tensors(robot, u.device)
    return (r.default_pose + (2 * u - 1) * RESET_NOISE_RAD).clamp(r.lower, r.upper)


def at_rest(position_w: Float[Tensor, "K 3"]) -> Float[Tensor, "K 7"]:
    """A free body's part of qpos: position, then the identity quaternion (w first)."""
    upright = position_w.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(position_w), 4)
    return torch.cat([position_w, upright], dim=1)


def read_common(
    fields: dict[str, Tensor], robot: RobotSpec, has_palm: bool, fidelity: Fidelity
) -> dict[str, Any]:
    """The fields of `State` from an engine's, where the sites are [palm], grasp points, target."""
    qpos, sites = fields["qpos"], fields["site_pos"]
    palm_w = None
    if has_palm:
        # PixMC looks the palm up by a name that its model lacks and so reads the last body of the
        # world (the cube, or the last prop), which is the last free joint of qpos.
        palm_w = qpos[:, -7:-4] if fidelity == "pixmc" else sites[:, 0]
        sites = sites[:, 1:]
    return {
        "joint_pos": qpos[:, : robot.num_actions],
        "joint_vel": fields["qvel"][:, : robot.num_actions],
        "palm_w": palm_w,
        "grasp_w": sites[:, :-1],
        "target_w": sites[:, -1],
        "arm_contact_n": fields["sensors"][:, :24].reshape(-1, 8, 3).norm(dim=-1),
    }


def proprioception(robot: RobotSpec, s: State) -> Float[Tensor, "N S"]:
    """[2 (q - lower) / (upper - lower) - 1, 0.1 qvel]."""
    r = robot_tensors(robot, s.joint_pos.device)
    scaled = 2 * (s.joint_pos - r.lower) / (r.upper - r.lower) - 1
    return torch.cat([scaled, 0.1 * s.joint_vel], dim=1)


def oracle(robot: RobotSpec, s: State, remaining_m: Float[Tensor, " N"]) -> Float[Tensor, "N O"]:
    """PixMC's oracle vector: proprioception, [palm], grasp points, target, target minus each
    grasp point, what is left to the goal."""
    palm = [] if s.palm_w is None else [s.palm_w]
    gaps = s.target_w[:, None] - s.grasp_w
    return torch.cat(
        [
            proprioception(robot, s),
            *palm,
            s.grasp_w.flatten(1),
            s.target_w,
            gaps.flatten(1),
            remaining_m[:, None],
        ],
        dim=1,
    )


def oracle_size(robot: RobotSpec, num_grasp_points: int, has_palm: bool) -> int:
    return robot.num_states + 3 * has_palm + 6 * num_grasp_points + 3 + 1


def finger_distances(s: State) -> Float[Tensor, "N F"]:
    """Distance of each grasp point from the target, m."""
    return (s.target_w[:, None] - s.grasp_w).norm(dim=-1)


def reach(
    s: State, weights: Sequence[float], offset_m: float, nearest_m: float
) -> Float[Tensor, " N"]:
    """sum over fingers of weight / (offset + max(distance, nearest))."""
    near = 1 / (offset_m + finger_distances(s).clamp(min=nearest_m))
    return (near * near.new_tensor(weights)).sum(dim=1)


def arm_hit(s: State) -> Bool[Tensor, " N"]:
    """An arm link (not the hand) feels more than 1 N."""
    return (s.arm_contact_n > ARM_CONTACT_LIMIT_N).any(dim=1)
