"""One page about a run: `python real_world/run_report.py run=<folder of run_bc>`.

Writes `index.html`, `run.png` and `joints_NNNN.png` into that folder, whether the run has ended by
itself, with a fault, was killed or still goes on. What a person says of an episode afterwards,
`success=0:true,3:false`, goes into `verdicts.jsonl`; the page shows it beside the recorded verdict.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from real_world.live import FILE
from real_world.run_figures import MARKS, draw_joints, draw_run
from real_world.run_files import (
    RUNNING,
    Episode,
    RunFolder,
    add_verdicts,
    load_run,
    parse_verdicts,
)
from toto_robot.cli import parse
from toto_robot.runs import success_report, write_text

TEMPLATE = "run_page.html.jinja"
PICTURE = "run.png"


@dataclass(kw_only=True)
class RunReportConfig:
    """Write a page about a run of run_bc into its folder."""

    run: Path  # the folder
    success: tuple[str, ...] = ()  # what a person says: 0:true,3:false; 3:none takes it back
    pictures: int = 12  # of joints, at most: faults first, then failures

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures={self.pictures}: expected 0 or more")


def rate(verdicts: Sequence[bool | None]) -> dict[str, Any]:
    """Wilson 95 % interval over those that were judged, and how many were not."""
    judged = [float(v) for v in verdicts if v is not None]
    return {**success_report(judged), "successes": sum(judged), "all": len(verdicts)}


def state_of(run: RunFolder) -> str:
    """How the run itself ended."""
    if run.running:
        return RUNNING
    if run.report:
        fault = run.report["fault"]
        return f"a fault, the arm holds: {fault}" if fault else "ended"
    return "killed before its end: no report.json"


def latency_rows(run: RunFolder) -> tuple[dict[str, dict[str, float]], str]:
    """Stage -> marks in ms, and of what."""
    if run.report:
        return run.report["latency_ms"], "of every call"
    rows = {}
    for stage, ms in run.latencies_ms().items():
        if len(ms):
            marks = {name: float(np.percentile(ms, share)) for name, share in MARKS.items()}
            rows[stage] = {**marks, "max": float(ms.max())}
    return rows, "of the steps on disk"


def timing(run: RunFolder) -> dict[str, Any]:
    """Deadlines and rate, from the report or from the steps that are on disk."""
    report = run.report
    period_s = run.period_s("policy_hz")
    if report:
        known = {key: report[key] for key in ("deadlines", "missed", "achieved_hz", "rate_hz")}
        dropped = {k: report.get(k, 0) for k in ("steps_not_recorded", "steps_not_shown")}
        return {**known, **dropped, "least": False}
    sent = [e.columns["t_sent_s"] for e in run.episodes if "t_sent_s" in e.columns]
    passed_s = sum(float(t[-1] - t[0]) for t in sent)
    return {
        "deadlines": sum(e.steps for e in run.episodes),
        "missed": sum(e.missed for e in run.episodes),
        "achieved_hz": sum(len(t) - 1 for t in sent) / passed_s if passed_s > 0 else None,
        "rate_hz": 1 / period_s if period_s else None,
        "least": True,  # the last step's own deadline is not on disk
    }


def draw_pictures(run: RunFolder, most: int) -> dict[int, str]:
    """Episode -> file of its joints, of the `most` that one wants to see first."""
    order = sorted(run.episodes, key=lambda e: (not e.fault, bool(e.success), e.number))
    drawn = {}
    for episode in sorted(order[:most], key=lambda e: e.number):
        name = f"joints_{episode.number:04d}.png"
        if draw_joints(run.folder / name, episode):
            drawn[episode.number] = name
    return drawn


def limits_of(episodes: Sequence[Episode]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for episode in episodes:
        total.update(episode.limit_events)
    return dict(total.most_common())


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %".replace("100.0", "100")


def verdict(value: bool | None) -> str:
    return {True: "success", False: "no success", None: "–"}[value]


def plain(value: Any) -> str:
    """An option as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(plain, value)) if isinstance(value, list) else str(value)


def render(**content: Any) -> str:
    """The page. Values are escaped."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    pages.filters |= {f.__name__: f for f in (percent, verdict, plain)}
    return pages.get_template(TEMPLATE).render(**content)


def write_run_report(folder: Path, pictures: int = RunReportConfig.pictures) -> Path:
    """Write the page and its pictures into `folder`; returns the page. ValueError: no episodes."""
    return _write(load_run(folder), pictures)


def _write(run: RunFolder, pictures: int) -> Path:
    latencies, of_what = latency_rows(run)
    options = run.options.get("options", {})
    page = render(
        title=f"Run {run.folder.resolve().name}",
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        state=state_of(run),
        bad=not run.running and state_of(run) != "ended",
        policy=run.report.get("policy") or options.get("policy", "unknown"),
        robot=run.report.get("robot") or options.get("robot", "unknown"),
        camera=run.report.get("camera") or options.get("camera", "unknown"),
        virtual=options.get("paced") is False,
        episodes=run.episodes,
        automatic=rate([e.success for e in run.episodes]),
        by_hand=rate([e.by_hand for e in run.episodes]),
        differ=[e.number for e in run.episodes if None not in (e.by_hand, e.success)
                and e.by_hand != e.success],
        ends=Counter(e.end_reason for e in run.episodes).most_common(),
        timing=timing(run),
        period_s=run.period_s("command_hz"),
        latencies=latencies,
        of_what=of_what,
        picture=PICTURE if draw_run(run.folder / PICTURE, run) else None,
        joints=draw_pictures(run, pictures),
        limits=limits_of(run.episodes),
        log=FILE if (run.folder / FILE).exists() else None,
        folder=run.folder,
        options=options,
        machine=run.options.get("machine", {}),
    )  # fmt: skip
    write_text(run.folder / "index.html", page)
    return run.folder / "index.html"


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        config = parse(RunReportConfig, sys.argv[1:] if arguments is None else arguments)
        run = load_run(config.run)
        if config.success:
            add_verdicts(run, parse_verdicts(config.success))
        page = _write(run, config.pictures)
    except ValueError as error:
        raise SystemExit(f"run_report: {error}") from None
    told = {
        "as recorded": [e.success for e in run.episodes],
        "by hand": [e.by_hand for e in run.episodes],
    }
    for name, verdicts in told.items():
        if (found := rate(verdicts))["episodes"]:
            interval = f"[{percent(found['success_low'])}, {percent(found['success_high'])}]"
            print(f"success, {name}: {found['successes']:g} of {found['episodes']}, "
                  f"{percent(found['success_rate'])} {interval}")  # fmt: skip
    print(page.resolve())


if __name__ == "__main__":
    main()
