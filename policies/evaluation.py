"""Run a policy for a given number of episodes, without favouring short ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from policies.policy import Policy


@dataclass(frozen=True)
class Episode:
    """One finished episode. `episode_length` counts control steps."""

    world: int
    success: bool
    episode_return: float
    episode_length: int


def evaluate(
    policy: Policy,
    task: Any,
    episodes: int,
    watch: Callable[[Mapping[int, Episode]], None] | None = None,
    on_episode: Callable[[Episode], object] | None = None,
) -> list[Episode]:
    """Finish `episodes` episodes of `task` (a VecTask) with the deterministic policy.

    Every world contributes its first episodes / num_envs (rounded up for the first worlds): taking
    whichever episodes finish first would count short ones, often failures, too often.
    `watch(ended)` is called before every step with the first episode of each world that has
    ended, `on_episode(episode)` after each counted one. The worlds are reset first, so the task's seed fixes what is seen.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: expected at least 1")
    obs = task.reset()
    policy.reset()
    worlds = torch.arange(task.num_envs)
    wanted = episodes // task.num_envs + (worlds < episodes % task.num_envs).long()
    finished: list[Episode] = []
    first: dict[int, Episode] = {}
    while (wanted > 0).any():
        if watch is not None:
            watch(first)
        obs, _, resets, extras = task.step(policy.act(obs).to(task.device))
        for world in resets.nonzero().flatten().tolist():
            episode = Episode(
                world,
                bool(extras["successes"][world] > 0),
                float(extras["episode_return"][world]),
                int(extras["episode_length"][world]),
            )
            first.setdefault(world, episode)
            if wanted[world] > 0:
                wanted[world] -= 1
                finished.append(episode)
                if on_episode is not None:
                    on_episode(episode)
    return finished
