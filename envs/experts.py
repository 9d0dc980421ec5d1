"""Scripted experts for the Franka tasks: what to do now, from the present state alone.

An expert keeps nothing between steps, so it can label any state, one that a student got into
included. Each task has one pure function from geometry to a `Goal`: where the point between the
fingers should be, how the hand is turned, and whether the fingers open or close. The stages (get
above, descend, close, lift) blend into each other, which makes the labels easier to learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from envs import spec
from envs.chain import Chain, turn_between
from envs.scenes import CUBE_EDGE_M
from envs.task import robot_tensors
from envs.vec_task import VecTask

HANDLE_EDGE_M = 0.023  # thickness of the drawer's handle
TOOL_M = (0.0, 0.0, 0.1034)  # between the finger pads, in the hand's frame
OPEN_M = 0.04
SQUEEZE_M = 0.008  # target of a finger beyond the surface it presses on: about 50 N
GAIN_HZ = 8.0  # joint speed per gap to the goal
CHANGE_SHARE = 0.5  # of what a target lacks, made up in one step at 60 Hz: jumps become ramps


@dataclass(frozen=True)
class Seen:
    """The oracle vector taken apart, and the hand's pose; positions in the world frame, m, rad."""

    fingers: Float[Tensor, "N 2"]
    target: Float[Tensor, "N 3"]  # the cube's centre, or the handle
    remaining: Float[Tensor, " N"]  # height, or opening, that is left to the goal
    tool: Float[Tensor, "N 3"]
    hand: Float[Tensor, "N 3 3"]

    @property
    def offset(self) -> Float[Tensor, "N 3"]:
        """The target seen from the tool, in the hand's frame: across, along the fingers' way, ahead."""
        return (self.hand.mT @ (self.target - self.tool)[..., None])[..., 0]


@dataclass(frozen=True)
class Goal:
    """Where the tool and the hand should be, and how far each finger is from the middle (target)."""

    tool: Float[Tensor, "N 3"]
    hand: Float[Tensor, "N 3 3"]
    fingers_m: Float[Tensor, " N"]


def pick_goal(s: Seen) -> Goal:
    """Above the cube with the hand pointing down, down, close, up to the goal height.

    The arm is too short to hold the hand upright at 0.8 m, so it tilts as it rises. Far from the
    cube and low, the hand rises first, so as not to run into the table's side.
    """
    held, closing = _grip(s, CUBE_EDGE_M, (0.02, 0.02, 0.008))
    hover = _retreat(s, _pointing_down(0 * s.remaining), 0.034) * (1 - closing)
    across, along, up = (s.target - s.tool).unbind(1)
    lift = [(0.5 - s.tool[:, 0]).clamp(-0.03, 0.03), 0 * along, s.remaining.clamp(-0.1, 0.1)]
    low = _ramp((across.square() + along.square()).sqrt(), 0.1, 0.15) * _ramp(up, -0.08, -0.03)
    rise = [0 * across, 0 * along, (up + 0.2).clamp(max=0.2)]
    tool = torch.lerp(s.target + _along(2, hover), s.tool + torch.stack(rise, 1), low[:, None])
    tool = torch.lerp(tool, s.tool + torch.stack(lift, 1), held[:, None])
    hand = _pointing_down(0.8 * ((tool[:, 2] - 0.5) / 0.25).clamp(0, 1))
    return Goal(tool, hand, _fingers(closing, CUBE_EDGE_M))


def cabinet_goal(s: Seen) -> Goal:
    """Before the handle with one finger above and one below it, forward, close, pull."""
    held, closing = _grip(s, HANDLE_EDGE_M, (0.03, 0.02, 0.008))
    forward = _pointing_forward(s.tool)
    out = _retreat(s, forward, 0.03) * (1 - closing)
    pull = (s.remaining - 0.03).clamp(-0.1, 0.07) * held
    return Goal(s.target + _along(0, out + pull), forward, _fingers(closing, HANDLE_EDGE_M))


