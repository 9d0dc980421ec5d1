"""Run a policy on named episodes, without favouring short ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Player(Protocol):
    """`policies.policy.Policy`, or a `BCPolicy`."""

    def reset(self, worlds: Tensor | None = None) -> None: ...
    def act(self, obs: Any) -> Tensor: ...


Name = tuple[int, int]  # seed and world: the first episode of that world in a task so seeded


@dataclass(frozen=True)
class Episode:
    """One finished episode of (seed, world). `length` and `success_step` count control steps.

    `success` is PixMC's: reached once, whatever comes after. `at_end`: the goal condition held when
    the episode ended, and had held for as long as success takes. `success_step` is 0 without success.
    """

    seed: int
    world: int
    success: bool
    at_end: bool
    success_step: int
    length: int
    episode_return: float

    @property
    def name(self) -> Name:
        return self.seed, self.world


def evaluate(
    policy: Player,
    task: Any,
    episodes: Sequence[Name],
    watch: Callable[[Mapping[int, Episode]], None] | None = None,
    on_episode: Callable[[Episode], object] | None = None,
    keep_going: Callable[[], bool] = lambda: True,
) -> list[Episode]:
    """Play `episodes` to their ends in the worlds of `task` (a VecTask), deterministically.

    Exactly those that are named count: taking whichever finish first would count short ones, often
    failures, too often. A world that ends takes the next in the line (`VecTask.line_up`).
    `watch(ended)` is called before every step with the first episode of each world that has
    ended, `on_episode(episode)` after each counted one. Once `keep_going()` is False the finished
    ones are returned, which are then no fair sample.
    Raises ValueError without episodes, or if one is named twice.
    """
    wanted = set(episodes)
    if not episodes or len(wanted) < len(episodes):
        raise ValueError(f"episodes={list(episodes)}: expected at least 1, each once")
    task.line_up(episodes)
    obs = task.reset()
    policy.reset()
    finished: list[Episode] = []
    first: dict[int, Episode] = {}
    while wanted and keep_going():
        if watch is not None:
            watch(first)
        playing = task.names.tolist()
        obs, _, resets, extras = task.step(policy.act(obs).to(task.device))
        ended = resets.nonzero().flatten()
        policy.reset(ended)
        for world in ended.tolist():
            episode = _ended(playing[world], extras, world)
            first.setdefault(world, episode)
            if episode.name in wanted and playing[world][2] == 0:
                wanted.remove(episode.name)
                finished.append(episode)
                if on_episode is not None:
                    on_episode(episode)
    return finished


def _ended(name: Sequence[int], extras: Mapping[str, Any], world: int) -> Episode:
    return Episode(
        seed=name[0],
        world=name[1],
        success=bool(extras["successes"][world] > 0),
        at_end=bool(extras["successes_at_end"][world] > 0),
        success_step=int(extras["success_step"][world]),
        length=int(extras["episode_length"][world]),
        episode_return=float(extras["episode_return"][world]),
    )
