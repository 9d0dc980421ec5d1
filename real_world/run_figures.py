"""Pictures of a run: how long things took and when commands came; joints wanted, sent and measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from real_world.contracts import ARM_JOINTS
from real_world.limits import EVENTS
from real_world.run_files import Episode, RunFolder

BLUE, ORANGE, GREY, RED = "#0072b2", "#d55e00", "#9aa2ac", "#b00020"
MARKS = {"p50": 50, "p90": 90, "p99": 99}
FLOOR_MS = 1e-3  # nothing shorter is told apart
BINS = 60
DPI = 110


def draw_run(path: Path, run: RunFolder) -> bool:
    """Latencies by stage and intervals between commands. False: no step has told them."""
    latencies = {s: ms for s, ms in run.latencies_ms().items() if s != "jitter" and len(ms)}
    if not latencies:
        return False
    figure = Figure(figsize=(13, 1.6 + 0.5 * len(latencies)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _latencies(left, latencies, run.period_s("command_hz"))
    _intervals(right, run.episodes, run.period_s("policy_hz"))
    figure.savefig(path, dpi=DPI)
    return True


def _latencies(axis: Any, latencies: Mapping[str, np.ndarray], deadline_s: float | None) -> None:
    """One histogram above the other over the same logarithmic axis."""
    highest = max(float(ms.max()) for ms in latencies.values())
    top_ms = 2 * max(highest, 1000 * (deadline_s or 0), 10 * FLOOR_MS)
    edges = np.geomspace(FLOOR_MS, top_ms, BINS + 1)
    stages = list(reversed(list(latencies)))
    for level, stage in enumerate(stages):
        ms = latencies[stage]
        counts, _ = np.histogram(np.clip(ms, FLOOR_MS, None), edges)
        heights = 0.8 * counts / counts.max()
        axis.fill_between(edges, level, level + np.append(heights, 0), step="post", color=BLUE,
                          alpha=0.35, linewidth=0)  # fmt: skip
        told = []
        for name, share in MARKS.items():
            mark = float(np.percentile(ms, share))
            axis.plot([max(mark, FLOOR_MS)] * 2, [level, level + 0.8], color=BLUE, linewidth=1.2)
            told.append(f"{name} {mark:.2f}")
        axis.text(1.01, level + 0.15, "  ".join(told), transform=axis.get_yaxis_transform(),
                  fontsize=8.5, family="monospace")  # fmt: skip
    if deadline_s:
        axis.axvline(1000 * deadline_s, color=RED, linestyle="--", linewidth=1.2)
        axis.text(1000 * deadline_s, len(latencies) + 0.02, "deadline ", color=RED, ha="right",
                  va="bottom", fontsize=8.5)  # fmt: skip
    axis.set(xscale="log", xlim=(FLOOR_MS, top_ms), ylim=(-0.05, len(latencies) + 0.3),
             xlabel="ms, of every recorded step")  # fmt: skip
    axis.set_yticks([k + 0.3 for k in range(len(latencies))], stages)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _clean(axis)
    axis.set_title("How long each stage took", loc="left")


def _intervals(axis: Any, episodes: Sequence[Episode], period_s: float | None) -> None:
    first, spread = 0, []
    for episode in episodes:
        sent_s = episode.columns.get("t_sent_s", np.zeros(0))
        if len(sent_s) > 1:
            ms = 1000 * np.diff(sent_s)
            steps = first + np.arange(len(ms))
            axis.plot(steps, ms, ".", markersize=2.5, color=(BLUE, ORANGE)[episode.number % 2])
            first += len(ms)
            spread.append(ms)
    title = "Time between the commands of two steps"
    if period_s and spread:
        axis.axhline(1000 * period_s, color=GREY, linewidth=1, zorder=0)
        every = np.append(np.concatenate(spread), 1000 * period_s)
        off = np.abs(every[:-1] - 1000 * period_s)
        p50, p99 = np.percentile(off, (50, 99))
        title += f"\noff by p50 {p50:.2f}, p99 {p99:.2f}, max {off.max():.2f} ms"
        room = max(0.08 * np.ptp(every), 20 * period_s)  # 2 % of the period at least
        axis.set_ylim(every.min() - room, every.max() + room)
    axis.set(xlabel="step, episodes one after another in two colours", ylabel="ms")
    axis.ticklabel_format(useOffset=False)
    _clean(axis)
    axis.set_title(title, loc="left", fontsize=10)


def draw_joints(path: Path, episode: Episode) -> bool:
    """What the policy wanted, what was really sent, where the arm was. False: not recorded."""
    columns = episode.columns
    if not {"q_wanted_rad", "q_sent_rad", "q_rad", "t_sent_s"} <= columns.keys():
        return False
    time_s = columns["t_sent_s"] - columns["t_sent_s"][0]
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(2, 4, sharex=True).flat)
    for i, axis in enumerate(axes):
        axis.plot(time_s, columns["q_rad"][:, i], color=GREY, linewidth=1, label="measured")
        axis.plot(time_s, columns["q_wanted_rad"][:, i], color=ORANGE, linewidth=2.2,
                  label="wanted by the policy")  # fmt: skip
        axis.plot(time_s, columns["q_sent_rad"][:, i], color=BLUE, linewidth=1.1, label="sent")
        name = f"joint {i + 1}, rad" if i < ARM_JOINTS else "gripper, m"
        _limited(axis, columns, time_s, i)
        _clean(axis)
        axis.set_title(name, loc="left", fontsize=9.5)
    for axis in axes[4:]:
        axis.set_xlabel("s")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    verdict = {True: "success", False: "no success", None: "not judged"}[episode.success]
    figure.suptitle(
        f"Episode {episode.number}: {episode.end_reason} ({verdict})", x=0.01, ha="left", wrap=True
    )
    figure.savefig(path, dpi=100)
    return True


def _limited(axis: Any, columns: Mapping[str, np.ndarray], time_s: np.ndarray, joint: int) -> None:
    """Red marks below where a limit changed commands: the gripper's own, or any of the arm's."""
    if "limit_events" not in columns:
        return
    own = [EVENTS.index("gripper")]
    which = own if joint == ARM_JOINTS else [i for i in range(len(EVENTS)) if i not in own]
    hit = columns["limit_events"][:, which].sum(1) > 0
    axis.plot(time_s[hit], np.full(hit.sum(), 0.02), "|", color=RED, markersize=6,
              transform=axis.get_xaxis_transform(), label="a limit changed a command")  # fmt: skip


def _clean(axis: Any) -> None:
    axis.grid(alpha=0.15, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)
