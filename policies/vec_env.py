"""A batched task (`VecTask`, torch) as a stable-baselines3 `VecEnv` (NumPy).

What a policy sees is decided by an observer: one callable from the task's batched observation to
NumPy arrays, with the Gymnasium space of one world beside it. The vec env hands it one batch per
step: the N new observations and, behind them, the K terminal ones of the worlds that just ended.
An observer that remembers (feature history) forgets a world whose episode has ended.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from envs.spec import ORACLE
from policies.held_actions import hold_actions

TaskObs = Mapping[str, Tensor]
NumpyObs = np.ndarray | dict[str, np.ndarray]
TensorObs = Tensor | dict[str, Tensor]


class Task(Protocol):
    """What is used of a `VecTask` (see `envs`): N worlds stepped as one torch batch."""

    num_envs: int
    num_obs: int
    num_states: int
    num_actions: int
    max_episode_length: int
    progress_buf: Tensor  # control steps since the start of the episode, long [N]
    device: Any

    @property
    def observation_space(self) -> spaces.Space: ...
    @property
    def action_space(self) -> spaces.Space: ...
    def reset(self) -> TaskObs: ...
    def step(
        self, actions: Tensor, /, draw: bool = True
    ) -> tuple[TaskObs, Tensor, Tensor, dict[str, Any]]: ...
    def close(self) -> None: ...


class Observer(Protocol):
    """Batched task observation [B, …] -> the policy's observation [B, …]: called, as NumPy arrays;
    `see`, as tensors that stay on their device.

    With `ended` (ids [K]) the last K rows of `obs` are those worlds' terminal observations, and
    their rows among the first N begin new episodes. `reset` says the same of episodes that begin
    with the next call (None: all). With `worlds` (ids [B]) only these are seen: the others' actions
    are still held.
    """

    @property
    def space(self) -> spaces.Space: ...
    def see(self, obs: TaskObs, ended: Tensor | None = None, /) -> TensorObs: ...
    def __call__(
        self, obs: TaskObs, ended: Tensor | None = None, worlds: Tensor | None = None
    ) -> NumpyObs: ...
    def reset(self, worlds: Tensor | None = None) -> None: ...


def proprio_space(num_states: int) -> spaces.Box:
    """Proprioception of one world: float32 [num_states]."""
    return spaces.Box(-np.inf, np.inf, (num_states,), np.float32)


class StateObserver:
    """The task's state vector: float32 [B, num_obs]."""

    def __init__(self, num_obs: int):
        self.space = spaces.Box(-np.inf, np.inf, (num_obs,), np.float32)

    def see(self, obs: TaskObs, ended: Tensor | None = None) -> Tensor:
        return obs["obs"].clone()

    def __call__(
        self, obs: TaskObs, ended: Tensor | None = None, worlds: Tensor | None = None
    ) -> np.ndarray:
        return to_numpy(obs["obs"])

    def reset(self, worlds: Tensor | None = None) -> None:
        """Nothing is remembered."""


