"""What a robot and a camera are. The loop, the limits and the recorder know nothing else of them.

Units are in the names. Times are `time.monotonic()` of this computer in seconds unless a name says
otherwise: clocks of devices drift and wrap, so watchdogs only ever trust the time of receipt.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, UInt8, UInt16

ARM_JOINTS = 7
Mode = Literal["ready", "reflex", "user_stopped", "lost"]  # "ready": takes targets


class RobotError(RuntimeError):
    """The robot cannot go on: not there, in a reflex, stopped by hand, connection lost."""


class CameraError(RuntimeError):
    """The camera cannot go on: not there, unplugged, no frames."""


@dataclass(frozen=True)
class Command:
    """Where the arm and the gripper should be next."""

    q_rad: Float[np.ndarray, " 7"]
    gripper_m: float  # width between the fingers, 0 closed


@dataclass(frozen=True)
class RobotState:
    """What the robot last said of itself.

    `robot_time_s` is the robot's own clock: when it stands still while `received_s` goes on, the
    values are old ones handed out again.
    """

    q_rad: Float[np.ndarray, " 7"]
    dq_rad_s: Float[np.ndarray, " 7"]
    gripper_m: float
    robot_time_s: float
    received_s: float
    gripper_m_s: float = 0.0  # speed of the width
    mode: Mode = "ready"
    message: str = ""  # of a mode that is not "ready": what the robot says


class Robot(Protocol):
    """An arm of seven joints with a gripper. The loop calls from one thread, `stop` from any.

    `rate_hz`: how often `send` may be called at most. Nothing imports a driver's library before
    `connect`, so that options can be listed without it.
    """

    name: str
    rate_hz: float

    def connect(self) -> None:
        """Be ready to take targets, holding still where the arm is. Raises RobotError saying what to
        do when nothing answers or the arm is in an error."""
        ...

    def read(self) -> RobotState:
        """The newest state, within 5 ms. A connection that is gone shows as mode `lost`; never an
        exception for that."""
        ...

    def send(self, command: Command) -> Command:
        """Set the target; returns what was really sent. Raises ValueError for a command that is not
        finite or has another shape (nothing is sent then), RobotError when the arm takes none."""
        ...

    def stop(self, reason: str) -> None:
        """Come to rest and hold there, moving fingers too; what is held stays held. From any thread,
        as often as you like, never raises. Takes no targets afterwards until `connect` is called again."""
        ...

    def close(self) -> None:
        """`stop`, then let go of the connection. May be called again."""
        ...


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera, pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class Frame:
    """One picture. `number` counts the camera's frames: jumps are frames that never came."""

    colour: UInt8[np.ndarray, "H W 3"]  # RGB
    number: int
    received_s: float
    device_time_s: float  # the camera's clock, of `device_clock`
    device_clock: Literal["host", "hardware"] = "host"
    depth: UInt16[np.ndarray, "H W"] | None = None  # aligned to `colour`
    depth_unit_m: float = 0.001


class Camera(Protocol):
    """A camera that captures in the background; only the newest frame counts."""

    name: str
    rate_hz: float

    def connect(self) -> None:
        """Start capturing, and return once a frame is there. Raises CameraError."""
        ...

    def latest(self, newer_than: int = -1, timeout_s: float = 0.0) -> Frame | None:
        """The newest frame, or None if none has a number above `newer_than` within the timeout.
        Raises CameraError once the camera is lost and restarting it did not help."""
        ...

    def intrinsics(self) -> Intrinsics: ...

    def close(self) -> None:
        """Stop capturing. May be called again."""
        ...


def check_command(command: Command) -> None:
    """Raises ValueError unless shape and numbers are those of a command."""
    q = np.asarray(command.q_rad)
    if q.shape != (ARM_JOINTS,):
        raise ValueError(f"q_rad must have shape ({ARM_JOINTS},), got {q.shape}: nothing was sent")
    if not np.isfinite(q).all() or not np.isfinite(command.gripper_m):
        raise ValueError(
            f"a command must be finite, got q_rad={q.tolist()} gripper_m={command.gripper_m}: "
            "nothing was sent"
        )
