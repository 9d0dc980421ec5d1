"""Pictures of the report: a metric over the layers, and the paper's curves behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pretraining.downstream.published import CURVES, PEAKS, Curve, Peak
from pretraining.downstream.rows import Row
from toto_robot.themes import COLOURS, THEMES, paint

GREY = "#8a8f98"
STYLES = ("-", "--", ":")


def draw_layers(
    path: Path, task: str, rows: Sequence[Row], metric: str, published: bool
) -> dict[str, str]:
    """SVG for light and for dark pages; theme -> file name.

    The horizontal axis is relative depth, 0 the embeddings and 1 the last block, as models differ
    in blocks. Bands are 95 % intervals. Grey: the paper's, curves where its figure could be read,
    elsewhere the peaks alone.
    """
    names = {}
    for theme, ink in THEMES.items():
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axis = figure.subplots()
        for i, row in enumerate(rows):
            style = STYLES[i // len(COLOURS) % len(STYLES)]
            _draw_row(axis, row, metric, COLOURS[i % len(COLOURS)], style)
        if published:
            _draw_published(axis, task, metric)
        axis.set(xlabel="depth: 0 embeddings, 1 last block", ylabel=metric.replace("_", " "))
        axis.set_xlim(-0.02, 1.02)
        paint(figure, axis, ink, legend_columns=2)
        names[theme] = f"{path.name}_{theme}.svg"
        figure.savefig(str(path.with_name(names[theme])), transparent=True)
    return names


def _draw_row(axis: Any, row: Row, metric: str, colour: str, style: str) -> None:
    found = [layer[metric] for layer in row.layers]
    depth = [number / max(1, row.depth or 1) for number in row.layer_numbers]
    label = row.label + (" (untrained)" if row.untrained else "")
    axis.plot(depth, [m.value for m in found], style, color=colour, marker=".", label=label)
    if all(m.low is not None for m in found):
        bounds = [m.low for m in found], [m.high for m in found]
        axis.fill_between(depth, *bounds, color=colour, alpha=0.15, linewidth=0)


def _draw_published(axis: Any, task: str, metric: str) -> None:
    curves: list[Curve] = [c for c in CURVES if (c.task, c.metric) == (task, metric)]
    for style, curve in zip(STYLES, curves, strict=False):
        depth = [(curve.first + i) / curve.layers for i in range(len(curve.values))]
        label = f"{curve.name}, published ({curve.figure})"
        axis.plot(depth, curve.values, style, color=GREY, linewidth=1, label=label)
    peaks: list[Peak] = [p for p in PEAKS if (p.task, p.metric) == (task, metric)]
    if not curves and peaks:
        places = [peak.layer / peak.layers for peak in peaks], [peak.value for peak in peaks]
        axis.plot(*places, "D", color=GREY, markersize=4, label="Toto's peaks, published")
        for peak, x, y in zip(peaks, *places, strict=True):
            text = " ".join(
                part for part in (peak.name.removeprefix("Toto-"), peak.setting) if part
            )
            axis.annotate(text, (x, y), (5, 0), textcoords="offset points", color=GREY, fontsize=8)
