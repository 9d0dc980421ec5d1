"""The run folder: metrics.jsonl, success.png, eval.json, env.txt.

Every JSON file is written whole or not at all; metrics are appended line by line and flushed.
"""

import ctypes
import json
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from toto_robot.intervals import wilson_interval

PACKAGES = (
    "toto-robot",
    "torch",
    "numpy",
    "mujoco",
    "stable-baselines3",
    "gymnasium",
    "hydra-core",
)


def success_report(successes: Sequence[float]) -> dict[str, float | int | None]:
    """`success_rate` (None without episodes), `success_low`, `success_high`, `episodes`."""
    episodes = len(successes)
    wins = float(sum(s > 0 for s in successes))
    low, high = wilson_interval(wins, episodes)
    rate = wins / episodes if episodes else None
    return {
        "episodes": episodes,
        "success_rate": rate,
        "success_low": low,
        "success_high": high,
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` to `path` in one piece: a reader sees the old file or the new one."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class Metrics:
    """Appends one JSON object per report to `metrics.jsonl`, flushed at once.

    `resume_at` (environment steps of the checkpoint that goes on) drops the reports beyond it:
    those steps are done again. None expects a folder without metrics.
    Raises FileExistsError rather than mixing two runs.
    """

    def __init__(self, path: Path, resume_at: int | None = None):
        self.path = Path(path)
        if resume_at is None and self.path.exists():
            raise FileExistsError(
                f"{self.path} belongs to an earlier run: continue it with "
                f"resume={self.path.parent}, or choose another hydra.run.dir"
            )
        if resume_at is not None and self.path.exists():
            kept = [r for r in read_metrics(self.path) if r["steps"] <= resume_at]
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = self.path.open("a")

    def append(self, report: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(report, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports of `metrics.jsonl`. A last line cut off by a kill is left out."""
    lines = Path(path).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def plot_success(
    path: Path, reports: Sequence[Mapping[str, Any]], title: str, stamp: str = ""
) -> None:
    """PNG of success rate (with its 95 % interval) and episode return over environment steps.

    `stamp` is written across the picture ("untrained backbone").
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    done = [r for r in reports if r["success_rate"] is not None]
    steps = [r["steps"] for r in done]
    low, high = [r["success_low"] for r in done], [r["success_high"] for r in done]
    upper.fill_between(steps, low, high, alpha=0.25, linewidth=0, label="95 % interval (Wilson)")
    upper.plot(steps, [r["success_rate"] for r in done], label="success rate, last 200 episodes")
    upper.set(ylim=(-0.02, 1.02), ylabel="success rate", title=title)
    upper.legend(loc="best", frameon=False)
    lower.plot(steps, [r["episode_return"] for r in done])
    lower.set(xlabel="environment steps", ylabel="episode return")
    if stamp:
        figure.text(0.5, 0.5, stamp, color="red", alpha=0.4, fontsize=36, rotation=20, ha="center")
    figure.savefig(str(path), dpi=110)


def describe_machine() -> dict[str, str]:
    """Versions and hardware, as text: what a reader of the numbers needs to know."""
    import torch

    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["cpu_cores"] = str(os.cpu_count())
    facts["torch_threads"] = str(torch.get_num_threads())
    facts["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return facts


def write_environment(path: Path, **more: str) -> None:
    """`env.txt`: one `name: value` a line."""
    facts = {**describe_machine(), **more}
    write_text(path, "".join(f"{name}: {value}\n" for name, value in facts.items()))


def keep_freed_memory(megabytes: int = 256) -> None:
    """Let glibc keep that much freed memory instead of handing it back to the system.

    A minibatch of activations is freed and allocated anew in every step; with the default limits
    that means page faults each time (measured: without them PPO's update takes 2 to 14 % less).
    Elsewhere than on Linux with glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 32 << 20)  # the largest allowed
        mallopt(trim_threshold, megabytes << 20)


class StopSignal:
    """Ctrl-C or SIGTERM sets `requested`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping after this step; once more interrupts at once.", file=sys.stderr)