def _grip(
    s: Seen, edge_m: float, box_m: tuple[float, float, float]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """How far the thing is held, and how far the fingers should be closing, 0 to 1.

    They close once the thing is in the middle of the fingers (`box_m`, half sizes in the hand's
    frame), and stay closed while what is between them is as wide as the thing, even if it slides.
    """
    across, along, ahead = s.offset.unbind(1)
    aside = _within(across, box_m[0]) * _within(along, box_m[1])
    gap = s.fingers.sum(1)
    wide = _ramp(gap, 0.3 * edge_m, 0.4 * edge_m) * _ramp(-gap, -edge_m - 0.004, -edge_m - 0.002)
    held = aside * _within(ahead, 0.025) * wide
    return held, torch.maximum(held, aside * _within(ahead, box_m[2]))


def _fingers(closing: Float[Tensor, " N"], edge_m: float) -> Float[Tensor, " N"]:
    return OPEN_M + closing * (edge_m / 2 - SQUEEZE_M - OPEN_M)


def _retreat(s: Seen, hand: Float[Tensor, "N 3 3"], open_m: float) -> Float[Tensor, " N"]:
    """How far off to stay, 0 to 0.1 m, until the fingers would pass beside the thing."""
    across, along, _ = s.offset.unbind(1)
    miss = (across.square() + along.square()).sqrt()
    miss = miss + 0.1 * turn_between(s.hand, hand).norm(dim=1)
    miss = miss + 2 * (open_m - s.fingers.amin(1)).clamp(min=0)
    return (4 * (miss - 0.008)).clamp(0, 0.1)


GOALS = {"FrankaPick": pick_goal, "FrankaCabinet": cabinet_goal}
SEEDS = {  # where inverse kinematics begins: a bend of the arm that suits the task
    "FrankaPick": (0.0, -0.6, 0.0, -2.4, 0.0, 1.9, 0.785),
    "FrankaCabinet": (1.1, -1.5, -0.45, -2.6, -2.0, 2.3, 0.3),
}


class ScriptedExpert:
    """Actions for every world of a Franka task, at the task's control rate.

    Args:
        task: a `VecTask` made with `oracle=True`.
        speed_rad_s: the fastest joint moves at this speed on the way to a goal.
        pace: control steps at 60 Hz for which an action is meant, by default the task's.
    Raises:
        ValueError: a task without a scripted expert.
    """

    def __init__(self, task: VecTask, speed_rad_s: float = 1.5, pace: float | None = None):
        name, device = task.task.name, task.rl_device
        if name not in GOALS:
            raise ValueError(f"{name} has no scripted expert; these have: {', '.join(GOALS)}")
        self._task, self._goal, self._speed_rad_s = task, GOALS[name], speed_rad_s
        self._chain = Chain(task.engine.model, "panda_hand", 7, TOOL_M, device)
        self._seed = torch.tensor(SEEDS[name], device=device)
        self._robot = robot_tensors(task.task.robot, torch.device(device))
        pace = task.options.pace if pace is None else pace
        self._share = (1 - (1 - CHANGE_SHARE) ** pace) / (pace * self._robot.action_step)

    def act(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "N A"]:
        """Actions in [-1, 1] from `obs["oracle"]` [N, 34] and the task's present joint targets.

        Raises ValueError without an oracle vector for each world.
        """
        oracle, targets = self._check(obs), self._task.targets.to(self._seed.device)
        lower, upper = self._robot.lower, self._robot.upper
        joints = lower + (oracle[:, :9] + 1) / 2 * (upper - lower)
        arm, fingers = joints[:, :7], joints[:, 7:]
        tool, hand, _ = self._chain.forward(arm)
        goal = self._goal(Seen(fingers, oracle[:, 24:27], oracle[:, 33], tool, hand))
        gap = self._chain.solve(goal.tool, goal.hand, self._seed.expand_as(arm)) - arm
        speed = GAIN_HZ * gap
        speed = speed / (speed.abs().amax(1, keepdim=True) / self._speed_rad_s).clamp(min=1)
        goal_fingers = goal.fingers_m[:, None].expand(-1, 2)
        wanted = torch.cat([arm + spec.SERVO_LAG_S * speed, goal_fingers], 1)
        return (self._share * (wanted - targets)).clamp(-1, 1)

    def _check(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "N 34"]:
        if spec.ORACLE not in obs:
            raise ValueError(
                f"the expert reads obs[{spec.ORACLE!r}], this observation has {sorted(obs)}; "
                "make the task with oracle=True"
            )
        oracle = obs[spec.ORACLE]
        if len(oracle) != self._task.num_envs:
            raise ValueError(
                f"{len(oracle)} observations, the task has {self._task.num_envs} worlds"
            )
        return oracle


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    """0 up to `low`, 1 from `high` on."""
    return ((x - low) / (high - low)).clamp(0, 1)


def _within(x: Tensor, limit: float) -> Tensor:
    """1 well within +-limit, 0 beyond, linear over its last quarter."""
    return (4 * (1 - x.abs() / limit)).clamp(0, 1)


def _along(axis: int, length_m: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    vector = length_m.new_zeros(len(length_m), 3)
    vector[:, axis] = length_m
    return vector


def _pointing_down(tilt_rad: Float[Tensor, " N"]) -> Float[Tensor, "N 3 3"]:
    """Fingers down and side by side along y; tilted, they point away from the base."""
    cos, sin, zero = tilt_rad.cos(), tilt_rad.sin(), torch.zeros_like(tilt_rad)
    x = torch.stack([-cos, zero, sin], -1)
    y = torch.stack([zero, zero + 1, zero], -1)
    z = torch.stack([-sin, zero, -cos], -1)
    return torch.stack([x, y, z], -1)


def _pointing_forward(like: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3 3"]:
    """Fingers away from the base, one above the other."""
    axes = like.new_tensor([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return axes.expand(len(like), 3, 3)
