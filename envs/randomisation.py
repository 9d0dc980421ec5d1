"""Domain randomisation as named levels, drawn anew for each episode of each world.

Looks and cameras after Tobin et al. 2017 (arXiv 1703.06907), masses, friction and drives after
OpenAI et al. 2018 (arXiv 1808.00177); the ranges are ours. Draws depend on (seed, world, episode)
alone, so a world's episodes are the same whatever its neighbours and their number are.
"""

import colorsys
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import mujoco
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from envs.physics import Physics

Range = tuple[float, float]
Fields = dict[str, np.ndarray]  # model field -> its value in one world
_LEVEL = TypeVar("_LEVEL")


@dataclass(frozen=True, kw_only=True)
class VisualLevel:
    """Ranges are uniform factors, deviations normal."""

    colour: Range  # of each body's colour, per channel
    new_colours: float  # probability of the table's, and whether the cube's and props' hue is free
    textures: float  # probability of another texture on the floor, and on table or cabinet
    light: Range  # of brightness
    light_turn: float  # deviation added to the light's direction
    camera_m: float  # deviation of the cameras' places
    camera_rad: float  # and of their directions
    fovy_deg: float  # and of their opening
    orbit: bool = False  # the third-person camera anywhere on a hemisphere


@dataclass(frozen=True, kw_only=True)
class DynamicsLevel:
    """Log-uniform factors."""

    friction: Range  # one of all contacts
    mass: Range  # of each loose body
    stiffness: Range  # of each drive
    damping: Range  # of each drive
    joint_damping: Range  # one of all passive joint damping


_STRONG = VisualLevel(
    colour=(0.8, 1.1), new_colours=0.4, textures=0.6, light=(0.3, 1.6), light_turn=0.3,
    camera_m=0.004, camera_rad=0.04, fovy_deg=2.0,
)  # fmt: skip
VISUAL_LEVELS = {
    "mild": VisualLevel(
        colour=(0.9, 1.05), new_colours=0.0, textures=0.0, light=(0.8, 1.2), light_turn=0.1,
        camera_m=0.002, camera_rad=0.01, fovy_deg=0.5,
    ),
    "strong": _STRONG,
    "film": replace(_STRONG, textures=0.0, orbit=True),  # of pre-training films
}  # fmt: skip
DYNAMICS_LEVELS = {
    "mild": DynamicsLevel(friction=(0.8, 1.25), mass=(0.8, 1.25), stiffness=(0.9, 1.1),
                          damping=(0.9, 1.1), joint_damping=(0.8, 1.25)),
    "strong": DynamicsLevel(friction=(0.5, 2.0), mass=(0.5, 2.0), stiffness=(0.75, 1.33),
                            damping=(0.75, 1.33), joint_damping=(0.5, 2.0)),
}  # fmt: skip

_VISUAL_FIELDS = ("geom_rgba", "geom_matid", "mat_rgba", "light_diffuse", "light_dir",
                  "cam_pos", "cam_quat", "cam_fovy")  # fmt: skip
_DYNAMICS_FIELDS = ("geom_friction", "body_mass", "body_inertia", "actuator_gainprm",
                    "actuator_biasprm", "dof_damping")  # fmt: skip
_TEXTURES = ("checker", "gradient", "marks")
_MATERIAL_DECIDES = (0.5, 0.5, 0.5, 1.0)  # MuJoCo's default geom colour: the material's is used


def add_textures(spec: mujoco.MjSpec) -> None:
    """Materials that `strong` worlds choose from; without effect on the scene's own looks."""
    builtins = {
        "checker": {"builtin": mujoco.mjtBuiltin.mjBUILTIN_CHECKER},
        "gradient": {"builtin": mujoco.mjtBuiltin.mjBUILTIN_GRADIENT},
        "marks": {
            "builtin": mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            "mark": mujoco.mjtMark.mjMARK_RANDOM,
            "random": 0.05,
            "markrgb": [0.3, 0.3, 0.3],
        },
    }
    for name in _TEXTURES:
        spec.add_texture(
            name=f"random_{name}", type=mujoco.mjtTexture.mjTEXTURE_2D, width=64, height=64,
            rgb1=[1.0, 1.0, 1.0], rgb2=[0.7, 0.7, 0.7], **builtins[name],
        )  # fmt: skip
        for part, repeat in (("floor", 1), ("surface", 4)):
            material = spec.add_material(
                name=f"random_{part}_{name}", texrepeat=[repeat, repeat], texuniform=True
            )
            material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"random_{name}"


