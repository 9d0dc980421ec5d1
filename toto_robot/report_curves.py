"""Success over environment steps, over seeds: intervals by rliable, pictures by matplotlib.

Stratified bootstrap and interquartile mean: Agarwal et al. 2021 (arXiv 2108.13264).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from toto_robot.report_runs import Group, Run
from toto_robot.themes import COLOURS, THEMES, paint

POINTS = 80  # of a curve


class Interval(NamedTuple):
    """A statistic over seeds with its 95 % interval; None with fewer than two seeds."""

    value: float
    low: float | None
    high: float | None


@dataclass
class Curve:
    """A statistic of success over steps [P]. `low` and `high` are None with fewer than two seeds."""

    steps: Float[np.ndarray, " P"]
    value: Float[np.ndarray, " P"]
    low: Float[np.ndarray, " P"] | None
    high: Float[np.ndarray, " P"] | None


def mean(scores: Float[np.ndarray, "S T ..."]) -> Float[np.ndarray, "..."]:
    """Over seeds and tasks."""
    return scores.mean(axis=(0, 1))


def interquartile_mean(scores: Float[np.ndarray, "S T ..."]) -> Float[np.ndarray, "..."]:
    """rliable's `aggregate_iqm`, for all points of a curve at once."""
    from scipy.stats import trim_mean

    return trim_mean(scores.reshape(-1, *scores.shape[2:]), 0.25, axis=0)


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "iqm": interquartile_mean,
    "mean": mean,
}


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """rliable draws from NumPy's global generator and does not use its `random_state`."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def bootstrap(
    scores: Float[np.ndarray, "S T P"], statistic: str, repeats: int
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "2 P"]]:
    """Point estimate and 95 % stratified-bootstrap interval over S seeds of T tasks."""
    from rliable.library import get_interval_estimates

    with _numpy_seed(0):
        points, intervals = get_interval_estimates(
            {"": scores}, STATISTICS[statistic], reps=repeats
        )
    return points[""], intervals[""]


def curve_of(runs: Sequence[Run], statistic: str, repeats: int) -> Curve | None:
    """Over the steps that every run has reached. None before the first episodes have ended."""
    tracks = [track for run in runs if len((track := _track(run))[0])]
    if not tracks or len(tracks) < len(runs):
        return None
    first = max(steps[0] for steps, _ in tracks)
    last = min(steps[-1] for steps, _ in tracks)
    if last < first:
        return None
    grid = np.linspace(first, last, POINTS)
    scores = np.array([np.interp(grid, steps, rates) for steps, rates in tracks])[:, None]
    if len(runs) < 2:
        return Curve(grid, scores[0, 0], None, None)
    value, (low, high) = bootstrap(scores, statistic, repeats)
    return Curve(grid, value, low, high)


def _track(run: Run) -> tuple[np.ndarray, np.ndarray]:
    done = [r for r in run.reports if r["success_rate"] is not None]
    return np.array([r["steps"] for r in done]), np.array([r["success_rate"] for r in done])


def final_interval(rates: Sequence[float], statistic: str, repeats: int) -> Interval | None:
    """Of final success over seeds."""
    if not rates:
        return None
    scores = np.array(rates)[:, None, None]
    if len(rates) < 2:
        return Interval(rates[0], None, None)
    value, interval = bootstrap(scores, statistic, repeats)
    return Interval(float(value[0]), float(interval[0, 0]), float(interval[1, 0]))


def across_tasks(
    groups: Sequence[Group], statistic: str, repeats: int
) -> list[tuple[str, list[str], int, Interval]]:
    """(label, tasks, seeds, interval) for what was trained on several tasks with as many seeds each:
    seeds are drawn anew within each task (the strata)."""
    by_label: dict[str, list[Group]] = {}
    for group in groups:
        by_label.setdefault(group.label, []).append(group)
    rows = []
    for label, alike in by_label.items():
        counts = {len(group.final_rates) for group in alike}
        if len(alike) < 2 or len(counts) > 1 or min(counts) < 2:
            continue
        scores = np.array([group.final_rates for group in alike]).T[..., None]
        value, interval = bootstrap(scores, statistic, repeats)
        found = Interval(float(value[0]), float(interval[0, 0]), float(interval[1, 0]))
        rows.append((label, [group.env for group in alike], len(scores), found))
    return rows


def draw_curves(
    path: Path, groups: Sequence[Group], curves: Sequence[Curve | None], statistic: str
) -> dict[str, str]:
    """SVG of one task's success over steps, once for light pages and once for dark ones; theme ->
    file name. Thin lines are single seeds."""
    names = {}
    for theme, ink in THEMES.items():
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axis = figure.subplots()
        for i, (group, curve) in enumerate(zip(groups, curves, strict=True)):
            _draw_group(axis, group, curve, COLOURS[i % len(COLOURS)])
        axis.set(
            ylim=(-0.02, 1.02),
            xlabel="environment steps (millions)",
            ylabel=f"success rate while training, {statistic}",
        )
        axis.margins(x=0.01)
        axis.set_xlim(left=0)
        paint(figure, axis, ink)
        names[theme] = f"{path.name}_{theme}.svg"
        figure.savefig(str(path.with_name(names[theme])), transparent=True)
    return names


def _draw_group(axis: Any, group: Group, curve: Curve | None, colour: str) -> None:
    for run in group.runs:
        steps, rates = _track(run)
        axis.plot(steps / 1e6, rates, color=colour, linewidth=0.7, alpha=0.35)
    seeds = f"{len(group.runs)} seed{'s' if len(group.runs) > 1 else ''}"
    label = f"{group.label} ({seeds})"
    if curve is None:
        axis.plot([], [], color=colour, label=f"{label}, not all have begun")
        return
    axis.plot(curve.steps / 1e6, curve.value, color=colour, linewidth=2, label=label)
    if curve.low is not None and curve.high is not None:
        axis.fill_between(
            curve.steps / 1e6, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0
        )
