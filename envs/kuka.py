"""KUKA LBR iiwa 7 with a Wonik Allegro right hand, built from primitives with MjSpec.

Kinematics, masses and inertias: the URDF of `kuka_allegro` that PixMC and Isaac Gym use. PixMC
scales the robot by 0.9: lengths here are the real ones and every one is multiplied by `SCALE`,
masses by its cube and inertias by its fifth power. Looks: our own.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.primitives import (
    BOX,
    CAPSULE,
    CYLINDER,
    GREY,
    NO_CONTACT,
    SELF_COLLIDING_CONTACT,
    WHITE,
    add_contact_sensors,
    add_drive,
    set_inertia,
)
from envs.spec import ARM_DAMPING, ARM_STIFFNESS, KUKA

SCALE = 0.9
ORANGE, HAND, TIP = (0.95, 0.45, 0.1, 1.0), (0.22, 0.22, 0.24, 1.0), (0.82, 0.86, 0.84, 1.0)
_QUARTER = np.pi / 2
_SOLID, _SHOWN = SELF_COLLIDING_CONTACT, NO_CONTACT
_RUBBER = {"condim": 4, "friction": [1.0, 0.02, 0.0001], "priority": 1}

# Efforts and armature of the arm: PixMC. Finger drives: see add_kuka.
_ARM_EFFORT = (320.0, 320.0, 176.0, 176.0, 110.0, 40.0, 40.0)
_ARM_ARMATURE = 0.1
_FINGER_EFFORT, _FINGER_STIFFNESS, _FINGER_DAMPING = 0.7, 30.0, 0.5
_FINGER_ARMATURE = 0.0037  # identified rotor inertia of an Allegro joint, kg m^2
_FINGER_FRICTION = _FINGER_EFFORT / 6.283  # N m s: full effort gives the published top speed


@dataclass(frozen=True)
class Link:
    """One moving link, unscaled. Lengths in m, mass in kg, inertia (xx, yy, zz, xy, xz, yz)."""

    pos: tuple[float, float, float]
    rpy: tuple[float, float, float]  # fixed-axis roll, pitch, yaw, rad
    mass: float
    com: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]
    rods: list[tuple]  # (from, to, radius, colour, shape, contact)


_ARM = [
    Link(
        (0, 0, 0.15), (0, 0, 0), 3.4525, (0, -0.03, 0.12),
        (0.02183, 0.007703, 0.02083, 0, 0, -0.003887),
        [((0, 0, 0.05), (0, 0, 0.13), 0.066, WHITE, CAPSULE, _SOLID),
         ((0, 0, -0.005), (0, 0, 0.09), 0.068, WHITE, CYLINDER, _SHOWN),
         ((0, -0.072, 0.19), (0, 0.072, 0.19), 0.066, WHITE, CYLINDER, _SHOWN)],
    ),
    Link(
        (0, 0, 0.19), (_QUARTER, 0, np.pi), 3.4821, (0.0003, 0.059, 0.042),
        (0.02076, 0.02179, 0.00779, 0, -0.003626, 0),
        [((0, 0, 0), (0, 0.13, 0), 0.062, WHITE, CAPSULE, _SOLID),
         ((0, 0.135, 0), (0, 0.155, 0), 0.066, ORANGE, CYLINDER, _SHOWN)],
    ),
    Link(
        (0, 0.21, 0), (_QUARTER, 0, np.pi), 4.05623, (0, 0.03, 0.13),
        (0.03204, 0.00972, 0.03042, 0, 0, 0.006227),
        [((0, 0, 0.02), (0, 0, 0.13), 0.06, WHITE, CAPSULE, _SOLID),
         ((0, 0, -0.055), (0, 0, 0.04), 0.063, WHITE, CYLINDER, _SHOWN),
         ((0, -0.066, 0.19), (0, 0.066, 0.19), 0.062, WHITE, CYLINDER, _SHOWN)],
    ),
    Link(
        (0, 0, 0.19), (_QUARTER, 0, 0), 3.4822, (0, 0.067, 0.034),
        (0.02178, 0.02075, 0.007785, 0, 0, -0.003625),
        [((0, 0, 0), (0, 0.13, 0), 0.058, WHITE, CAPSULE, _SOLID),
         ((0, 0.135, 0), (0, 0.155, 0), 0.062, ORANGE, CYLINDER, _SHOWN)],
    ),
    Link(
        (0, 0.21, 0), (-_QUARTER, np.pi, 0), 2.1633, (0.0001, 0.021, 0.076),
        (0.01287, 0.005708, 0.01112, 0, 0, -0.003946),
        [((0, 0, -0.01), (0, 0.01, 0.06), 0.055, WHITE, CAPSULE, _SOLID),
         ((0, 0.045, 0.1), (0, 0.075, 0.18), 0.034, WHITE, CAPSULE, _SHOWN)],
    ),
    Link(
        (0, 0.0607, 0.19), (_QUARTER, 0, 0), 2.3466, (0, 0.0006, 0.0004),
        (0.006509, 0.006259, 0.004527, 0, 0, 0.00031891),
        [((0, 0, 0.0607), (0, 0.02, 0.0607), 0.052, WHITE, CAPSULE, _SOLID),
         ((0, 0, 0.0), (0, 0, 0.112), 0.05, WHITE, CYLINDER, _SHOWN)],
    ),
    Link(
        (0, 0.081, 0.0607), (-_QUARTER, np.pi, 0), 3.129, (0, 0, 0.02),
        (0.01464, 0.01465, 0.002872, 0.0005912, 0, 0),
        [((0, 0, 0.0), (0, 0, 0.025), 0.044, GREY, CAPSULE, _SOLID),
         ((0, 0, -0.008), (0, 0, 0.071), 0.044, GREY, CYLINDER, _SHOWN)],
    ),
]  # fmt: skip


def _phalanx(pos, rpy, mass: float, end, radius: float, rods: list[tuple]) -> Link:
    """A finger's link with the inertia of a rod of its mass from the joint to `end`."""
    length = np.linalg.norm(end)
    around = mass * radius**2 / 2
    across = mass * (length**2 / 12 + radius**2 / 4)
    inertia = [around if abs(e) > 0.9 * length else across for e in end]
    x, y, z = end
    return Link(pos, rpy, mass, (x / 2, y / 2, z / 2), (*inertia, 0, 0, 0), rods)  # type: ignore[arg-type]


