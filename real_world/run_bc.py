"""Run a policy on an arm: `python real_world/run_bc.py robot=sim camera=sim policy=<folder>`.

Without words it runs the policy that we ship in the simulated arm, in real time.
"""

import fcntl
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from envs.spec import CONTROL_RATE_HZ, FRANKA, TASK_NAMES
from real_world.contracts import ARM_JOINTS, Camera, CameraError, RobotError
from real_world.guard import Guard
from real_world.limits import Limits
from real_world.loop import EpisodeLoop, LoopOptions, Outcome, observation
from real_world.pacing import Clock, VirtualClock, WallClock
from real_world.recorder import Recorder, RecorderError
from real_world.sim import SimCamera, SimRobot, SimWorld
from toto_robot.cli import parse
from toto_robot.runs import StopSignal, success_report, write_json

SHIPPED = Path(__file__).parent / "pretrained/franka_pick"
WARM_UPS = 10
# Of the arm's base, m: the table of the pick task and what is above it, the cabinet's front.
SIM_BOX_M = ((-0.1, -0.7, 0.0), (0.95, 0.7, 1.2))


@dataclass
class RunConfig:
    """Run a policy on an arm. Without options: the shipped policy on the simulated arm."""

    robot: Literal["sim"] = "sim"
    camera: Literal["sim"] = "sim"
    policy: Path = SHIPPED  # a policy folder: behaviour cloning, DAgger or PPO
    episodes: int = 3
    seconds: float = 8.0  # of an episode, at most
    hold_seconds: float = 1.0  # how long the policy goes on after success
    rate_hz: float | None = None  # of the policy; must be what it was trained at
    command_hz: float | None = None  # a multiple of it; None: the same
    camera_hz: float | None = None  # None: the policy's rate
    paced: bool = True  # false: as fast as it can on a virtual clock, the same every time
    threaded: bool = False  # the policy thinks beside the loop (slow backbones)
    blend: float = 0.0  # share of the older plan where plans overlap
    latency_ms: float = 0.0  # of the simulated camera
    jitter_ms: float = 0.0
    drop: float = 0.0  # share of simulated frames that never come
    box_m: tuple[float, ...] = ()  # x y z low, x y z high of the hand; needed for a real arm
    limits: Literal["task", "arm"] = "task"  # of speed: the task's own (7.5 rad/s), or Franka's
    speed_share: float = 1.0  # of the speed limits
    watchdog_ms: float = 250.0
    dry_run: bool = False  # say what would be sent, send nothing
    visuals: str = "fixed"
    seed: int = 0
    device: str = "cpu"
    headless: bool = True  # there is no window yet: films are written
    out: Path | None = None  # None: runs/real/<date and time>

    def __post_init__(self) -> None:
        for name in ("episodes", "seconds", "speed_share", "watchdog_ms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.box_m and len(self.box_m) != 6:
            raise ValueError(f"box_m={self.box_m}: expected six numbers, low and high corner")
        if not self.headless:
            raise ValueError("headless=false: there is no window yet; look at the films in out=")
        if self.speed_share > 1:
            raise ValueError(f"speed_share={self.speed_share}: expected 1 or less")

    def arm_limits(self) -> Limits:
        """Those of the task let every action of a simulator's policy through, joints and box apart."""
        box = (self.box_m[:3], self.box_m[3:]) if self.box_m else SIM_BOX_M
        limits = Limits(box_m=box)
        if self.limits == "task":
            fastest = tuple(CONTROL_RATE_HZ * step for step in FRANKA.action_step)
            limits = replace(
                limits,
                margin_rad=0.0,
                speed_rad_s=fastest[:ARM_JOINTS],
                acceleration_rad_s2=(1e4,) * ARM_JOINTS,
                gripper_speed_m_s=sum(fastest[ARM_JOINTS:]),
            )
        return replace(limits, speed_rad_s=tuple(self.speed_share * v for v in limits.speed_rad_s))


@dataclass
class Cell:
    """Arm, cameras and scene of a run."""

    robot: Guard
    cameras: list[Camera]
    clock: Clock
    world: SimWorld


def check_policy(spec: Any, config: RunConfig, cameras: Sequence[str]) -> None:
    """Raises ValueError unless the policy is one for this arm, these cameras and this rate."""
    wanted = [spec.camera] if isinstance(spec.camera, str) else list(spec.camera or [])
    problems = []
    if spec.obs != "pixels":
        problems.append(f"it reads {spec.obs}, which no camera gives")
    if spec.num_actions != FRANKA.num_actions or spec.num_states != FRANKA.num_states:
        problems.append(
            f"its actions and joints are {spec.num_actions} and {spec.num_states} numbers, this "
            f"arm's {FRANKA.num_actions} and {FRANKA.num_states}"
        )
    if len(cameras) != len(wanted):
        problems.append(f"it sees through {wanted}, here are {list(cameras)}")
    if config.rate_hz is not None and config.rate_hz != spec.control_rate_hz:
        problems.append(
            f"it acts at {spec.control_rate_hz} Hz, rate_hz={config.rate_hz:g} (its actions are "
            "steps of that length)"
        )
    if problems:
        raise ValueError(f"policy={config.policy} does not fit: " + "; ".join(problems))


def build_cell(config: RunConfig, spec: Any) -> Cell:
    """The arm and the cameras, not yet connected."""
    clock: Clock = WallClock() if config.paced else VirtualClock()
    world = SimWorld(spec.env, clock, config.seed, config.visuals)
    names = [spec.camera] if isinstance(spec.camera, str) else list(spec.camera)
    rate_hz = config.camera_hz or spec.control_rate_hz
    cameras: list[Camera] = [
        SimCamera(
            world,
            name,
            spec.image_size,
            rate_hz,
            config.latency_ms / 1000,
            config.jitter_ms / 1000,
            config.drop,
            config.seed,
        )
        for name in names
    ]
    command_hz = config.command_hz or spec.control_rate_hz
    robot = Guard(
        SimRobot(world, command_hz),
        config.arm_limits(),
        config.watchdog_ms / 1000,
        clock,
        config.dry_run,
    )
    return Cell(robot, cameras, clock, world)


def warm_up(policy: Any, cell: Cell) -> float:
    """Let the policy act on what the cameras see now, to no effect; ms of its slowest call after the
    first. The first calls of a network take many times what the others do."""
    frames = [camera.latest(timeout_s=2.0) for camera in cell.cameras]
    if any(frame is None for frame in frames):
        raise CameraError("a camera gave no frame within 2 s")
    obs = observation([frame.colour for frame in frames if frame], cell.robot.read())
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


def run(config: RunConfig) -> dict[str, Any]:
    """Play the episodes; returns what `report.json` holds. Raises ValueError, FileNotFoundError for
    what does not fit, RobotError, CameraError for what does not answer."""
    from policies.policy import load_policy, read_spec

    out = config.out or Path("runs/real") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if (out / "report.json").exists():
        raise ValueError(f"{out} holds a finished run: choose another out=")
    spec = read_spec(config.policy)
    if spec.env not in TASK_NAMES:
        raise ValueError(f"policy={config.policy} is of env={spec.env}; known: {list(TASK_NAMES)}")
    wanted = [spec.camera] if isinstance(spec.camera, str) else list(spec.camera or [])
    check_policy(spec, config, wanted)
    sys.setswitchinterval(5e-4)  # threads that wait for the interpreter get it sooner
    torch.set_num_threads(
        max(1, (os.cpu_count() or 2) // 2)
    )  # the rest is the world's and camera's
    policy = load_policy(config.policy, device=config.device)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(out))
        cell = build_cell(config, spec)
        stack.callback(cell.world.close)
        cell.robot.connect()
        stack.callback(cell.robot.close)
        for camera in cell.cameras:
            camera.connect()
            stack.callback(camera.close)
        slowest_ms = warm_up(policy, cell)
        print(f"warm-up: the policy's slowest call took {slowest_ms:.1f} ms")
        report = _episodes(config, spec, policy, cell, out)
    write_json(out / "report.json", report)
    return report


def _only_one(folder: Path) -> Any:
    """A lock on `folder`: a second runner is refused."""
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"another runner writes to {folder}: choose another out=") from None
    return file


