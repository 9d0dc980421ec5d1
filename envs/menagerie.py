"""The makers' meshes instead of primitives, from the MuJoCo Menagerie (pip: mujoco-menagerie).

Only looks change: the primitives stay what collides, so physics and observations are the same. The
package downloads a robot when it is first asked for (`MENAGERIE_ROOT` names a checkout instead).
"""

from typing import Any

import mujoco
import numpy as np

_VISUAL_GROUP, _HIDDEN_GROUP = 2, 3
_FRANKA = {f"link{i}": f"panda_link{i}" for i in range(8)} | {
    "hand": "panda_hand", "left_finger": "panda_leftfinger", "right_finger": "panda_rightfinger",
}  # fmt: skip
_HALF_TURN_Z = (0.0, 0.0, 0.0, 1.0)
_TURNED = {"right_finger": _HALF_TURN_Z}  # frames of theirs that are not ours: theirs in ours


class MeshesUnavailableError(RuntimeError):
    """The meshes are not installed and cannot be fetched."""


def dress(spec: mujoco.MjSpec, robot: str) -> None:
    """Give a scene's robot its maker's meshes.

    Raises:
        ValueError: the Menagerie has no such robot (it has an iiwa 14, not the 7, and no BioTacs).
        MeshesUnavailableError: no package, no files, no network; says what to do.
    """
    if robot != "franka":
        raise ValueError(f"assets='menagerie' has meshes for franka, not for {robot}")
    theirs = _load("franka_emika_panda")
    bodies = {body.name: body for body in spec.bodies}
    for geom in range(theirs.ngeom):
        name = theirs.body(theirs.geom_bodyid[geom]).name
        if name in _FRANKA and theirs.geom_group[geom] == _VISUAL_GROUP:
            _add_mesh(spec, bodies[_FRANKA[name]], theirs, geom, _TURNED.get(name))
    for name in _FRANKA.values():
        for geom in bodies[name].geoms:
            if geom.type != mujoco.mjtGeom.mjGEOM_MESH:
                geom.group = _HIDDEN_GROUP


def _load(name: str) -> mujoco.MjModel:
    try:
        import mujoco_menagerie
    except ImportError as error:
        raise MeshesUnavailableError(
            'assets="menagerie" needs: pip install mujoco-menagerie'
        ) from error
    try:
        return mujoco_menagerie.get(name).spec().compile()
    except (mujoco_menagerie.MenagerieError, OSError) as error:
        raise MeshesUnavailableError(
            f"the MuJoCo Menagerie could not give {name}: {error}. It is fetched from the network "
            "once; without one, set MENAGERIE_ROOT to a checkout of the Menagerie."
        ) from error


def _add_mesh(spec, body, theirs: mujoco.MjModel, geom: int, turn: Any) -> None:
    mesh = theirs.geom_dataid[geom]
    first, count = theirs.mesh_vertadr[mesh], theirs.mesh_vertnum[mesh]
    vertices = theirs.mesh_vert[first : first + count]
    first, count = theirs.mesh_faceadr[mesh], theirs.mesh_facenum[mesh]
    faces = theirs.mesh_face[first : first + count]
    name = f"menagerie_{theirs.mesh(mesh).name}_{geom}"
    spec.add_mesh(
        name=name, uservert=_placed(vertices, theirs, geom, turn).ravel(),
        userface=faces.ravel(), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
    )  # fmt: skip
    material = theirs.geom_matid[geom]
    rgba = theirs.mat_rgba[material] if material >= 0 else theirs.geom_rgba[geom]
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, rgba=rgba, mass=0,
        contype=0, conaffinity=0, group=_VISUAL_GROUP,
    )  # fmt: skip


def _placed(vertices: np.ndarray, theirs: mujoco.MjModel, geom: int, turn: Any) -> np.ndarray:
    """Vertices in our body's frame; a compiled mesh is centred, its geom says where."""
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, theirs.geom_quat[geom])
    placed = vertices @ rotation.reshape(3, 3).T + theirs.geom_pos[geom]
    if turn is not None:
        mujoco.mju_quat2Mat(rotation, np.array(turn))
        placed = placed @ rotation.reshape(3, 3).T
    return placed