def _bone(end, radius: float) -> tuple:
    return ((0, 0, 0), end, radius, HAND, CAPSULE, _SOLID)


def _finger(pos, lean: float) -> list[Link]:
    """Index, middle or ring: x along the finger, positive joints curl towards y."""
    fold = (np.pi, -_QUARTER, _QUARTER)
    return [
        _phalanx(pos, (np.pi, -_QUARTER, lean), 0.005, (0, 0, 0.01), 0.01,
                 [((0, 0, -0.014), (0, 0, 0.0), 0.0125, HAND, CAPSULE, _SHOWN)]),
        _phalanx((0, 0, 0), fold, 0.125164, (0.054, 0, 0), 0.012, [_bone((0.046, 0, 0), 0.0115)]),
        _phalanx((0.054, 0, 0), (0, 0, 0), 0.131691, (0.0384, 0, 0), 0.011,
                 [_bone((0.03, 0, 0), 0.0105)]),
        _phalanx((0.0384, 0, 0), (0, 0, 0), 0.0211922, (0.05, 0, 0), 0.01,
                 [((0, 0, 0), (0.016, 0, 0), 0.0095, HAND, CAPSULE, _SHOWN),
                  ((0.02, 0.001, 0), (0.041, 0.001, 0), 0.0105, TIP, CAPSULE, _SOLID)]),
    ]  # fmt: skip


_THUMB = [
    _phalanx((-0.0367482, -0.0081281, -0.0295), (-_QUARTER, -_QUARTER, 1.48348611111), 0.1,
             (0.02, 0, 0), 0.013, [((0, 0, 0), (0.005, 0, 0), 0.016, HAND, CAPSULE, _SHOWN)]),
    _phalanx((0.005, 0, 0), (_QUARTER, 0, 0), 0.1, (0, 0, 0.0554), 0.012,
             [_bone((0, 0, 0.046), 0.0125)]),
    _phalanx((0, 0, 0.0554), (np.pi, -_QUARTER, 0), 0.1, (0.0514, 0, 0), 0.012,
             [_bone((0.04, 0, 0), 0.0115)]),
    _phalanx((0.0514, 0, 0), (0, 0, 0), 0.1, (0.06, 0, 0), 0.01,
             [((0, 0, 0), (0.028, 0, 0), 0.01, HAND, CAPSULE, _SHOWN),
              ((0.032, 0.001, 0), (0.055, 0.001, 0), 0.011, TIP, CAPSULE, _SOLID)]),
]  # fmt: skip
_FINGERS = {
    "index": (_finger((0.0514302, -0.03632, -0.0113), -0.0872638888889), (0.045, 0.01, 0)),
    "middle": (_finger((0.0537375, 0.0087771, -0.0113), 0.0), (0.045, 0.01, 0)),
    "ring": (_finger((0.0514302, 0.0538749, -0.0113), 0.0872638888889), (0.045, 0.01, 0)),
    "thumb": (_THUMB, (0.06, 0.01, 0)),
}  # links, and the grasp point in the last one's frame, which PixMC does not scale


def _quat(rpy) -> list[float]:
    """Quaternion (w first) of fixed-axis roll, pitch, yaw."""
    turn = np.zeros(4)
    mujoco.mju_euler2Quat(turn, np.array(rpy, float), "XYZ")
    return turn.tolist()


def _scaled(vector) -> list[float]:
    return [SCALE * value for value in vector]


def _add_rod(body, start, end, radius, rgba, shape, contact, **more) -> None:
    body.add_geom(
        type=shape, fromto=[*_scaled(start), *_scaled(end)], size=[SCALE * radius, 0, 0],
        rgba=rgba, mass=0, **contact, **more,
    )  # fmt: skip


def _add_box(body, pos, half_size, rgba) -> None:
    body.add_geom(type=BOX, pos=_scaled(pos), size=_scaled(half_size), rgba=rgba, mass=0, **_SOLID)


