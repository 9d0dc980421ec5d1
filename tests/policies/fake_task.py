"""Test doubles: a `VecTask` small enough to check by eye, and a frozen backbone to go with it."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn


class FakeTask:
    """Each world is a point in the square [-1, 1]², moved by the first two actions.

    Reward 1 - distance to the origin; success when it ends nearer than 0.3. An episode fails when
    the point leaves the square and times out after `max_episode_length` steps. Frames show a red
    square at the point, on a background whose brightness is the progress of the episode.
    """

    num_states, num_obs, num_actions = 18, 34, 9

    def __init__(
        self,
        num_envs: int = 4,
        obs: str = "state",
        seed: int = 0,
        image_size: int = 16,
        max_episode_length: int = 10,
        oracle: bool = False,
        **_: Any,
    ):
        self.num_envs, self.obs_kind, self.image_size = num_envs, obs, image_size
        self.max_episode_length, self._oracle = max_episode_length, oracle
        self.device = "cpu"
        self.action_space = spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)
        frame = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = spaces.Box(-np.inf, np.inf, (self.num_obs,), np.float32)
        self.observation_space = frame if obs == "pixels" else state
        self._generator = torch.Generator().manual_seed(seed)
        self.progress_buf = torch.zeros(num_envs, dtype=torch.long)
        self.position = torch.zeros(num_envs, 2)
        self._return = torch.zeros(num_envs)
        self.names = torch.zeros(num_envs, 3, dtype=torch.long)
        self.names[:, 0], self.names[:, 1], self.names[:, 2] = seed, torch.arange(num_envs), -1
        self._waiting: list[tuple[int, int]] = []

    def line_up(self, episodes: Sequence[tuple[int, int]]) -> None:
        self._waiting = list(episodes)

    def _reset(self, worlds: Tensor) -> None:
        draw = torch.rand(self.num_envs, 2, generator=self._generator)
        self.names[worlds, 2] += 1
        for world in worlds.tolist()[: len(self._waiting)]:
            seed, number = self._waiting.pop(0)
            self.names[world] = torch.tensor([seed, number, 0])
            own = torch.Generator().manual_seed(seed * 1000 + number)
            draw[world] = torch.rand(2, generator=own)
        self.position[worlds] = draw[worlds] - 0.5
        self.progress_buf[worlds], self._return[worlds] = 0, 0.0

    def _observe(self, worlds: Tensor) -> dict[str, Tensor]:
        states = torch.zeros(len(worlds), self.num_states)
        states[:, :2] = self.position[worlds]
        states[:, 2] = self.progress_buf[worlds] / self.max_episode_length
        oracle = torch.cat([states, states[:, :16]], dim=1)
        more = {"oracle": oracle} if self._oracle else {}
        obs = self._draw(worlds) if self.obs_kind == "pixels" else oracle
        return {"obs": obs, "states": states, **more}

    def _draw(self, worlds: Tensor) -> Tensor:
        size = self.image_size
        shade = (200 * self.progress_buf[worlds] / self.max_episode_length).to(torch.uint8)
        frames = shade.view(-1, 1, 1, 1).expand(-1, size, size, 3).clone()
        corner = ((self.position[worlds].clamp(-1, 1) + 1) / 2 * (size - 3)).long()
        for frame, (x, y) in zip(frames, corner.tolist(), strict=True):
            frame[y : y + 3, x : x + 3] = torch.tensor([255, 0, 0], dtype=torch.uint8)
        return frames

    def reset(self) -> dict[str, Tensor]:
        worlds = torch.arange(self.num_envs)
        self._reset(worlds)
        return self._observe(worlds)

    def step(
        self, actions: Tensor, draw: bool = True
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, Any]]:
        assert actions.isfinite().all() and actions.abs().max() <= 1
        self.position += 0.1 * actions[:, :2]
        self.progress_buf += 1
        distance = self.position.norm(dim=1)
        reward = 1 - distance
        self._return += reward
        failed = self.position.abs().amax(dim=1) > 1
        time_outs = (self.progress_buf >= self.max_episode_length) & ~failed
        done = failed | time_outs
        ended = done.nonzero().flatten()
        extras = {
            "time_outs": time_outs,
            "successes": (distance < 0.3).float(),
            "successes_at_end": (distance < 0.3).float(),
            "success_step": self.progress_buf * (distance < 0.3),
            "terminal_ids": ended,
            "terminal_obs": self._observe(ended) if len(ended) else {},
            "episode_return": self._return.clone(),
            "episode_length": self.progress_buf.clone(),
            "bad_worlds": 0,
        }
        if len(ended):
            self._reset(ended)
        obs = self._observe(torch.arange(self.num_envs))
        if not draw and self.obs_kind == "pixels":
            del obs["obs"]
        return obs, reward, done.long(), extras

    def render_film(
        self, world_ids: list[int], camera: str = "third_person", height: int = 8, width: int = 8
    ) -> Tensor:
        return torch.full((len(world_ids), height, width, 3), 90, dtype=torch.uint8)

    def close(self) -> None:
        pass


class FakeBackbone(nn.Module):
    """A frozen random convolution: uint8 [B, H, W, 3] -> float32 [B, 16, 8]."""

    name, layer, num_layers, num_features = "toto-tiny", 1, 2, 8
    untrained, readout, grid = True, "grid", 4

    def __init__(self, seed: int = 0):
        super().__init__()
        self.feature_shape = (16, self.num_features)
        self.conv = nn.Conv2d(3, self.num_features, 4, stride=4)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        self.requires_grad_(False)
        self.frames_seen = 0

    @property
    def weights_hash(self) -> str:
        digest = hashlib.sha256()
        for parameter in self.parameters():
            digest.update(parameter.numpy().tobytes())
        return digest.hexdigest()[:16]

    def forward(self, frames: Tensor) -> Tensor:
        self.frames_seen += len(frames)
        x = self.conv(frames.permute(0, 3, 1, 2).float() / 255)
        return nn.functional.adaptive_avg_pool2d(x, (4, 4)).flatten(2).transpose(1, 2)
