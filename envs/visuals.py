"""Per-world variations of looks: colours, lights and camera poses. Physics never sees them."""

import colorsys

import mujoco
import numpy as np

from envs.rendering import VisualFields

_VARIED = ("geom_rgba", "mat_rgba", "light_diffuse", "light_dir", "cam_pos", "cam_quat", "cam_fovy")


def nominal_visuals(model: mujoco.MjModel, num_worlds: int) -> VisualFields:
    """The model's own looks, repeated for each world: {field: [N, ...]}."""
    return {name: np.repeat(getattr(model, name)[None], num_worlds, axis=0) for name in _VARIED}


def vary_visuals(
    model: mujoco.MjModel, fields: VisualFields, world: int, rng: np.random.Generator
) -> None:
    """Give one world random colours, light and camera poses, in place."""
    rgba = fields["geom_rgba"][world]
    for body in range(model.nbody):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        rgba[geoms, :3] = (rgba[geoms, :3] * rng.uniform(0.8, 1.1, 3)).clip(0, 1)
    rgba[model.geom("cube").id, :3] = colorsys.hsv_to_rgb(
        rng.uniform(), rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0)
    )
    if rng.uniform() < 0.4:
        rgba[model.geom("table").id, :3] = colorsys.hsv_to_rgb(
            rng.uniform(), rng.uniform(0.0, 0.4), rng.uniform(0.4, 1.0)
        )
    fields["mat_rgba"][world][:, :3] *= rng.uniform(0.5, 1.8, 3)
    fields["light_diffuse"][world] *= rng.uniform(0.3, 1.6)
    fields["light_dir"][world] += rng.normal(0, 0.3, 3)
    _move_cameras(model, fields, world, rng)


def _move_cameras(model, fields, world, rng) -> None:
    wrist = model.camera("wrist").id
    fields["cam_pos"][world][wrist] += rng.normal(0, 0.004, 3)
    turn = np.array([1.0, *rng.normal(0, 0.02, 3)])
    mujoco.mju_mulQuat(
        fields["cam_quat"][world][wrist],
        model.cam_quat[wrist],
        turn / np.linalg.norm(turn),
    )
    third = model.camera("third_person").id
    azimuth, elevation, distance = (
        rng.uniform(-np.pi, np.pi), rng.uniform(0.2, 1.2), rng.uniform(0.9, 2.0),
    )  # fmt: skip
    target = np.array([0.6, 0.0, 0.5]) + rng.normal(0, 0.1, 3)
    offset = np.array(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation),
         np.sin(elevation)]
    )  # fmt: skip
    right = np.cross(-offset, [0, 0, 1])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, -offset), offset], axis=1)  # MuJoCo looks along -z
    fields["cam_pos"][world][third] = target + distance * offset
    mujoco.mju_mat2Quat(fields["cam_quat"][world][third], axes.flatten())
    fields["cam_fovy"][world][third] = rng.uniform(35, 60)
