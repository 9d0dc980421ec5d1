"""What a hand moves an arm with: keyboard and SpaceMouse. One small contract, one class each.

Directions are those of the arm's base (x forward, y to the left, z up), as seen from behind the arm.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from real_world.keys import Keys

GRIPPER_M_S = 0.08  # the fingers open or close in a second


class DeviceError(RuntimeError):
    """A device is missing or lost. Says what to do."""


@dataclass(frozen=True)
class Twist:
    """How the hand should move: of the point between the fingers, in the frame of the arm's base."""

    linear_m_s: Float[np.ndarray, " 3"] = field(default_factory=lambda: np.zeros(3))
    angular_rad_s: Float[np.ndarray, " 3"] = field(default_factory=lambda: np.zeros(3))
    gripper_m_s: float = 0.0  # of the width between the fingers; above 0 they open

    def __post_init__(self) -> None:
        numbers = np.concatenate([self.linear_m_s, self.angular_rad_s, [self.gripper_m_s]])
        if numbers.shape != (7,) or not np.isfinite(numbers).all():
            raise ValueError(f"expected 3, 3 and 1 finite numbers, got {self}")


class Device(Protocol):
    name: str

    def connect(self) -> None:
        """Raises DeviceError saying what to do."""
        ...

    def read(self) -> Twist | None:
        """The present twist; None while nobody touches it: the arm holds. Never waits. Raises
        DeviceError once the device is lost."""
        ...

    def close(self) -> None:
        """May be called again."""
        ...


class Fingers:
    """The gripper goes on closing, or opening, after the key or button was let go."""

    def __init__(self) -> None:
        self._m_s = 0.0

    def __call__(self, closes: bool, opens: bool) -> float:
        if closes != opens:
            self._m_s = -GRIPPER_M_S if closes else GRIPPER_M_S
        return self._m_s


class Keyboard:
    """Keys that move the hand while they are held: arrows forward, back, left and right, page up and
    page down; i k, j l, u o turn it about y, z, x; c closes and v opens the fingers.

    Each is a dead-man key itself. In a terminal one at a time (see `real_world.keys`).
    """

    name = "keyboard"
    LINEAR = {"up": (0, 1), "down": (0, -1), "left": (1, 1), "right": (1, -1),
              "page up": (2, 1), "page down": (2, -1)}  # fmt: skip
    ANGULAR = {"u": (0, -1), "o": (0, 1), "i": (1, -1), "k": (1, 1), "j": (2, 1), "l": (2, -1)}

    def __init__(self, keys: Keys, linear_m_s: float = 0.1, angular_rad_s: float = 0.4):
        self._keys, self._speeds, self._fingers = keys, (linear_m_s, angular_rad_s), Fingers()

    def connect(self) -> None:
        """Nothing to do: `real_world.keys` says what is missing."""

    def read(self) -> Twist | None:
        linear, angular = (
            self._sum(keys, speed)
            for keys, speed in zip((self.LINEAR, self.ANGULAR), self._speeds, strict=True)
        )
        gripper_m_s = self._fingers(self._keys.held("c"), self._keys.held("v"))
        if not (linear.any() or angular.any() or gripper_m_s):
            return None
        return Twist(linear, angular, gripper_m_s)

    def _sum(self, directions: dict[str, tuple[int, int]], speed: float) -> np.ndarray:
        total = np.zeros(3)
        for key, (axis, sign) in directions.items():
            total[axis] += speed * sign * self._keys.held(key)
        return total

    def close(self) -> None: ...


INSTALL_HINT = (
    "A SpaceMouse needs pyspacemouse and the system's hidapi, which could not be loaded ({error}). "
    'Type: pip install -e ".[teleop]" && sudo apt-get install libhidapi-hidraw0'
)
MISSING_HINT = (
    "No SpaceMouse answers ({error}). Plug it in (lsusb shows 3Dconnexion, 256f:…); allow its use: a "
    'udev rule KERNEL=="hidraw*", ATTRS{{idVendor}}=="256f", MODE="0660", GROUP="plugdev", then '
    "plug it in again; stop other programs that read it (spacenavd)"
)


class SpaceMouse:
    """A 3Dconnexion SpaceMouse by pyspacemouse: its cap moves the hand, its first button closes the
    fingers, the second opens them.

    It reports all the time while it is deflected, so a deflection that no report has renewed for
    `SILENT_S` counts as let go: of a mouse that hangs the last one would stay for ever.
    """

    name = "spacemouse"
    DEADBAND = 0.08  # share of the full way: a resting hand
    SILENT_S = 0.25
    MOST_REPORTS = 64  # waiting ones, read at once: the newest counts

    def __init__(
        self,
        linear_m_s: float = 0.15,
        angular_rad_s: float = 0.6,
        library: Callable[[], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._speeds, self._fingers = (linear_m_s, angular_rad_s), Fingers()
        self._library, self._clock = library or load_pyspacemouse, clock
        self._mouse: Any = None

    def connect(self) -> None:
        library = self._library()
        try:
            self._mouse = library.open(axis_convention="ros")
        except Exception as error:  # easyhid's own has no other base
            hint = INSTALL_HINT if "HID API" in str(error) else MISSING_HINT
            raise DeviceError(hint.format(error=error)) from error
        self._stamp, self._renewed_s = None, self._clock()

    def read(self) -> Twist | None:
        if self._mouse is None:
            raise DeviceError("the SpaceMouse is not connected: connect() first")
        try:
            state = self._newest()
        except Exception as error:  # as above: unplugged
            raise DeviceError(f"the SpaceMouse is lost: {error}") from error
        linear = self._cap(state.x, state.y, state.z)
        angular = self._cap(state.roll, state.pitch, state.yaw)
        deflected = bool(linear.any() or angular.any())
        buttons = [*state.buttons, 0, 0]
        gripper_m_s = self._fingers(bool(buttons[0]), bool(buttons[1]))
        if deflected and self._clock() - self._renewed_s > self.SILENT_S:
            return None
        if not (deflected or gripper_m_s):
            return None
        return Twist(self._speeds[0] * linear, self._speeds[1] * angular, gripper_m_s)

    def _newest(self) -> Any:
        """Read all reports that wait: each is of the translation, the rotation or the buttons."""
        state = self._mouse.read()
        for _ in range(self.MOST_REPORTS):
            if state.t == self._stamp:
                break
            self._stamp, self._renewed_s = state.t, self._clock()
            state = self._mouse.read()
        return state

    def _cap(self, *values: float) -> Float[np.ndarray, " 3"]:
        """-1 to 1 with a flat middle, from 0 on where that ends."""
        raw = np.clip(values, -1, 1)
        size = np.maximum(np.abs(raw) - self.DEADBAND, 0) / (1 - self.DEADBAND)
        return np.sign(raw) * size

    def close(self) -> None:
        mouse, self._mouse = self._mouse, None
        if mouse is not None:
            mouse.close()


def load_pyspacemouse() -> Any:
    """The library. Raises DeviceError saying what to install."""
    try:
        import pyspacemouse  # pyright: ignore[reportMissingImports]

        return pyspacemouse
    except (ImportError, OSError, AttributeError) as error:
        raise DeviceError(INSTALL_HINT.format(error=error)) from error
