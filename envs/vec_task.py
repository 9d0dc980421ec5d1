"""Batched environment with the IsaacGymEnvs `VecTask` surface."""

from typing import Any, Literal, Protocol

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from envs import spec
from envs.mujoco_engine import MujocoEngine
from envs.physics import uniform_draws
from envs.scenes import SUBSTEPS

ObsKind = Literal["state", "pixels"]
ObsDict = dict[str, Tensor]


class Task(Protocol):
    """Pure functions of batched state that make one task; see `envs.franka_pick.FrankaPick`."""

    name: str
    robot: spec.RobotSpec
    num_obs: int
    num_reset_draws: int
    sites: tuple[str, ...]

    def scene(self) -> Any: ...
    def sample_reset(self, u: Tensor) -> Tensor: ...
    def read(self, fields: dict[str, Tensor], site_ids: list[int]) -> Any: ...
    def proprioception(self, s: Any) -> Tensor: ...
    def observe(self, s: Any) -> Tensor: ...
    def reward(self, s: Any, actions: Tensor) -> Tensor: ...
    def at_goal(self, s: Any) -> Tensor: ...
    def failed(self, s: Any) -> Tensor: ...


class VecTask:
    """N worlds of one task. Actions are changes of joint targets in [-1, 1] (pixmc.md 1.3).

    `step` resets finished worlds within the same call, so the observation it returns is always
    one to act on; the terminal one is in `extras["terminal_obs"]` for `extras["terminal_ids"]`.

    Args:
        task: the task's pure functions.
        num_envs: number of worlds.
        seed: with it a world's resets depend on (seed, world, episode) alone.
        obs: `state` gives float32 [N, num_obs] under "obs", `pixels` uint8 [N, S, S, 3].
        image_size: S, side of the square image in pixels.
        camera: which camera `pixels` shows.
        threads: physics and rendering threads; all cores by default.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        seed: int = 0,
        obs: ObsKind = "state",
        image_size: int = 128,
        camera: str = "wrist",
        threads: int | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if obs not in ("state", "pixels"):
            raise ValueError(f"obs must be 'state' or 'pixels', got {obs!r}")
        self.task, self.num_envs, self.seed, self.obs_kind = task, num_envs, seed, obs
        self.image_size, self.camera = image_size, camera
        self.device = self.rl_device = "cpu"
        self.num_obs, self.num_states = task.num_obs, task.robot.num_states
        self.num_actions = self.num_acts = task.robot.num_actions
        self.max_episode_length = spec.EPISODE_LENGTH
        self.dt = 1 / spec.CONTROL_RATE_HZ
        self.engine = MujocoEngine(task.scene(), num_envs, threads)
        self._site_ids = [self.engine.model.site(name).id for name in task.sites]
        self._lower = torch.tensor(task.robot.lower)
        self._upper = torch.tensor(task.robot.upper)
        self._action_step = torch.tensor(task.robot.action_step)
        self._make_spaces()
        self._allocate_buffers()

    def _make_spaces(self) -> None:
        self.state_space = spaces.Box(-np.inf, np.inf, (self.num_states,), np.float32)
        self.act_space = self.action_space = spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)
        if self.obs_kind == "state":
            self.obs_space = spaces.Box(-np.inf, np.inf, (self.num_obs,), np.float32)
        else:
            self.obs_space = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        self.observation_space = self.obs_space

    def _allocate_buffers(self) -> None:
        n = self.num_envs
        self.targets = torch.zeros(n, self.num_actions)
        self.rew_buf = torch.zeros(n)
        self.reset_buf = torch.ones(n, dtype=torch.long)
        self.timeout_buf = torch.zeros(n, dtype=torch.long)
        self.progress_buf = torch.zeros(n, dtype=torch.long)
        self.extras: dict[str, Any] = {}
        self.obs_dict: ObsDict = {}
        self.bad_worlds = 0  # worlds whose physics diverged and that were reset, since the start
        self._episode = torch.full((n,), -1, dtype=torch.long)
        self._streak = torch.zeros(n, dtype=torch.long)
        self._success = torch.zeros(n, dtype=torch.bool)
        self._return = torch.zeros(n)

    @property
    def obs_buf(self) -> Tensor:
        """The newest observation, as under `obs_dict["obs"]`."""
        return self.obs_dict[spec.OBS]

    def reset(self) -> ObsDict:
        """Start a new episode in every world; returns the first observations."""
        ids = torch.arange(self.num_envs)
        self.reset_idx(ids)
        self.obs_dict = self._observe(ids, self._read())
        return self.obs_dict

    def reseed(self, seed: int) -> None:
        """Make the next `reset` draw what a freshly built task with this seed would."""
        self.seed = seed
        self._episode.fill_(-1)

    def reset_idx(self, env_ids: Int[Tensor, " K"]) -> None:
        """Start a new episode in worlds `env_ids`; the others are untouched."""
        self._episode[env_ids] += 1
        draws = uniform_draws(self.seed, env_ids, self._episode[env_ids], self.task.num_reset_draws)
        qpos = self.task.sample_reset(draws)
        self.engine.reset(env_ids, qpos)
        self.targets[env_ids] = qpos[:, : self.num_actions]
        for buffer in (self.progress_buf, self._streak, self._success, self._return):
            buffer[env_ids] = 0

    def step(
        self, actions: Float[Tensor, "N A"]
    ) -> tuple[ObsDict, Float[Tensor, " N"], Int[Tensor, " N"], dict[str, Any]]:
        """Advance every world by one control step (1/60 s).

        Returns:
            (obs dict, reward, reset flags, extras). Where a reset flag is 1 the observation is the
            first of the next episode and extras hold the ended one: `terminal_ids` [K],
            `terminal_obs` (obs dict of those K worlds); and, over all worlds, `time_outs`,
            `successes`, `episode_return`, `episode_length`.

        Raises:
            ValueError: wrong shape or a value that is not finite.
        """
        actions = self._check(actions).clamp(-1.0, 1.0)
        moved = self.targets + self._action_step * actions
        self.targets = torch.minimum(torch.maximum(moved, self._lower), self._upper)
        bad = self.engine.step(self.targets, SUBSTEPS)
        self.progress_buf += 1

        state = self._read()
        self.rew_buf = self.task.reward(state, actions)
        self._streak = torch.where(self.task.at_goal(state), self._streak + 1, 0)
        self._success |= self._streak >= spec.SUCCESS_STREAK
        failed = self.task.failed(state)
        self.rew_buf[bad], failed[bad] = 0.0, True
        self.bad_worlds += len(bad)
        timed_out = (self.progress_buf >= self.max_episode_length) & ~failed
        self.timeout_buf = timed_out.long()
        self.reset_buf = (failed | timed_out).long()
        self._return += self.rew_buf
        self.obs_dict = self._finish_and_observe(state)
        return self.obs_dict, self.rew_buf, self.reset_buf, self.extras

    def _finish_and_observe(self, state) -> ObsDict:
        ended = self.reset_buf.nonzero().squeeze(1)
        self.extras = {
            "time_outs": self.timeout_buf.bool(),
            "successes": self._success.float(),
            "episode_return": self._return.clone(),
            "episode_length": self.progress_buf.clone(),
            "bad_worlds": self.bad_worlds,
            "terminal_ids": ended,
            "terminal_obs": self._observe(ended, state) if len(ended) else {},
        }
        if len(ended):
            self.reset_idx(ended)
            state = self._read()
        return self._observe(torch.arange(self.num_envs), state)

    def _check(self, actions: Tensor) -> Tensor:
        expected = (self.num_envs, self.num_actions)
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        wrong = (~actions.isfinite()).any(1).nonzero().squeeze(1).tolist()
        if wrong:
            raise ValueError(
                f"actions must be finite: NaN or infinity in worlds {wrong[:8]} "
                f"({len(wrong)} of {self.num_envs}). Nothing was stepped; check the policy's output."
            )
        return actions.float()

    def _read(self):
        return self.task.read(self.engine.read(), self._site_ids)

    def _observe(self, ids: Tensor, state) -> ObsDict:
        """Observations of worlds `ids`; `state` is of all worlds."""
        states = self.task.proprioception(state)[ids].clamp(-5.0, 5.0)
        if self.obs_kind == "state":
            return {spec.OBS: self.task.observe(state)[ids].clamp(-5.0, 5.0), spec.STATES: states}
        size = self.image_size
        return {spec.OBS: self.engine.render(self.camera, size, size, ids), spec.STATES: states}

    def zero_actions(self) -> Float[Tensor, "N A"]:
        return torch.zeros(self.num_envs, self.num_actions)

    def render_film(
        self, world_ids, camera: str = "third_person", height: int = 240, width: int = 320
    ) -> UInt8[Tensor, "K H W 3"]:
        """Images of some worlds for people to look at."""
        return self.engine.render(camera, height, width, torch.as_tensor(world_ids))

    def close(self) -> None:
        self.engine.close()
