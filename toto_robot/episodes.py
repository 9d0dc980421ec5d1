"""The episodes of evaluations: which are played, where they are kept, what they add up to."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from policies.evaluation import Episode, Name
from toto_robot.runs import success_report

# Evaluation never sees the training seeds; the k-th evaluation seed of a run is seed + k times this.
EVAL_SEED_OFFSET = 1_000_003


def episode_names(run_seed: int, episodes: int, seeds: int) -> list[Name]:
    """`episodes` names spread evenly over `seeds` evaluation seeds, the seeds taking turns."""
    seeds = min(seeds, episodes)
    numbers = [run_seed + k * EVAL_SEED_OFFSET for k in range(1, seeds + 1)]
    return [(numbers[i % seeds], i // seeds) for i in range(episodes)]


@dataclass(frozen=True)
class Suite:
    """What a finished episode belongs to: results are never mixed between suites."""

    policy: str  # hash of the weights
    shift: str
    stop_at_success: bool


class EpisodeLog:
    """`eval_episodes.jsonl`: one line per finished episode, flushed at once, never lost.

    A last line cut off by a kill is dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rows: dict[tuple[Suite, Name], Episode] = {}
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        for line in whole.splitlines():
            suite, episode = json.loads(line)
            self._keep(Suite(**suite), Episode(**episode))

    def _keep(self, suite: Suite, episode: Episode) -> None:
        self._rows[suite, episode.name] = episode

    def add(self, suite: Suite, episode: Episode) -> None:
        self._keep(suite, episode)
        with self.path.open("a") as file:
            file.write(json.dumps([asdict(suite), asdict(episode)]) + "\n")

    def forget(self, suite: Suite) -> None:
        """Drop a suite's episodes, to play them anew."""
        self._rows = {key: episode for key, episode in self._rows.items() if key[0] != suite}
        lines = [json.dumps([asdict(s), asdict(e)]) + "\n" for (s, _), e in self._rows.items()]
        self.path.write_text("".join(lines))

    def finished(self, suite: Suite, names: Sequence[Name]) -> list[Episode]:
        """Those of `names` that are there, in that order."""
        return [self._rows[suite, name] for name in names if (suite, name) in self._rows]


def summarise(episodes: Sequence[Episode], rate_hz: float, stop_at_success: bool) -> dict[str, Any]:
    """Success once and at the end with Wilson intervals, return, length, time to success, seeds.

    With `stop_at_success` the state at the end says nothing, nor do return and length: None.
    """
    times_s = [e.success_step / rate_hz for e in episodes if e.success]
    return {
        **_rates(episodes, stop_at_success),
        "time_to_success_s": _spread(times_s),
        "episode_return": None if stop_at_success else mean(e.episode_return for e in episodes),
        "episode_length": None if stop_at_success else mean(e.length for e in episodes),
        "stop_at_success": stop_at_success,
        "per_seed": [
            {"seed": seed, **_rates([e for e in episodes if e.seed == seed], stop_at_success)}
            for seed in sorted({e.seed for e in episodes})
        ],
    }


def _rates(episodes: Sequence[Episode], stop_at_success: bool) -> dict[str, Any]:
    once = success_report([float(e.success) for e in episodes])
    at_end = success_report([float(e.at_end) for e in episodes])
    keys = ("success_rate", "success_low", "success_high")
    return once | {
        key.replace("success", "success_at_end"): None if stop_at_success else at_end[key]
        for key in keys
    }


def _spread(times_s: list[float]) -> dict[str, float] | None:
    if not times_s:
        return None
    return {"mean": mean(times_s), "median": median(times_s), "max": max(times_s)}


def choose_filmed(episodes: Sequence[Episode], count: int) -> list[Name]:
    """The first successes and the first failures, half of each as far as there are."""
    wins = [e.name for e in episodes if e.success]
    losses = [e.name for e in episodes if not e.success]
    few = min(len(losses), max(count // 2, count - len(wins)))
    return [*wins[: count - few], *losses[:few]]
