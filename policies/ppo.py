"""PPO: stable-baselines3's, with the hyper-parameters of MVP (Xiao et al. 2022, `mvp/ppo`).

Where the defaults differ from MVP, `preset=mvp` does not: see `PRESETS` in `ppo_config.py`.
Where this differs from stable-baselines3: advantages are normalised over the whole rollout, as MVP
does, the time-outs of one step are valued in one batch instead of one by one, and the update is our
own loop over the same losses: no copies through NumPy, a learning rate that may follow the KL.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn.functional import mse_loss

from envs.spec import ORACLE
from policies.estimator import Estimator
from policies.learner import SUCCESS_WINDOW, Summary
from policies.networks import (
    ActorCritic,
    descend,
    policy_kwargs,
    split_optimizer,
    train_critic_only,
)
from policies.ppo_config import ADAPTIVE_LR, PPOConfig
from policies.vec_env import TaskVecEnv


def cosine_schedule(learning_rate: float) -> Callable[[float], float]:
    """lr0 (1 + cos(pi t)) / 2 as a function of the fraction of `total_steps` that remains, 1 - t."""
    return lambda remaining: learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - remaining)))


def adapted_learning_rate(learning_rate: float, kl: float, desired_kl: float) -> float:
    """rsl_rl's rule after each minibatch: / 1.5 beyond twice the desired KL, x 1.5 below half."""
    low, high = ADAPTIVE_LR
    if kl > 2 * desired_kl:
        return max(low, learning_rate / 1.5)
    if 0 < kl < desired_kl / 2:
        return min(high, learning_rate * 1.5)
    return learning_rate


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PPO(stable_baselines3.PPO):
    """stable-baselines3's PPO, driven one iteration at a time (`start`, then `iterate`)."""

    config = PPOConfig()  # these two are set by `make_ppo`
    estimator: Estimator | None = None

    def start(self, total_steps: int, on_step: Callable[[], bool]) -> None:
        """Reset the worlds (not the counters). `on_step()` runs after every step of all worlds;
        False ends the rollout, and `iterate` returns False."""
        remaining = total_steps - self.num_timesteps
        fresh = self.num_timesteps == 0
        _, self._callback = self._setup_learn(remaining, _OnStep(on_step), fresh)
        if self.config.random_phase:
            assert isinstance(self.env, TaskVecEnv)
            self.env.scatter_phases()
        self._update_current_progress_remaining(self.num_timesteps, total_steps)

    def iterate(self) -> bool:
        """One rollout and one update. False if `on_step` asked to stop (no update then)."""
        assert self.env is not None
        buffer = self.rollout_buffer
        # Both alike: else the first ratios of an update would differ from 1 by rounding.
        with matmul_precision("medium" if self.config.fast_matmul else "highest"):
            if not self.collect_rollouts(self.env, self._callback, buffer, self.n_steps):
                return False
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self.train()
        return True

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer with n_rollout_steps steps of all worlds; advantages normalised."""
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        values = dones = None
        for _ in range(n_rollout_steps):
            last_obs: Any = self._last_obs
            starts: Any = self._last_episode_starts
            with torch.no_grad():
                actions, values, log_probs = self.policy(obs_as_tensor(last_obs, self.device))
            actions = actions.cpu().numpy()
            new_obs, rewards, dones, infos = env.step(np.clip(actions, -1.0, 1.0))
            self.num_timesteps += env.num_envs * self.config.action_repeat
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            rewards = rewards * np.float32(self.config.reward_scale)
            self._bootstrap_time_outs(rewards, infos)
            rollout_buffer.add(last_obs, actions, rewards, starts, values, log_probs)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        assert dones is not None
        with torch.no_grad():
            final_obs: Any = self._last_obs
            values = self.policy.predict_values(obs_as_tensor(final_obs, self.device))
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        advantages = rollout_buffer.advantages
        rollout_buffer.advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return True

    def _bootstrap_time_outs(self, rewards: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """r <- r + gamma V(terminal observation) where an episode was cut by the time limit."""
        worlds = [i for i, info in enumerate(infos) if info.get("TimeLimit.truncated", False)]
        if not worlds:
            return
        terminal = [infos[i]["terminal_observation"] for i in worlds]
        batch: Any = (
            {key: np.stack([obs[key] for obs in terminal]) for key in terminal[0]}
            if isinstance(terminal[0], dict)
            else np.stack(terminal)
        )
        with torch.no_grad():
            values = self.policy.predict_values(obs_as_tensor(batch, self.device))
        rewards[worlds] += self.gamma * values.flatten().cpu().numpy()

    def train(self) -> None:
        """Epochs of minibatches over the rollout; same losses and logs as stable-baselines3's.

        Its own loop for the learning rate and the order of samples. It is hardly faster (on one CPU
        thread by 0 to 5 %): matrix products are 70 %. Halving those is `fast_matmul`.
        """
        self.policy.set_training_mode(True)
        if self.config.lr_schedule != "adaptive":
            self._set_learning_rate(self.lr_schedule(self._current_progress_remaining))
        clip: float = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        rollout = self._flat_rollout()
        if self.estimator is not None:
            rollout["read"] = self.estimator.read(rollout["obs"], self.batch_size)
        warm_up = (self.config.critic_warmup or 0) * self._rollout
        warming = self.num_timesteps <= warm_up
        train_critic_only(self.policy, warming)
        # While the actor stands still its KL is 0 but for rounding, which must not move the rate.
        adaptive = self.config.lr_schedule == "adaptive" and not warming
        logs: list[Tensor] = []
        for epoch in range(self.n_epochs):
            if self.config.lr_schedule == "cosine_epoch":
                self._set_learning_rate(self._rate_of_epoch(epoch))
            for rows in self._order(len(rollout["actions"])).split(self.batch_size):
                logs.append(self._update(rollout, rows, clip))
                if adaptive:
                    self._follow_kl(float(logs[-1][3]))
            self._n_updates += 1
        if self.estimator is not None:
            train_critic_only(self.policy, False)
            error = self.estimator.learn(
                rollout["obs"], rollout["read"], len(logs), self.batch_size
            )
            self.logger.record("train/state_loss", error)
        self._log(torch.stack(logs), clip)

    def _flat_rollout(self) -> dict[str, Any]:
        """The buffer as tensors on the device, [T, N, …] -> [T N, …] without copies on a CPU."""
        buffer: Any = self.rollout_buffer

        def flat(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).flatten(0, 1).to(self.device)

        obs = buffer.observations
        names = ("actions", "log_probs", "advantages", "returns")
        flat_obs = {k: flat(v) for k, v in obs.items()} if isinstance(obs, dict) else flat(obs)
        return {"obs": flat_obs} | {name: flat(getattr(buffer, name)) for name in names}

    def descend(self, loss: Tensor) -> None:
        descend(self.policy, self.policy.optimizer, loss, self.max_grad_norm)

    def _update(self, rollout: dict[str, Any], rows: Tensor, clip: float) -> Tensor:
        """One gradient step on one minibatch. Returns what is logged, see `_log`."""
        values, log_prob, entropy = self._judge(rollout, rows)
        advantages = rollout["advantages"][rows]
        log_ratio = log_prob - rollout["log_probs"][rows]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        value_loss = mse_loss(rollout["returns"][rows], values.flatten())
        entropy_loss = -entropy.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        self.descend(loss)
        with torch.no_grad():
            # An estimate of KL(old, new) that is never negative: joschu.net/blog/kl-approx.html
            kl = (ratio - 1 - log_ratio).mean()
            clipped_fraction = ((ratio - 1).abs() > clip).float().mean()
            return torch.stack(
                [entropy_loss, policy_loss, value_loss, kl, clipped_fraction, loss]
            ).detach()

    def _judge(self, rollout: dict[str, Any], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probabilities of the actions taken, entropies."""
        assert isinstance(self.policy, ActorCritic)
        obs, actions = rollout["obs"], rollout["actions"][rows]
        if "read" in rollout:
            return self.policy.evaluate_read(rollout["read"][rows], obs[ORACLE][rows], actions)
        seen = {k: v[rows] for k, v in obs.items()} if isinstance(obs, dict) else obs[rows]
        values, log_prob, entropy = self.policy.evaluate_actions(seen, actions)
        assert entropy is not None  # of a Gaussian it is known
        return values, log_prob, entropy

    def _order(self, samples: int) -> Tensor:
        """In which the samples of a rollout are used; as they come, 4 minibatches of 32 steps are
        the first 8 steps of all worlds, the next 8, …"""
        if not self.config.shuffle:
            return torch.arange(samples, device=self.device)
        return torch.from_numpy(np.random.permutation(samples)).to(self.device)

    def _rate_of_epoch(self, epoch: int) -> float:
        """MVP's lr0 (1 + cos(pi t)) / 2, t = (iteration + epoch / epochs) / iterations, from 0."""
        done = self.num_timesteps - self._rollout * (1 - epoch / self.n_epochs)
        return cosine_schedule(self.config.learning_rate)(1 - done / self._total_timesteps)

    @property
    def _rollout(self) -> int:
        """Environment steps of one iteration."""
        return self.n_steps * self.n_envs * self.config.action_repeat

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self.policy.optimizer.param_groups:
            own = self.config.critic_learning_rate if group.get("critic") else None
            group["lr"] = own or learning_rate

    def _follow_kl(self, kl: float) -> None:
        rate = self.policy.optimizer.param_groups[0]["lr"]
        self._set_learning_rate(adapted_learning_rate(rate, kl, self.config.desired_kl))

    def _log(self, logs: Tensor, clip: float) -> None:
        names = "entropy_loss policy_gradient_loss value_loss approx_kl clip_fraction loss".split()
        for name, value in zip(names, logs.mean(0).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        assert isinstance(self.policy, ActorCritic)
        self.logger.record("train/std", self.policy.std.mean().item())
        self.logger.record("train/learning_rate", self.policy.optimizer.param_groups[0]["lr"])
        self.logger.record("train/n_updates", self._n_updates)
        self.logger.record("train/clip_range", clip)

    def summary(self) -> Summary:
        """The last 200 episodes; losses, clip fraction, approximate KL, learning rate."""
        assert isinstance(self.env, TaskVecEnv)
        return Summary(
            returns=[float(e["r"]) for e in self.ep_info_buffer or []],
            successes=[float(s) for s in self.ep_success_buffer or []],
            encodes_per_step=self.env.encodes_per_step,
            numbers={
                k: float(v) for k, v in self.logger.name_to_value.items() if k.startswith("train/")
            },
        )

    def save_trainer(self, path: Path) -> None:
        """Optimiser, counters, random states and the episode window: what `resume=` needs beside
        the policy. Plain tensors and numbers, loaded with `weights_only=True`."""
        numpy_state: Any = np.random.get_state()
        kind, keys, position, has_gauss, gauss = numpy_state
        torch.save(
            {
                "optimizer": self.policy.optimizer.state_dict(),
                "num_timesteps": self.num_timesteps,
                "n_updates": self._n_updates,
                "episodes": [(e["r"], e["l"], e["t"]) for e in self.ep_info_buffer or []],
                "successes": [float(s) for s in self.ep_success_buffer or []],
                "torch_rng": torch.get_rng_state(),
                "numpy_rng": [
                    kind,
                    torch.from_numpy(keys.astype(np.int64)),
                    position,
                    has_gauss,
                    gauss,
                ],
            },
            path,
        )

    def load_trainer(self, path: Path) -> None:
        """Undo `save_trainer`. Call before `PPO.start`."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.policy.optimizer.load_state_dict(state["optimizer"])
        for group in self.policy.optimizer.param_groups:
            group["fused"] = True  # older checkpoints say None
        self.num_timesteps = state["num_timesteps"]
        self._n_updates = state["n_updates"]
        self.ep_info_buffer = deque(
            ({"r": r, "l": length, "t": t} for r, length, t in state["episodes"]), SUCCESS_WINDOW
        )
        self.ep_success_buffer = deque(state["successes"], SUCCESS_WINDOW)
        torch.set_rng_state(state["torch_rng"])
        kind, keys, position, has_gauss, gauss = state["numpy_rng"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


class _OnStep(BaseCallback):
    def __init__(self, on_step: Callable[[], bool]):
        super().__init__()
        self._call = on_step

    def _on_step(self) -> bool:
        return self._call()


def make_ppo(env: VecEnv, config: PPOConfig, seed: int = 0, device: str = "cpu") -> PPO:
    """PPO over `env`. Raises ValueError if the rollout does not divide into the minibatches or
    does not fit into the replay."""
    config.check_rollout(env.num_envs)
    learning_rate = config.learning_rate
    cosine = config.lr_schedule == "cosine"
    ppo = PPO(
        ActorCritic,
        env,
        learning_rate=cosine_schedule(learning_rate) if cosine else learning_rate,
        n_steps=config.num_steps,
        batch_size=env.num_envs * config.num_steps // config.minibatches,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        normalize_advantage=False,  # over the whole rollout, in collect_rollouts
        ent_coef=config.entropy_coef,
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        stats_window_size=SUCCESS_WINDOW,
        policy_kwargs=policy_kwargs(env.observation_space, config),
        seed=seed,
        device=device,
    )
    ppo.config = config
    if config.estimate_state:
        readout: Any = ppo.policy.pi_features_extractor
        ppo.estimator = Estimator(readout, ppo.descend, config.estimate_replay)
    if config.critic_learning_rate:
        split_optimizer(ppo.policy, config.critic_learning_rate)
    ppo.set_logger(Logger(None, []))
    return ppo
