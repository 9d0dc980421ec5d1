"""Features are made once: each new frame passes the frozen backbone exactly once.

The rollout buffer then holds float16 features, and PPO's epochs never run the backbone. With the
backbone inside stable-baselines3's features extractor a frame is encoded 11 times (10 epochs), and
SB3's orthogonal initialisation overwrites its weights.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.spec import ORACLE
from policies.vec_env import PixelObserver, Task, TaskObs, TaskVecEnv, proprio_space, to_numpy


class Backbone(Protocol):
    """What is used of `toto_robot.backbone.FrozenBackbone`.

    One with `trainable = True` hands out frames, uint8 [B, R, R, 3], for a network that learns to
    see; `feature_shape` is then that of an image, (3, R, R).
    """

    @property
    def feature_shape(self) -> tuple[int, ...]: ...
    def __call__(self, frames: Tensor, /) -> Tensor: ...


def feature_space(
    feature_shape: Sequence[int], num_states: int, num_oracle: int = 0, history: int = 1
) -> spaces.Dict:
    """One world's `features` float16 [*feature_shape], or [history, *feature_shape] for several
    frames; `proprio` float32 [num_states]; and for a critic that may know it, `oracle` float32
    [num_oracle]."""
    shape = tuple(feature_shape) if history == 1 else (history, *feature_shape)
    space: dict[str, spaces.Space] = {
        "features": spaces.Box(-np.inf, np.inf, shape, np.float16),
        "proprio": proprio_space(num_states),
    }
    if num_oracle:
        space[ORACLE] = spaces.Box(-np.inf, np.inf, (num_oracle,), np.float32)
    return spaces.Dict(space)


class FeatureHistory:
    """The features of each world's last `length` frames, oldest first. An episode begins with its
    first frame `length` times."""

    def __init__(self, length: int):
        self.length = length
        self._past: Tensor | None = None  # [N, length - 1, …]
        self._fresh = torch.zeros(0, dtype=torch.bool)

    def reset(self, worlds: Tensor | None = None) -> None:
        """The next frame of these worlds (None: of all, however many) is the first of an episode."""
        if worlds is None:
            self._past = None
        elif self._past is not None:
            self._fresh[worlds.to(self._fresh.device)] = True

    def push(
        self, features: Tensor, ended: Tensor | None = None, worlds: Tensor | None = None
    ) -> Tensor:
        """New frames' features [N, …] -> [N, length, …]; with `ended`, as in `Observer`, [N + K, …].
        Of `worlds` alone (ids [n], after a call for all): [n, …] -> [n, length, …]. Raises ValueError
        if the number of worlds changes without a `reset`."""
        ids = torch.zeros(0, dtype=torch.long) if ended is None else ended
        ids = ids.to(features.device)
        new, last = features.split([len(features) - len(ids), len(ids)])
        if self._past is None:
            self._past = self._repeated(new)
            self._fresh = torch.zeros(len(new), dtype=torch.bool, device=new.device)
        rows = torch.arange(len(self._past)) if worlds is None else worlds
        rows = rows.to(new.device)
        if len(rows) != len(new):
            raise ValueError(
                f"features of {len(new)} worlds after those of {len(rows)}: call reset() between"
            )
        last_stacks = torch.cat([self._past[ids], last[:, None]], dim=1)
        self._fresh[ids] = True
        past, fresh = self._past[rows], self._fresh[rows]
        past[fresh] = self._repeated(new[fresh])
        stacks = torch.cat([past, new[:, None]], dim=1)
        self._past[rows], self._fresh[rows] = stacks[:, 1:], False
        return torch.cat([stacks, last_stacks])

    def _repeated(self, features: Tensor) -> Tensor:
        return torch.stack([features] * (self.length - 1), dim=1)


class FeatureObserver:
    """uint8 frames [B, H, W, 3] -> `features` float16 [B, *feature_shape], beside `proprio`.

    `history` frames: [B, history, *feature_shape], each encoded once. `num_oracle`: the length of
    the task's oracle vector, handed on for an asymmetric critic; 0 hands out none. Counts the frames it encodes in
    `encodes`. Raises ValueError for features that are not finite in float16 (largest magnitude
    65,504).
    """

    def __init__(self, backbone: Backbone, num_states: int, num_oracle: int = 0, history: int = 1):
        self.backbone = backbone
        self.space = feature_space(backbone.feature_shape, num_states, num_oracle, history)
        self.encodes = 0
        self._history = FeatureHistory(history) if history > 1 else None
        self._privileged = num_oracle > 0

    def reset(self, worlds: Tensor | None = None) -> None:
        if self._history is not None:
            self._history.reset(worlds)

    def __call__(
        self, obs: TaskObs, ended: Tensor | None = None, worlds: Tensor | None = None
    ) -> dict[str, np.ndarray]:
        return {key: to_numpy(value) for key, value in self.see(obs, ended, worlds).items()}

    def see(
        self, obs: TaskObs, ended: Tensor | None = None, worlds: Tensor | None = None
    ) -> dict[str, Tensor]:
        frames = obs["obs"]
        if frames.dtype != torch.uint8 or frames.ndim != 4:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [B, H, W, 3]"
            )
        with torch.no_grad():
            features = self.backbone(frames)
        self.encodes += len(frames)
        half = features.to(torch.float16)
        finite = torch.isfinite(half.flatten(1)).all(dim=1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"features of frames {bad[:8]} (of {len(frames)}) are not finite in float16; "
                f"largest magnitude {features.abs().max().item():.3g}, the limit is 65504"
            )
        if self._history is not None:
            half = self._history.push(half, ended, worlds)
        seen = {"features": half, "proprio": obs["states"].clone()}
        return seen | ({ORACLE: obs[ORACLE].clone()} if self._privileged else {})


def observer_of(
    backbone: Backbone, num_states: int, num_oracle: int = 0, history: int = 1
) -> FeatureObserver | PixelObserver:
    """What a policy sees of a pixel task: frozen features, or frames when `backbone` is trainable.

    Raises ValueError for a history of frames, which is for features alone.
    """
    if not getattr(backbone, "trainable", False):
        return FeatureObserver(backbone, num_states, num_oracle, history)
    if history > 1:
        raise ValueError(
            f"ppo.history={history}: of frozen features there is a history, not of frames"
        )
    return PixelObserver(backbone.feature_shape, num_states, num_oracle, prepare=backbone)


def feature_vec_env(
    task: Task,
    backbone: Backbone,
    time_limit_bootstrap: bool = True,
    asymmetric: bool = False,
    history: int = 1,
    action_repeat: int = 1,
) -> TaskVecEnv:
    """The worlds of a pixel `task`, each new frame encoded once, terminal frames included.

    `asymmetric` (of a task with oracle=True) hands out the oracle vector too."""
    num_oracle = task.num_obs if asymmetric else 0
    observer = observer_of(backbone, task.num_states, num_oracle, history)
    return TaskVecEnv(task, observer, time_limit_bootstrap, action_repeat)
