"""One static page of everything in a results folder, the paper's rows beside ours.

For each task a table, curves over layers, films, what was skipped, and the commands that make the
rows again. No server and no script is needed to look at it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pretraining.downstream.layer_curves import draw_layers
from pretraining.downstream.published import PAPER, Published, rows_of
from pretraining.downstream.rows import Row, find_rows
from toto_robot.backbone.weights import replace_atomically, temporary_name

TEMPLATE = "report_page.html.jinja"
TITLES = {  # in the paper's order
    "imagenet": "ImageNet-1k",
    "kinetics": "Kinetics-400",
    "ego4d-sta": "Ego4D short-term anticipation",
    "davis": "DAVIS-2017, semi-supervised",
    "cater": "CATER, snitch localisation",
    "robot": "Robot read-out",
}
FILMS, PICTURES = (".mp4", ".webm"), (".png", ".svg", ".jpg", ".gif")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw one static page from the rows that `pretraining.evaluate` wrote."""

    results: Path  # its out=
    out: Path = Path("report")
    title: str = "Toto-Robot: downstream evaluations"
    published: bool = True  # the paper's rows and curves beside ours


@dataclass
class Section:
    """One task of the page."""

    task: str
    title: str
    rows: list[Row]
    published: list[Published]
    metrics: list[str]
    notes: dict[str, list[str]] = field(default_factory=dict)  # note -> labels
    curves: dict[str, str] = field(default_factory=dict)  # theme -> file
    films: list[dict[str, str]] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)
    files: list[dict[str, str]] = field(default_factory=list)


def by_first_metric(rows: Sequence[Row]) -> list[Row]:
    """Best first. A loss is better when it is lower; every other metric when it is higher."""
    first = next(iter(rows[0].metrics))
    sign = 1 if "loss" in first else -1
    found = {row.label: row.metrics[first].value for row in rows if first in row.metrics}
    return sorted(rows, key=lambda row: (row.label not in found, sign * found.get(row.label, 0)))


def copy_files(section: Section, out: Path) -> list[str]:
    """Files of the rows into `out`, by what the page does with them; what is missing is returned."""
    problems = []
    for row in section.rows:
        for name in row.files:
            source = row.folder / name
            inside = source.resolve().is_relative_to(row.folder.resolve())
            if not inside or not source.is_file():
                problems.append(f"{row.folder}: {name} is not there")
                continue
            target = Path("files") / section.task / row.label / name
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / target)
            shown = {"file": target.as_posix(), "caption": f"{row.label}: {name}"}
            kind = source.suffix.lower()
            places = {**dict.fromkeys(FILMS, section.films)}
            places |= dict.fromkeys(PICTURES, section.pictures)
            places.get(kind, section.files).append(shown)
    return problems


def sections_of(rows: Sequence[Row], config: ReportConfig) -> list[Section]:
    order = [*TITLES, *sorted({row.task for row in rows} - TITLES.keys())]
    sections = []
    for task in (name for name in order if any(row.task == name for row in rows)):
        own = by_first_metric([row for row in rows if row.task == task])
        published = rows_of(task) if config.published else []
        metrics = dict.fromkeys(name for row in (*own, *published) for name in row.metrics)
        title = TITLES.get(task, task)
        section = Section(task, title, own, published, list(metrics), gather_notes(own))
        sections.append(section)
    return sections


def gather_notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What readers must know, each note once."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            notes.setdefault(note, []).append(row.label)
    return notes


def draw(section: Section, config: ReportConfig) -> None:
    metric = section.metrics[0]
    layered = [row for row in section.rows if row.layers and metric in row.layers[0]]
    if layered:
        path = config.out / f"layers_{section.task}"
        section.curves = draw_layers(path, section.task, layered, metric, config.published)


def heading(metric: str) -> str:
    """ "J_recall_%" -> "J recall %" """
    return metric.replace("_", " ")


def number(value: Any) -> str:
    """Two decimals, or one where the second is 0; anything that is no number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.2f}".removesuffix("0")


def render(**content: Any) -> str:
    """The page. Values are escaped."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    pages.filters |= {"heading": heading, "number": number}
    return pages.get_template(TEMPLATE).render(**content)


def write_report(config: ReportConfig) -> Path:
    """Write `index.html` and what it shows into `config.out`.

    Raises:
        ValueError: there are no rows.
    """
    rows, problems = find_rows(config.results)
    config.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(config.out / "files", ignore_errors=True)  # of an earlier page
    sections = sections_of(rows, config)
    for section in sections:
        draw(section, config)
        problems += copy_files(section, config.out)
    page = render(
        title=config.title,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        paper=PAPER,
        sections=sections,
        count=len(rows),
        problems=problems,
        untrained=any(row.untrained for row in rows),
    )
    path = config.out / "index.html"
    temporary = temporary_name(path)
    temporary.write_text(page)
    replace_atomically(temporary, path)
    return path
