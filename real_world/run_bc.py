"""Run a policy on an arm: `python real_world/run_bc.py robot=sim camera=sim policy=<folder>`.

Without words it runs the policy that we ship in the simulated arm, in real time. `robot=franky-sim
camera=realsense-software` is the whole stack of the real arm and camera without either. In a terminal:

    space: stop at once, and end the run   s success   f failure   q quit after this episode
    enter: open the hand and go home, and once more: start the episode (start=key, the default of a real arm)
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from real_world.cell import Cell, fit_picture, only_one, open_cell
from real_world.contracts import CameraError, Frame, RobotError
from real_world.episode_file import RecorderError
from real_world.keys import Keys, KeysError, NoKeys
from real_world.keys_open import open_keys
from real_world.live import Live, open_live
from real_world.loop import EpisodeLoop, LoopOptions, Outcome, observation
from real_world.measures import NAMES, StepMeasures
from real_world.pacing import no_pauses
from real_world.recorder import Recorder
from real_world.run_config import RunConfig, cameras_of, check_policy, loop_options
from real_world.run_files import write_options
from real_world.run_report import write_run_report
from real_world.sim import SimWorld
from real_world.teleop import HOMING, Verdict
from toto_robot.cli import parse
from toto_robot.runs import StopSignal, success_report, write_json

WARM_UPS = 10
REFUSALS = (RobotError, CameraError, RecorderError, KeysError)


def warm_up(policy: Any, cell: Cell, picture: Callable[[Frame], np.ndarray]) -> float:
    """Let the policy act on what the cameras see now, to no effect; ms of its slowest call after the
    first. The first calls of a network take many times what the others do."""
    frames = [camera.latest(timeout_s=2.0) for camera in cell.cameras]
    if any(frame is None for frame in frames):
        raise CameraError("a camera gave no frame within 2 s")
    obs = observation(
        [picture(frame) for frame in frames if frame], cell.robot.read(), cell.robot.target
    )
    times_ms = []
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            start = time.perf_counter()
            policy.plan(obs)
            times_ms.append(1000 * (time.perf_counter() - start))
    policy.reset()
    return max(times_ms[1:])


def film_episode(path: Path, world: SimWorld, joints: Sequence[np.ndarray], rate_hz: float) -> None:
    """An episode seen from outside and through the wrist camera, from the recorded states."""
    from policies.film import EpisodeFilm

    task, ids = world.task, torch.tensor([0])
    with world.lock, EpisodeFilm(path, task, 1, rate_hz=rate_hz, every=1) as film:
        for qpos in joints:
            task.engine.reset(ids, torch.tensor(qpos[None], dtype=torch.float32))
            film({})


def new_folder() -> Path:
    return Path("runs/real") / time.strftime("%Y-%m-%d_%H-%M-%S")


def run(config: RunConfig) -> dict[str, Any]:
    """Play the episodes; returns what `report.json` holds. Raises ValueError, FileNotFoundError for
    what does not fit, RobotError, CameraError for what does not answer."""
    from policies.policy import load_policy, read_spec

    out = config.out or new_folder()
    if (out / "report.json").exists():
        raise ValueError(f"{out} holds a finished run: choose another out=")
    spec = read_spec(config.policy)
    check_policy(spec, config)
    assert spec.image_size is not None  # as it reads pixels
    sys.setswitchinterval(5e-4)  # threads that wait for the interpreter get it sooner
    torch.set_num_threads(
        max(1, (os.cpu_count() or 2) // 2)
    )  # the rest is the world's and camera's
    policy = load_policy(config.policy, device=config.device)
    out.mkdir(parents=True, exist_ok=True)
    hz, picture = spec.control_rate_hz, fit_picture(spec.image_size)
    about = {"options": {"env": spec.env, "control_rate_hz": hz}, **NAMES}
    with (
        only_one(out / ".lock", f"{out}: choose another out="),
        open_live(out, config.log, config.headless, cameras_of(spec)) as live,
        open_cell(config, spec.env, cameras_of(spec), spec.image_size, hz) as cell,
        Recorder(out / "episodes", about, {"env_name": spec.env}) as recorder,
        StopSignal() as stop,
    ):
        keys = open_keys(config.keys, cell.robot.stop, config.stop_key)
        cell.stack.callback(keys.close)
        if isinstance(keys, NoKeys) and (config.by_key or config.deadman_key):
            raise KeysError("start=key and deadman_key= need keys: a terminal, or keys=evdev")
        slowest_ms = warm_up(policy, cell, picture)
        options = loop_options(config, spec, slowest_ms)
        print(
            f"warm-up: the policy's slowest call took {slowest_ms:.1f} ms; commands leave "
            f"{1000 * options.send_after_s:.1f} ms into a tick"
        )
        write_options(out, config, options.policy_hz, options.command_hz)
        session = Session(config, policy, picture, options, cell, recorder, live, stop, keys, out)
        for number in tqdm(range(config.episodes), unit="episode", disable=config.episodes < 2):
            outcome = session.episode(number)
            if outcome is None:
                break
            tqdm.write(f"episode {number}: {outcome.end_reason} after {outcome.seconds:.1f} s")
            if outcome.fault or outcome.end_reason.startswith("stopped"):
                break
        report = session.report()
    write_json(out / "report.json", report)
    return report


class Session:
    """Episodes one after another, each kept when it ends."""

    def __init__(
        self,
        config: RunConfig,
        policy: Any,
        picture: Callable[[Frame], np.ndarray],
        options: LoopOptions,
        cell: Cell,
        recorder: Recorder,
        live: Live,
        stop: StopSignal,
        keys: Keys,
        out: Path,
    ):
        self.config, self.cell, self.recorder, self.live, self.out = (
            config, cell, recorder, live, out,
        )  # fmt: skip
        self._signal, self._keys, self.verdict = stop, keys, Verdict(keys)
        self._moving = False
        self.rows: list[dict[str, Any]] = []
        self._joints: list[np.ndarray] = []  # of the scene, for its film
        self.loop = EpisodeLoop(
            cell.robot, cell.cameras, policy, options, cell.clock,
            picture=picture, judge=self._judge,
            stop_asked=self._stop_asked, record=self._record,
        )  # fmt: skip
        self._measures = StepMeasures(self.loop.stages, self.loop.deadlines, cell.robot.events)

    def _judge(self) -> bool | None:
        self.verdict.listen()
        world = self.cell.world
        if self.verdict.success is not None or world is None:
            return self.verdict.success
        return True if world.success else (False if world.failed else None)

    def _stop_asked(self) -> str:
        if self._moving and not self._held():
            return f"{self.config.deadman_key} was let go"
        return self._keys.stop_asked() or ("signal" if self._signal.requested else "")

    def _held(self) -> bool:
        key = self.config.deadman_key
        return not key or self._keys.held(key)

    def _record(self, row: Mapping[str, Any]) -> None:
        row = {**row, **self._measures()}
        self.recorder.append(row)
        self.live.step(row)
        if self.cell.world is not None:
            fields = self.cell.world.task.engine.read()
            self._joints.append(fields["qpos"][0].numpy().copy())

    def episode(self, number: int) -> Outcome | None:
        """Home, play, keep the file and the film; None: the person quits."""
        self._joints.clear()
        if self.cell.homes and not self._allowed(f"episode {number}", HOMING):
            return None
        try:
            self._moving = self.cell.homes
            self.cell.begin_episode(self._stop_asked)
        except RobotError as error:
            return self._kept(number, Outcome(None, str(error), True, 0, 0.0))
        finally:
            self._moving = False
        if not self._allowed(f"episode {number}", "starts it"):
            return None
        self.recorder.begin(policy=str(self.config.policy), seed=self.config.seed)
        self.live.begin(number)
        self._measures()  # what came before, homing say, is no step's
        self._moving = True
        with no_pauses():
            outcome = self.loop.run()
        self._moving = False
        timed_out = outcome.end_reason == "time limit" and self.cell.world is not None
        if outcome.success is None and (outcome.fault or timed_out):
            outcome.success = (
                False  # a fault is no success; of success the scene would have said so
            )
        if self.verdict.success is False:  # said after the scene's, or the person's own, success
            outcome.success = False
        return self._kept(number, outcome)

    def _allowed(self, what: str, does: str) -> bool:
        """Wait for the person's key, where there is one; False: to quit, or to stop."""
        by_key, deadman = self.config.by_key, self.config.deadman_key
        keys = ["enter"] * by_key + [f"holding {deadman}"] * bool(deadman)
        if keys:
            tqdm.write(f"{what}: {', then '.join(keys)} {does}, q quits")
        allowed = self.verdict.wait(self.cell.clock, self._stop_asked, by_key, self._held)
        self.verdict.begin()
        return allowed

    def _kept(self, number: int, outcome: Outcome) -> Outcome:
        """File, film, line of `episodes.jsonl`."""
        kept, recording = _keep(self.recorder, outcome)
        film = self.out / f"episode_{number:04d}.mp4"
        if self._joints and self.cell.world is not None:
            film_episode(film, self.cell.world, self._joints, self.loop.options.policy_hz)
        self.rows.append(
            {
                "number": number,
                **asdict(outcome),
                "film": film.name if self._joints else None,
                "file": str(kept.relative_to(self.out)) if kept else None,
                "recording": recording,
            }
        )
        self.live.end(self.rows[-1])
        with (self.out / "episodes.jsonl").open("a") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        return outcome

    def report(self) -> dict[str, Any]:
        played_s = sum(row["seconds"] for row in self.rows)
        judged = [float(row["success"]) for row in self.rows if row["success"] is not None]
        return {
            **success_report(judged),
            "policy": str(self.config.policy),
            "robot": self.config.robot,
            "camera": self.config.camera,
            "rate_hz": self.loop.options.policy_hz,
            "send_after_ms": 1000 * self.loop.options.send_after_s,
            "achieved_hz": sum(row["steps"] for row in self.rows) / played_s if played_s else 0.0,
            "deadlines": self.loop.deadlines.deadlines,
            "missed": self.loop.deadlines.missed,
            "plans": self.loop.plans,
            "late_plans": self.loop.late_plans,
            "latency_ms": self.loop.stages.report_ms(),
            "steps_not_recorded": self.recorder.dropped,
            "steps_not_shown": self.live.dropped,
            "limit_events": self.cell.robot.events,
            "fault": self.rows[-1]["end_reason"] if self.rows and self.rows[-1]["fault"] else "",
            "episodes": self.rows,
        }


