"""`algo=ppo-gpu`: rsl_rl's PPO, where rollouts never leave the device.

Simulation, backbone, rollout storage and update all work on torch tensors of one device; the
network and the policy folder are those of `ppo.py`. rsl_rl (`pip install 'toto-robot[gpu-rl]'`)
brings storage, returns and update. What it has otherwise than `ppo.py`: one shuffle per iteration
instead of one per epoch, an exact KL for the adaptive learning rate, gradients of actor (with
read-out) and critic clipped apart. Time-outs are worth the value of their terminal observation, as
in `ppo.py` (rsl_rl itself would take the value of the state before).
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rsl_rl.algorithms import PPO as RslPPO
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from policies.estimator import Estimator
from policies.held_actions import hold_actions
from policies.learner import SUCCESS_WINDOW, Summary
from policies.networks import ActorCritic, descend, train_critic_only
from policies.ppo import cosine_schedule, matmul_precision
from policies.ppo_config import PPOConfig
from policies.vec_env import Observer, Task, TensorObs, scatter_phases

STATE = "state"  # key of an observation that is one vector


class _Model(nn.Module):
    """What rsl_rl asks of a network without memory. Holds the parameters that it trains; `net`,
    which computes with them, is no submodule: each parameter belongs to one model."""

    is_recurrent = False

    def __init__(self, net: ActorCritic, parts: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self._net = (net,)  # a tuple, or torch would register it

    def _seen(self, obs: TensorDict) -> Any:
        keys = list(obs.keys())
        return obs[STATE] if keys == [STATE] else {key: obs[key] for key in keys}

    def reset(self, dones: Tensor | None = None, hidden_state: None = None) -> None:
        """Nothing is remembered."""

    def get_hidden_state(self) -> None:
        return None

    def update_normalization(self, obs: TensorDict) -> None:
        """Observations are taken as they are."""


class Critic(_Model):
    def __init__(self, net: ActorCritic):
        super().__init__(net, {"mlp": net.mlp_extractor.value_net, "out": net.value_net})

    def forward(self, obs: TensorDict, masks: None = None, hidden_state: None = None) -> Tensor:
        """Values [B, 1]."""
        return self._net[0].predict_values(self._seen(obs))


class Actor(_Model):
    """Read-out, policy network and noise; the interface of rsl_rl's stochastic models."""

    def __init__(self, net: ActorCritic):
        mlp = net.mlp_extractor.policy_net
        super().__init__(
            net, {"readout": net.features_extractor, "mlp": mlp, "out": net.action_net}
        )
        self.log_std = net.log_std
        self._distribution: Any = None

    def forward(
        self,
        obs: TensorDict,
        masks: None = None,
        hidden_state: None = None,
        stochastic_output: bool = False,
    ) -> Tensor:
        """Actions [B, A]: the mean, or a sample."""
        self._distribution = self._net[0].get_distribution(self._seen(obs)).distribution
        return self._distribution.sample() if stochastic_output else self._distribution.mean

    @property
    def output_entropy(self) -> Tensor:
        return self._distribution.entropy().sum(-1)

    @property
    def output_distribution_params(self) -> tuple[Tensor, Tensor]:
        return self._distribution.mean, self._distribution.stddev

    def get_output_log_prob(self, outputs: Tensor) -> Tensor:
        return self._distribution.log_prob(outputs).sum(-1)

    def get_kl_divergence(self, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
        before, after = (Normal(*p, validate_args=False) for p in (old, new))
        return kl_divergence(before, after).sum(-1)


class PPOGPU:
    """rsl_rl's PPO as a learner (`learner.py`): worlds of `task`, seen through `observer`."""

    def __init__(
        self,
        task: Task,
        observer: Observer,
        net: ActorCritic,
        config: PPOConfig,
        seed: int = 0,
    ):
        config.check_gpu()
        torch.manual_seed(seed)
        self.policy, self.config, self.num_timesteps = net, config, 0
        self._task = hold_actions(task, config.action_repeat)
        self._observer, self._device = observer, net.device
        self._algorithm: Any = None  # its storage takes its shapes from the first observation
        self._waiting_state: dict[str, Any] = {}
        self._cut = torch.zeros(task.num_envs, dtype=torch.bool)
        self._resumed_at = 0
        self._returns: deque[float] = deque(maxlen=SUCCESS_WINDOW)
        self._successes: deque[float] = deque(maxlen=SUCCESS_WINDOW)
        self._numbers: dict[str, float] = {}
        self._estimator: Estimator | None = None
        if config.estimate_state:
            readout: Any = net.pi_features_extractor
            self._estimator = Estimator(readout, self._descend, config.estimate_replay)

    def start(self, total_steps: int, on_step: Callable[[], bool]) -> None:
        self._total_steps, self._on_step = total_steps, on_step
        self._observer.reset()
        self._obs = self._tensordict(self._observer.see(self._task.reset()))
        if self.config.random_phase:
            scatter_phases(self._task)
            self._cut[:] = True
        if self._algorithm is None:
            self._algorithm = self._make_algorithm()
        if self._waiting_state:
            self._algorithm.optimizer.load_state_dict(self._waiting_state)
            self._waiting_state = {}
            if self.config.lr_schedule == "adaptive":  # else the config says it
                self._algorithm.learning_rate = self._algorithm.optimizer.param_groups[0]["lr"]

    def _make_algorithm(self) -> Any:
        config, worlds = self.config, self._task.num_envs
        device = str(self._device)
        actions = [self._task.num_actions]
        storage = RolloutStorage("rl", worlds, config.num_steps, self._obs, actions, device)
        return RslPPO(
            Actor(self.policy),  # type: ignore[arg-type]
            Critic(self.policy),  # type: ignore[arg-type]
            storage,
            num_learning_epochs=config.epochs,
            num_mini_batches=config.minibatches,
            clip_param=config.clip_range,
            gamma=config.gamma,
            lam=config.gae_lambda,
            value_loss_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            use_clipped_value_loss=False,
            desired_kl=config.desired_kl,
            device=device,
        )

    def _tensordict(self, seen: TensorObs) -> TensorDict:
        parts = seen if isinstance(seen, dict) else {STATE: seen}
        moved = {key: value.to(self._device) for key, value in parts.items()}
        return TensorDict(moved, batch_size=[len(next(iter(moved.values())))])

    def iterate(self) -> bool:
        """One rollout and one update."""
        self.policy.set_training_mode(False)
        with matmul_precision("medium" if self.config.fast_matmul else "highest"):
            with torch.no_grad():
                for _ in range(self.config.num_steps):
                    self._step()
                    if not self._on_step():
                        self._algorithm.storage.clear()
                        return False
                self._algorithm.compute_returns(self._obs)
            self._update()
        return True

    def _step(self) -> None:
        actions = self._algorithm.act(self._obs).clamp(-1.0, 1.0)
        obs, rewards, resets, extras = self._task.step(actions.to(self._task.device))
        self.num_timesteps += self._task.num_envs * self.config.action_repeat
        rewards = rewards.to(self._device, copy=True) * self.config.reward_scale
        ended = extras["terminal_ids"]
        if len(ended):
            both = {key: torch.cat([obs[key], extras["terminal_obs"][key]]) for key in obs}
            seen = self._tensordict(self._observer.see(both, ended))
            worlds = len(resets)
            self._obs = seen[:worlds]
            if self.config.time_limit_bootstrap:
                self._bootstrap(rewards, seen[worlds:], ended, extras["time_outs"])
            self._count(ended, extras)
        else:
            self._obs = self._tensordict(self._observer.see(obs))
        self._algorithm.process_env_step(self._obs, rewards, resets.to(self._device), {})

    def _bootstrap(
        self, rewards: Tensor, terminal: TensorDict, ended: Tensor, time_outs: Tensor
    ) -> None:
        """r <- r + gamma V(terminal observation) where an episode was cut by the time limit."""
        values = self._algorithm.critic(terminal).squeeze(1)
        cut = time_outs[ended].to(self._device).float()
        rewards[ended.to(self._device)] += self.config.gamma * values * cut

    def _count(self, ended: Tensor, extras: dict[str, Any]) -> None:
        returns, successes = extras["episode_return"].tolist(), extras["successes"].tolist()
        for world in ended.tolist():
            if not self._cut[world]:  # else its episode began part-way
                self._returns.append(returns[world])
                self._successes.append(float(successes[world] > 0))
            self._cut[world] = False

    def _update(self) -> None:
        algorithm, config = self._algorithm, self.config
        self.policy.set_training_mode(True)
        rollout = config.num_steps * self._task.num_envs * config.action_repeat
        warm_up = (config.critic_warmup or 0) * rollout
        warming = self.num_timesteps <= warm_up
        train_critic_only(self.policy, warming)
        # While the actor stands still its KL is 0 but for rounding, which must not move the rate.
        adaptive = config.lr_schedule == "adaptive" and not warming
        algorithm.schedule = "adaptive" if adaptive else "fixed"
        if config.lr_schedule == "cosine":
            remaining = 1 - self.num_timesteps / self._total_steps
            algorithm.learning_rate = cosine_schedule(config.learning_rate)(remaining)
        for group in algorithm.optimizer.param_groups:
            group["lr"] = algorithm.learning_rate
        losses = algorithm.update()
        self._numbers = {
            "train/value_loss": losses["value"],
            "train/policy_gradient_loss": losses["surrogate"],
            "train/entropy_loss": -losses["entropy"],
            "train/learning_rate": algorithm.learning_rate,
            "train/std": self.policy.std.mean().item(),
        }
        if self._estimator is not None:
            self._numbers["train/state_loss"] = self._learn_to_estimate(self._estimator)

    def _learn_to_estimate(self, estimator: Estimator) -> float:
        """As many updates of the read-out as of actor and critic, for which it stood still."""
        train_critic_only(self.policy, False)
        obs = dict(self._algorithm.storage.observations.flatten(0, 1).items())
        config, frames = self.config, self.config.num_steps * self._task.num_envs
        batch = frames // config.minibatches
        return estimator.learn(
            obs, estimator.read(obs, batch), config.epochs * config.minibatches, batch
        )

    def _descend(self, loss: Tensor) -> None:
        descend(self.policy, self._algorithm.optimizer, loss, self.config.max_grad_norm)

    def summary(self) -> Summary:
        encodes = getattr(self._observer, "encodes", 0)
        done = max(1, self.num_timesteps - self._resumed_at)
        return Summary(list(self._returns), list(self._successes), encodes / done, self._numbers)

    def save_trainer(self, path: Path) -> None:
        """Optimiser, counters, random states and the episode window, for `weights_only=True`."""
        torch.save(
            {
                "optimizer": self._algorithm.optimizer.state_dict(),
                "num_timesteps": self.num_timesteps,
                "returns": list(self._returns),
                "successes": list(self._successes),
                "torch_rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            path,
        )

    def load_trainer(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location="cpu")
        self._waiting_state = state["optimizer"]
        self.num_timesteps = self._resumed_at = state["num_timesteps"]
        self._returns.extend(state["returns"])
        self._successes.extend(state["successes"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.device_count() == len(state["cuda_rng"]):
            torch.cuda.set_rng_state_all(state["cuda_rng"])
