"""Franka Panda with its hand, built from primitives with MjSpec.

Kinematics and limits: the manufacturer's URDF. Link masses, centres of mass and inertias: the
identified parameters of Gaz et al., "Dynamic Identification of the Franka Emika Panda Robot With
Retrieval of Feasible Parameters Using Penalty-Based Optimization", RA-L 2019. Looks: our own.
"""

from dataclasses import dataclass, field

import mujoco
import numpy as np

from envs.primitives import (
    CAPSULE,
    CYLINDER,
    DARK,
    GREY,
    WHITE,
    add_box,
    add_contact_sensors,
    add_drive,
    add_rod,
    set_inertia,
)
from envs.spec import ARM_DAMPING, ARM_STIFFNESS, FRANKA

_HALF_TURN = np.pi / 2


@dataclass(frozen=True)
class Link:
    """One moving link. Lengths in m, masses in kg, inertia (xx, yy, zz, xy, xz, yz) in kg m^2."""

    pos: tuple[float, float, float]
    roll_x: float  # rotation about x that takes the parent frame to this one, rad
    mass: float
    com: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]
    rods: list[tuple] = field(default_factory=list)  # (from, to, radius, colour, shape)


_ARM = [
    Link(
        (0, 0, 0.333), 0.0, 4.970684, (0.003875, 0.002081, -0.04762),
        (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169),
        [((0, 0, -0.19), (0, 0, -0.06), 0.06, WHITE, CAPSULE),
         ((0, -0.075, 0), (0, 0.055, 0), 0.06, WHITE, CYLINDER)],
    ),
    Link(
        (0, 0, 0), -_HALF_TURN, 0.646926, (-0.003141, -0.02872, 0.003495),
        (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
        [((0, 0, -0.075), (0, 0, 0.075), 0.045, GREY, CYLINDER),
         ((0, -0.06, 0), (0, -0.18, 0), 0.06, WHITE, CAPSULE)],
    ),
    Link(
        (0, -0.316, 0), _HALF_TURN, 3.228604, (0.027518, 0.039252, -0.066502),
        (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
        [((0, 0, -0.12), (0, 0, -0.07), 0.058, WHITE, CAPSULE),
         ((0.02, 0, -0.06), (0.0825, 0, 0), 0.052, WHITE, CAPSULE),
         ((0.0825, -0.06, 0), (0.0825, 0.06, 0), 0.055, WHITE, CYLINDER)],
    ),
    Link(
        (0.0825, 0, 0), _HALF_TURN, 3.587895, (-0.05317, 0.104419, 0.027454),
        (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
        [((0, 0, -0.062), (0, 0, 0.062), 0.042, GREY, CYLINDER),
         ((-0.01, 0.03, 0), (-0.0825, 0.1, 0), 0.052, WHITE, CAPSULE)],
    ),
    Link(
        (-0.0825, 0.384, 0), -_HALF_TURN, 1.225946, (-0.011953, 0.041065, -0.038437),
        (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
        [((0, 0, -0.25), (0, 0, -0.16), 0.056, WHITE, CAPSULE),
         ((0, 0.03, -0.14), (0, 0.075, -0.02), 0.04, WHITE, CAPSULE),
         ((0, -0.05, 0), (0, 0.07, 0), 0.05, WHITE, CYLINDER)],
    ),
    Link(
        (0, 0, 0), _HALF_TURN, 1.666555, (0.060149, -0.014117, -0.010517),
        (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
        [((0, 0, -0.055), (0, 0, 0.055), 0.04, GREY, CYLINDER),
         ((0.02, 0, 0), (0.088, 0.01, 0), 0.048, WHITE, CAPSULE)],
    ),
    Link(
        (0.088, 0, 0), _HALF_TURN, 0.735522, (0.010517, -0.004252, 0.061597),
        (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
        [((0, 0, 0.03), (0, 0, 0.105), 0.045, WHITE, CYLINDER)],
    ),
]  # fmt: skip

# Effort limits (N m) of PixMC; the fingers' gains are ours, see add_franka.
_EFFORT = (87.0,) * 4 + (12.0,) * 3
_ARMATURE = 0.1
_FINGER_STIFFNESS, _FINGER_DAMPING, _FINGER_EFFORT = 6000.0, 100.0, 200.0
GRASP_POINT_M = 0.045  # along the finger's z axis (pixmc.md 1.4)


def add_franka(spec: mujoco.MjSpec, pos, yaw_rad: float) -> None:
    """Add a Franka Panda with its hand; bodies `panda_link0..7`, `panda_hand`, two fingers.

    PixMC drives the fingers with a stiffness of 1e6 N/m and an effort limit of 200 N, which in
    practice is a force of 200 N towards the target. A softer servo with the same limit (6000 N/m)
    is stable at our time step and still holds the cube with about 130 N.
    """
    quat = [np.cos(yaw_rad / 2), 0, 0, np.sin(yaw_rad / 2)]
    base = spec.worldbody.add_body(name="panda_link0", pos=pos, quat=quat)
    set_inertia(base, 0.629769, (-0.041018, -0.00014, 0.049974),
                 (0.00315, 0.00388, 0.004285, 8.29e-7, 0.00015, 8.23e-6))  # fmt: skip
    add_box(base, (-0.05, 0, 0.07), (0.09, 0.075, 0.065), WHITE)
    add_rod(base, (0, 0, 0.01), (0, 0, 0.14), 0.07, WHITE, CYLINDER)

    body = base
    for i, link in enumerate(_ARM):
        angle = link.roll_x / 2
        body = body.add_body(
            name=f"panda_link{i + 1}", pos=link.pos, quat=[np.cos(angle), np.sin(angle), 0, 0]
        )
        set_inertia(body, link.mass, link.com, link.inertia)
        limits = (FRANKA.lower[i], FRANKA.upper[i])
        joint = body.add_joint(
            name=FRANKA.joint_names[i], axis=[0, 0, 1], limited=True, range=limits,
            armature=_ARMATURE,
        )  # fmt: skip
        for rod in link.rods:
            add_rod(body, *rod)
        add_drive(spec, joint, ARM_STIFFNESS, ARM_DAMPING, _EFFORT[i], limits)
    _add_hand(spec, body)
    add_contact_sensors(spec, [f"panda_link{i}" for i in range(8)])


def _add_hand(spec, flange) -> None:
    turn = -np.pi / 8  # half of -45 degrees
    hand = flange.add_body(
        name="panda_hand", pos=(0, 0, 0.107), quat=[np.cos(turn), 0, 0, np.sin(turn)]
    )
    set_inertia(hand, 0.73, (-0.01, 0, 0.03), (0.001, 0.0025, 0.0017, 0, 0, 0))
    add_box(hand, (0, 0, 0.032), (0.022, 0.1, 0.032), WHITE)
    # Looks along +z towards the fingers, image up is +x (pixmc.md 1.5).
    hand.add_camera(name="wrist", pos=(0.04, 0, 0.045), xyaxes=[0, 1, 0, 1, 0, 0], fovy=104.9)
    for i, (name, side) in enumerate((("left", 1.0), ("right", -1.0))):
        finger = hand.add_body(name=f"panda_{name}finger", pos=(0, 0, 0.0584))
        set_inertia(finger, 0.015, (0, 0.008 * side, 0.025), (2.4e-6, 2.4e-6, 7.5e-7, 0, 0, 0))
        limits = (FRANKA.lower[7 + i], FRANKA.upper[7 + i])
        joint = finger.add_joint(
            name=FRANKA.joint_names[7 + i], type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, side, 0],
            limited=True, range=limits, armature=0.1,
        )  # fmt: skip
        pad = {"condim": 4, "friction": [1.0, 0.02, 0.0001], "priority": 1}
        add_box(finger, (0, 0.015 * side, 0.018), (0.0105, 0.012, 0.02), GREY)
        add_box(finger, (0, 0.0075 * side, 0.043), (0.0105, 0.0075, 0.0115), DARK, **pad)
        finger.add_site(name=f"{name}_grasp", pos=(0, 0, GRASP_POINT_M), size=[0.003] * 3, group=4)
        add_drive(spec, joint, _FINGER_STIFFNESS, _FINGER_DAMPING, _FINGER_EFFORT, limits)
