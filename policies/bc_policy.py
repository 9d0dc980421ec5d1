"""A behaviour-cloning policy: it plans the next K actions and plays them back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.spec import CONTROL_RATE_HZ, TARGETS, RobotSpec, robot_of
from policies.feature_vec_env import FeatureHistory
from policies.plans import Plans
from policies.robomimic_bc import MODEL, PROPRIO, load_algo, predict
from policies.vec_env import TaskObs

LEAST_SPAN = 1e-6  # of an action dimension that varies


def action_range(actions: Float[np.ndarray, "T A"]) -> tuple[list[float], list[float]]:
    """Least and largest of each dimension; one that hardly varies gets 1 to either side."""
    low, high = actions.min(axis=0).astype(float), actions.max(axis=0).astype(float)
    flat = high - low < LEAST_SPAN
    middle = (low + high) / 2
    return np.where(flat, middle - 1, low).tolist(), np.where(flat, middle + 1, high).tolist()


def measured(states: Any, robot: RobotSpec) -> Any:
    """Joints in rad (m) from proprioception [..., 2 A], whose first half is scaled to [-1, 1]."""
    count = robot.num_actions
    kind = states.new_tensor if isinstance(states, Tensor) else np.array
    lower, upper = kind(robot.lower), kind(robot.upper)
    return lower + (states[..., :count] + 1) / 2 * (upper - lower)


def action_step(env: str, control_rate_hz: float) -> Float[np.ndarray, " A"]:
    """By how much an action of 1 moves a joint's target, rad (m)."""
    return CONTROL_RATE_HZ / control_rate_hz * np.array(robot_of(env).action_step)


def future_targets(
    targets: Float[np.ndarray, "T A"],
    actions: Float[np.ndarray, "T A"],
    joints: Float[np.ndarray, "T A"],
    step: Float[np.ndarray, " A"],
    length: int,
) -> Float[np.ndarray, "T K*A"]:
    """Where the expert wants the joint targets after each of the next `length` steps, relative to the
    joints now; the last one repeats."""
    after = targets + step * actions
    steps = np.arange(len(actions))[:, None] + np.arange(length)
    ahead = after[steps.clip(max=len(actions) - 1)] - joints[:, None]
    return ahead.reshape(len(actions), -1).astype(np.float32)


def actions_towards(
    wanted: Float[Tensor, "N K A"], targets: Float[Tensor, "N A"], step: Tensor, largest: float
) -> Float[Tensor, "N K A"]:
    """Actions that bring the joint targets to the wanted ones, one after another, as far as actions
    of at most `largest` do."""
    actions = []
    for goal in wanted.unbind(1):
        actions.append(((goal - targets) / step).clamp(-largest, largest))
        targets = targets + step * actions[-1]
    return torch.stack(actions, 1)


def normalise(actions: Any, low: Any, high: Any) -> Any:
    """The range [low, high] -> [-1, 1]; inverse of `denormalise`."""
    return 2 * (actions - low) / (high - low) - 1


def denormalise(actions: Any, low: Any, high: Any) -> Any:
    return (actions + 1) / 2 * (high - low) + low


class BCPolicy:
    """As `policies.policy.Policy`; `act` makes a new plan every `spec.bc.replan_every` steps.

    Worlds have plans of their own: `reset(worlds)` lets these begin a new episode.
    """

    def __init__(self, algo: Any, spec: Any, backbone: Any):
        self.algo, self.spec, self.backbone = algo, spec, backbone
        self.raw = bool(getattr(backbone, "trainable", False))
        self._low, self._high = torch.tensor(spec.bc.low), torch.tensor(spec.bc.high)
        if spec.bc.predicts == "targets":
            self._robot = robot_of(spec.env)
            step = action_step(spec.env, spec.control_rate_hz)
            self._step = torch.tensor(step, dtype=torch.float32)
        self._plans = Plans(spec.bc.replan_every, every_frame=spec.bc.context > 1)
        self.reset()

    def reset(self, worlds: Tensor | None = None) -> None:
        self._plans.reset(worlds)
        if worlds is None:
            keys = (PROPRIO, *self.spec.bc.cameras)
            self._past = {key: FeatureHistory(self.spec.bc.context) for key in keys}
        else:
            for past in self._past.values():
                past.reset(worlds.cpu())

    def act(self, obs: TaskObs) -> Float[Tensor, "N A"]:
        """The newest plan's action for this step, in [-1, 1], on the CPU."""
        return self._plans.act(obs, self.plan)

    def plan(self, obs: TaskObs, worlds: Tensor | None = None) -> Float[Tensor, "N K A"]:
        """The next K actions in [-1, 1] from `obs["obs"]` (uint8 [N, H, W, 3], with several cameras
        [N, C, H, W, 3]), `obs["states"]` and, where the policy predicts targets, `obs["targets"]`; call
        it at each step if the policy has a context, which is why `worlds` makes no difference."""
        seen = self.observe(obs)
        if self.spec.bc.context > 1:
            seen = {key: self._past[key].push(value) for key, value in seen.items()}
        out = predict(self.algo, seen, self.spec.bc.context).cpu()
        shape = (self.spec.bc.chunk, self.spec.num_actions)
        if self.spec.bc.predicts == "actions":
            chunk = out.unflatten(1, shape).clamp(-1, 1)
            return denormalise(chunk, self._low, self._high).clamp(-1.0, 1.0)
        ahead = denormalise(out.clamp(-1, 1), self._low, self._high).unflatten(1, shape)
        now = measured(obs["states"].float().cpu(), self._robot)
        targets = obs[TARGETS].float().cpu()
        return actions_towards(
            now[:, None] + ahead, targets, self._step, self.spec.bc.largest_action
        )

    def observe(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network reads: proprioception, and features (float16, as in the training)."""
        seen, images = {PROPRIO: obs["states"].float()}, obs["obs"]
        for number, camera in enumerate(self.spec.bc.cameras):
            frames = images[:, number] if images.ndim == 5 else images
            with torch.no_grad():
                made = self.backbone(frames)
            half = made.permute(0, 3, 1, 2).float() / 255 if self.raw else made.to(torch.float16)
            seen[camera] = half
        return seen


def load_bc(folder: Path, spec: Any, backbone: Any, device: str) -> BCPolicy:
    return BCPolicy(load_algo(folder / MODEL, device), spec, backbone)
