"""What PPO trains on top of frozen features: read-out, actor and critic."""

import math
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from torch import Tensor, nn

from envs.spec import ORACLE
from policies.image_readout import ImageReadout
from policies.ppo_config import PPOConfig
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
    """What a frame and the joints tell of the state: the read-out of `make_pool` beside `proprio`
    [B, P] -> 128 -> SELU -> the oracle vector [B, O]; handed on as [B, O + P].

    It learns by `loss` alone. Advantages are too noisy a teacher for a read-out of thousands of
    numbers per frame: it learns the samples of a rollout by heart (`LOG.md`, 2026-11-28).
    """

    def __init__(
        self, observation_space: spaces.Dict, pool: str = "attention", num_queries: int = 8
    ):
        num_proprio = spaces.flatdim(observation_space["proprio"])
        num_oracle = spaces.flatdim(observation_space[ORACLE])
        super().__init__(observation_space, features_dim=num_oracle + num_proprio)
        self.pool = make_pool(observation_space["features"].shape or (), pool, num_queries)
        self.head = nn.Sequential(
            nn.Linear(READOUT + num_proprio, READOUT), nn.SELU(), nn.Linear(READOUT, num_oracle)
        )

    def estimate(self, observations: dict[str, Tensor]) -> Float[Tensor, "B O"]:
        seen = [self.pool(observations["features"]), observations["proprio"]]
        return self.head(torch.cat(seen, dim=1))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            estimate = self.estimate(observations)
        return torch.cat([estimate, observations["proprio"]], dim=1)

    def loss(self, observations: dict[str, Tensor], unit: Float[Tensor, " O"]) -> Tensor:
        """Mean squared error of the estimate, each number in its `unit`."""
        error = (self.estimate(observations) - observations[ORACLE]) / unit
        return error.square().mean()


def of_critic(name: str) -> bool:
    """Whether a parameter of `ActorCritic` is the critic's own (a shared read-out is not)."""
    return name.startswith(("mlp_extractor.value_net.", "value_net."))


def train_critic_only(net: ActorCriticPolicy, only: bool) -> None:
    """Freeze (or thaw) all but the critic: its warm-up."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(of_critic(name) or not only)


def split_optimizer(net: ActorCriticPolicy, critic_learning_rate: float) -> None:
    """Give the critic's own parameters a group of their own, {"critic": True}, in the optimiser."""
    mine: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        (mine if of_critic(name) else others).append(parameter)
    group = net.optimizer.param_groups[0]
    group["params"], group["critic"] = others, False
    critic = {"params": mine, "lr": critic_learning_rate, "critic": True}
    net.optimizer.add_param_group(critic)


class OracleReadout(BaseFeaturesExtractor):
    """What an asymmetric critic reads: the oracle vector [B, O] as it is."""

    def __init__(self, observation_space: spaces.Dict):
        shape = observation_space[ORACLE].shape
        assert shape is not None
        super().__init__(observation_space, features_dim=shape[0])

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return observations[ORACLE]


class ActorCritic(ActorCriticPolicy):
    """stable-baselines3's, with a standard deviation of exp(std_power * log_std).

    `asymmetric`: the critic reads the oracle vector alone, the actor never does and needs it not:
    `get_distribution` takes observations without it.
    """

    def __init__(self, *args: Any, std_power: int = 1, asymmetric: bool = False, **kwargs: Any):
        self.std_power, self.asymmetric = std_power, asymmetric
        super().__init__(*args, share_features_extractor=not asymmetric, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        if self.asymmetric:
            assert isinstance(self.observation_space, spaces.Dict)
            self.vf_features_extractor = OracleReadout(self.observation_space)
        super()._build(lr_schedule)

    def _build_mlp_extractor(self) -> None:
        """The critic's first layer is as wide as what the critic reads."""
        super()._build_mlp_extractor()
        if self.asymmetric:
            width = self.vf_features_extractor.features_dim
            critic = MlpExtractor(width, self.net_arch, self.activation_fn, self.device)
            self.mlp_extractor.value_net = critic.value_net

    @property
    def std(self) -> Float[Tensor, " A"]:
        """Of the actions, all observations alike."""
        return (self.std_power * self.log_std).exp()

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        distribution: Any = self.action_dist
        return distribution.proba_distribution(
            self.action_net(latent_pi), self.std_power * self.log_std
        )


def policy_kwargs(observation_space: spaces.Space, config: PPOConfig) -> dict[str, Any]:
    """Arguments of `ActorCritic` for state or feature observations."""
    kwargs: dict[str, Any] = {
        "net_arch": {"pi": list(config.hidden), "vf": list(config.hidden)},
        "activation_fn": nn.SELU,
        "log_std_init": config.log_std_init or 0.0,
        "std_power": config.std_power,
        # Orthogonal, gain sqrt(2) and 0.01 / 1.0 for the last layers. It reaches the linear layers
        # of the read-out, not queries or position embeddings (bare parameters).
        "ortho_init": True,
        "optimizer_kwargs": {"eps": 1e-8, "fused": True},
    }
    if isinstance(observation_space, spaces.Dict):
        kwargs |= readout_of(observation_space, config)
        kwargs["asymmetric"] = config.asymmetric
    return kwargs


def readout_of(observation_space: spaces.Dict, config: PPOConfig) -> dict[str, Any]:
    """The module that reads frozen features, or frames: then a CNN trained end to end."""
    if "image" in observation_space.spaces:
        if config.estimate_state:
            raise ValueError("ppo.estimate_state=true reads frozen features, not frames")
        return {"features_extractor_class": ImageReadout}
    if config.estimate_state:
        kwargs = {"pool": config.pool, "num_queries": config.num_queries}
        return {"features_extractor_class": StateEstimate, "features_extractor_kwargs": kwargs}
    return {
        "features_extractor_class": FeatureReadout,
        "features_extractor_kwargs": {
            "pool": config.pool,
            "num_queries": config.num_queries,
            "history": config.history,
        },
    }
