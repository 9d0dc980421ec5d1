"""Run a policy on an arm: `python real_world/run_bc.py robot=sim camera=sim policy=<folder>`.

Without words it runs the policy that we ship in the simulated arm, in real time. `robot=franky-sim
camera=realsense-software` is the whole stack of the real arm and camera without either. In a terminal:

    space: stop at once, and end the run   s success   f failure   q quit after this episode
    enter: start the next episode (start=key, the default of a real arm)
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from envs.spec import FRANKA, TASK_NAMES
from real_world.cell import Cell, CellConfig, fit_picture, only_one, open_cell
from real_world.contracts import CameraError, Frame, RobotError
from real_world.keys import STOP_KEY, Keys, KeysError, NoKeys, open_keys
from real_world.live import Live, open_live
from real_world.loop import EpisodeLoop, LoopOptions, Outcome, observation
from real_world.measures import NAMES, StepMeasures
from real_world.pacing import no_pauses
from real_world.recorder import Recorder, RecorderError
from real_world.run_files import write_options
from real_world.run_report import write_run_report
from real_world.sim import SimWorld
from real_world.teleop import Verdict
from toto_robot.cli import parse
from toto_robot.runs import StopSignal, success_report, write_json

SHIPPED = Path(__file__).parent / "pretrained/franka_pick"
WARM_UPS = 10
SLACK = 1.5  # the policy is given so many times the longest that it took before the start
LATEST = 0.6  # share of a tick after which its command leaves, however slow the policy is
REFUSALS = (RobotError, CameraError, RecorderError, KeysError)


@dataclass(kw_only=True)
class RunConfig(CellConfig):
    """Run a policy on an arm. Without options: the shipped policy on the simulated arm."""

    policy: Path = SHIPPED  # a policy folder: behaviour cloning, DAgger or PPO
    episodes: int = 3
    seconds: float = 8.0  # of an episode, at most
    hold_seconds: float = 1.0  # how long the policy goes on after success
    rate_hz: float | None = None  # of the policy; must be what it was trained at
    threaded: bool | None = None  # the policy thinks beside the loop, which is on time whatever it
    # takes and plays the older plan on; None: if there is one, in real time
    send_after_ms: float | None = (
        None  # of a tick, when its command leaves; None: as the policy needs
    )
    blend: float = 0.0  # share of the older plan where plans overlap
    max_age_ms: float = 250.0  # of a frame; an older one ends the run
    missed_in_a_row: int = 5  # deadlines that end the run
    start: Literal["key", "auto"] | None = None  # of an episode; None: key for a real arm
    keys: Literal["auto", "terminal", "evdev", "none"] = "auto"
    stop_key: str = STOP_KEY
    deadman_key: str = ""  # must be held all the time, or the arm stops (keys=evdev hears it best)
    device: str = "cpu"
    log: Literal["none", "rrd"] = "none"  # rrd: everything into run.rrd, for rerun (extra `live`)
    headless: bool = True  # false: a live view, in rerun's window or a web page
    out: Path | None = None  # None: runs/real/<date and time>

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("episodes", "seconds", "max_age_ms", "missed_in_a_row"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")

    @property
    def by_key(self) -> bool:
        """Whether an episode waits for a key."""
        return self.start == "key" or (self.start is None and not self.simulated)


def check_policy(spec: Any, config: RunConfig) -> None:
    """Raises ValueError unless the policy is one for this arm and this rate."""
    problems = []
    if spec.env not in TASK_NAMES:
        problems.append(f"it is of env={spec.env}; known: {list(TASK_NAMES)}")
    if spec.obs != "pixels":
        problems.append(f"it reads {spec.obs}, which no camera gives")
    if spec.num_actions != FRANKA.num_actions or spec.num_states != FRANKA.num_states:
        problems.append(
            f"its actions and joints are {spec.num_actions} and {spec.num_states} numbers, this "
            f"arm's {FRANKA.num_actions} and {FRANKA.num_states}"
        )
    if config.rate_hz is not None and config.rate_hz != spec.control_rate_hz:
        problems.append(
            f"it acts at {spec.control_rate_hz} Hz, rate_hz={config.rate_hz:g} (its actions are "
            "steps of that length)"
        )
    if problems:
        raise ValueError(f"policy={config.policy} does not fit: " + "; ".join(problems))


def cameras_of(spec: Any) -> list[str]:
    return [spec.camera] if isinstance(spec.camera, str) else list(spec.camera or [])


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


def replan_every(spec: Any) -> int:
    """As in its evaluation; a policy with a context is shown every frame."""
    return spec.bc.replan_every if spec.bc and spec.bc.context == 1 else 1


def thinks_beside(config: RunConfig, spec: Any) -> bool:
    """A plan that comes too late for its tick is no loss where the one before reaches further."""
    if config.threaded is not None:
        return config.threaded
    return config.paced and bool(spec.bc) and spec.bc.chunk > spec.bc.replan_every


def send_after_s(config: RunConfig, slowest_ms: float, command_hz: float) -> float:
    """When in a tick its command leaves. Sent when the policy is done, commands would come as unevenly as
    it computes. On the virtual clock computing takes no time."""
    if config.send_after_ms is not None:
        return config.send_after_ms / 1000
    if not config.paced:
        return 0.0
    return min(SLACK * slowest_ms / 1000, LATEST / command_hz)


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
        command_hz, slowest_ms = config.command_hz or hz, warm_up(policy, cell, picture)
        after_s = send_after_s(config, slowest_ms, command_hz)
        print(
            f"warm-up: the policy's slowest call took {slowest_ms:.1f} ms; commands leave "
            f"{1000 * after_s:.1f} ms into a tick"
        )
        write_options(out, config, hz, command_hz)
        options = LoopOptions(
            policy_hz=hz,
            command_hz=command_hz,
            max_seconds=config.seconds,
            hold_seconds=config.hold_seconds,
            max_frame_age_s=config.max_age_ms / 1000,
            missed_in_a_row=config.missed_in_a_row,
            replan_every=replan_every(spec),
            threaded=thinks_beside(config, spec),
            send_after_s=after_s,
            blend=config.blend,
        )
        session = Session(config, spec, policy, cell, recorder, live, stop, keys, out, options)
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
        spec: Any,
        policy: Any,
        cell: Cell,
        recorder: Recorder,
        live: Live,
        stop: StopSignal,
        keys: Keys,
        out: Path,
        options: LoopOptions,
    ):
        self.config, self.cell, self.recorder, self.live, self.out = (
            config, cell, recorder, live, out,
        )  # fmt: skip
        self._signal, self._keys, self.verdict = stop, keys, Verdict(keys)
        self._playing = False
        self.rows: list[dict[str, Any]] = []
        self._joints: list[np.ndarray] = []  # of the scene, for its film
        self.loop = EpisodeLoop(
            cell.robot, cell.cameras, policy, options, cell.clock,
            picture=fit_picture(spec.image_size), judge=self._judge,
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
        key = self.config.deadman_key
        if self._playing and key and not self._keys.held(key):
            return f"{key} was let go"
        return self._keys.stop_asked() or ("signal" if self._signal.requested else "")

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
        try:
            self.cell.begin_episode(self._stop_asked)
        except RobotError as error:
            return self._kept(number, Outcome(None, str(error), True, 0, 0.0))
        if not self._started(number):
            return None
        self.recorder.begin(policy=str(self.config.policy), seed=self.config.seed)
        self.live.begin(number)
        self._measures()  # what came before, homing say, is no step's
        self._playing = True
        with no_pauses():
            outcome = self.loop.run()
        self._playing = False
        timed_out = outcome.end_reason == "time limit" and self.cell.world is not None
        if outcome.success is None and (outcome.fault or timed_out):
            outcome.success = (
                False  # a fault is no success; of success the scene would have said so
            )
        if self.verdict.success is False:  # said after the scene's, or the person's own, success
            outcome.success = False
        return self._kept(number, outcome)

    def _started(self, number: int) -> bool:
        if self.config.by_key:
            tqdm.write(f"episode {number}: enter starts it, q quits")
        started = self.verdict.wait(self.cell.clock, self._stop_asked, self.config.by_key)
        self.verdict.begin()
        return started

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
    except (ValueError, FileNotFoundError, *REFUSALS) as error:
        raise SystemExit(f"run_bc: {error}") from None
    print(summary(report))
    _page(config.out)
    if report["fault"]:
        raise SystemExit(f"run_bc: the arm holds: {report['fault']}")


if __name__ == "__main__":
    main()
