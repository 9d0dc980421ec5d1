"""Frames without a frozen backbone: the scratch CNN that every comparison needs (arXiv 2212.05749)."""

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn


class ImageReadout(BaseFeaturesExtractor):
    """Trained end to end, in the place of `FeatureReadout`: the CNN of Mnih et al. 2015.

    `image` [B, 3, R, R], in [0, 1] (stable-baselines3 scales it) -> 128; `proprio` [B, P] ->
    linear -> 128; concatenated [B, 256].
    """

    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space, features_dim=256)
        proprio_shape = observation_space["proprio"].shape
        assert proprio_shape is not None
        self.cnn = NatureCNN(observation_space["image"], features_dim=128)
        self.proprio = nn.Linear(proprio_shape[0], 128)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        seen = self.cnn(observations["image"])
        return torch.cat([seen, self.proprio(observations["proprio"])], dim=1)
