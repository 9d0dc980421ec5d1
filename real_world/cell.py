"""A robot, its cameras and the scene they are in, as `CellConfig` names them."""

import contextlib
import fcntl
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from envs.spec import CONTROL_RATE_HZ, FRANKA, SERVO_LAG_S
from real_world.cell_config import CellConfig
from real_world.contracts import ARM_JOINTS, Camera, Command, Frame, Robot, RobotError, RobotState
from real_world.guard import Guard
from real_world.homing import go_to
from real_world.pacing import Clock, VirtualClock, WallClock
from real_world.sim import STILL_M_S, SimCamera, SimRobot, SimWorld

HOME_RAD = np.array(FRANKA.default_pose[:ARM_JOINTS])
HOME_GRIPPER_M = float(sum(FRANKA.default_pose[ARM_JOINTS:]))
REAL_CAMERA_HZ = 30.0
SCENE_SETTLES_S = 0.5


@dataclass
class Cell:
    """Arm, cameras and scene, connected. `world` is None where everything is real."""

    config: CellConfig
    robot: Guard
    cameras: list[Camera]
    clock: Clock
    world: SimWorld | None
    stack: ExitStack = field(repr=False)

    def __enter__(self) -> "Cell":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def homes(self) -> bool:
        """Whether an episode begins with a way home and an open hand: a simulated scene's reset puts the
        arm at its start, and in a dry run nothing moves."""
        return self.config.robot != "sim" and not self.config.dry_run

    def begin_episode(
        self,
        stop_asked: Callable[[], str],
        home_rad: Float[np.ndarray, " 7"] = HOME_RAD,
        episode: tuple[int, int] | None = None,
    ) -> None:
        """The arm at home, at rest (in a dry run where it is); a scene begun anew, as the episode (seed,
        number) if one is named.

        Raises RobotError: it did not get there, or was stopped on the way.
        """
        if reason := stop_asked():  # whoever stopped the arm must not find it taking targets again
            self.robot.stop(reason)
            raise RobotError(f"no episode was begun: {reason}")
        if self.robot.stopped:
            self.robot.connect()
        if self.homes:
            go_to(self.robot, home_rad, HOME_GRIPPER_M, self.clock, stop_asked=stop_asked)
        if self.world is None:
            return
        if episode is not None:
            self.world.task.line_up([episode])
        self.world.reset()
        # A frame of the old scene must not be the first of the new one; and the scene's arm comes to
        # where franky-sim's is.
        wait_s = max((1 / camera.rate_hz for camera in self.cameras), default=0.0)
        if self.config.robot == "franky-sim":
            wait_s = max(wait_s, SCENE_SETTLES_S)
        self.clock.sleep_until(self.clock.now() + wait_s)


class Shadowed:
    """A robot whose measured joints the arm of a scene follows, so that the scene's cameras see what
    that arm does, and things in the scene are moved by it. A real_world.contracts.Robot.

    The scene's arm follows its target like a spring with a damper, which lag by SERVO_LAG_S times the
    speed: its target leads by so much. The hand is the scene's: only there is something to close it around.
    """

    def __init__(self, robot: Robot, world: SimWorld):
        self.robot, self.world = robot, world
        self.name, self.rate_hz = robot.name, robot.rate_hz
        self._gripper_m = HOME_GRIPPER_M
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""

    def connect(self) -> None:
        self.robot.connect()
        self.world.start()
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._follow, name="shadow", daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        try:
            while not self._closing.wait(1 / CONTROL_RATE_HZ):
                state = self.robot.read()
                if state.mode != "lost":
                    q = state.q_rad + SERVO_LAG_S * state.dq_rad_s
                    target = torch.tensor([*q, *[self._gripper_m / 2] * 2], dtype=torch.float32)
                    with self.world.lock:
                        self.world.target = target
        except BaseException as error:  # or cameras would show a scene that stands still
            self._failure = f"{type(error).__name__}: {error}"
            raise

    def read(self) -> RobotState:
        if self._failure:
            raise RobotError(f"the scene's arm no longer follows: {self._failure}")
        q, dq = (part[ARM_JOINTS:].sum() for part in self.world.joints())
        return replace(self.robot.read(), gripper_m=float(q), gripper_m_s=float(dq))

    def send(self, command: Command) -> Command:
        sent = self.robot.send(command)
        self._gripper_m = sent.gripper_m
        return sent

    def stop(self, reason: str) -> None:
        self.robot.stop(reason)
        with contextlib.suppress(RobotError):  # of a scene that stands still
            q, dq = (part[ARM_JOINTS:] for part in self.world.joints())
            if np.abs(dq).max() > STILL_M_S:  # else they may hold something
                self._gripper_m = float(q.sum())

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None
        self.robot.close()


def only_one(path: Path, what: str) -> IO[str]:
    """A lock on the file `path`, held until it is closed. ValueError: someone else has it."""
    try:
        file = _shared(path)
    except PermissionError:
        raise ValueError(
            f"{path} is another user's and may not be written: have it removed once nobody uses {what}"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"another runner uses {what}") from None
    return file


