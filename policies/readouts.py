"""Trainable read-outs of frozen features."""

import math

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from toto_robot.backbone import AttentionPool

READOUT = 128  # numbers that a read-out keeps of one frame; as many of proprioception
CONV_VALUES = 2048  # about so many values stay of a token grid in the convolutional read-out


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


def make_pool(
    feature_shape: tuple[int, ...], kind: str, num_queries: int, history: int = 1
) -> nn.Module:
    """[T, D] -> the read-out `kind`; one vector [D] needs none: LayerNorm and linear. Of several
    frames [K, T, D], K = `history` > 1, that of one (see `read_frames`)."""
    *tokens, num_features = feature_shape if history == 1 else feature_shape[1:]
    if not tokens or kind == "mean":
        return MeanPool(num_features)
    if kind == "conv":
        return ConvPool(num_features, tokens[0])
    return AttentionPool(num_features, tokens[0], num_queries=num_queries, out_features=READOUT)


def read_frames(pool: nn.Module, features: Tensor, history: int) -> Float[Tensor, "B F"]:
    """What `pool` reads of one frame [B, …], or of each of a history [B, K, …] alike: F = 128 K."""
    if history == 1:
        return pool(features)
    return pool(features.flatten(0, 1)).unflatten(0, (-1, history)).flatten(1)


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
        self.pool = make_pool(shape, pool, num_queries, history)
        self.proprio = nn.Linear(proprio_shape[0], READOUT)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        read = read_frames(self.pool, observations["features"], self.history)
        return torch.cat([read, self.proprio(observations["proprio"])], dim=1)