class Randomiser:
    """Gives worlds their own looks and dynamics through `Physics.set_field`.

    Args:
        engine: worlds of a scene; `strong` textures need `add_textures` before it is compiled.
        visuals, dynamics: a level's name, or `fixed` for none.

    Raises:
        ValueError: unknown level.
    """

    def __init__(self, engine: Physics, visuals: str, dynamics: str, seed: int):
        self._engine, self._model, self._seed = engine, engine.model, seed
        self._visuals = _level("visuals", visuals, VISUAL_LEVELS)
        self._dynamics = _level("dynamics", dynamics, DYNAMICS_LEVELS)

    def reseed(self, seed: int) -> None:
        self._seed = seed

    def apply(self, ids: Int[Tensor, " K"], episodes: Int[Tensor, " K"]) -> None:
        """Draw for worlds `ids`, which begin these episodes."""
        rows = [
            self._draw(world, episode)
            for world, episode in zip(ids.tolist(), episodes.tolist(), strict=True)
        ]
        for name in rows[0] if rows else ():
            values = np.stack([row[name] for row in rows])
            tensor = torch.from_numpy(values).to(self._engine.device)
            self._engine.set_field(name, ids, tensor)

    def _draw(self, world: int, episode: int) -> Fields:
        found: Fields = {}
        if self._visuals is not None:
            found |= self._nominal(_VISUAL_FIELDS)
            draw_looks(self._model, found, self._visuals, self._generator(1, world, episode))
        if self._dynamics is not None:
            found |= self._nominal(_DYNAMICS_FIELDS)
            draw_dynamics(self._model, found, self._dynamics, self._generator(2, world, episode))
        return found

    def _nominal(self, names: Iterable[str]) -> Fields:
        return {name: getattr(self._model, name).copy() for name in names}

    def _generator(self, stream: int, world: int, episode: int) -> np.random.Generator:
        # Word 2 of the counter keeps the streams apart, and from that of the resets (0).
        counter = [0, 0, stream, episode]
        return np.random.Generator(np.random.Philox(key=[self._seed, world], counter=counter))


def _level(kind: str, name: str, levels: dict[str, _LEVEL]) -> _LEVEL | None:
    if name == "fixed":
        return None
    if name not in levels:
        near = difflib.get_close_matches(name, ["fixed", *levels], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown level {kind}={name!r}{hint} Levels: {['fixed', *levels]}")
    return levels[name]


def _bodies(model, prefixes: Iterable[str]) -> list[int]:
    return [i for i in range(model.nbody) if model.body(i).name.startswith(tuple(prefixes))]


def _loose_bodies(model) -> np.ndarray:
    """Bodies with a free joint: the cube, the props."""
    free = model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)
    return model.jnt_bodyid[free]


def draw_looks(model, fields: Fields, level: VisualLevel, rng: np.random.Generator) -> None:
    """Change the visual `fields` of one world in place."""
    rgba = fields["geom_rgba"]
    for body in range(model.nbody):
        geoms = np.flatnonzero((model.geom_bodyid == body) & (model.geom_matid < 0))
        rgba[geoms, :3] = (rgba[geoms, :3] * rng.uniform(*level.colour, 3)).clip(0, 1)
    if level.new_colours:
        _recolour(model, rgba, level, rng)
    fields["mat_rgba"][:, :3] *= rng.uniform(0.5, 1.8, 3) if level.new_colours else 1.0
    _retexture(model, fields, level, rng)
    fields["light_diffuse"] *= rng.uniform(*level.light)
    fields["light_dir"] += rng.normal(0, level.light_turn, 3)
    fields["light_dir"] /= np.linalg.norm(fields["light_dir"], axis=1, keepdims=True)
    _move_cameras(model, fields, level, rng)


def _recolour(model, rgba, level: VisualLevel, rng) -> None:
    for body in _loose_bodies(model):
        rgba[model.geom_bodyid == body, :3] = colorsys.hsv_to_rgb(
            rng.uniform(), rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0)
        )
    for geoms in _surfaces(model):
        if rng.uniform() < level.new_colours:
            rgba[geoms, :3] = colorsys.hsv_to_rgb(
                rng.uniform(), rng.uniform(0.0, 0.4), rng.uniform(0.4, 1.0)
            )


