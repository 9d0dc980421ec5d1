"""Record demonstrations on an arm: `python real_world/record_demos.py robot=sim device=expert n=240`.

A key (or nothing, `start=auto`) opens the hand and moves the arm home, once more it starts an episode, a
person or an expert moves the arm through the guard's limits, and the simulator, or the person by a key,
says how it ended:

    enter go home, start   s success   f failure   d discard   q quit   space: stop at once, and end the command

Every episode is a file of its own (`real_world.recorder`), complete or repaired at the next start. The
same command goes on until `n` successes are there. `python -m toto_robot.convert source=<out>` makes
one file of them for the trainer, or a LeRobotDataset.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from envs.spec import TASK_NAMES
from policies.demonstrations import DemonstrationFile
from policies.recorded import DELAY, EPISODES, successes
from real_world.cell import HOME_RAD, Cell, fit_picture, open_cell
from real_world.cell_config import CellConfig
from real_world.contracts import ARM_JOINTS, CameraError, RobotError
from real_world.devices import Device, DeviceError, Keyboard, SpaceMouse
from real_world.episode_file import RecorderError
from real_world.homing import NEAR_RAD
from real_world.keys import STOP_KEY, Keys, KeysError, NoKeys
from real_world.keys_open import open_keys
from real_world.live import Live, open_live
from real_world.loop import EpisodeLoop, LoopOptions, Outcome
from real_world.measures import NAMES, StepMeasures
from real_world.pacing import no_pauses
from real_world.recorder import Recorder
from real_world.teleop import HOMING, HandGuide, SceneExpert, Teleoperator, Verdict
from toto_robot.backbone.weights import nearest
from toto_robot.cli import parse
from toto_robot.runs import StopSignal, success_report, write_json

ACTION_SPACE = "joint target changes"  # as in envs.vec_task
HAND_TORQUE_NM, HAND_FORCE_N = 40.0, 60.0  # a leading hand must not count as a collision
HOPELESS = 20  # attempts of an expert without a success, after which it is given up


@dataclass(kw_only=True)
class RecordConfig(CellConfig):
    """Record demonstrations on an arm. Without options: the scripted expert in the simulated one."""

    device: Literal["expert", "keyboard", "spacemouse", "kinesthetic"] = "expert"
    env: str = "franka_pick"  # of the scene, and what the files say they are of
    n: int = 240  # successes in the folder when done
    out: Path | None = None  # None: data/real/<env>
    cameras: tuple[str, ...] = ("wrist",)
    image_size: int = 128  # px, the middle square of a camera's picture
    rate_hz: int = 30  # of looking and acting
    seconds: float = 20.0  # of an episode, at most
    hold_seconds: float = 0.5  # how long an episode goes on after success
    start: Literal["key", "auto"] | None = None  # of an episode; None: auto for the expert
    keys: Literal["auto", "terminal", "evdev", "none"] = "auto"
    stop_key: str = STOP_KEY
    deadman_key: str = ""  # the device moves the arm only while it is held; none: it always does
    linear_m_s: float = 0.1  # of keyboard and SpaceMouse
    angular_rad_s: float = 0.4
    home_rad: tuple[float, ...] = ()  # 7; none: the simulated task's
    keep_failures: bool = False  # as files, beside the successes
    max_age_ms: float = 250.0  # of a frame; an older one ends the command
    log: Literal["none", "rrd"] = "none"  # rrd: everything into run.rrd, for rerun (extra `live`)
    headless: bool = True  # false: a live view, in rerun's window or a web page

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env not in TASK_NAMES:
            raise ValueError(f"env={self.env} does not exist.{nearest(self.env, TASK_NAMES)}")
        for name in ("n", "image_size", "rate_hz", "seconds", "linear_m_s", "angular_rad_s",
                     "max_age_ms"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.home_rad and len(self.home_rad) != ARM_JOINTS:
            raise ValueError(f"home_rad={self.home_rad}: expected {ARM_JOINTS} numbers")
        if self.device == "expert" and not self.simulated:
            raise ValueError("device=expert sees the whole scene: it needs robot=sim or franky-sim")
        if self.device != "expert" and not self.paced:
            raise ValueError(f"paced=false device={self.device}: a person needs real time")
        if self.device == "kinesthetic" and self.dry_run:
            raise ValueError(
                "dry_run=true device=kinesthetic: an arm that is led moves. Leave one out"
            )
        if self.device == "kinesthetic":
            self.torque_threshold_nm = self.torque_threshold_nm or HAND_TORQUE_NM
            self.force_threshold_n = self.force_threshold_n or HAND_FORCE_N

    @property
    def folder(self) -> Path:
        return self.out or Path("data/real") / self.env

    @property
    def by_key(self) -> bool:
        """Whether an episode waits for a key."""
        return self.start == "key" or (self.start is None and self.device != "expert")

    @property
    def home(self) -> np.ndarray:
        return np.array(self.home_rad) if self.home_rad else HOME_RAD

    def about(self) -> dict[str, Any]:
        """What every episode's file says of itself."""
        options = {"env": self.env, "control_rate_hz": self.rate_hz, "image_size": self.image_size,
                   "cameras": list(self.cameras)}  # fmt: skip
        return {"options": options, "robot": "franka", "action_space": ACTION_SPACE}


