"""People and experts in the place of a policy: the same loop, limits, deadlines and files.

Each has a policy's `reset` and `plan`, and gives actions as a policy does (changes of joint targets in
[-1, 1]), so what they do is recorded in the action space that is learnt from it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.spec import CONTROL_RATE_HZ, FRANKA, STATES
from real_world.cell import HOME_RAD
from real_world.contracts import ARM_JOINTS, RobotError
from real_world.devices import Device, Fingers
from real_world.guard import Guard
from real_world.keys import Keys
from real_world.kinematics import joint_speeds
from real_world.pacing import Clock
from real_world.sim import SimWorld

HOMING = "opens the hand, which lets go of what it holds, and moves the arm home"
POLL_S = 0.02  # of a key that starts an episode
LEAD_RAD = 0.3  # of the targets before the measured joints: an arm that is held pushes no harder


def joints_of(obs: Mapping[str, Tensor]) -> Float[np.ndarray, " 7"]:
    """The measured joints, rad, out of an observation of one world (not that of `policies.bc_policy`:
    who only records needs no robomimic)."""
    scaled = obs[STATES][0, :ARM_JOINTS].double().numpy()
    lower, upper = (np.array(row[:ARM_JOINTS]) for row in (FRANKA.lower, FRANKA.upper))
    return lower + (scaled + 1) / 2 * (upper - lower)


class _Operator:
    """Turns wanted changes of the targets into an action, no larger than `robot`'s limits of speed let
    through: what is wanted and what is sent would differ, and a learner wants what was sent."""

    delay_steps = 0  # of its actions behind what is seen

    def __init__(self, robot: Guard, policy_hz: float):
        self._robot, self.period_s = robot, 1 / policy_hz
        self._step = np.array(FRANKA.action_step) * CONTROL_RATE_HZ / policy_hz
        limits = robot.limits
        speeds = np.array([*limits.speed_rad_s, *[limits.gripper_speed_m_s / 2] * 2])
        self._largest = np.minimum(1.0, speeds * self.period_s / self._step)

    def reset(self, worlds: Tensor | None = None) -> None:
        """Before an episode."""

    def done(self) -> None:
        """After an episode."""

    def _plan(self, change_rad: np.ndarray, change_m: float) -> Float[Tensor, "1 1 A"]:
        """All joints slow down together where one would change by more than an action can."""
        fingers = [change_m / 2] * (FRANKA.num_actions - ARM_JOINTS)
        action = np.append(change_rad, fingers) / self._step
        over = np.abs(action) / self._largest
        action[:ARM_JOINTS] /= max(1.0, float(over[:ARM_JOINTS].max()))
        action[ARM_JOINTS:] /= max(1.0, float(over[ARM_JOINTS:].max()))
        return torch.tensor(action, dtype=torch.float32)[None, None]


class Teleoperator(_Operator):
    """A device moves the hand of `robot`. The arm holds while nobody touches the device, and while the
    dead-man key is not held, if there is one."""

    def __init__(
        self,
        device: Device,
        robot: Guard,
        policy_hz: float,
        deadman: Callable[[], bool] = lambda: True,
        rest_rad: Float[np.ndarray, " 7"] = HOME_RAD,
    ):
        super().__init__(robot, policy_hz)
        self._device, self._deadman, self._rest = device, deadman, rest_rad

    def plan(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "1 1 A"]:
        """Raises DeviceError once the device is lost."""
        twist, target = self._device.read(), self._robot.target
        if twist is None or not self._deadman():
            return self._plan(np.zeros(ARM_JOINTS), 0.0)
        change = np.zeros(ARM_JOINTS)
        if twist.linear_m_s.any() or twist.angular_rad_s.any():
            limits, is_rad = (
                self._robot.limits,
                joints_of(obs),
            )
            lower = np.array(limits.lower_rad) + limits.margin_rad
            upper = np.array(limits.upper_rad) - limits.margin_rad
            velocity = np.concatenate([twist.linear_m_s, twist.angular_rad_s])
            speeds = joint_speeds(target.q_rad, velocity, lower, upper, self.period_s, self._rest)
            change = speeds * self.period_s
            ahead = np.maximum(LEAD_RAD - np.sign(change) * (target.q_rad - is_rad), 0.0)
            change *= min(1.0, float((ahead / np.maximum(np.abs(change), 1e-9)).min()))
        return self._plan(change, twist.gripper_m_s * self.period_s)


class SceneExpert(_Operator):
    """The scripted expert of a simulated task, which sees the whole scene."""

    def __init__(self, world: SimWorld, robot: Guard, policy_hz: float):
        from envs.experts import ScriptedExpert

        super().__init__(robot, policy_hz)
        self._world = world
        self._expert = ScriptedExpert(world.task, pace=CONTROL_RATE_HZ / policy_hz)

    def plan(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "1 1 A"]:
        with self._world.lock:
            action = self._expert.act(self._world.obs)[0].double().cpu().numpy()
        action = action.clip(-self._largest, self._largest)
        return torch.tensor(action, dtype=torch.float32)[None, None]


class Guiding(Protocol):
    """A driver whose arm can be led by hand: weightless while `guide(True)`."""

    def guide(self, on: bool) -> None: ...


def guiding(robot: Any) -> Guiding:
    """The driver inside of `robot` that can. Raises RobotError if none can."""
    names = []
    while robot is not None:
        if hasattr(robot, "guide"):
            return robot
        names.append(robot.name)
        robot = getattr(robot, "robot", None)
    raise RobotError(
        f"robot={names[-1]} cannot be led by hand: device=kinesthetic needs robot=franka"
    )


class HandGuide(_Operator):
    """A person leads the arm by hand; keys c and v close and open the fingers.

    The targets follow the arm, so an action is known only when it is done: it is that of the step
    before, and `delay_steps` in the file tells the converter to move it there.
    """

    delay_steps = 1

    def __init__(self, robot: Guard, keys: Keys, policy_hz: float):
        super().__init__(robot, policy_hz)
        self._keys, self._fingers = keys, Fingers()
        self._guiding = guiding(robot)

    def reset(self, worlds: Tensor | None = None) -> None:
        self._guiding.guide(True)

    def done(self) -> None:
        if not self._robot.stopped:  # then it holds already
            self._guiding.guide(False)

    def plan(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "1 1 A"]:
        change = joints_of(obs) - self._robot.target.q_rad
        gripper_m_s = self._fingers(self._keys.held("c"), self._keys.held("v"))
        return self._plan(change, gripper_m_s * self.period_s)


class Verdict:
    """What the person said by keys about the running episode."""

    def __init__(self, keys: Keys):
        self._keys, self.quit = keys, False
        self.begin()

    def begin(self) -> None:
        self.success: bool | None = None
        self.discard = self.start = False
        self._keys.pressed()  # what was typed before does not count

    def wait(
        self,
        clock: Clock,
        stop_asked: Callable[[], str],
        by_key: bool,
        held: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Until the arm may move: at once, or by key, and then once `held` says so; False: to quit, or
        to stop."""
        self.begin()
        while not self.quit and not stop_asked():
            self.listen()
            if (self.start or not by_key) and held():
                return True
            clock.sleep_until(clock.now() + POLL_S)
        return False

    def listen(self) -> None:
        for key in self._keys.pressed():
            self.success = {"s": True, "f": False}.get(key, self.success)
            self.discard |= key == "d"
            self.quit |= key == "q"
            self.start |= key == "enter"
