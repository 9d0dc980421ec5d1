"""Send an episode again: `python real_world/replay.py episode=<file.hdf5> robot=sim`.

The arm goes slowly to where the episode began, then gets the targets that it really got then, at the
same rate and through the limits. Reported is how far its joints are from those that were recorded: what
an arm does of the same targets, today. Nothing is looked at, so things in its way are not avoided.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from policies.demonstrations import DemonstrationFile
from real_world.cell import Cell, open_cell
from real_world.cell_config import CellConfig
from real_world.contracts import ARM_JOINTS, CameraError, Command, RobotError
from real_world.homing import go_to
from real_world.keys import STOP_KEY, KeysError
from real_world.keys_open import open_keys
from real_world.pacing import Deadlines, Pacer
from real_world.record_demos import ACTION_SPACE
from toto_robot.cli import parse
from toto_robot.runs import StopSignal, write_json

COLUMNS = ("q_sent_rad", "q_rad")  # [T, 8]: 7 joints and the gripper's width


@dataclass(kw_only=True)
class ReplayConfig(CellConfig):
    """Send a recorded episode's targets to an arm again."""

    looks = False

    episode: Path
    demo: str = "demo_0"  # of a file with several
    rate_hz: int | None = None  # None: the recorded one; another is refused
    speed_rad_s: float = 0.2  # of the way to the start
    keys: Literal["auto", "terminal", "evdev", "none"] = "auto"
    stop_key: str = STOP_KEY
    out: Path | None = None  # a JSON file for what is reported


@dataclass(frozen=True)
class Recorded:
    """What is sent again, a row a step: joints (rad) and gripper width (m)."""

    rate_hz: float
    sent: Float[np.ndarray, "T 8"]
    measured: Float[np.ndarray, "T 8"]
    env: str
    scene: tuple[int, int] | None  # (seed, attempt), where a simulator recorded it


def read(config: ReplayConfig) -> Recorded:
    """Raises ValueError unless the episode is one of this arm, action space and rate."""
    with DemonstrationFile(config.episode) as file:
        demo, about = file.read(config.demo), file.about
    options = about.get("options", {})
    rate_hz, env = options.get("control_rate_hz"), options.get("env", "")
    problems = []
    robot = about.get("robot") or env.partition("_")[0] or "unknown"
    if robot != "franka":
        problems.append(f"it is of robot {robot}, this arm is a franka")
    space = about.get("action_space", ACTION_SPACE)
    missing = [key for key in COLUMNS if key not in demo.columns]
    if space != ACTION_SPACE or missing:
        problems.append(
            f"its actions are {space!r}, expected {ACTION_SPACE!r} with columns {COLUMNS}"
            + (
                f"; {missing} is missing, as in files that were not recorded on an arm"
                * bool(missing)
            )
        )
    if not rate_hz or (config.rate_hz or rate_hz) != rate_hz:
        problems.append(f"it was recorded at {rate_hz} Hz, rate_hz={config.rate_hz}")
    shapes = {demo.columns[key].shape[1:] for key in COLUMNS if key not in missing}
    if shapes - {(ARM_JOINTS + 1,)}:
        problems.append(f"its targets have {shapes} numbers, expected {ARM_JOINTS} and the gripper")
    if problems:
        raise ValueError(f"{config.episode} is not for this arm: " + "; ".join(problems))
    known = demo.facts.get("robot") == "sim" and "attempt" in demo.facts
    scene = (int(demo.facts["seed"]), int(demo.facts["attempt"])) if known else None
    sent, measured = (demo.columns[key].astype(float) for key in COLUMNS)
    return Recorded(float(rate_hz), sent, measured, env, scene)


def commands(recorded: Recorded, every: int) -> Float[np.ndarray, "N 8"]:
    """Targets at `every` times the recorded rate, on straight lines between the recorded ones."""
    steps = np.arange((len(recorded.sent) - 1) * every + 1) / every
    known = np.arange(len(recorded.sent))
    return np.stack([np.interp(steps, known, row) for row in recorded.sent.T], 1)


def replay(
    cell: Cell, recorded: Recorded, speed_rad_s: float, stop_asked: Callable[[], str]
) -> dict[str, Any]:
    """Go to the start and play; returns the report. Raises RobotError; the arm holds then."""
    robot, start = cell.robot, recorded.sent[0]
    if cell.world is not None and recorded.scene is not None:
        cell.world.task.line_up([recorded.scene])
        cell.world.reset()
    go_to(
        robot,
        recorded.measured[0, :ARM_JOINTS],
        float(start[ARM_JOINTS]),
        cell.clock,
        speed_rad_s,
        stop_asked,
    )
    every = max(1, round(robot.rate_hz / recorded.rate_hz))
    rows, before = commands(recorded, every), dict(robot.events)
    pacer = Pacer(cell.clock, every * recorded.rate_hz)
    deadlines, measured, changed = Deadlines(pacer.period_s), [], []
    try:
        for k, row in enumerate(rows):
            tick = pacer.wait()
            state = robot.read()
            if reason := stop_asked():
                raise RobotError(f"stopped: {reason}")
            if state.mode != "ready":
                raise RobotError(f"the arm is in mode {state.mode}: {state.message}")
            if k % every == 0:
                measured.append(state.q_rad)
            sent = robot.send(Command(row[:ARM_JOINTS], float(row[ARM_JOINTS])))
            changed.append(float(np.abs(sent.q_rad - row[:ARM_JOINTS]).max()))
            deadlines.count(tick, cell.clock.now())
    except BaseException as error:
        robot.stop(f"replay: {error}")
        raise
    robot.rest()
    events = {name: n - before.get(name, 0) for name, n in robot.events.items()}
    away = np.abs(np.array(measured) - recorded.measured[:, :ARM_JOINTS])
    return {
        "steps": len(measured),
        "rate_hz": recorded.rate_hz,
        "max_rad": float(away.max()),
        "mean_rad": float(away.mean()),
        "max_rad_by_joint": away.max(0).tolist(),
        "most_changed_by_limits_rad": max(changed),
        "limit_events": {name: n for name, n in events.items() if n},
        "deadlines": deadlines.deadlines,
        "missed": deadlines.missed,
        "success": bool(cell.world.success) if cell.world is not None else None,
    }


def run(config: ReplayConfig) -> dict[str, Any]:
    """Returns what is reported. Raises ValueError, FileNotFoundError, KeysError, RobotError."""
    recorded = read(config)
    env = recorded.env or "franka_pick"
    with StopSignal() as stop, open_cell(config, env, [], 64, recorded.rate_hz) as cell:
        keys = open_keys(config.keys, cell.robot.stop, config.stop_key)
        cell.stack.callback(keys.close)

        def stop_asked() -> str:
            return keys.stop_asked() or ("signal" if stop.requested else "")

        report = replay(cell, recorded, config.speed_rad_s, stop_asked)
    report = {"episode": str(config.episode), "robot": config.robot, **report}
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.out, report)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        report = run(parse(ReplayConfig, sys.argv[1:] if arguments is None else arguments))
    except (ValueError, FileNotFoundError, KeysError, RobotError, CameraError) as error:
        raise SystemExit(f"replay: {error}") from None
    print(json.dumps(report, indent=1))
    print(
        f"{report['steps']} steps at {report['rate_hz']:g} Hz: joints differ from the recorded ones by "
        f"{report['mean_rad']:.4f} rad on average, {report['max_rad']:.4f} rad at most"
    )


if __name__ == "__main__":
    main()