class Session:
    """Episodes one after another until enough of them succeeded."""

    def __init__(
        self,
        config: RecordConfig,
        cell: Cell,
        keys: Keys,
        recorder: Recorder,
        live: Live,
        stop: StopSignal,
    ):
        self.config, self.cell, self.recorder, self.live = config, cell, recorder, live
        self._keys, self._signal, self.verdict = keys, stop, Verdict(keys)
        self._attempts = config.folder / "attempts.jsonl"
        self.rows = read_attempts(self._attempts)
        self.kept = len(successes(config.folder))
        self.operator = make_operator(config, cell, keys)
        options = LoopOptions(
            policy_hz=config.rate_hz,
            command_hz=config.command_hz or config.rate_hz,
            max_seconds=config.seconds,
            hold_seconds=config.hold_seconds,
            max_frame_age_s=config.max_age_ms / 1000,
        )
        self.loop = EpisodeLoop(
            cell.robot, cell.cameras, self.operator, options, cell.clock,
            picture=fit_picture(config.image_size), judge=self._judge,
            stop_asked=self._stop_asked, record=self._record,
        )  # fmt: skip
        self._measures = StepMeasures(self.loop.stages, self.loop.deadlines, cell.robot.events)

    def _record(self, row: Mapping[str, Any]) -> None:
        row = {**row, **self._measures()}
        self.recorder.append(row)
        self.live.step(row)

    def _stop_asked(self) -> str:
        return self._keys.stop_asked() or ("signal" if self._signal.requested else "")

    def _judge(self) -> bool | None:
        said, world = self.verdict, self.cell.world
        said.listen()
        if said.discard or said.success is not None:
            return said.success if not said.discard else False
        if world is None:
            return None
        return True if world.success else (False if world.failed else None)

    def record(self) -> str:
        """Episodes until there are `n` successes; returns why it ended otherwise, or ""."""
        config, new = self.config, 0
        if self.kept >= config.n:
            tqdm.write(
                f"nothing to record: {config.folder} holds {self.kept} demonstrations, n={config.n}. "
                "For more, a larger n= or another folder, out="
            )
        with tqdm(total=config.n, initial=self.kept, unit="demo", desc="recording") as bar:
            while self.kept < config.n:
                if self.cell.homes and not self._allowed(HOMING):
                    return self._stop_asked()
                self._home()
                if not self._allowed("starts it"):
                    return self._stop_asked()
                self._check_home()
                outcome = self._episode()
                bar.update(self.kept - bar.n)
                new += outcome.success is True
                tried = sum(row["success"] is not None for row in self.rows)
                bar.set_postfix(success=f"{self.kept}/{tried}", steps=outcome.steps)
                if outcome.fault or outcome.end_reason.startswith("stopped"):
                    return outcome.end_reason
                if config.device == "expert" and not new and len(self.rows) >= HOPELESS:
                    return f"no success in {len(self.rows)} episodes"
        return ""

    def _home(self) -> None:
        """The arm at home, a scene begun anew as episode number `attempt` of this seed."""
        name = (self.config.seed, len(self.rows))
        self.cell.begin_episode(self._stop_asked, self.config.home, name)

    def _allowed(self, does: str) -> bool:
        """Wait for the person's key, if there is one; False: to quit, or to stop."""
        if self.config.by_key:
            tqdm.write(f"episode {len(self.rows)}: enter {does}, q quits")
        return self.verdict.wait(self.cell.clock, self._stop_asked, self.config.by_key)

    def _check_home(self) -> None:
        state = self.cell.robot.read()
        away = float(np.abs(state.q_rad - self.config.home).max())
        scene = self.config.robot == "sim"  # whose reset puts the arm near its start
        if state.mode != "ready" or (away > NEAR_RAD and not scene):
            raise RobotError(f"the arm is {state.mode}, {away:.3f} rad from home: not started")

    def _episode(self) -> Outcome:
        config, attempt = self.config, len(self.rows)
        facts = {"device": config.device, "robot": config.robot, "seed": config.seed,
                 "attempt": attempt, DELAY: self.operator.delay_steps}  # fmt: skip
        self.verdict.begin()
        self.recorder.begin(**facts)
        self.live.begin(attempt)
        self._measures()  # what came before, homing say, is no step's
        with no_pauses():
            outcome = self.loop.run()
        self.operator.done()
        if self.verdict.discard or self.verdict.success is False:
            outcome.success = False
        reason = "discarded" if self.verdict.discard else outcome.end_reason
        path = self._keep(outcome, reason)
        success = None if self.verdict.discard else bool(outcome.success)
        row = {**asdict(outcome), "attempt": attempt, "success": success, "end_reason": reason,
               "file": path.name if path else None}  # fmt: skip
        self.rows.append(row)
        self.live.end({"number": attempt, **row})
        self.kept += bool(success and path)
        with self._attempts.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return outcome

    def _keep(self, outcome: Outcome, reason: str) -> Path | None:
        """Successes stay, and what ended by a fault or a stop; failures if they are wanted."""
        stopped = outcome.fault or reason.startswith("stopped")
        wanted = outcome.success or stopped or self.config.keep_failures
        if not outcome.steps or self.verdict.discard or not wanted:
            self.recorder.abandon()
            return None
        try:
            return self.recorder.end(bool(outcome.success), reason)
        except RecorderError as error:
            tqdm.write(str(error))
            return None

    def report(self) -> dict[str, Any]:
        judged = [float(row["success"]) for row in self.rows if row["success"] is not None]
        steps = sum(row["steps"] for row in self.rows)
        seconds = sum(row["seconds"] for row in self.rows)
        return {
            **success_report(judged),
            "kept": self.kept,
            "steps": steps,
            "rate_hz": self.config.rate_hz,
            "achieved_hz": steps / seconds if seconds else 0.0,
            "deadlines": self.loop.deadlines.deadlines,
            "missed": self.loop.deadlines.missed,
            "latency_ms": self.loop.stages.report_ms(),
            "limit_events": self.cell.robot.events,
        }


