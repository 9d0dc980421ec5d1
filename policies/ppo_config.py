"""Hyper-parameters of PPO, and named sets of them."""

from dataclasses import dataclass, field
from typing import Any

LR_SCHEDULES = ("cosine", "cosine_epoch", "adaptive", "constant")
POOLS = ("attention", "mean", "conv")
ADAPTIVE_LR = (1e-5, 1e-2)  # bounds, as in rsl_rl


@dataclass
class PPOConfig:
    """MVP's hyper-parameters (`mvp/configs/ppo/train/*.yaml` and its code defaults)."""

    num_steps: int = 32  # per world and iteration
    # Control steps for which an action is held, in training and by the policy: so many times fewer
    # frames to encode. `num_steps`, `gamma` count held actions.
    action_repeat: int = 1
    epochs: int = 10
    minibatches: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.1
    value_coef: float = 2.0
    entropy_coef: float = 0.0
    reward_scale: float = 1.0  # of what is learned from; returns are reported unscaled
    max_grad_norm: float = 1.0
    learning_rate: float = 1e-3
    critic_learning_rate: float | None = None  # constant; None: as all else
    # cosine: to 0 over total_steps, a step per iteration (cosine_epoch: per epoch, as MVP);
    # adaptive: follows the KL; constant.
    lr_schedule: str = "cosine"
    desired_kl: float = 0.01  # of one minibatch, for lr_schedule=adaptive
    # With `init=` the policy knows what to do: small noise, and iterations in which the critic alone
    # learns (else the policy would be spoilt by advantages of a critic that knows nothing).
    log_std_init: float | None = None  # None: 0, with init=: -1
    critic_warmup: int | None = None  # iterations; None: 0, with init=: 10
    hidden: list[int] = field(default_factory=lambda: [256, 128, 64])  # actor and critic each
    pool: str = "attention"  # read-out of token grids: attention, mean, conv
    num_queries: int = 8  # of the attention read-out
    # Frames whose features the policy sees (from state: the state alone): those from which its last
    # actions were chosen, `action_repeat` control steps apart.
    history: int = 1
    asymmetric: bool = False  # the critic reads the state, the actor camera and joints
    # The read-out learns to tell the state (the oracle vector) and nothing else; the actor reads what
    # it tells. Needs asymmetric=true. It learns from frames of the whole run: as many as these are
    # remembered (16 kB each with toto-tiny's 8 x 8 tokens, times history; forgotten when a run is resumed).
    estimate_state: bool = False
    estimate_replay: int = 65_536
    shuffle: bool = True  # false, as MVP: each minibatch is a run of consecutive time steps
    std_power: int = 1  # standard deviation exp(std_power * log_std); MVP's code has 2
    time_limit_bootstrap: bool = True
    # Each world's first episode starts at a random point of the time limit, so that worlds which
    # live to the limit do not all end in the same step, 500 steps apart.
    random_phase: bool = False
    # Matrix products of rollout and update in bfloat16 (CPUs with AVX512-BF16 or AMX) or TF32 (GPU).
    # On one thread of a Zen 4 core the update takes 0.58 s instead of 0.86 s.
    fast_matmul: bool = False

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "action_repeat",
            "epochs",
            "minibatches",
            "learning_rate",
            "num_queries",
            "desired_kl",
            "std_power",
            "reward_scale",
            "history",
            "estimate_replay",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"ppo.{name}={getattr(self, name)}: expected more than 0")
        if self.critic_learning_rate is not None and self.critic_learning_rate <= 0:
            raise ValueError(
                f"ppo.critic_learning_rate={self.critic_learning_rate}: expected more than 0"
            )
        if self.estimate_state and not self.asymmetric:
            raise ValueError(
                "ppo.estimate_state=true with ppo.asymmetric=False: expected asymmetric=true"
            )
        if (self.critic_warmup or 0) < 0:
            raise ValueError(f"ppo.critic_warmup={self.critic_warmup}: expected at least 0")
        for name, valid in (("lr_schedule", LR_SCHEDULES), ("pool", POOLS)):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"ppo.{name}={getattr(self, name)}: expected one of {', '.join(valid)}"
                )
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name}={getattr(self, name)}: expected 0 to 1")

    def check_rollout(self, num_envs: int) -> None:
        """Raises ValueError if a rollout of so many worlds does not divide into the minibatches, or
        does not fit into the replay."""
        rollout = num_envs * self.num_steps
        if rollout % self.minibatches or rollout // self.minibatches < 2:
            raise ValueError(
                f"num_envs={num_envs} x ppo.num_steps={self.num_steps} = {rollout} steps do not "
                f"divide into ppo.minibatches={self.minibatches} equal parts of at least 2"
            )
        if self.estimate_state and rollout > self.estimate_replay:
            raise ValueError(
                f"num_envs={num_envs} x ppo.num_steps={self.num_steps} = {rollout} frames do not "
                f"fit into ppo.estimate_replay={self.estimate_replay}"
            )

    def check_gpu(self) -> None:
        """Raises ValueError for what `algo=ppo-gpu` does not do."""
        if self.lr_schedule == "cosine_epoch":
            raise ValueError(
                "algo=ppo-gpu with ppo.lr_schedule=cosine_epoch: expected cosine, adaptive or "
                "constant"
            )
        if self.critic_learning_rate:
            raise ValueError(
                "algo=ppo-gpu with ppo.critic_learning_rate: rsl_rl has one rate for all"
            )
        if not self.shuffle:
            raise ValueError("algo=ppo-gpu with ppo.shuffle=false: rsl_rl always shuffles")


_MVP = {
    "time_limit_bootstrap": False,  # MVP takes a time-out for a true end
    "shuffle": False,
    "lr_schedule": "cosine_epoch",
    "std_power": 2,
    "pool": "mean",  # its features are one CLS token; a grid of tokens is averaged
}

# Few frames: an action lasts four control steps. Measured with 64 worlds (`docs/policies.md`).
_HELD = {
    "action_repeat": 4,
    "num_steps": 16,
    "gamma": 0.98,
    "clip_range": 0.2,
    "reward_scale": 0.01,
    "lr_schedule": "constant",
    "learning_rate": 5e-4,
}

# `preset=` of the command line; what is not named is the default, `ppo.x=` wins over both.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "mvp": _MVP,
    "mvp-kuka": _MVP
    | {"learning_rate": 5e-4},  # both Kuka tasks from pixels, its cabinet from state
    "held": _HELD,
    # From pixels; what else was tried, and measured, is in `docs/policies.md`.
    "best": _HELD | {"asymmetric": True, "estimate_state": True},
    # From a policy that can do the task already: small steps, by a critic that is quick to learn.
    "finetune": {
        "learning_rate": 1e-5,
        "critic_learning_rate": 1e-3,
        "lr_schedule": "adaptive",
        "clip_range": 0.2,
        "epochs": 5,
        "reward_scale": 0.01,
    },
}
FINETUNE = "finetune"