def _episodes(config: RunConfig, spec: Any, policy: Any, cell: Cell, out: Path) -> dict[str, Any]:
    options = LoopOptions(
        policy_hz=spec.control_rate_hz,
        command_hz=config.command_hz or spec.control_rate_hz,
        max_seconds=config.seconds,
        hold_seconds=config.hold_seconds,
        threaded=config.threaded,
        blend=config.blend,
    )
    world, joints, rows = cell.world, [], []

    def judge() -> bool | None:
        return True if world.success else (False if world.failed else None)

    def record(row: Any) -> None:
        recorder.append(row)
        joints.append(world.task.engine.read()["qpos"][0].numpy().copy())

    about = {"options": {"env": spec.env, "control_rate_hz": spec.control_rate_hz}}
    with (
        Recorder(out / "episodes", about, {"env_name": spec.env}) as recorder,
        StopSignal() as stop,
    ):
        loop = EpisodeLoop(
            cell.robot, cell.cameras, policy, options, cell.clock, judge=judge,
            stop_asked=lambda: "signal" if stop.requested else "", record=record,
        )  # fmt: skip
        for number in tqdm(range(config.episodes), unit="episode", disable=config.episodes < 2):
            world.reset()
            joints.clear()
            cell.robot.connect()
            recorder.begin(policy=str(config.policy), seed=config.seed)
            gc.collect()
            gc.disable()  # no pause in an episode
            try:
                outcome = loop.run()
            finally:
                gc.enable()
            kept, recording = _keep(recorder, outcome)
            film = out / f"episode_{number:04d}.mp4"
            if joints:
                film_episode(film, world, joints, options.policy_hz)
            rows.append(
                {
                    "number": number,
                    **asdict(outcome),
                    "film": film.name if joints else None,
                    "file": str(kept.relative_to(out)) if kept else None,
                    "recording": recording,
                }
            )
            if outcome.success is None and outcome.end_reason == "time limit":
                rows[-1]["success"] = False  # the scene would have said so
            with (out / "episodes.jsonl").open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            tqdm.write(f"episode {number}: {outcome.end_reason} after {outcome.seconds:.1f} s")
            if outcome.fault or stop.requested:
                break
    played_s = sum(row["seconds"] for row in rows)
    judged = [float(row["success"]) for row in rows if row["success"] is not None]
    return {
        **success_report(judged),
        "policy": str(config.policy),
        "robot": config.robot,
        "camera": config.camera,
        "rate_hz": spec.control_rate_hz,
        "achieved_hz": sum(row["steps"] for row in rows) / played_s if played_s else 0.0,
        "deadlines": loop.deadlines.deadlines,
        "missed": loop.deadlines.missed,
        "latency_ms": loop.stages.report_ms(),
        "steps_not_recorded": recorder.dropped,
        "limit_events": cell.robot.events,
        "fault": rows[-1]["end_reason"] if rows and rows[-1]["fault"] else "",
        "episodes": rows,
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
        f"{report['missed']} of {report['deadlines']} deadlines missed",
        "stage      p50     p90     p99     max   ms",
    ]
    for stage, ms in report["latency_ms"].items():
        marks = "".join(f"{ms[key]:8.2f}" for key in ("p50", "p90", "p99", "max"))
        lines.append(f"{stage:9}{marks}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        config = parse(RunConfig, sys.argv[1:] if arguments is None else arguments)
        report = run(config)
    except (ValueError, FileNotFoundError, RobotError, CameraError, RecorderError) as error:
        raise SystemExit(f"run_bc: {error}") from None
    print(summary(report))
    if report["fault"]:
        raise SystemExit(f"run_bc: the arm holds: {report['fault']}")


if __name__ == "__main__":
    main()