def make_operator(
    config: RecordConfig, cell: Cell, keys: Keys
) -> SceneExpert | HandGuide | Teleoperator:
    """Who moves the arm. Raises KeysError, DeviceError, RobotError: something is missing."""
    if config.device == "expert":
        assert cell.world is not None
        return SceneExpert(cell.world, cell.robot, config.rate_hz)
    by_hand = config.device == "keyboard" or config.by_key or bool(config.deadman_key)
    if isinstance(keys, NoKeys) and by_hand:
        raise KeysError(f"device={config.device} needs keys: start it in a terminal, or keys=evdev")
    if config.device == "kinesthetic":
        return HandGuide(cell.robot, keys, config.rate_hz)
    speeds = (config.linear_m_s, config.angular_rad_s)
    device: Device = Keyboard(keys, *speeds) if config.device == "keyboard" else SpaceMouse(*speeds)
    device.connect()
    cell.stack.callback(device.close)

    def deadman() -> bool:
        return not config.deadman_key or keys.held(config.deadman_key)

    return Teleoperator(device, cell.robot, config.rate_hz, deadman, config.home)


def read_attempts(path: Path) -> list[dict[str, Any]]:
    """Without a last line that a kill cut off."""
    lines = path.read_text().split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1] if line]


def check_same(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises ValueError if the folder's episodes are of another task, rate, camera or action space."""
    for path in sorted(folder.glob(EPISODES))[:1]:
        with DemonstrationFile(path) as file:
            kept = {key: file.about.get(key) for key in about}
        if kept != about:
            raise ValueError(f"{folder} holds episodes of {kept}, not {dict(about)}: another out=")


def run(config: RecordConfig) -> tuple[dict[str, Any], str]:
    """Record; returns what `report.json` holds, and why it ended early, or "".

    Raises ValueError, KeysError, DeviceError, RobotError, CameraError, RecorderError.
    """
    folder = config.folder
    env_args = {"env_name": f"toto_robot/{TASK_NAMES[config.env]}-v0", "type": 2, "env_kwargs": {}}
    with Recorder(folder, {**config.about(), **NAMES}, env_args) as recorder, StopSignal() as stop:
        check_same(folder, config.about())
        for path in recorder.repaired:
            print(f"{path} was cut off by a kill; it is complete now, as a failure")
        with (
            open_live(folder, config.log, config.headless, config.cameras) as live,
            open_cell(
                config, config.env, config.cameras, config.image_size, config.rate_hz
            ) as cell,
        ):
            keys = open_keys(config.keys, cell.robot.stop, config.stop_key)
            cell.stack.callback(keys.close)
            session = Session(config, cell, keys, recorder, live, stop)
            try:
                ended = session.record()
            finally:
                write_json(folder / "report.json", session.report())
        return session.report(), ended


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        config = parse(RecordConfig, sys.argv[1:] if arguments is None else arguments)
        report, ended = run(config)
    except (ValueError, KeysError, DeviceError, RobotError, CameraError, RecorderError) as error:
        raise SystemExit(f"record_demos: {error}") from None
    rate, low, high = (report[f"success_{name}"] for name in ("rate", "low", "high"))
    share = f"{rate:.1%} [{low:.1%}, {high:.1%}]" if rate is not None else "none"
    print(
        f"{config.folder}: {report['kept']} demonstrations of {config.n}; {report['episodes']} "
        f"episodes, success {share}; {report['missed']} of {report['deadlines']} deadlines missed"
    )
    if ended:
        raise SystemExit(f"record_demos: ended early: {ended}; the same command goes on")


if __name__ == "__main__":
    main()
