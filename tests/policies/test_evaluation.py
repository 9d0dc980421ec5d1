"""Evaluation: exactly the named episodes, each from its own start; films that can be read."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from fake_task import FakeTask
from PIL import Image

from policies.evaluation import Episode, evaluate
from policies.film import EpisodeFilm, picture_grid


class Towards:
    """Walks to the origin; remembers nothing."""

    def __init__(self, speed: float = 1.0):
        self.speed, self.forgotten = speed, []

    def reset(self, worlds: torch.Tensor | None = None) -> None:
        self.forgotten.append(None if worlds is None else worlds.tolist())

    def act(self, obs: Any) -> torch.Tensor:
        actions = torch.zeros(len(obs["states"]), 9)
        actions[:, :2] = (-10 * self.speed * obs["states"][:, :2]).clamp(-1, 1)
        return actions


class Uneven(FakeTask):
    """World 0 ends three times as often as the others."""

    def step(self, actions: torch.Tensor, draw: bool = True) -> Any:
        self.progress_buf[0] += 2
        return super().step(actions)


NAMES = [(seed, world) for world in range(5) for seed in (100, 200)]


def run(task: Any, names: list[tuple[int, int]] = NAMES, **more: Any) -> list[Episode]:
    policy: Any = Towards()
    return evaluate(policy, task, names, **more)


def test_exactly_the_named_episodes_count_once_each() -> None:
    """Whoever ends first plays the next; short episodes must not count more."""
    episodes = run(Uneven(4, max_episode_length=9))
    assert sorted(e.name for e in episodes) == sorted(NAMES)


def test_an_episode_is_the_same_in_any_company() -> None:
    def by_name(num_envs: int, names: list[tuple[int, int]]) -> dict:
        return {e.name: e for e in run(FakeTask(num_envs), names)}

    among, alone = by_name(3, NAMES), by_name(1, [(200, 3)])
    assert alone[200, 3] == among[200, 3]
    assert len({e.episode_return for e in among.values()}) == len(NAMES)


def test_what_an_episode_says() -> None:
    class Lost(FakeTask):
        """Success at step 4, lost at the end."""

        def step(self, actions: torch.Tensor, draw: bool = True) -> Any:
            obs, reward, done, extras = super().step(actions)
            ones = torch.ones(self.num_envs)
            extras |= {"successes": ones, "successes_at_end": 0 * ones, "success_step": 4 * ones}
            return obs, reward, done, extras

    (episode,) = run(Lost(1, max_episode_length=7), [(5, 2)])
    assert (episode.seed, episode.world, episode.length) == (5, 2, 7)
    assert episode.success and not episode.at_end and episode.success_step == 4


def test_a_policy_that_remembers_is_told_of_every_end() -> None:
    policy: Any = Towards()
    evaluate(policy, FakeTask(2, max_episode_length=3), [(1, 0), (1, 1), (1, 2), (1, 3)])
    assert policy.forgotten == [None, [], [], [0, 1], [], [], [0, 1]]


def test_a_stop_returns_what_is_finished() -> None:
    seen: list[Episode] = []
    episodes = run(FakeTask(2), on_episode=seen.append, keep_going=lambda: len(seen) < 4)
    assert episodes == seen and len(seen) == 4


@pytest.mark.parametrize("names", [[], [(1, 1), (1, 1)]])
def test_no_episode_and_the_same_twice_are_errors(names: list) -> None:
    with pytest.raises(ValueError, match="at least 1, each once"):
        run(FakeTask(2), names)


def test_a_film_and_its_contact_sheet(tmp_path: Path) -> None:
    task = FakeTask(3, max_episode_length=30)
    names = [(1, 4), (1, 5), (2, 6)]
    with EpisodeFilm(tmp_path / "film.mp4", task, 3, size_px=64, every=1) as film:
        finished = {e.name: e for e in run(task, names, watch=film)}
        film.finish({slot: finished[name] for slot, name in enumerate(names)})
        film.contact_sheet(tmp_path / "sheet.png", columns=4)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * (64 + 18), 4 * 128, 3)
    ended = sheet[:, -3:]  # the last pictures' right edge: green for the success that all reach
    assert all(ended[row * 82 + 40, -1, 1] > 150 for row in range(3))
    with av.open(str(tmp_path / "film.mp4")) as opened:
        assert sum(1 for _ in opened.decode(video=0)) >= 30


def test_a_grid_has_a_title_and_a_picture_for_each(tmp_path: Path) -> None:
    picture = np.full((10, 20, 3), 200, np.uint8)
    picture_grid(tmp_path / "grid.png", [("light", [picture] * 3), ("colour", [picture] * 3)])
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (2 * (10 + 18), 60, 3)
