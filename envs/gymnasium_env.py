"""Gymnasium faces of a `VecTask`: one world (`make`) and many (`make_vec`)."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import envs
from envs import spec

_METADATA = {"render_modes": ["rgb_array"], "render_fps": int(spec.CONTROL_RATE_HZ)}


def _space(task) -> spaces.Space:
    limit = task.clip_obs
    if task.obs_kind != "pixels":
        return spaces.Box(-limit, limit, (task.num_obs,), np.float32)
    proprioception = spaces.Box(-limit, limit, (task.num_states,), np.float32)
    return spaces.Dict({"image": task.obs_space, "proprioception": proprioception})


def _observation(task, obs: dict[str, torch.Tensor]) -> Any:
    """Batched numpy observation in the layout of `_space`."""
    if task.obs_kind != "pixels":
        return obs[spec.OBS].cpu().numpy()
    image, proprioception = obs[spec.OBS].cpu().numpy(), obs[spec.STATES].cpu().numpy()
    return {"image": image, "proprioception": proprioception}


def _pick(observation, row: int):
    if isinstance(observation, dict):
        return {key: value[row] for key, value in observation.items()}
    return observation[row]


class SingleTaskEnv(gymnasium.Env):
    """`gymnasium.make("toto_robot/FrankaPick-v0", obs="pixels", image_size=84)`.

    Observation: float32 [34] (Kuka 77) for `obs="state"`; {"image": uint8 [S, S, 3],
    "proprioception": float32 [18] (46)} for `obs="pixels"`. Action: float32 [9] (23) in [-1, 1].
    `info["is_success"]` is the episode's success so far. `render_mode`: "rgb_array" gives the
    third-person camera's picture, "human" opens MuJoCo's viewer. More options: `envs.options`.
    """

    metadata = _METADATA | {"render_modes": ["rgb_array", "human"]}

    def __init__(self, task: str, render_mode: str | None = None, **options: Any):
        modes = (None, *self.metadata["render_modes"])
        if render_mode not in modes:
            raise ValueError(f"render_mode must be one of {modes}, got {render_mode!r}")
        self.render_mode = render_mode
        headless = render_mode != "human"
        options = {"threads": 1} | options
        self._vec = envs.make(task, num_envs=1, headless=headless, **options)
        self.metadata = self.metadata | {"render_fps": self._vec.options.control_rate_hz}
        self.observation_space = _space(self._vec)
        self.action_space = self._vec.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        # Each reset is one more draw of Gymnasium's generator, so `seed` fixes the whole sequence.
        self._vec.reseed(int(self.np_random.integers(2**31)))
        return _pick(_observation(self._vec, self._vec.reset()), 0), {"is_success": False}

    def step(self, action: np.ndarray):
        obs, reward, reset, extras = self._vec.step(torch.as_tensor(action)[None])
        ended, timed_out = bool(reset[0]), bool(extras["time_outs"][0])
        last = extras["terminal_obs"] if ended else obs
        info = {"is_success": bool(extras["successes"][0])}
        observation = _pick(_observation(self._vec, last), 0)
        return observation, float(reward[0]), ended and not timed_out, timed_out, info

    def render(self) -> np.ndarray | None:
        return self._vec.render() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._vec.close()


class BatchedTaskEnv(VectorEnv):
    """`gymnasium.make_vec("toto_robot/FrankaPick-v0", num_envs=64)`; resets in the same step.

    `info["final_obs"]` is an object array with the terminal observation of the worlds that ended.
    """

    metadata = _METADATA | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int, task: str, render_mode: str | None = None, **options: Any):
        self.num_envs, self.render_mode = num_envs, render_mode
        self._vec = envs.make(task, num_envs=num_envs, **options)
        self.metadata = self.metadata | {"render_fps": self._vec.options.control_rate_hz}
        self.single_observation_space = _space(self._vec)
        self.single_action_space = self._vec.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self._vec.reseed(seed)
        return _observation(self._vec, self._vec.reset()), {}

    def step(self, actions: np.ndarray):
        obs, reward, reset, extras = self._vec.step(torch.as_tensor(actions))
        ended, truncated = reset.bool().cpu().numpy(), extras["time_outs"].cpu().numpy()
        info: dict[str, Any] = {"is_success": extras["successes"].bool().cpu().numpy()}
        if ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            terminal = _observation(self._vec, extras["terminal_obs"])
            for row, world in enumerate(extras["terminal_ids"].tolist()):
                final[world] = _pick(terminal, row)
            info |= {"final_obs": final, "_final_obs": ended}
        return (
            _observation(self._vec, obs),
            reward.cpu().numpy(),
            ended & ~truncated,
            truncated,
            info,
        )

    def render(self) -> tuple[np.ndarray, ...] | None:
        if self.render_mode != "rgb_array":
            return None
        return tuple(self._vec.render_film(range(self.num_envs)).numpy())

    def close_extras(self, **kwargs: Any) -> None:
        self._vec.close()
