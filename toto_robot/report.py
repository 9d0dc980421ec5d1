"""One page about many runs: `python -m toto_robot.report runs='outputs/2026-11-25/*' out=report`.

Reads run folders (as many seeds as there are) and writes `index.html` with files beside it: success
over environment steps with stratified-bootstrap intervals over seeds, tables with every seed, visual
shifts, films. No server and no script is needed to look at it. Intervals: the package rliable
(`pip install -e ".[report]"`).
"""

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from envs.spec import SUCCESS_STREAK
from toto_robot._siblings import check_siblings
from toto_robot.cli import parse
from toto_robot.conf import check_choice, fail
from toto_robot.report_curves import (
    STATISTICS,
    Interval,
    across_tasks,
    curve_of,
    draw_curves,
    final_interval,
)
from toto_robot.report_runs import Group, Run, find_runs, group_runs, load_run
from toto_robot.runs import write_text

TEMPLATE = "report_page.html.jinja"
NAMES = {"iqm": "interquartile mean", "mean": "mean"}
SHOWN_FACTS = ("toto-robot", "mujoco", "torch", "gpu", "cpu_cores")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw one static page from run folders."""

    runs: tuple[str, ...]  # folders that hold run folders, or globs; joined by commas
    out: Path = Path("report")
    title: str = "Toto-Robot: runs"
    statistic: str = "iqm"  # over seeds: iqm (interquartile mean) or mean
    repeats: int = 2000  # of the bootstrap

    def __post_init__(self) -> None:
        check_choice("statistic", self.statistic, tuple(STATISTICS))
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats}: expected at least 1")


@dataclass
class Row:
    """A group's line in the table; medians over its runs."""

    group: Group
    final: Interval | None
    steps: float
    steps_per_s: float
    encodes: float | None
    wall_time_s: float


def row_of(group: Group, config: ReportConfig) -> Row:
    encodes = [run.encodes_per_step for run in group.runs if run.encodes_per_step is not None]
    return Row(
        group=group,
        final=final_interval(group.final_rates, config.statistic, config.repeats),
        steps=median(run.steps for run in group.runs),
        steps_per_s=median(run.steps_per_s for run in group.runs),
        encodes=median(encodes) if encodes else None,
        wall_time_s=median(run.wall_time_s for run in group.runs),
    )


def draw_all(config: ReportConfig, groups: Sequence[Group]) -> dict[str, dict[str, str]]:
    """Env -> theme -> file of its curves."""
    pictures = {}
    for env in sorted({group.env for group in groups}):
        own = [group for group in groups if group.env == env]
        curves = [curve_of(group.runs, config.statistic, config.repeats) for group in own]
        pictures[env] = draw_curves(config.out / f"success_{env}", own, curves, config.statistic)
    return pictures


def caption_of(run: Run) -> str:
    return f"{run.env}, {run.label}, seed {run.seed}"


def copy_films(config: ReportConfig, runs: Sequence[Run]) -> list[dict[str, str | None]]:
    """Films into `films/`, with the contact sheet as poster."""
    films = []
    for number, run in enumerate(runs):
        source = run.film()
        if source is None:
            continue
        folder = config.out / "films"
        folder.mkdir(exist_ok=True)
        name = f"{number:03d}_{run.env}_s{run.seed}"
        shutil.copyfile(source, folder / f"{name}.mp4")
        poster = None
        if (sheet := source.with_suffix(".png")).exists():
            poster = f"films/{name}.jpg"
            with Image.open(sheet) as picture:
                picture.convert("RGB").save(config.out / poster, quality=80)
        films.append({"file": f"films/{name}.mp4", "poster": poster, "caption": caption_of(run)})
    return films


def copy_shift_pictures(config: ReportConfig, runs: Sequence[Run]) -> list[dict[str, str]]:
    """One for each env: how episodes begin under each shift."""
    pictures = {}
    for run in runs:
        source = run.folder / "eval_shifts.png"
        if source.exists() and run.env not in pictures:
            file = f"shifts_{run.env}.png"
            shutil.copyfile(source, config.out / file)
            pictures[run.env] = {"file": file, "caption": run.env}
    return list(pictures.values())


def warnings_of(groups: Sequence[Group]) -> list[str]:
    found = []
    for group in groups:
        where = f"{group.env}, {group.label}"
        if group.repeated_seeds:
            found.append(f"{where}: several runs of seed {group.repeated_seeds} count as seeds")
        if any(
            (run.evaluation or {"untrained_backbone": False})["untrained_backbone"]
            for run in group.runs
        ):
            found.append(f"{where}: the backbone is untrained")
    return found


def facts_of(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What the runs were made with; several values where they differ."""
    facts = {name: sorted({r.facts[name] for r in runs if name in r.facts}) for name in SHOWN_FACTS}
    return {name: values for name, values in facts.items() if values}


def suites_of(runs: Sequence[Run]) -> list[str]:
    """Names of shifts, in the order in which they appear."""
    return list(dict.fromkeys(row["shift"] for run in runs for row in run.shifts))


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %".replace("100.0", "100")


def bare(value: float) -> str:
    """Of an interval, whose unit is beside it."""
    return percent(value).removesuffix(" %")


def thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def millions(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,.0f}"


def duration(time_s: float) -> str:
    hours, minutes = int(time_s // 3600), int(time_s % 3600 // 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(time_s % 60):02d} s"


def render(**content: Any) -> str:
    """The page. Values are escaped."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    for function in (percent, bare, thousands, decimals, millions, duration):
        pages.filters[function.__name__] = function
    return pages.get_template(TEMPLATE).render(**content)


def write_report(config: ReportConfig) -> Path:
    """Write `index.html` and what it shows into `config.out`. Raises ValueError without runs."""
    runs = [load_run(folder) for folder in find_runs(config.runs)]
    groups = group_runs(runs)
    ordered = [run for group in groups for run in group.runs]
    config.out.mkdir(parents=True, exist_ok=True)
    shifted = [run for run in ordered if len(run.shifts) > 1]
    page = render(
        title=config.title,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        facts=facts_of(runs),
        warnings=warnings_of(groups),
        statistic_name=NAMES[config.statistic],
        curves=draw_all(config, groups),
        groups=[row_of(group, config) for group in groups],
        across=across_tasks(groups, config.statistic, config.repeats),
        runs=ordered,
        streak=SUCCESS_STREAK,
        cut=any(run.evaluation and run.evaluation["stop_at_success"] for run in runs),
        shifted=shifted,
        suites=suites_of(shifted),
        shift_pictures=copy_shift_pictures(config, ordered),
        films=copy_films(config, ordered),
    )
    write_text(config.out / "index.html", page)
    return config.out / "index.html"


def main() -> None:
    """Entry point of `python -m toto_robot.report`."""
    check_siblings()
    try:
        config = parse(ReportConfig, sys.argv[1:])
        if importlib.util.find_spec("rliable") is None:
            raise ValueError('intervals over seeds need rliable: pip install -e ".[report]"')
        page = write_report(config)
    except ValueError as error:
        fail(error)
    print(f"{page.resolve()}")


if __name__ == "__main__":
    main()