def _keep(recorder: Recorder, outcome: Outcome) -> tuple[Path | None, str]:
    """The episode's file, and why it could not be completed ("" if it was)."""
    if not outcome.steps:
        recorder.abandon()
        return None, ""
    try:
        return recorder.end(bool(outcome.success), outcome.end_reason), recorder.failure
    except RecorderError as error:  # the report is written all the same, and says so
        return None, str(error)


def summary(report: dict[str, Any]) -> str:
    lines = [
        f"{report['achieved_hz']:.2f} Hz (wanted {report['rate_hz']:g}); "
        f"{report['missed']} of {report['deadlines']} deadlines missed; {report['late_plans']} of "
        f"{report['plans']} plans came a tick late",
        "stage      p50     p90     p99     max   ms",
    ]
    for stage, ms in report["latency_ms"].items():
        marks = "".join(f"{ms[key]:8.2f}" for key in ("p50", "p90", "p99", "max"))
        lines.append(f"{stage:9}{marks}")
    return "\n".join(lines)


def _page(out: Path) -> None:
    """Draw the run; what cannot be drawn is said, the run itself is on disk."""
    try:
        print(f"report: {write_run_report(out).resolve()}")
    except (ValueError, OSError) as error:
        print(f"no page about the run: {error}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        config = parse(RunConfig, sys.argv[1:] if arguments is None else arguments)
        config.out = config.out or new_folder()
        report = run(config)
    except (ValueError, FileNotFoundError, ImportError, *REFUSALS) as error:
        raise SystemExit(f"run_bc: {error}") from None
    print(summary(report))
    _page(config.out)
    if report["fault"]:
        raise SystemExit(f"run_bc: the arm holds: {report['fault']}")


if __name__ == "__main__":
    main()