class PixelObserver:
    """Frames as they are: `image` uint8 [B, 3, H, W], `proprio` float32 [B, num_states], and for an
    asymmetric critic `oracle` float32 [B, num_oracle] (0 hands out none).

    Channels first, as torch's convolutions read them; given others, stable-baselines3 would wrap
    the worlds in a transposing VecEnv. `prepare` may resize the frames (uint8 [B, H, W, 3]) before.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_states: int,
        num_oracle: int = 0,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ):
        self._prepare, self._privileged = prepare, num_oracle > 0
        space: dict[str, spaces.Space] = {
            "image": spaces.Box(0, 255, tuple(image_shape), np.uint8),
            "proprio": proprio_space(num_states),
        }
        if num_oracle:
            space[ORACLE] = spaces.Box(-np.inf, np.inf, (num_oracle,), np.float32)
        self.space = spaces.Dict(space)

    def see(self, obs: TaskObs, ended: Tensor | None = None) -> dict[str, Tensor]:
        frames = obs["obs"] if self._prepare is None else self._prepare(obs["obs"])
        image = frames.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
        seen = {"image": image, "proprio": obs["states"].clone()}
        return seen | ({ORACLE: obs[ORACLE].clone()} if self._privileged else {})

    def __call__(
        self, obs: TaskObs, ended: Tensor | None = None, worlds: Tensor | None = None
    ) -> dict[str, np.ndarray]:
        return {key: to_numpy(value) for key, value in self.see(obs, ended).items()}

    def reset(self, worlds: Tensor | None = None) -> None:
        """Nothing is remembered."""


class TaskVecEnv(VecEnv):
    """N worlds of `task`, seen through `observer`, for stable-baselines3.

    Worlds that end are reset within the same step. Their `infos` carry `terminal_observation`
    (never the reset one), `TimeLimit.truncated`, `episode` {r: return, l: length, t: seconds}
    and `is_success`. With `time_limit_bootstrap=False` a time-out counts as a true end, as in MVP.
    Each action is held for `action_repeat` control steps.
    """

    def __init__(
        self,
        task: Task,
        observer: Observer,
        time_limit_bootstrap: bool = True,
        action_repeat: int = 1,
    ):
        self.task = hold_actions(task, action_repeat)
        self.action_repeat = action_repeat
        self.observer = observer
        self.time_limit_bootstrap = time_limit_bootstrap
        self.env_steps = 0
        self._started_s = time.monotonic()
        self._actions = np.zeros((task.num_envs, task.num_actions), np.float32)
        self._cut = np.zeros(task.num_envs, bool)  # worlds whose episode began part-way
        super().__init__(task.num_envs, observer.space, task.action_space)

    @property
    def encodes_per_step(self) -> float:
        """Backbone forwards (frames) per environment step so far; 0 where nothing is encoded."""
        return getattr(self.observer, "encodes", 0) / max(self.env_steps, 1)

    def reset(self) -> Any:
        self._cut[:] = False
        self.observer.reset()
        return self.observer(self.task.reset())

    def scatter_phases(self) -> None:
        """Call after `reset`: each world's episode goes on from a random point of the time limit
        (drawn from torch's random numbers). What it reaches in the rest of the time is not counted:
        its `infos` have neither `episode` nor `is_success`."""
        scatter_phases(self.task)
        self._cut[:] = True

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        actions = torch.as_tensor(self._actions, dtype=torch.float32, device=self.task.device)
        obs, rewards, resets, extras = self.task.step(actions)
        self.env_steps += self.num_envs * self.action_repeat
        dones = to_numpy(resets).astype(bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            both = {key: torch.cat([obs[key], extras["terminal_obs"][key]]) for key in obs}
            batch = self.observer(both, extras["terminal_ids"])
            self._describe_ended(infos, dones, extras, _rows(batch, slice(self.num_envs, None)))
            return _rows(batch, slice(self.num_envs)), to_numpy(rewards), dones, infos
        return self.observer(obs), to_numpy(rewards), dones, infos

    def _describe_ended(
        self,
        infos: list[dict[str, Any]],
        dones: np.ndarray,
        extras: dict[str, Any],
        terminal: NumpyObs,
    ) -> None:
        """Fill the infos of the K worlds that ended; `terminal` holds their K observations."""
        worlds = to_numpy(extras["terminal_ids"])
        if sorted(worlds) != list(np.flatnonzero(dones)):
            raise ValueError(
                f"terminal_ids {sorted(worlds)} are not the worlds that ended "
                f"{list(np.flatnonzero(dones))}"
            )
        time_outs, successes = to_numpy(extras["time_outs"]), to_numpy(extras["successes"])
        returns, lengths = to_numpy(extras["episode_return"]), to_numpy(extras["episode_length"])
        elapsed_s = round(time.monotonic() - self._started_s, 3)
        for row, world in enumerate(worlds):
            infos[world] = {
                "terminal_observation": _rows(terminal, row),
                "TimeLimit.truncated": bool(time_outs[world]) and self.time_limit_bootstrap,
            }
            if self._cut[world]:
                self._cut[world] = False
                continue
            infos[world] |= {
                "episode": {
                    "r": float(returns[world]),
                    "l": int(lengths[world]),
                    "t": elapsed_s,
                },
                "is_success": bool(successes[world] > 0),
            }

    def close(self) -> None:
        self.task.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        return [getattr(self.task, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the worlds are one batch: set the attribute on `.task`")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError("the worlds are one batch: call the method on `.task`")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def scatter_phases(task: Task) -> None:
    """Put each world's clock at a random point of the time limit."""
    task.progress_buf.copy_(torch.randint(task.max_episode_length, (task.num_envs,)))


def to_numpy(x: Tensor | np.ndarray) -> np.ndarray:
    """A copy on the CPU: tasks may write their buffers in place on the next step."""
    if isinstance(x, np.ndarray):
        return x.copy()
    return x.detach().to("cpu", copy=True).numpy()


def _rows(batch: NumpyObs, rows: int | slice) -> Any:
    if isinstance(batch, dict):
        return {key: value[rows] for key, value in batch.items()}
    return batch[rows]
