"""Scenes: arm + furniture + cameras + lights, set up for fast software rendering."""

from collections.abc import Callable

import mujoco
import numpy as np

from envs.franka import add_franka
from envs.primitives import WORLD_CONTACT

TIMESTEP_S = 1 / 240
SUBSTEPS = 4  # physics steps per control step: 60 Hz control (PixMC)

CUBE_EDGE_M = 0.045
TABLE_TOP_M = 0.4
CUBE_RGBA = (0.0, 0.447, 0.741, 1.0)


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


def franka_pick_scene() -> mujoco.MjSpec:
    """Franka at x = 1 m facing -x, table 0.6 x 1.0 x 0.4 m, cube of 45 mm (pixmc.md 1.1, 1.6)."""
    spec = _base_spec()
    spec.modelname = "franka_pick"
    add_franka(spec, pos=(1.0, 0.0, 0.0), yaw_rad=np.pi)
    spec.add_exclude(bodyname1="world", bodyname2="panda_link0")  # the base stands on the floor
    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, pos=[0.5, 0, TABLE_TOP_M / 2],
        size=[0.3, 0.5, TABLE_TOP_M / 2], rgba=[0.92, 0.92, 0.92, 1], **WORLD_CONTACT,
    )  # fmt: skip
    cube = spec.worldbody.add_body(name="cube", pos=[0.5, 0, TABLE_TOP_M + CUBE_EDGE_M / 2])
    cube.add_freejoint(name="cube_joint")
    cube.add_geom(
        name="cube", type=mujoco.mjtGeom.mjGEOM_BOX, size=[CUBE_EDGE_M / 2] * 3, rgba=CUBE_RGBA,
        density=1000, condim=4, friction=[1.0, 0.02, 0.0001], **WORLD_CONTACT,
    )  # fmt: skip
    cube.add_site(name="cube_centre", size=[0.003] * 3, group=4)
    _look_at(spec.worldbody, "third_person", (-0.75, -1.15, 1.25), (0.6, 0.0, 0.5), fovy=42)
    return spec


SCENES: dict[str, Callable[[], mujoco.MjSpec]] = {"franka_pick": franka_pick_scene}