def _add_link(parent, name: str, link: Link, **looks):
    body = parent.add_body(name=name, pos=_scaled(link.pos), quat=_quat(link.rpy))
    inertia = [SCALE**5 * value for value in link.inertia]
    set_inertia(body, SCALE**3 * link.mass, _scaled(link.com), inertia)
    for rod in link.rods:
        _add_rod(body, *rod, **(looks if rod[3] is TIP else {}))
    return body


def _add_joint(spec, body, index: int, armature: float, friction: float, **drive) -> None:
    limits = (KUKA.lower[index], KUKA.upper[index])
    joint = body.add_joint(
        name=KUKA.joint_names[index], axis=[0, 0, 1], limited=True, range=limits,
        armature=armature, damping=[friction, 0, 0], solref_limit=[0.01, 1.0],
    )  # fmt: skip
    add_drive(spec, joint, limits=limits, **drive)


def add_kuka(spec: mujoco.MjSpec, pos, yaw_rad: float) -> None:
    """Add the arm and the hand; bodies `iiwa7_link_0..7`, `allegro_mount`, `palm_link`, fingers.

    PixMC drives the fingers with 600 to 1000 N m/rad and at most 0.7 N m: a force of 0.7 N m
    towards the target wherever that is more than a milliradian away. At our time step so stiff a
    servo chatters; 30 N m/rad with the same limit is full force from 1.3 degrees on.
    """
    turn = [np.cos(yaw_rad / 2), 0, 0, np.sin(yaw_rad / 2)]
    body = spec.worldbody.add_body(name="iiwa7_link_0", pos=pos, quat=turn)
    set_inertia(body, SCALE**3 * 5.0, _scaled((-0.1, 0, 0.07)), (0.03, 0.035, 0.018, 0, 0, 0))
    _add_rod(body, (0, 0, 0.0), (0, 0, 0.1), 0.085, GREY, CYLINDER, _SOLID)
    _add_rod(body, (0, 0, 0.1), (0, 0, 0.145), 0.07, WHITE, CYLINDER, _SHOWN)
    for i, link in enumerate(_ARM):
        body = _add_link(body, f"iiwa7_link_{i + 1}", link)
        _add_joint(spec, body, i, _ARM_ARMATURE, 0.0, stiffness=ARM_STIFFNESS,
                   damping=ARM_DAMPING, effort=_ARM_EFFORT[i])  # fmt: skip
    _add_hand(spec, body)
    _exclude_neighbours(spec)
    add_contact_sensors(spec, [f"iiwa7_link_{i}" for i in range(8)])


def _add_hand(spec, flange) -> None:
    mount = flange.add_body(name="allegro_mount", pos=_scaled((0, 0, 0.071)))
    set_inertia(mount, SCALE**3 * 0.15, (0, 0, 0), (1e-4, 1e-4, 1e-4, 0, 0, 0))
    _add_rod(mount, (0, 0, 0), (0, 0, 0.022), 0.036, GREY, CYLINDER, _SHOWN)
    # Looks along +z towards the fingers, image up is -x; its offset is not scaled (pixmc.md 1.5).
    mount.add_camera(name="wrist", pos=(0.05, 0, 0.02), xyaxes=[0, -1, 0, -1, 0, 0], fovy=104.9)
    palm = mount.add_body(
        name="palm_link",
        pos=_scaled((0.008219, -0.02063, 0.08086)),
        quat=_quat((0, -_QUARTER, np.pi)),
    )
    set_inertia(palm, SCALE**3 * 0.4154, (0, 0, -0.015), (4e-4, 3e-4, 6e-4, 0, 0, 0))
    _add_box(palm, (0.004, 0.0088, -0.0206), (0.046, 0.0565, 0.0125), HAND)
    _add_box(palm, (-0.058, 0.0206, -0.0082), (0.022, 0.03, 0.018), HAND)
    palm.add_site(name="palm", size=[0.003] * 3, group=4)
    index = KUKA.num_arm_joints
    for finger, (links, grasp_m) in _FINGERS.items():
        body = palm
        for i, link in enumerate(links):
            body = _add_link(body, f"{finger}_link_{i}", link, **_RUBBER)
            _add_joint(spec, body, index, _FINGER_ARMATURE, _FINGER_FRICTION,
                       stiffness=_FINGER_STIFFNESS, damping=_FINGER_DAMPING,
                       effort=_FINGER_EFFORT)  # fmt: skip
            index += 1
        body.add_site(name=f"{finger}_grasp", pos=grasp_m, size=[0.003] * 3, group=4)


def _exclude_neighbours(spec) -> None:
    """Pairs of bodies whose shapes overlap whatever the joints are (parents are MuJoCo's own)."""
    pairs = [("iiwa7_link_0", "iiwa7_link_1"), ("iiwa7_link_7", "palm_link")]
    pairs += [("palm_link", f"{finger}_link_1") for finger in _FINGERS]
    pairs += [("palm_link", "thumb_link_2")]
    for first, second in pairs:
        spec.add_exclude(bodyname1=first, bodyname2=second)
