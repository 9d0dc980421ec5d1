"""Batched environment with the IsaacGymEnvs `VecTask` surface.

By default a step resets finished worlds within the same call, and every image shows the state that
the vectors describe. `fidelity="pixmc"` keeps what PixMC does instead, one line each:

- reset: a finished world is reset during the next step, whose action it ignores;
- time limit: at 499 control steps, not 500, and `extras["time_outs"]` is never set;
- images: drawn before the physics step, so one control step old; 2x2 supersampled;
- successes: counts the steps at the goal until the episode ends, then is 0 or 1;
- Kuka's palm position: that of the last body of the world (see `envs.task.read_common`).

Not kept: PhysX, and observations that its GPU pipeline leaves partly stale right after a reset.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from envs import spec
from envs.options import PHYSICS_RATE_HZ, TaskOptions
from envs.physics import Physics, uniform_draws
from envs.task import Task, proprioception, robot_tensors

ObsDict = dict[str, Tensor]


class VecTask:
    """N worlds of one task. Actions are changes of joint targets in [-1, 1] (pixmc.md 1.3).

    After a step the observation is one to act on; where an episode has just ended, its last one is
    in `extras["terminal_obs"]` for worlds `extras["terminal_ids"]`.

    Args:
        task: the task's pure functions.
        engine: its scene in as many worlds.
        seed: with it a world's resets depend on (seed, world, episode) alone.
        options: see `envs.options.TaskOptions`.
        rl_device: where observations, rewards and reset flags are handed out.
    """

    num_agents = 1
    control_freq_inv = 1

    def __init__(
        self,
        task: Task,
        engine: Physics,
        seed: int = 0,
        options: TaskOptions | None = None,
        rl_device: str | None = None,
        randomiser: Any = None,
    ):
        self.options = o = options or TaskOptions()
        self.task, self.engine, self.seed = task, engine, seed
        self.cfg: dict[str, Any] = {}  # in IsaacGymEnvs' layout, filled in by `envs.make`
        self.device, self.rl_device = engine.device, rl_device or engine.device
        self.num_envs = self.num_environments = engine.num_worlds
        self.obs_kind, self.image_size, self.camera = o.obs, o.image_size, o.camera
        self.clip_obs, self.clip_actions = o.clip_obs, o.clip_actions
        self.num_states = task.robot.num_states
        self.num_obs = self.num_states if o.obs == "proprioception" else task.num_obs
        self.num_observations, self.num_oracle = self.num_obs, task.num_obs
        self.num_actions = self.num_acts = task.robot.num_actions
        self.max_episode_length = o.episode_length or round(spec.EPISODE_LENGTH / o.pace)
        self.dt = 1 / o.control_rate_hz
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": o.control_rate_hz}
        self._substeps = PHYSICS_RATE_HZ // o.control_rate_hz
        self._streak_needed = max(1, round(spec.SUCCESS_STREAK / o.pace))
        self._robot = robot_tensors(task.robot, torch.device(self.device))
        self._sites = [engine.model.site(name).id for name in task.sites]
        self._pixmc = task.fidelity == "pixmc"
        self._randomiser = randomiser
        self.viewer: Any = None  # an `envs.viewer.Viewer`, for headless=False
        self._make_spaces()
        self._allocate_buffers()

    def _make_spaces(self) -> None:
        self.state_space = spaces.Box(-np.inf, np.inf, (self.num_states,), np.float32)
        self.act_space = self.action_space = spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)
        if self.obs_kind == "pixels":
            several = () if isinstance(self.camera, str) else (len(self.options.cameras),)
            self.obs_space = spaces.Box(0, 255, (*several, *self.options.size, 3), np.uint8)
        else:
            self.obs_space = spaces.Box(-np.inf, np.inf, (self.num_obs,), np.float32)
        self.observation_space = self.obs_space

    def _allocate_buffers(self) -> None:
        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(self.num_envs, dtype=dtype, device=self.device)

        self.targets = torch.zeros(self.num_envs, self.num_actions, device=self.device)
        self.rew_buf, self._return = zeros(torch.float), zeros(torch.float)
        self.reset_buf = zeros(torch.long) + 1  # as in IsaacGymEnvs: the first step resets all
        self.timeout_buf, self.progress_buf = zeros(torch.long), zeros(torch.long)
        self.randomize_buf = zeros(torch.long)  # episodes since the last randomisation: always 0
        self._streak, self._success = zeros(torch.long), zeros(torch.bool)
        self._since_success = zeros(torch.long)
        # What each world plays, as (seed, world, episode); see `line_up`.
        self.names = torch.zeros(self.num_envs, 3, dtype=torch.long, device=self.device)
        self._waiting: deque[tuple[int, int]] = deque()
        self.reseed(self.seed)
        self.extras: dict[str, Any] = {}
        self.obs_dict: ObsDict = {}
        self.bad_worlds = 0  # worlds whose physics diverged and that were reset, since the start
        self.control_steps = self.total_train_env_frames = 0
        self._all = torch.arange(self.num_envs, device=self.device)

    @property
    def obs_buf(self) -> Tensor:
        """The newest observation, as under `obs_dict["obs"]`."""
        return self.obs_dict[spec.OBS]

    @property
    def states_buf(self) -> Tensor:
        """The newest proprioception, as under `obs_dict["states"]`."""
        return self.obs_dict[spec.STATES]

    def reset(self) -> ObsDict:
        """Start a new episode in every world; returns the first observations."""
        self.reset_idx(self._all)
        self.obs_dict = self._observe(self._all, self._read(), self._draw(self._all))
        return self._handed_out(self.obs_dict)

    def reseed(self, seed: int) -> None:
        """Make the next `reset` draw what a freshly built task with this seed would."""
        self.seed = seed
        self.names[:, 0], self.names[:, 2] = seed, -1
        self.names[:, 1] = torch.arange(self.num_envs)
        self._waiting.clear()

    def line_up(self, episodes: Iterable[tuple[int, int]]) -> None:
        """Let the next `reset`, and what follows it, play these episodes in this order.

        Each is named by (seed, world) and is the first one that this world would play in a task
        with that seed, whichever world plays it here: so an episode can be seen again alone. A
        world that ends takes the next in the line; when none is left worlds go on with their own.
        """
        self.reseed(self.seed)
        self._waiting.extend(episodes)

    def _begin(self, ids: Int[Tensor, " K"]) -> Int[Tensor, "K 3"]:
        """Names of the episodes that worlds `ids` begin."""
        self.names[ids, 2] += 1
        for world in ids.tolist()[: len(self._waiting)]:
            self.names[world] = torch.tensor([*self._waiting.popleft(), 0])
        return self.names[ids]

    def reset_idx(self, env_ids: Int[Tensor, " K"]) -> None:
        """Start a new episode in worlds `env_ids`; the others are untouched.

        Their first observation comes with the next `step`, `reset_done` or `reset`.
        """
        ids = torch.as_tensor(env_ids, device=self.device)
        seeds, worlds, episodes = self._begin(ids).T
        if self._randomiser is not None:
            self._randomiser.apply(ids, episodes, worlds, seeds)
        draws = uniform_draws(seeds, worlds, episodes, self.task.num_reset_draws)
        qpos, mocap_pos = self.task.sample_reset(draws.to(self.device))
        self.engine.reset(ids, qpos, mocap_pos)
        self.targets[ids] = qpos[:, : self.num_actions]
        for buffer in (self.progress_buf, self.reset_buf, self._streak, self._success):
            buffer[ids] = 0
        self._return[ids] = 0

    def reset_done(self) -> tuple[ObsDict, Int[Tensor, " K"]]:
        """Reset the worlds whose reset flag waits; returns the observations and the flagged ids.

        By default `step` has reset them already and their first observations are returned.
        """
        done = self.reset_buf.nonzero().squeeze(1)
        if self._pixmc and len(done):
            self.reset_idx(done)
            self.obs_dict = self._observe(self._all, self._read(), self._draw(self._all))
        return self._handed_out(self.obs_dict), done.to(self.rl_device)

    def step(
        self, actions: Float[Tensor, "N A"], draw: bool = True
    ) -> tuple[ObsDict, Float[Tensor, " N"], Int[Tensor, " N"], dict[str, Any]]:
        """Advance every world by one control step (1/60 s by default).

        With `draw=False` the observation is without images, for steps whose observation nobody looks
        at; terminal observations have theirs.

        Returns:
            (obs dict, reward, reset flags, extras). Where a reset flag is 1 the observation is the
            first of the next episode and extras hold the ended one: `terminal_ids` [K],
            `terminal_obs` (obs dict of those K worlds); and, over all worlds, `time_outs`,
            `successes`, `successes_at_end` (the goal condition holds now, and has for as long as success
            takes), `success_step` (control step of the success, 0 before it), `episode_return`,
            `episode_length`.

        Raises:
            ValueError: wrong shape or a value that is not finite.
        """
        actions = self._check(actions).clamp(-self.clip_actions, self.clip_actions)
        if not self.obs_dict:  # nobody has called `reset`
            self.reset()
        flagged = self.reset_buf.nonzero().squeeze(1)
        pace = self.options.pace
        moved = self.targets + pace * self._robot.action_step * actions
        self.targets = torch.clamp(moved, self._robot.lower, self._robot.upper)
        late = self._draw(self._all) if self._pixmc else {}
        bad = self.engine.step(self.targets, self._substeps)
        self.progress_buf += 1
        self.control_steps += 1
        if self._pixmc and len(flagged):
            self.reset_idx(flagged)

        state = self._read()
        self._judge(state, actions, bad)
        ended = self.reset_buf.nonzero().squeeze(1)
        self.extras = self._report(ended)
        if self._pixmc:
            self.obs_dict = self._observe(self._all, state, late)
            self.extras["terminal_obs"] = {key: obs[ended] for key, obs in self.obs_dict.items()}
        else:
            self.obs_dict = self._reset_and_observe(ended, state, draw)
        self.extras["terminal_obs"] = self._handed_out(self.extras["terminal_obs"])
        if self.viewer is not None:
            self.viewer.show(self.dt)
        given = (self.rew_buf, self.reset_buf)
        reward, reset = (buffer.to(self.rl_device, copy=True) for buffer in given)
        return self._handed_out(self.obs_dict), reward, reset, self.extras

    def _judge(self, state: Any, actions: Tensor, bad: Tensor) -> None:
        """Reward, success and the end of episodes."""
        at_goal = self.task.at_goal(state)
        dense = self.options.reward == "dense"
        self.rew_buf = self.task.reward(state, actions) if dense else at_goal.float()
        self._streak = torch.where(at_goal, self._streak + 1, 0)
        self._success |= self._streak >= self._streak_needed
        failed = self.task.failed(state)
        if len(bad):
            self.rew_buf[bad], failed[bad] = 0.0, True
            self.bad_worlds += len(bad)
        limit = self.max_episode_length - (1 if self._pixmc else 0)
        late = self.progress_buf >= limit
        self._since_success = torch.where(self._success, self._since_success + 1, 0)
        if self.options.steps_after_success is not None:
            late |= self._since_success > self.options.steps_after_success
        late &= ~failed
        self.timeout_buf = torch.zeros_like(self.progress_buf) if self._pixmc else late.long()
        self.reset_buf = (failed | late).long()
        self._return += self.rew_buf

    def _report(self, ended: Tensor) -> dict[str, Any]:
        successes = self._success.float()
        if self._pixmc:
            successes = torch.where(self.reset_buf.bool(), successes, self._streak.float())
        per_world = {
            "time_outs": self.timeout_buf.bool(),
            "successes": successes,
            "successes_at_end": (self._streak >= self._streak_needed).float(),
            "success_step": (self.progress_buf - self._since_success + 1) * self._success,
            "episode_return": self._return.clone(),
            "episode_length": self.progress_buf.clone(),
            "terminal_ids": ended,
        }
        moved = {key: value.to(self.rl_device) for key, value in per_world.items()}
        return moved | {"bad_worlds": self.bad_worlds, "terminal_obs": {}}

    def _reset_and_observe(self, ended: Tensor, state: Any, draw: bool) -> ObsDict:
        if len(ended):
            self.extras["terminal_obs"] = self._observe(ended, state, self._draw(ended))
            self.reset_idx(ended)
            self.reset_buf[ended] = 1
            state = self._read()
        return self._observe(self._all, state, self._draw(self._all) if draw else {})

    def _check(self, actions: Tensor) -> Tensor:
        expected = (self.num_envs, self.num_actions)
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        if not actions.isfinite().all():
            wrong = (~actions.isfinite()).any(1).nonzero().squeeze(1).tolist()
            raise ValueError(
                f"actions must be finite: NaN or infinity in worlds {wrong[:8]} "
                f"({len(wrong)} of {self.num_envs}). Nothing was stepped; check the policy's output."
            )
        return actions.to(self.device, torch.float)

    def _read(self) -> Any:
        fields = self.engine.read()
        return self.task.read(fields | {"site_pos": fields["site_pos"][:, self._sites]})

    def _draw(self, ids: Tensor) -> ObsDict:
        """Images of worlds `ids`, if observations are images."""
        if self.obs_kind != "pixels":
            return {}
        (height, width), scale = self.options.size, 2 if self._pixmc else 1
        views = []
        for camera in self.options.cameras:
            image = self.engine.render(camera, scale * height, scale * width, ids)
            views.append(_half_size(image) if scale == 2 else image)
        return {spec.OBS: views[0] if isinstance(self.camera, str) else torch.stack(views, 1)}

    def _observe(self, ids: Tensor, state: Any, images: ObsDict) -> ObsDict:
        """Observations of worlds `ids`, whose images those are; `state` is of all worlds."""
        states = proprioception(self.task.robot, state)[ids].clamp(-self.clip_obs, self.clip_obs)
        obs: ObsDict = {spec.STATES: states, spec.TARGETS: self.targets[ids].clone()}
        if self.obs_kind == "state" or self.options.oracle:
            oracle = self.task.observe(state)[ids].clamp(-self.clip_obs, self.clip_obs)
            obs |= {spec.ORACLE: oracle} if self.options.oracle else {}
            obs |= {spec.OBS: oracle} if self.obs_kind == "state" else {}
        if self.obs_kind == "proprioception":
            obs[spec.OBS] = states
        return images | obs

    def _handed_out(self, obs: ObsDict) -> ObsDict:
        return {key: value.to(self.rl_device) for key, value in obs.items()}

    def zero_actions(self) -> Float[Tensor, "N A"]:
        return torch.zeros(self.num_envs, self.num_actions, device=self.rl_device)

    def get_state(self) -> Float[Tensor, "N S"]:
        """The newest proprioception on the policy's device."""
        return self.states_buf.to(self.rl_device)

    def get_number_of_agents(self) -> int:
        return self.num_agents

    def set_train_info(self, env_frames: int, *args: Any, **kwargs: Any) -> None:
        """The trainer tells how many frames it has seen; kept in `total_train_env_frames`."""
        self.total_train_env_frames = env_frames

    def get_env_state(self) -> None:
        """What a checkpoint must hold of the environment: nothing, episodes begin anew."""

    def set_env_state(self, env_state: Any) -> None:
        """The counterpart of `get_env_state`."""

    def render(self, mode: str = "rgb_array") -> UInt8[np.ndarray, "H W 3"]:
        """World 0 from the third-person camera.

        Raises:
            ValueError: another mode; the window is `envs.make(..., headless=False)`.
        """
        if mode != "rgb_array":
            raise ValueError(f"mode must be 'rgb_array', got {mode!r}")
        return self.render_film([0])[0].numpy()

    def render_film(
        self, world_ids, camera: str = "third_person", height: int = 240, width: int = 320
    ) -> UInt8[Tensor, "K H W 3"]:
        """Images of some worlds for people to look at, on the CPU."""
        ids = torch.as_tensor(world_ids, device=self.device)
        return self.engine.render(camera, height, width, ids).cpu()

    def close(self) -> None:
        """Free threads, GL contexts and the window; may be called again."""
        if self.viewer is not None:
            self.viewer.close()
        self.engine.close()


def _half_size(image: UInt8[Tensor, "K H W 3"]) -> UInt8[Tensor, "K h w 3"]:
    """Mean of each 2x2 block."""
    count, height, width, _ = image.shape
    blocks = image.reshape(count, height // 2, 2, width // 2, 2, 3).float()
    return blocks.mean(dim=(2, 4)).round().to(torch.uint8)
