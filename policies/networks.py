"""What PPO trains: actor and critic behind a read-out."""

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from torch import Tensor, nn

from envs.spec import ORACLE
from policies.estimator import StateEstimate
from policies.image_readout import ImageReadout
from policies.ppo_config import PPOConfig
from policies.readouts import FeatureReadout


def of_critic(name: str) -> bool:
    """Whether a parameter of `ActorCritic` is the critic's own (a shared read-out is not)."""
    return name.startswith(("mlp_extractor.value_net.", "value_net."))


def train_critic_only(net: ActorCriticPolicy, only: bool) -> None:
    """Freeze (or thaw) all but the critic: its warm-up."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(of_critic(name) or not only)


def descend(
    net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float
) -> None:
    """One step of the optimiser, on what `loss` depends on; gradients clipped."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), max_grad_norm)
    optimizer.step()


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

    def evaluate_read(
        self, read: Float[Tensor, "B R"], oracle: Float[Tensor, "B O"], actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`evaluate_actions`, asymmetric, of what the read-out gave before."""
        values = self.value_net(self.mlp_extractor.forward_critic(oracle))
        latent = self.mlp_extractor.forward_actor(read)
        distribution = self._get_action_dist_from_latent(latent)
        entropy = distribution.entropy()
        assert entropy is not None  # of a Gaussian it is known
        return values, distribution.log_prob(actions), entropy

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
    """The module that reads frozen features, or frames: then a CNN trained end to end.

    Raises ValueError for an estimate of the state from frames."""
    if "image" in observation_space.spaces:
        if config.estimate_state:
            raise ValueError(
                "ppo.estimate_state=true reads frozen features, this backbone hands out frames"
            )
        return {"features_extractor_class": ImageReadout}
    return {
        "features_extractor_class": StateEstimate if config.estimate_state else FeatureReadout,
        "features_extractor_kwargs": {
            "pool": config.pool,
            "num_queries": config.num_queries,
            "history": config.history,
        },
    }
