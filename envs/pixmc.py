"""PixMC's own wrapper, for training code written for it (MVP's PPO): tensors instead of dicts.

    task = VecTaskPython(envs.make("FrankaPick", 256, obs="pixels", image_size=224, fidelity="pixmc"))

Images are float32 [N, 3, H, W] with ImageNet's mean and deviation taken out, as PixMC's tasks give
them; everything else of this package takes uint8 frames and normalises inside the backbone.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor

from envs import spec
from envs.vec_task import VecTask

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRST_ACTION = 0.01  # `reset` steps once with uniform actions up to this size


class VecTaskPython:
    """`reset()` and `step(actions)` give observation tensors; `get_state()` the proprioception."""

    def __init__(self, task: VecTask):
        self.task, self.rl_device = task, task.rl_device
        self.num_envs, self.num_states = task.num_envs, task.num_states
        self.num_acts = self.num_actions = task.num_actions
        self.state_space, self.action_space = task.state_space, task.action_space
        self.clip_obs, self.clip_actions = task.clip_obs, task.clip_actions
        self.num_obs: int | tuple[int, ...] = task.num_obs
        self.observation_space = task.observation_space
        if task.obs_kind == "pixels":
            if not isinstance(task.camera, str):
                raise ValueError(f"PixMC has one camera, this task shows {task.camera}")
            self.num_obs = (3, *task.options.size)
            self.observation_space = spaces.Box(-np.inf, np.inf, self.num_obs, np.float32)

    def reset(self) -> Float[Tensor, "N ..."]:
        """Start all episodes and take one step with small random actions (PixMC's way)."""
        self.task.reset()
        shape = (self.num_envs, self.num_acts)
        noise = 2 * torch.rand(shape, device=self.rl_device) - 1
        return self.step(FIRST_ACTION * noise)[0]

    def step(
        self, actions: Float[Tensor, "N A"]
    ) -> tuple[Float[Tensor, "N ..."], Float[Tensor, " N"], Int[Tensor, " N"], dict[str, Any]]:
        obs, reward, reset, extras = self.task.step(actions)
        return self._tensor(obs[spec.OBS]), reward, reset, extras

    def get_state(self) -> Float[Tensor, "N S"]:
        return self.task.get_state()

    def _tensor(self, obs: Tensor) -> Tensor:
        if self.task.obs_kind != "pixels":
            return obs
        mean, std = (obs.new_tensor(v, dtype=torch.float) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return ((obs / 255 - mean) / std).permute(0, 3, 1, 2)

    def close(self) -> None:
        self.task.close()
