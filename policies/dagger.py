"""DAgger (Ross et al. 2011, arXiv 1011.0686): a student acts on frozen features, an expert that sees
the state says what it would have done, and the student regresses on all labels so far.

At first the expert drives whole episodes; its share falls linearly to none. Every frame is encoded
once, its features stay in the data set (a file in the run folder, so that a killed run goes on),
and the task should end an episode soon after success (`steps_after_success`): holding still would
fill the data set.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from policies.held_actions import hold_actions
from policies.labels import LabelledFrames
from policies.learner import SUCCESS_WINDOW, Summary
from policies.networks import descend
from policies.teacher import Expert
from policies.vec_env import Observer


@dataclass
class DAggerConfig:
    """Options of `algo=dagger`."""

    expert: str = "teacher"  # the packaged one; "scripted"; or a policy folder
    # Default of total_steps, and the length of the first part of algo=dagger+ppo: environment steps.
    first_steps: int = 160_000
    num_steps: int = 16  # labelled frames per world, between two updates
    action_repeat: int = 2  # control steps per labelled frame, in training alone (see `DAgger`)
    expert_share: float = 0.3  # part of the run over which the expert's episodes become none
    replays: float = 8.0  # gradient samples per new frame
    batch_size: int = 512
    learning_rate: float = 1e-3  # cosine to 0 over total_steps
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "first_steps",
            "num_steps",
            "action_repeat",
            "replays",
            "batch_size",
            "learning_rate",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"dagger.{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.expert_share <= 1:
            raise ValueError(f"dagger.expert_share={self.expert_share}: expected 0 to 1")


class DAgger:
    """Learns `policy` (its mean action) from `expert` in the worlds of `task` (oracle=True).

    `labels` holds all frames seen so far; a resumed run finds them there. Frames 1/60 s apart are
    nearly the same and encoding them is what costs, so an action is held for `action_repeat` control
    steps. Actions are speeds: the policy then acts at every step.
    """

    def __init__(
        self,
        task: Any,
        observer: Observer,
        expert: Expert,
        policy: ActorCriticPolicy,
        labels: LabelledFrames,
        config: DAggerConfig,
        seed: int = 0,
    ):
        self.policy, self.config = policy, config
        self._task = hold_actions(task, config.action_repeat)
        self._observer, self._expert, self._labels = observer, expert, labels
        self.num_timesteps = self._resumed_at = 0
        self._clip = float(getattr(task, "clip_actions", 1.0))
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._returns: deque[float] = deque(maxlen=SUCCESS_WINDOW)
        self._successes: deque[float] = deque(maxlen=SUCCESS_WINDOW)
        self._numbers: dict[str, float] = {}

    def start(self, total_steps: int, on_step: Callable[[], bool]) -> None:
        """Reset the worlds. `total_steps` may be extended later: the learning rate follows."""
        self._total_steps, self._on_step = total_steps, on_step
        self._obs = self._task.reset()
        self._observer.reset()
        worlds = self._task.num_envs
        self._expert_drives = self._rng.random(worlds) < self._share()

    def _progress(self) -> float:
        return min(1.0, self.num_timesteps / self._total_steps)

    def _share(self) -> float:
        """Probability that the expert drives an episode that begins now."""
        share = self.config.expert_share
        return max(0.0, 1 - self._progress() / share) if share else 0.0

    def iterate(self) -> bool:
        """`num_steps` frames of all worlds, then `replays` gradient samples per new frame."""
        self.policy.set_training_mode(False)
        for _ in range(self.config.num_steps):
            self._act()
            if not self._on_step():
                return False
        self._update()
        return True

    def _act(self) -> None:
        """One step: see, ask the expert, remember, act."""
        seen = self._observer(self._obs)
        assert isinstance(seen, dict)
        # The task clips actions: what lies beyond would only be noise to imitate.
        wanted = self._expert.act(self._obs).cpu().clamp(-self._clip, self._clip)
        self._labels.append(seen, wanted.numpy())
        with torch.no_grad():
            batch: Any = obs_as_tensor(seen, self.policy.device)
            own = self.policy.get_distribution(batch).get_actions(deterministic=True)
        drives = torch.from_numpy(self._expert_drives)[:, None]
        actions = torch.where(drives, wanted, own.cpu().clamp(-1, 1))
        actions = actions.to(self._task.device)
        self._obs, _, resets, extras = self._task.step(actions)
        self.num_timesteps += self._task.num_envs * self.config.action_repeat
        self._begin_episodes(resets, extras)

    def _begin_episodes(self, resets: Tensor, extras: dict[str, Any]) -> None:
        """Count the student's episodes that ended, and choose who drives the next ones."""
        ended = resets.nonzero().flatten()
        self._observer.reset(ended)
        for world in ended.tolist():
            if not self._expert_drives[world]:
                self._returns.append(float(extras["episode_return"][world]))
                self._successes.append(float(extras["successes"][world] > 0))
            self._expert_drives[world] = self._rng.random() < self._share()

    def _update(self) -> None:
        config = self.config
        self.policy.set_training_mode(True)
        rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * self._progress()))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        new_frames = config.num_steps * self._task.num_envs
        losses = []
        for _ in range(max(1, round(config.replays * new_frames / config.batch_size))):
            seen, wanted = self._labels.sample(config.batch_size, self._rng)
            batch: Any = obs_as_tensor(seen, self.policy.device)
            mean = self.policy.get_distribution(batch).mode()
            loss = (mean - torch.from_numpy(wanted).to(mean.device)).square().mean()
            descend(self.policy, self._optimizer, loss, config.max_grad_norm)
            losses.append(loss.detach())
        self._numbers = {
            "train/imitation_loss": float(torch.stack(losses).mean()),
            "train/learning_rate": rate,
            "train/frames": float(len(self._labels)),
            "train/expert_share": self._share(),
        }

    def summary(self) -> Summary:
        """Episodes that the student drove alone, and the squared error of its mean action."""
        encodes = getattr(self._observer, "encodes", 0)
        done = max(1, self.num_timesteps - self._resumed_at)
        return Summary(list(self._returns), list(self._successes), encodes / done, self._numbers)

    def save_trainer(self, path: Path) -> None:
        self._labels.flush()
        torch.save(
            {
                "optimizer": self._optimizer.state_dict(),
                "num_timesteps": self.num_timesteps,
                "frames": len(self._labels),
                "returns": list(self._returns),
                "successes": list(self._successes),
            },
            path,
        )

    def load_trainer(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location="cpu")
        self._optimizer.load_state_dict(state["optimizer"])
        self.num_timesteps = self._resumed_at = state["num_timesteps"]
        self._rng = np.random.default_rng([self._seed, self.num_timesteps])
        self._labels.truncate(state["frames"])
        self._returns.extend(state["returns"])
        self._successes.extend(state["successes"])
