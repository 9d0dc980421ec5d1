"""Named levels of randomisation, and visual shifts: what looks otherwise when a policy is tested.

A level is what a policy may be trained under; a shift is a test that it has not seen, one kind of
change at a time, well beyond the mild level. Shifts compose: `light+camera`, `all`. The ranges are
ours.
"""

import difflib
from dataclasses import dataclass, replace

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class VisualLevel:
    """Ranges are uniform, deviations normal and cut at twice their value."""

    colour: Range  # factor on each body's colour, per channel
    new_colours: float  # probability for each surface; above 0 floor, cube and props always
    textures: float  # probability of another texture on the floor, and on table or cabinet
    light: Range  # factor on brightness
    ambient: Range  # light from everywhere, added
    light_turn: float  # deviation added to the light's direction, a unit vector
    wrist_camera_m: float  # deviation of the place of a camera on the robot
    room_camera_m: float  # and of one in the room
    camera_rad: float  # and of their directions
    fovy_deg: float  # and of their opening
    orbit: bool = False  # the third-person camera anywhere on a hemisphere
    distractors: int = 0  # things that do not belong there (`envs.distractors`)


@dataclass(frozen=True, kw_only=True)
class DynamicsLevel:
    """Log-uniform factors."""

    friction: Range  # one of all contacts
    mass: Range  # of each loose body, and of its inertia
    stiffness: Range  # of each drive
    damping: Range  # of each drive
    joint_damping: Range  # one of all passive joint damping


_STRONG = VisualLevel(
    colour=(0.8, 1.1), new_colours=0.4, textures=0.6,
    light=(0.3, 1.2), ambient=(0.0, 0.05), light_turn=0.3,
    wrist_camera_m=0.004, room_camera_m=0.08, camera_rad=0.04, fovy_deg=2.0,
)  # fmt: skip
VISUAL_LEVELS = {
    "mild": VisualLevel(
        colour=(0.95, 1.05), new_colours=0.0, textures=0.0,
        light=(0.7, 1.2), ambient=(0.0, 0.05), light_turn=0.1,
        wrist_camera_m=0.002, room_camera_m=0.02, camera_rad=0.01, fovy_deg=0.5,
    ),
    "strong": _STRONG,
    "film": replace(  # of pre-training films
        _STRONG, textures=0.0, light=(0.3, 1.6), ambient=(0.0, 0.0), orbit=True
    ),
}  # fmt: skip
DYNAMICS_LEVELS = {
    "mild": DynamicsLevel(friction=(0.8, 1.25), mass=(0.8, 1.25), stiffness=(0.9, 1.1),
                          damping=(0.9, 1.1), joint_damping=(0.8, 1.25)),
    "strong": DynamicsLevel(friction=(0.5, 2.0), mass=(0.5, 2.0), stiffness=(0.75, 1.33),
                            damping=(0.75, 1.33), joint_damping=(0.5, 2.0)),
}  # fmt: skip

_UNCHANGED = VisualLevel(
    colour=(1.0, 1.0), new_colours=0.0, textures=0.0,
    light=(1.0, 1.0), ambient=(0.0, 0.0), light_turn=0.0,
    wrist_camera_m=0.0, room_camera_m=0.0, camera_rad=0.0, fovy_deg=0.0,
)  # fmt: skip
SHIFTS = {
    "light": replace(_UNCHANGED, light=(0.2, 2.0), ambient=(0.0, 0.15), light_turn=0.8),
    "colour": replace(_UNCHANGED, colour=(0.8, 1.1), new_colours=0.8, textures=0.7),
    "camera": replace(
        _UNCHANGED, wrist_camera_m=0.01, room_camera_m=0.08, camera_rad=0.06, fovy_deg=3.0
    ),
    "distractors": replace(_UNCHANGED, distractors=6),
}
ALL = "all"  # every shift at once


def visual_level(name: str) -> VisualLevel | None:
    """A level, or shifts joined by `+`; None for `fixed`. Raises ValueError for what is neither."""
    if name == "fixed":
        return None
    if name in VISUAL_LEVELS:
        return VISUAL_LEVELS[name]
    shifts = list(SHIFTS) if name == ALL else name.split("+")
    for shift in shifts:
        if shift not in SHIFTS:
            raise _unknown("visuals", shift, ["fixed", *VISUAL_LEVELS, *SHIFTS, ALL])
    level = _UNCHANGED
    for shift in shifts:
        changes = vars(SHIFTS[shift])
        level = replace(level, **{k: v for k, v in changes.items() if v != getattr(_UNCHANGED, k)})
    return level


def dynamics_level(name: str) -> DynamicsLevel | None:
    """A level; None for `fixed`. Raises ValueError for another name."""
    if name == "fixed":
        return None
    if name not in DYNAMICS_LEVELS:
        raise _unknown("dynamics", name, ["fixed", *DYNAMICS_LEVELS])
    return DYNAMICS_LEVELS[name]


def _unknown(kind: str, name: str, valid: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown level {kind}={name!r}{hint} Levels: {valid}")
