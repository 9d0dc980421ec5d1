"""How the curves of our pages look, on light ones and on dark ones."""

from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; readable on light and dark.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
THEMES = {"light": "#1c1e21", "dark": "#e3e5e8"}  # colour of axes and words


def paint(figure: Figure, axis: Any, ink: str, legend_columns: int = 1) -> None:
    """Give axis, words and legend one colour; two spines, a faint grid, the legend above."""
    axis.grid(color=ink, alpha=0.12, linewidth=0.6)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(ink)
    axis.tick_params(colors=ink)
    axis.xaxis.label.set_color(ink)
    axis.yaxis.label.set_color(ink)
    columns = legend_columns
    legend = figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=columns)
    for text in legend.get_texts():
        text.set_color(ink)