def _shared(path: Path) -> IO[str]:
    """The file opened to write, for every user. One of another user's in /tmp may be opened, not created
    (Linux' protected_regular)."""
    if path.exists():
        return path.open("r+")
    file = path.open("w")
    path.chmod(0o666)
    return file


def fit_picture(size_px: int) -> Callable[[Frame], np.ndarray]:
    """What a policy is shown of a camera frame: its middle square, averaged or interpolated to
    uint8 [size_px, size_px, 3]."""

    def fit(frame: Frame) -> np.ndarray:
        height, width, _ = frame.colour.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frame.colour[top : top + side, left : left + side]
        if side == size_px:
            return square
        pixels = torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1)[None].float()
        small = F.interpolate(pixels, size_px, mode="bilinear", antialias=True)
        return small[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()

    return fit


def open_cell(
    config: CellConfig, env: str, cameras: Sequence[str], image_size: int, rate_hz: float
) -> Cell:
    """Connect arm and cameras; close the cell, or use it as a context manager.

    Args:
        env: the scene's task, where there is a scene.
        cameras: what the policy calls its cameras; those of a scene have these names.
        image_size: px of a simulated camera's square picture.
        rate_hz: of the policy.

    Raises:
        ValueError: the robot is in use, or the cameras are not as many.
        RobotError, CameraError: something does not answer; what was open is closed again.
    """
    clock: Clock = WallClock() if config.paced else VirtualClock()
    with ExitStack() as stack:
        world = None
        if config.simulated:  # then there is a scene
            world = SimWorld(env, clock, config.seed, config.visuals)
            stack.callback(world.close)
        arm = _arm(config, world, config.command_hz or rate_hz, stack)
        robot = Guard(arm, config.arm_limits(), config.watchdog_ms / 1000, clock, config.dry_run)
        stack.callback(robot.close)
        robot.connect()
        opened = _cameras(config, world, cameras, image_size, rate_hz, stack)
        for camera in opened:
            stack.callback(camera.close)
            camera.connect()
        return Cell(config, robot, opened, clock, world, stack.pop_all())


def _arm(config: CellConfig, world: SimWorld | None, rate_hz: float, stack: ExitStack) -> Robot:
    if config.robot == "sim":
        assert world is not None
        return SimRobot(world, rate_hz)
    from real_world.franka import Franka
    from real_world.franka_twin import FrankaTwin

    springs: dict[str, Any] = {}
    if config.stiffness_nm_rad:
        springs["stiffness_nm_rad"] = config.stiffness_nm_rad
    if config.torque_step_nm:
        springs["max_torque_step_nm"] = config.torque_step_nm
    if config.torque_threshold_nm:
        springs["torque_threshold_nm"] = config.torque_threshold_nm
    if config.force_threshold_n:
        springs["force_threshold_n"] = config.force_threshold_n
    if config.robot == "franka":
        lock = Path(tempfile.gettempdir()) / f"toto_robot-{config.host.replace('/', '_')}.lock"
        stack.enter_context(only_one(lock, f"the arm at {config.host}"))
        return Franka(config.host, rate_hz=rate_hz, recover=config.recover, **springs)
    assert world is not None
    twin = stack.enter_context(FrankaTwin())
    return Shadowed(Franka(twin.host, realtime="ignore", rate_hz=rate_hz, **springs), world)


def _cameras(
    config: CellConfig,
    world: SimWorld | None,
    names: Sequence[str],
    image_size: int,
    rate_hz: float,
    stack: ExitStack,
) -> list[Camera]:
    """Not yet connected, in the order of `names`; none for none."""
    if not names:
        return []
    if config.camera == "sim":
        assert world is not None
        late = (config.latency_ms / 1000, config.jitter_ms / 1000, config.drop, config.seed)
        hz = config.camera_hz or rate_hz
        return [SimCamera(world, name, image_size, hz, *late) for name in names]
    from real_world.realsense import RealSense

    hz = config.camera_hz or REAL_CAMERA_HZ
    if config.camera == "realsense-software":
        assert world is not None
        from real_world.realsense_twin import SoftwareRealSense

        found = []
        for name in names:
            source = partial(world.picture, name, image_size)
            twin = stack.enter_context(SoftwareRealSense(source, hz))
            camera = RealSense(
                find_device=twin.find_device,
                reset=twin.reset,
                width=image_size,
                height=image_size,
                rate_hz=hz,
            )
            found.append(camera)
    else:
        width, height = config.camera_px
        places: list[dict[str, Any]] = (
            [{"recording": path} for path in config.recording]
            if config.camera == "recording"
            else [{"serial": serial} for serial in config.serial or ("",)]
        )
        found = [RealSense(**place, width=width, height=height, rate_hz=hz) for place in places]
    if len(found) != len(names):
        raise ValueError(
            f"camera={config.camera} gives {len(found)} camera(s), the policy sees through "
            f"{list(names)}: give as many serial= or recording="
        )
    for camera, name in zip(found, names, strict=True):
        camera.name = name  # pyright: ignore[reportAttributeAccessIssue] - what the policy calls it
    return list(found)
