"""Where the hand of a Franka arm is, from its joints alone: no simulator, no driver."""

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


def hand_position(q_rad: Float[np.ndarray, " 7"]) -> Float[np.ndarray, " 3"]:
    """The point between the finger pads in the frame of the arm's base, m."""
    pose = np.eye(4)
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
    return pose[:3, 3] + (FLANGE_M + FINGERTIPS_M) * pose[:3, 2]
