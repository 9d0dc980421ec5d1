"""Building blocks of scenes: geoms, inertias, drives and contact sensors on MjSpec bodies."""

import mujoco

# Contact bits. Robot shapes meet the world, not each other (PixMC: Franka's self-collision off);
# SELF_COLLIDING shapes meet both (PixMC: Kuka's is on).
ROBOT_CONTACT = {"contype": 1, "conaffinity": 2}
SELF_COLLIDING_CONTACT = {"contype": 1, "conaffinity": 3}
WORLD_CONTACT = {"contype": 2, "conaffinity": 3}
CABINET_CONTACT = {
    "contype": 2,
    "conaffinity": 1,
}  # robots and loose things, not the cabinet itself
NO_CONTACT = {"contype": 0, "conaffinity": 0}

WHITE, GREY, DARK = (0.93, 0.93, 0.95, 1.0), (0.45, 0.47, 0.5, 1.0), (0.13, 0.13, 0.15, 1.0)
CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
BOX = mujoco.mjtGeom.mjGEOM_BOX


def add_rod(body, start, end, radius, rgba, shape=CAPSULE, contact=ROBOT_CONTACT):
    """A capsule or cylinder without mass from `start` to `end` (body frame, m)."""
    body.add_geom(
        type=shape, fromto=[*start, *end], size=[radius, 0, 0], rgba=rgba, mass=0, **contact
    )


def add_box(body, pos, half_size, rgba, contact=ROBOT_CONTACT, **more):
    """A box without mass (body frame, m)."""
    body.add_geom(type=BOX, pos=pos, size=half_size, rgba=rgba, mass=0, **contact, **more)


def set_inertia(body, mass, com, inertia):
    """Mass (kg), centre of mass (m), inertia (xx, yy, zz, xy, xz, yz; kg m^2); weightless.

    PixMC switches gravity off on robot links."""
    body.mass, body.ipos, body.explicitinertial = mass, com, True
    body.fullinertia, body.gravcomp = inertia, 1.0


def add_drive(spec, joint, stiffness, damping, effort, limits):
    """Position servo: force = clip(stiffness * (target - q) - damping * velocity, +-effort)."""
    actuator = spec.add_actuator(
        name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT
    )
    actuator.set_to_position(kp=stiffness, kv=damping)
    actuator.ctrllimited, actuator.ctrlrange = True, limits
    actuator.forcelimited, actuator.forcerange = True, (-effort, effort)


def add_contact_sensors(spec: mujoco.MjSpec, bodies: list[str]) -> None:
    """One net-contact-force sensor (N, 3 numbers) for each body, in this order."""
    for body in bodies:
        sensor = spec.add_sensor(
            name=f"{body}_contact_n", type=mujoco.mjtSensor.mjSENS_CONTACT,
            objtype=mujoco.mjtObj.mjOBJ_BODY, objname=body,
        )  # fmt: skip
        # intprm: data bits, reduction (3: net force), slots (MuJoCo's mjSENS_CONTACT layout).
        sensor.intprm[:3] = [1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE), 3, 1]
