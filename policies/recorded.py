"""A folder of episodes that were recorded one by one (`real_world.recorder`), as demonstrations.

Only complete, successful episodes that kept their beat become demonstrations: an action means a step of
1 / control_rate_hz, so an episode with long gaps would teach the wrong speed.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from policies.demonstrations import Demonstration, DemonstrationFile

EPISODES = "episode_*.hdf5"
OFF_BEAT = 0.05  # the largest share of steps that may come half a period too late
DELAY = "delay_steps"  # a fact: actions stand so many steps behind what they follow from
DELAYED = ("targets", "q_wanted_rad", "q_sent_rad")  # columns that go with the actions


def is_recorded(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob(EPISODES))


def successes(folder: Path) -> list[Path]:
    """Files of complete, successful episodes in order."""
    found = []
    for path in sorted(folder.glob(EPISODES)):
        with DemonstrationFile(path) as file:
            found += [path] if file.facts("demo_0").get("success") else []
    return found


def read_about(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`about` and `env_args` that all successes share. Raises ValueError if they do not, or there are
    none."""
    shared: tuple[dict[str, Any], dict[str, Any]] | None = None
    for path in successes(folder):
        with DemonstrationFile(path) as file:
            said = file.about, file.env_args
        shared = shared or said
        if said != shared:
            raise ValueError(f"{path} says of itself {said}, the episodes before it {shared}")
    if shared is None:
        raise ValueError(f"{folder} holds no successful episode")
    return shared


def read_recorded(folder: Path) -> Iterator[Demonstration]:
    """The successes in order, actions beside what they follow from; says what is left out."""
    rate_hz = read_about(folder)[0].get("options", {}).get("control_rate_hz", 0)
    for path in successes(folder):
        with DemonstrationFile(path) as file:
            demo = file.read("demo_0")
        late = off_beat(demo, rate_hz)
        if late > OFF_BEAT:
            print(f"{path} is left out: {late:.0%} of its steps came late", file=sys.stderr)
            continue
        yield undelayed(demo)


def off_beat(demo: Demonstration, rate_hz: float) -> float:
    """The share of steps that came half a period or more after their time; 0 where no times are."""
    if "t_sent_s" not in demo.columns or not rate_hz or len(demo) < 2:
        return 0.0
    return float(np.mean(np.diff(demo.columns["t_sent_s"]) * rate_hz > 1.5))


def undelayed(demo: Demonstration) -> Demonstration:
    """Actions and targets moved to the step that they follow from, where they were recorded later (an
    arm led by hand shows what was done only when it is done). The last steps go."""
    facts = dict(demo.facts)
    delay = int(facts.pop(DELAY, 0))
    if not delay:
        return replace(demo, facts=facts)
    if delay >= len(demo):
        raise ValueError(f"an episode of {len(demo)} steps has actions {delay} steps late")

    def cut(array: np.ndarray) -> np.ndarray:
        return array[:-delay]

    columns = {k: v[delay:] if k in DELAYED else cut(v) for k, v in demo.columns.items()}
    rewards = cut(demo.rewards).copy()
    rewards[-1] = demo.rewards[-1]
    return replace(
        demo,
        images={k: cut(v) for k, v in demo.images.items()},
        vectors={k: cut(v) for k, v in demo.vectors.items()},
        actions=demo.actions[delay:],
        rewards=rewards,
        columns=columns,
        facts=facts,
    )
