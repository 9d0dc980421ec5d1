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

from policies.vec_env import Task, TaskObs, TaskVecEnv, proprio_space, to_numpy


class Backbone(Protocol):
    """What is used of `toto_robot.backbone.FrozenBackbone`."""

    @property
    def feature_shape(self) -> tuple[int, ...]: ...
    def __call__(self, frames: Tensor, /) -> Tensor: ...


def feature_space(feature_shape: Sequence[int], num_states: int) -> spaces.Dict:
    """`features` float16 [*feature_shape] and `proprio` float32 [num_states] of one world."""
    features = spaces.Box(-np.inf, np.inf, tuple(feature_shape), np.float16)
    return spaces.Dict({"features": features, "proprio": proprio_space(num_states)})


class FeatureObserver:
    """uint8 frames [B, H, W, 3] -> `features` float16 [B, *feature_shape], beside `proprio`.

    Counts the frames it encodes in `encodes`. Raises ValueError for features that are not finite
    in float16 (largest magnitude 65,504).
    """

    def __init__(self, backbone: Backbone, num_states: int):
        self.backbone = backbone
        self.space = feature_space(backbone.feature_shape, num_states)
        self.encodes = 0

    def __call__(self, obs: TaskObs) -> dict[str, np.ndarray]:
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
        return {"features": to_numpy(half), "proprio": to_numpy(obs["states"])}


def feature_vec_env(
    task: Task, backbone: Backbone, time_limit_bootstrap: bool = True
) -> TaskVecEnv:
    """The worlds of a pixel `task`, each new frame encoded once, terminal frames included."""
    return TaskVecEnv(task, FeatureObserver(backbone, task.num_states), time_limit_bootstrap)
