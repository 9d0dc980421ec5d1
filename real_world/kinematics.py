"""Where the hand of a Franka arm is and how it moves, from its joints alone: no simulator, no driver."""

import math

import numpy as np
from jaxtyping import Float

# Craig's convention: link length a, offset d (m), twist alpha (rad) of joints 1 to 7. Franka Emika,
# "Robot and interface specifications, Denavit-Hartenberg parameters" (the same for Panda and FR3).
_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = (0.0, -math.pi / 2, math.pi / 2, math.pi / 2, -math.pi / 2, math.pi / 2, math.pi / 2)
FLANGE_M = 0.107
FINGERTIPS_M = 0.1034  # from the hand's frame on the flange to between the finger pads
SINGULAR = 0.06  # singular value of the Jacobian (m and rad together) below which it is damped
POSTURE_HZ = 0.5  # how fast the elbow drifts back to its rest, where the hand does not notice


def _joint_frames(q_rad: Float[np.ndarray, " 7"]) -> list[Float[np.ndarray, "4 4"]]:
    """Pose of each joint's frame in that of the base; the joint turns about its z axis."""
    pose, frames = np.eye(4), []
    for a, d, alpha, q in zip(_A, _D, _ALPHA, q_rad, strict=True):
        ca, sa, cq, sq = math.cos(alpha), math.sin(alpha), math.cos(q), math.sin(q)
        pose = pose @ np.array(
            [
                [cq, -sq, 0.0, a],
                [sq * ca, cq * ca, -sa, -d * sa],
                [sq * sa, cq * sa, ca, d * ca],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )
        frames.append(pose)
    return frames


def _between_fingers(last: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, " 3"]:
    return last[:3, 3] + (FLANGE_M + FINGERTIPS_M) * last[:3, 2]


def hand_position(q_rad: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " 3"]:
    """The point between the finger pads in the frame of the arm's base, m."""
    return _between_fingers(_joint_frames(q_rad)[-1])


def hand_jacobian(q_rad: Float[np.ndarray, " 7"]) -> Float[np.ndarray, "6 7"]:
    """d(velocity of that point, m/s; angular velocity of the hand, rad/s) / d(joint speeds, rad/s),
    in the frame of the arm's base."""
    frames = _joint_frames(q_rad)
    point = _between_fingers(frames[-1])
    axes = np.array([frame[:3, 2] for frame in frames])
    arms = point - np.array([frame[:3, 3] for frame in frames])
    return np.vstack([np.cross(axes, arms).T, axes.T])


def joint_speeds(
    q_rad: Float[np.ndarray, " 7"],
    twist: Float[np.ndarray, " 6"],
    lower_rad: Float[np.ndarray, " 7"],
    upper_rad: Float[np.ndarray, " 7"],
    dt_s: float,
    rest_rad: Float[np.ndarray, " 7"] | None = None,
) -> Float[np.ndarray, " 7"]:
    """Speeds, rad/s, that give the hand a velocity (m/s) and angular velocity (rad/s) for `dt_s`.

    Damped least squares, J^T (J J^T + k^2 I)^-1 twist; k^2 = e^2 - s^2 grows from 0 as the smallest
    singular value s of J falls below e = `SINGULAR` (after Nakamura and Hanafusa, J. Dyn. Sys. 108,
    1986), so that |speeds| <= |twist| / e whatever the pose: near a singularity the hand slows down.
    A joint that would leave its limits stands still and the others take over what they can. What
    the hand does not notice, and what was damped away, moves the joints towards `rest_rad` while the
    hand moves, which also leads out of a singularity that the hand was driven into.
    """
    jacobian = hand_jacobian(q_rad)
    pull = np.zeros(len(q_rad)) if rest_rad is None else POSTURE_HZ * (rest_rad - q_rad)
    free = np.ones(len(q_rad), bool)
    while free.any():
        speeds = np.zeros(len(q_rad))
        speeds[free] = _damped(jacobian[:, free], twist, pull[free])
        q = q_rad + speeds * dt_s
        outside = free & (((q > upper_rad) & (speeds > 0)) | ((q < lower_rad) & (speeds < 0)))
        if not outside.any():
            return speeds
        free &= ~outside
    return np.zeros(len(q_rad))


def _damped(jacobian: np.ndarray, twist: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """Speeds for `twist`, and of `pull` the part that this leaves open."""
    left, values, right = np.linalg.svd(jacobian)
    smallest = values.min() if len(values) == 6 else 0.0  # five joints cannot do everything
    damping = max(0.0, SINGULAR**2 - smallest**2)
    squares = values**2 + damping
    done = np.zeros(len(right))
    done[: len(values)] = values**2 / squares
    rows, columns = right[: len(values)], left[:, : len(values)]
    return rows.T @ (values / squares * (columns.T @ twist)) + right.T @ (
        (1 - done) * (right @ pull)
    )
