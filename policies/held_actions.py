"""Actions that are held for several control steps; of the frames only the last is drawn."""

from typing import Any

import torch
from torch import Tensor

# What extras say of every world.
OF_EACH_WORLD = (
    "time_outs", "successes", "successes_at_end", "success_step", "episode_return",
    "episode_length",
)  # fmt: skip


class HeldActions:
    """A task (`VecTask`) with `repeat` control steps to each `step`; all else is the task's own.

    Rewards are summed. A world that ends on the way stands still in the steps that are left: they
    belong to its next episode and bring no reward. Its terminal observation, and what extras say of
    it, are those of its end.
    """

    def __init__(self, task: Any, repeat: int):
        self._task, self._repeat = task, repeat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        obs, total, resets, told = self._task.step(actions, draw=self._repeat == 1)
        ended, ends = resets.bool(), [told]
        for k in range(1, self._repeat):
            actions = torch.where(ended[:, None], 0.0, actions)
            obs, rewards, resets, extras = self._task.step(actions, draw=k == self._repeat - 1)
            total = total + torch.where(ended, 0.0, rewards)
            ends.append(extras)
            told = extras | {k: torch.where(ended, told[k], extras[k]) for k in OF_EACH_WORLD}
            ended = ended | resets.bool()
        return obs, total, ended.long(), told | _terminal(ends)


def _terminal(ends: list[dict[str, Any]]) -> dict[str, Any]:
    """The worlds that ended in any of several steps, and their last observations."""
    parts = [extras["terminal_obs"] for extras in ends if len(extras["terminal_ids"])]
    return {
        "terminal_ids": torch.cat([extras["terminal_ids"] for extras in ends]),
        "terminal_obs": {k: torch.cat([obs[k] for obs in parts]) for k in (parts or [{}])[0]},
    }


def hold_actions(task: Any, repeat: int) -> Any:
    """`task` itself, or with each action held for `repeat` control steps."""
    return task if repeat == 1 else HeldActions(task, repeat)
