"""What the training loop asks of a learner (PPO, DAgger, …): iterate, report, save, go on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stable_baselines3.common.policies import ActorCriticPolicy

SUCCESS_WINDOW = 200  # episodes; MVP reports the mean over its last 200


@dataclass(frozen=True)
class Summary:
    """How it goes: the policy's own last `SUCCESS_WINDOW` episodes, and numbers of the last update."""

    returns: list[float]
    successes: list[float]
    encodes_per_step: float = 0.0  # backbone forwards (frames) per environment step
    numbers: dict[str, float] = field(default_factory=dict)  # losses, learning rate, …


class Learner(Protocol):
    """Owns its worlds; `num_timesteps` counts environment steps, summed over worlds."""

    @property
    def policy(self) -> ActorCriticPolicy: ...
    @property
    def num_timesteps(self) -> int: ...
    def start(self, total_steps: int, on_step: Callable[[], bool]) -> None:
        """Reset the worlds (not the counters). `on_step()` runs after every step of all worlds;
        False ends the iteration, and `iterate` returns False."""
        ...

    def iterate(self) -> bool:
        """One round of acting and one update. False if `on_step` asked to stop."""
        ...

    def summary(self) -> Summary: ...
    def save_trainer(self, path: Path) -> None:
        """All that going on needs beside the policy, readable by `torch.load(weights_only=True)`."""
        ...

    def load_trainer(self, path: Path) -> None:
        """Undo `save_trainer`. Call before `start`."""
        ...
