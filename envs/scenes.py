"""Scenes: arm + furniture + cameras + lights, set up for fast software rendering."""

from collections.abc import Callable

import mujoco
import numpy as np

from envs.franka import add_franka
from envs.furniture import add_cabinet, add_cube, add_table
from envs.kuka import add_kuka
from envs.primitives import WORLD_CONTACT

TIMESTEP_S = 1 / 240
SUBSTEPS = 4  # physics steps per control step: 60 Hz control (PixMC)

CUBE_EDGE_M, KUKA_CUBE_EDGE_M = 0.045, 0.06
CABINET_POS_M = (0.05, 0.0, 0.45)  # nominal
_ROBOT = {"pos": (1.0, 0.0, 0.0), "yaw_rad": np.pi}  # facing -x


def _base_spec() -> mujoco.MjSpec:
    """Floor, lights, third-person camera and the visual settings that make llvmpipe fast."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    quality = spec.visual.quality
    quality.shadowsize, quality.offsamples = 0, 0
    quality.numslices, quality.numstacks, quality.numquads = 12, 8, 1
    spec.visual.headlight.ambient = [0.4] * 3
    spec.visual.headlight.diffuse = [0.2] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.visual.map.znear = 0.005
    spec.stat.extent, spec.stat.center = 1.5, [0.6, 0, 0.5]

    spec.add_texture(
        name="checker", type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER, width=64, height=64,
        rgb1=[0.32, 0.34, 0.36], rgb2=[0.48, 0.5, 0.52],
    )  # fmt: skip
    floor = spec.add_material(name="floor", texrepeat=[2, 2], texuniform=True, reflectance=0.0)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "checker"
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[3, 3, 0.1], material="floor",
        **WORLD_CONTACT,
    )  # fmt: skip
    spec.worldbody.add_light(
        name="key", pos=[0.2, -0.8, 2.2], dir=[0.2, 0.4, -1], diffuse=[0.4] * 3, castshadow=False,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
    )  # fmt: skip
    return spec


def _look_at(body, name: str, pos, target, fovy: float) -> None:
    forward = np.subtract(target, pos) / np.linalg.norm(np.subtract(target, pos))
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    body.add_camera(name=name, pos=pos, xyaxes=[*right, *np.cross(right, forward)], fovy=fovy)


def _robot_spec(name: str, add_robot: Callable[..., None], base: str) -> mujoco.MjSpec:
    spec = _base_spec()
    spec.modelname = name
    add_robot(spec, **_ROBOT)
    spec.add_exclude(bodyname1="world", bodyname2=base)  # the base stands on the floor
    return spec


def _with_table(spec: mujoco.MjSpec, cube_edge_m: float) -> mujoco.MjSpec:
    add_table(spec)
    add_cube(spec, cube_edge_m)
    _look_at(spec.worldbody, "third_person", (-0.75, -1.15, 1.25), (0.6, 0.0, 0.5), fovy=42)
    return spec


def _with_cabinet(spec: mujoco.MjSpec) -> mujoco.MjSpec:
    add_cabinet(spec, CABINET_POS_M)
    _look_at(spec.worldbody, "third_person", (1.45, -1.35, 1.5), (0.55, 0.0, 0.6), fovy=45)
    return spec


def franka_pick_scene() -> mujoco.MjSpec:
    """Franka, table and a cube of 45 mm (pixmc.md 1.1, 1.6)."""
    return _with_table(_robot_spec("franka_pick", add_franka, "panda_link0"), CUBE_EDGE_M)


def kuka_pick_scene() -> mujoco.MjSpec:
    """Kuka with Allegro hand, table and a cube of 60 mm."""
    return _with_table(_robot_spec("kuka_pick", add_kuka, "iiwa7_link_0"), KUKA_CUBE_EDGE_M)


def franka_cabinet_scene() -> mujoco.MjSpec:
    """Franka before the cabinet (pixmc.md 1.7)."""
    return _with_cabinet(_robot_spec("franka_cabinet", add_franka, "panda_link0"))


def kuka_cabinet_scene() -> mujoco.MjSpec:
    """Kuka with Allegro hand before the cabinet."""
    return _with_cabinet(_robot_spec("kuka_cabinet", add_kuka, "iiwa7_link_0"))


SCENES: dict[str, Callable[[], mujoco.MjSpec]] = {
    "franka_pick": franka_pick_scene,
    "kuka_pick": kuka_pick_scene,
    "franka_cabinet": franka_cabinet_scene,
    "kuka_cabinet": kuka_cabinet_scene,
}
