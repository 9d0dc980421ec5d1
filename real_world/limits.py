"""What an arm may be told: a pure function from a wanted target to one within every limit.

Nothing is remembered but the last target and its speed, which the caller holds. In this order:

- joints stay `margin_rad` away from their ends, the gripper within its width;
- no joint target moves faster than `speed_rad_s` (all slow down together, so the path stays the same),
  changes speed faster than `acceleration_rad_s2`, or comes nearer to an end of its joint than it can
  brake for;
- the hand stays in the box. A target outside goes as far along the way as is inside. This one limit
  may stop a target harder than `acceleration_rad_s2`: staying inside comes first.

A target that is outside at the start (an arm put there by hand) may only move back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from envs.spec import FRANKA
from real_world.contracts import ARM_JOINTS, Command, check_command
from real_world.kinematics import hand_position

Row = tuple[float, ...]
Box = tuple[Row, Row]
BISECTIONS = 20
# Ends of an FR3's joints, rad, which are not a Panda's everywhere.
FR3_LOWER = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
FR3_UPPER = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)
EVENTS = ("joint", "speed", "acceleration", "box", "gripper")  # which limit changed a target


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of joint targets. Rows run over the 7 joints; their ends are those of the simulated Panda.

    Speeds: 9/10 of what Franka's documents allow (2.175 rad/s for joints 1 to 4, 2.61 for the others).
    `box_m` has no wide default on purpose: it is the room that the arm may use, low and high corner
    for the point between the fingers in the base's frame.
    """

    box_m: Box
    lower_rad: Row = FRANKA.lower[:ARM_JOINTS]
    upper_rad: Row = FRANKA.upper[:ARM_JOINTS]
    margin_rad: float = 0.02
    speed_rad_s: Row = (1.95,) * 4 + (2.34,) * 3
    acceleration_rad_s2: Row = (10.0,) * ARM_JOINTS
    gripper_m: tuple[float, float] = (0.0, 0.08)
    gripper_speed_m_s: float = 0.2

    def __post_init__(self) -> None:
        for name in ("lower_rad", "upper_rad", "speed_rad_s", "acceleration_rad_s2"):
            row = getattr(self, name)
            if len(row) != ARM_JOINTS or not np.isfinite(row).all():
                raise ValueError(f"{name}={row}: expected {ARM_JOINTS} finite numbers")
        low, high = np.array(self.box_m)
        if low.shape != (3,) or not (low < high).all():
            raise ValueError(f"box_m={self.box_m}: expected a low and a high corner (x, y, z), m")
        room = np.subtract(self.upper_rad, self.lower_rad) - 2 * self.margin_rad
        if self.margin_rad < 0 or (room <= 0).any():
            raise ValueError(f"margin_rad={self.margin_rad} leaves a joint no room to move")
        if min(*self.speed_rad_s, *self.acceleration_rad_s2, self.gripper_speed_m_s) <= 0:
            raise ValueError("speeds and accelerations must be positive")

    def within(self, lower_rad: Row, upper_rad: Row) -> "Limits":
        """The same, with joints that stay inside these ends (rad) as well."""
        lower = tuple(np.maximum(self.lower_rad, lower_rad).tolist())
        upper = tuple(np.minimum(self.upper_rad, upper_rad).tolist())
        return replace(self, lower_rad=lower, upper_rad=upper)


@dataclass(frozen=True)
class Limited:
    """A target within the limits, its speed, and which limits changed it."""

    command: Command
    speed_rad_s: Float[np.ndarray, " 7"]
    events: tuple[str, ...] = field(default=())


def limit(
    wanted: Command,
    last: Command,
    last_speed_rad_s: Float[np.ndarray, " 7"],
    dt_s: float,
    limits: Limits,
    position: Callable[[np.ndarray], np.ndarray] = hand_position,
) -> Limited:
    """`wanted` made safe to send `dt_s` after `last`.

    Raises ValueError for a command that is not finite or has another shape, or dt_s <= 0.
    """
    check_command(wanted)
    if not dt_s > 0:
        raise ValueError(f"dt_s={dt_s}: expected more than 0")
    events: list[str] = []
    lower = np.minimum(np.array(limits.lower_rad) + limits.margin_rad, last.q_rad)
    upper = np.maximum(np.array(limits.upper_rad) - limits.margin_rad, last.q_rad)
    q = np.clip(wanted.q_rad, lower, upper)
    _note(events, "joint", q, wanted.q_rad)

    speed = (q - last.q_rad) / dt_s
    slower = speed / max(1.0, float((np.abs(speed) / limits.speed_rad_s).max()))
    _note(events, "speed", slower, speed)
    change = np.array(limits.acceleration_rad_s2) * dt_s
    smooth = np.clip(slower, last_speed_rad_s - change, last_speed_rad_s + change)
    braking = _braking_speed(upper - last.q_rad, limits, dt_s)
    backing = _braking_speed(last.q_rad - lower, limits, dt_s)
    smooth = np.clip(smooth, -backing, braking)
    _note(events, "acceleration", smooth, slower)

    share = _share_inside(last.q_rad, smooth * dt_s, limits.box_m, position)
    if share < 1:
        events.append("box")
    speed = share * smooth
    gripper = _limit_gripper(wanted.gripper_m, last.gripper_m, dt_s, limits)
    _note(events, "gripper", np.array(gripper), np.array(wanted.gripper_m))
    return Limited(Command(last.q_rad + speed * dt_s, gripper), speed, tuple(events))


def _braking_speed(room_rad: np.ndarray, limits: Limits, dt_s: float) -> np.ndarray:
    """The fastest speed v that still stops within `room_rad` when it loses a·dt at every step.

    Steps of v, v - a dt, v - 2 a dt, ... cover dt ((n+1) v - a dt n(n+1)/2) with n = floor(v / a dt);
    that is linear in v for each n, hence the inverse.
    """
    a = np.array(limits.acceleration_rad_s2)
    room = np.maximum(room_rad, 0.0)
    n = np.floor((np.sqrt(1 + 8 * room / (a * dt_s**2)) - 1) / 2)
    return (room / dt_s + a * dt_s * n * (n + 1) / 2) / (n + 1)


def _share_inside(q: np.ndarray, step: np.ndarray, box: Box, position) -> float:
    """The largest share of `step`, found by halving, after which the hand is in the box, or no
    farther outside than before."""
    allowed = _outside(position(q), box)

    def fits(share: float) -> bool:
        return _outside(position(q + share * step), box) <= allowed + 1e-9

    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _outside(point: np.ndarray, box: Box) -> float:
    """Distance to the box, m; 0 inside."""
    low, high = np.array(box)
    return float(np.linalg.norm(np.maximum(np.maximum(low - point, point - high), 0.0)))


def _limit_gripper(wanted_m: float, last_m: float, dt_s: float, limits: Limits) -> float:
    width = min(max(wanted_m, limits.gripper_m[0]), limits.gripper_m[1])
    step = limits.gripper_speed_m_s * dt_s
    return min(max(width, last_m - step), last_m + step)


def _note(events: list[str], name: str, now: np.ndarray, before: np.ndarray) -> None:
    if not np.allclose(now, before, rtol=0, atol=1e-9):
        events.append(name)
