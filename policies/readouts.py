"""Trainable read-outs of frozen features."""

import math

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from envs.spec import ORACLE
from toto_robot.backbone import AttentionPool

READOUT = 128  # numbers that a read-out keeps of one frame; as many of proprioception
CONV_VALUES = 2048  # about so many values stay of a token grid in the convolutional read-out
ESTIMATE_HIDDEN = 256
SMALLEST_UNIT = 0.02  # m, rad, …: what moves less counts little in the error of an estimate


class MeanPool(nn.Sequential):
    """The mean over tokens (none for one vector per frame), LayerNorm, linear: MVP's head."""

    def __init__(self, num_features: int):
        super().__init__(nn.LayerNorm(num_features), nn.Linear(num_features, READOUT))

    def forward(self, input: Tensor) -> Float[Tensor, "B F"]:
        """`input`: features [B, T, D] or [B, D]."""
        return super().forward(input.mean(dim=1) if input.ndim == 3 else input)


class ConvPool(nn.Module):
    """A 3x3 convolution that compresses the token grid to about 2048 values, then linear: the
    compression layer of VC-1's visual RL (eai-vc, `compression_layer.py`)."""

    def __init__(self, num_features: int, num_tokens: int):
        super().__init__()
        self.side = math.isqrt(num_tokens)
        if self.side**2 != num_tokens:
            raise ValueError(
                f"ppo.pool=conv needs a square grid of tokens, the features have {num_tokens}; "
                "use pool=attention or mean"
            )
        channels = max(1, round(CONV_VALUES / num_tokens))
        self.norm = nn.LayerNorm(num_features)
        self.conv = nn.Conv2d(num_features, channels, 3, padding=1)
        self.conv_norm = nn.GroupNorm(1, channels)
        self.out = nn.Linear(channels * num_tokens, READOUT)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B F"]:
        x_BDN = self.norm(tokens).transpose(1, 2)
        x = self.conv(x_BDN.unflatten(2, (self.side, self.side)))
        return self.out(self.conv_norm(x).relu().flatten(1))


def make_pool(feature_shape: tuple[int, ...], kind: str, num_queries: int) -> nn.Module:
    """[T, D] -> the read-out `kind`; one vector [D] needs none: LayerNorm and linear."""
    *tokens, num_features = feature_shape
    if not tokens or kind == "mean":
        return MeanPool(num_features)
    if kind == "conv":
        return ConvPool(num_features, tokens[0])
    return AttentionPool(num_features, tokens[0], num_queries=num_queries, out_features=READOUT)


class FeatureReadout(BaseFeaturesExtractor):
    """Trainable read-out of frozen features, beside proprioception.

    `features` [B, T, D] or [B, D] -> 128 (see `make_pool`); `proprio` [B, P] -> linear -> 128;
    concatenated [B, 256]. Of a history [B, K, …] each frame is read out alike, [B, 128 K + 128].
    The backbone is not in here.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        pool: str = "attention",
        num_queries: int = 8,
        history: int = 1,
    ):
        super().__init__(observation_space, features_dim=(history + 1) * READOUT)
        shape = observation_space["features"].shape
        proprio_shape = observation_space["proprio"].shape
        assert shape is not None and proprio_shape is not None
        self.history = history
        self.pool = make_pool(shape if history == 1 else shape[1:], pool, num_queries)
        self.proprio = nn.Linear(proprio_shape[0], READOUT)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        features = observations["features"]
        if self.history > 1:
            frames = self.pool(features.flatten(0, 1))
            read = frames.unflatten(0, (-1, self.history)).flatten(1)
        else:
            read = self.pool(features)
        return torch.cat([read, self.proprio(observations["proprio"])], dim=1)


class StateEstimate(BaseFeaturesExtractor):
    """The oracle vector as far as a frame and the joints tell it: [B, O].

    Its first P numbers are `proprio`, as sensed. The others are guessed from the joints alone (where
    the fingers are, and what is usual), then corrected by the read-out of `make_pool`. Both learn by
    `error` alone: advantages are too noisy a teacher for a read-out of thousands of numbers per
    frame, which learns the samples of a rollout by heart (`LOG.md`, 2026-11-28).
    """

    def __init__(
        self, observation_space: spaces.Dict, pool: str = "attention", num_queries: int = 8
    ):
        num_oracle = spaces.flatdim(observation_space[ORACLE])
        super().__init__(observation_space, features_dim=num_oracle)
        self.num_sensed = spaces.flatdim(observation_space["proprio"])
        self.pool = make_pool(observation_space["features"].shape or (), pool, num_queries)
        self.by_joints = two_hidden_layers(self.num_sensed, num_oracle - self.num_sensed)
        self.correction = two_hidden_layers(READOUT + num_oracle, num_oracle - self.num_sensed)

    def guess(self, observations: dict[str, Tensor]) -> Float[Tensor, "B E"]:
        """From `proprio` [B, P] alone, what is not sensed of the oracle vector: E = O - P. Cheap."""
        return self.by_joints(observations["proprio"])

    def estimate(self, observations: dict[str, Tensor]) -> Float[Tensor, "B E"]:
        """The guess, which stands still here, corrected by the frame."""
        guess = self.guess(observations).detach()
        read = self.pool(observations["features"].float())
        return guess + self.correction(torch.cat([read, observations["proprio"], guess], dim=1))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            estimate = self.estimate(observations)
        return torch.cat([observations["proprio"], estimate], dim=1)

    def error(
        self, estimate: Float[Tensor, "B E"], oracle: Float[Tensor, "B O"]
    ) -> Float[Tensor, ""]:
        """Mean square of what is wrong, each number in its standard deviation over the batch."""
        truth = oracle[:, self.num_sensed :]
        unit = truth.std(0).clamp(min=SMALLEST_UNIT)
        return ((estimate - truth) / unit).square().mean()


def two_hidden_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, ESTIMATE_HIDDEN),
        nn.SELU(),
        nn.Linear(ESTIMATE_HIDDEN, ESTIMATE_HIDDEN),
        nn.SELU(),
        nn.Linear(ESTIMATE_HIDDEN, outputs),
    )