def _surfaces(model) -> list[np.ndarray]:
    """Geoms of the table; of the carcass; of the doors' and drawers' largest faces."""
    names = np.array([model.geom(i).name for i in range(model.ngeom)])
    table = np.flatnonzero(names == "table")
    carcass = np.flatnonzero(np.isin(model.geom_bodyid, _bodies(model, ["cabinet"])))
    fronts = []
    for body in _bodies(model, ["door_", "drawer_"]):
        own = np.flatnonzero(model.geom_bodyid == body)
        colours = [tuple(model.geom_rgba[i]) for i in own]
        largest = own[np.argmax(model.geom_size[own, 1] * model.geom_size[own, 2])]
        fronts += [i for i, c in zip(own, colours, strict=True)
                   if c == tuple(model.geom_rgba[largest])]  # fmt: skip
    return [geoms for geoms in (table, carcass, np.array(fronts, int)) if len(geoms)]


def _retexture(model, fields: Fields, level: VisualLevel, rng) -> None:
    materials = {model.mat(i).name: i for i in range(model.nmat)}
    if not level.textures or "random_floor_checker" not in materials:
        return
    if rng.uniform() < level.textures:
        chosen = materials[f"random_floor_{rng.choice(_TEXTURES)}"]
        fields["geom_matid"][model.geom("floor").id] = chosen
        fields["mat_rgba"][chosen, :3] = rng.uniform(0.25, 0.8, 3)
    surfaces = _surfaces(model)
    if surfaces and rng.uniform() < level.textures:
        geoms, chosen = surfaces[0], materials[f"random_surface_{rng.choice(_TEXTURES)}"]
        fields["geom_matid"][geoms] = chosen
        fields["mat_rgba"][chosen, :3] = fields["geom_rgba"][geoms[0], :3]
        fields["geom_rgba"][geoms] = _MATERIAL_DECIDES


def _move_cameras(model, fields: Fields, level: VisualLevel, rng) -> None:
    for camera in range(model.ncam):
        fields["cam_pos"][camera] += rng.normal(0, level.camera_m, 3)
        turn = np.array([1.0, *rng.normal(0, level.camera_rad / 2, 3)])
        mujoco.mju_mulQuat(
            fields["cam_quat"][camera], model.cam_quat[camera], turn / np.linalg.norm(turn)
        )
        fields["cam_fovy"][camera] += rng.normal(0, level.fovy_deg)
    if level.orbit:
        _orbit(model, fields, rng)


def _orbit(model, fields: Fields, rng) -> None:
    """Put the third-person camera anywhere on a hemisphere, looking at the workspace."""
    third = model.camera("third_person").id
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.2, 1.2)
    distance, target = rng.uniform(0.9, 2.0), np.array([0.6, 0.0, 0.5]) + rng.normal(0, 0.1, 3)
    offset = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation),
                       np.sin(elevation)])  # fmt: skip
    right = np.cross(-offset, [0, 0, 1])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, -offset), offset], axis=1)  # MuJoCo looks along -z
    fields["cam_pos"][third] = target + distance * offset
    mujoco.mju_mat2Quat(fields["cam_quat"][third], axes.flatten())
    fields["cam_fovy"][third] = rng.uniform(35, 60)


def draw_dynamics(model, fields: Fields, level: DynamicsLevel, rng: np.random.Generator) -> None:
    """Change the physical `fields` of one world in place."""

    def factor(span: Range, *shape: int) -> np.ndarray:
        return np.exp(rng.uniform(*np.log(span), size=shape))

    fields["geom_friction"] *= factor(level.friction)
    loose = _loose_bodies(model)
    heavier = factor(level.mass, len(loose))
    fields["body_mass"][loose] *= heavier
    fields["body_inertia"][loose] *= heavier[:, None]
    stiffer = factor(level.stiffness, model.nu)
    fields["actuator_gainprm"][:, 0] *= stiffer
    fields["actuator_biasprm"][:, 1] *= stiffer
    fields["actuator_biasprm"][:, 2] *= factor(level.damping, model.nu)
    fields["dof_damping"] *= factor(level.joint_damping)
