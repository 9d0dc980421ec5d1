"""Domain randomisation as named levels, drawn anew for each episode of each world.

Looks and cameras after Tobin et al. 2017 (arXiv 1703.06907), masses, friction and drives after
OpenAI et al. 2018 (arXiv 1808.00177); the ranges are ours. Draws depend on (seed, world, episode)
alone, so a world's episodes are the same whatever its neighbours and their number are.
"""

from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs import distractors
from envs.levels import DynamicsLevel, Range, VisualLevel, dynamics_level, visual_level
from envs.physics import Physics

Fields = dict[str, np.ndarray]  # model field -> its values in K worlds


MIN_CONTRAST = 0.4  # distance in RGB between what is to be picked and the table
_CANDIDATES = 12  # colours that a loose body takes the first of with that contrast
_PALE = 0.7  # the textures' second shade

_FLOOR, _TABLE, _CARCASS, _FRONTS = "floor", "table", "cabinet", ("door_", "drawer_")
_TEXTURES = ("checker", "gradient", "marks")


def add_textures(spec: mujoco.MjSpec) -> None:
    """Materials that `strong` worlds choose from; without effect on the scene's own looks."""
    builtins: dict[str, dict[str, Any]] = {
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
            rgb1=[1.0, 1.0, 1.0], rgb2=[_PALE] * 3, **builtins[name],
        )  # fmt: skip
        for part, repeat in (("floor", 1), ("surface", 4)):
            material = spec.add_material(
                name=f"random_{part}_{name}", texrepeat=[repeat, repeat], texuniform=True,
                specular=0.0,
            )  # fmt: skip
            material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"random_{name}"


class Randomiser:
    """Gives worlds their own looks and dynamics through `Physics.set_field`.

    Both engines vary all of it, textures included.

    Args:
        engine: worlds of a scene; `strong` textures need `add_textures` before it is compiled.
        visuals: a level's name or shifts joined by `+` (`envs.levels`), or `fixed` for none.
        dynamics: a level's name, or `fixed` for none.
        seed: 0 or greater.

    Raises:
        ValueError: unknown level.
    """

    def __init__(self, engine: Physics, visuals: str, dynamics: str, seed: int):
        self._engine, self._seed = engine, seed
        looks, physics = visual_level(visuals), dynamics_level(dynamics)
        # A drawer's stream is word 2 of its counter; that of the resets is 0.
        self._drawers: dict[int, _Looks | _Dynamics] = {}
        if looks is not None:
            self._drawers[1] = _Looks(engine.model, looks)
        if physics is not None:
            self._drawers[2] = _Dynamics(engine.model, physics)

    def reseed(self, seed: int) -> None:
        """Draw from now on what a new object with this seed would."""
        self._seed = seed

    def apply(
        self,
        ids: Int[Tensor, " K"],
        episodes: Int[Tensor, " K"],
        worlds: Int[Tensor, " K"] | None = None,
        seeds: Int[Tensor, " K"] | None = None,
    ) -> None:
        """Draw for worlds `ids`, which begin these episodes: their own, or those of other worlds
        and seeds."""
        if not len(ids):
            return
        seeds = torch.full_like(ids, self._seed) if seeds is None else seeds
        worlds = ids if worlds is None else worlds
        names = list(zip(seeds.tolist(), worlds.tolist(), episodes.tolist(), strict=True))
        for stream, drawer in self._drawers.items():
            draws = Draws(stream, names)
            for name, values in drawer(draws).items():
                tensor = torch.from_numpy(values).to(self._engine.device)
                self._engine.set_field(name, ids, tensor)


class Draws:
    """Random numbers [K, ...] for K worlds, each from its own counter-based generator."""

    def __init__(self, stream: int, names: list[tuple[int, int, int]]):
        """`names`: seed, world, episode."""
        self._generators = [
            np.random.Generator(
                np.random.Philox(key=[seed, world], counter=[0, 0, stream, episode])
            )
            for seed, world, episode in names
        ]
        self.count = len(names)

    def uniform(self, span: Range, *shape: int) -> Float[np.ndarray, "K ..."]:
        low, high = span
        unit = np.stack([generator.random(shape) for generator in self._generators])
        return low + (high - low) * unit

    def factor(self, span: Range, *shape: int) -> Float[np.ndarray, "K ..."]:
        """Log-uniform."""
        return np.exp(self.uniform((np.log(span[0]), np.log(span[1])), *shape))

    def normal(self, deviation: float, *shape: int) -> Float[np.ndarray, "K ..."]:
        """Cut at two deviations."""
        unit = np.stack([generator.standard_normal(shape) for generator in self._generators])
        return deviation * unit.clip(-2, 2)

    def chance(self, probability: float) -> Bool[np.ndarray, " K"]:
        return self.uniform((0, 1)) < probability

    def choice(self, options: list[int]) -> Int[np.ndarray, " K"]:
        """One of them with equal probability."""
        return np.array(options)[self.uniform((0, len(options))).astype(int)]

    def hsv(self, saturation: Range, value: Range, *shape: int) -> Float[np.ndarray, "K ... 3"]:
        """Colours of any hue, as RGB."""
        hue = self.uniform((0, 6), *shape, 1)
        depth = self.uniform(saturation, *shape, 1)
        sector = (hue + [5, 3, 1]) % 6
        return self.uniform(value, *shape, 1) * (
            1 - depth * np.minimum(sector, 4 - sector).clip(0, 1)
        )


def _repeated(nominal: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(nominal[None], count, axis=0)


def _loose_bodies(model) -> np.ndarray:
    """Bodies with a free joint: the cube, the props."""
    # int(): in MuJoCo 4 an enum member on the left of a NumPy integer is never equal to it.
    return model.jnt_bodyid[model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)]


def _geoms_of(model, prefixes: Iterable[str]) -> np.ndarray:
    """Geoms of the bodies with such names."""
    names = [model.body(i).name.startswith(tuple(prefixes)) for i in range(model.nbody)]
    return np.flatnonzero(np.array(names)[model.geom_bodyid])


class _Looks:
    """Draws the visual fields. A part that the scene does not have is an empty array."""

    def __init__(self, model, level: VisualLevel):
        self._model, self._level = model, level
        # A geom's own colour wins over its material's, so only the geoms' need to vary.
        default = (model.geom_rgba == np.array([0.5, 0.5, 0.5, 1.0])).all(1)
        own = default & (model.geom_matid >= 0)
        self._rgba = np.where(own[:, None], model.mat_rgba[model.geom_matid], model.geom_rgba)
        names = np.array([model.geom(i).name for i in range(model.ngeom)])
        self._floor, self._table = np.flatnonzero(names == _FLOOR), np.flatnonzero(names == _TABLE)
        self._tinted_with = model.geom_bodyid.copy()
        self._tinted_with[self._floor] = model.nbody
        self._loose = [np.flatnonzero(model.geom_bodyid == body) for body in _loose_bodies(model)]
        surfaces = (self._table, _geoms_of(model, [_CARCASS]), self._front_geoms())
        self._surfaces = [geoms for geoms in surfaces if len(geoms)]
        materials = {model.mat(i).name: i for i in range(model.nmat)}
        self._materials = {
            part: [i for name, i in materials.items() if name.startswith(f"random_{part}_")]
            for part in ("floor", "surface")
        }

    def _front_geoms(self) -> np.ndarray:
        """The doors' and drawers' fronts: whatever has the colour of a body's largest face."""
        model, found = self._model, []
        geoms = _geoms_of(model, _FRONTS)
        for body in np.unique(model.geom_bodyid[geoms]):
            own = np.flatnonzero(model.geom_bodyid == body)
            largest = own[np.argmax(model.geom_size[own, 1] * model.geom_size[own, 2])]
            found += own[(self._rgba[own] == self._rgba[largest]).all(1)].tolist()
        return np.array(found, int)

    def __call__(self, draws: Draws) -> Fields:
        level, fields = self._level, self._lights(draws) | self._cameras(draws)
        fields["geom_rgba"] = rgba = self._tinted(draws)
        if level.new_colours:
            self._recolour(rgba, draws)
        if level.textures and self._materials["floor"]:
            fields["geom_matid"] = self._retexture(rgba, draws)
        if level.distractors:
            fields["geom_pos"] = distractors.place(self._model, draws)
            rgba[:, distractors.geoms(self._model), :3] = draws.hsv(
                (0.3, 1.0), (0.3, 1.0), level.distractors
            )
        return fields

    def _tinted(self, draws: Draws) -> Float[np.ndarray, "K ngeom 4"]:
        rgba = _repeated(self._rgba, draws.count)
        tint = draws.uniform(self._level.colour, self._model.nbody + 1, 3)
        rgba[..., :3] = (rgba[..., :3] * tint[:, self._tinted_with]).clip(0, 1)
        return rgba

    def _recolour(self, rgba: np.ndarray, draws: Draws) -> None:
        for geoms in self._surfaces:
            chosen = draws.chance(self._level.new_colours)
            colour = draws.hsv((0.0, 0.4), (0.5, 1.0))
            worlds = np.flatnonzero(chosen)[:, None]
            rgba[worlds, geoms, :3] = colour[chosen, None]
        # Its own texture is dark; OpenGL cuts a lit colour at 1 before the texture, Warp does not.
        floor = draws.uniform((0.5, 1.8), 1, 3).clip(max=1.1)
        rgba[:, self._floor, :3] = self._rgba[self._floor, :3] * floor
        for geoms in self._loose:
            candidates = draws.hsv((0.6, 1.0), (0.4, 1.0), _CANDIDATES)
            rgba[:, geoms, :3] = self._contrasting(candidates, rgba)[:, None]

    def _contrasting(
        self, candidates: Float[np.ndarray, "K C 3"], rgba: np.ndarray
    ) -> Float[np.ndarray, "K 3"]:
        """The first that differs enough from both shades of the table, or else the one most so."""
        if not len(self._table):
            return candidates[:, 0]
        table = rgba[:, self._table[:1], :3]
        distances = [np.linalg.norm(candidates - s * table, axis=-1) for s in (1.0, _PALE)]
        enough = np.minimum(np.minimum(*distances), MIN_CONTRAST)
        return candidates[np.arange(len(rgba)), enough.argmax(axis=1)]

    def _retexture(self, rgba: np.ndarray, draws: Draws) -> Int[np.ndarray, "K ngeom"]:
        matid = _repeated(self._model.geom_matid, draws.count)
        for part, geoms in (("floor", self._floor), *(("surface", g) for g in self._surfaces[:1])):
            chosen = draws.chance(self._level.textures)
            worlds = np.flatnonzero(chosen)[:, None]
            matid[worlds, geoms] = draws.choice(self._materials[part])[chosen, None]
            if part == "floor":
                rgba[worlds, geoms, :3] = draws.uniform((0.25, 0.8), 3)[chosen, None]
        return matid

    def _lights(self, draws: Draws) -> Fields:
        model, level = self._model, self._level
        direction = model.light_dir + draws.normal(level.light_turn, model.nlight, 3)
        return {
            "light_diffuse": model.light_diffuse * draws.uniform(level.light, model.nlight, 1),
            "light_ambient": model.light_ambient + draws.uniform(level.ambient, model.nlight, 1),
            "light_dir": direction / np.linalg.norm(direction, axis=-1, keepdims=True),
        }

    def _cameras(self, draws: Draws) -> Fields:
        model, level = self._model, self._level
        in_room = model.cam_bodyid == 0
        reach_m = np.where(in_room, level.room_camera_m, level.wrist_camera_m)[:, None]
        fields = {
            "cam_pos": model.cam_pos + reach_m * draws.normal(1.0, model.ncam, 3),
            "cam_quat": _turned(model.cam_quat, draws.normal(level.camera_rad, model.ncam, 3)),
            "cam_fovy": model.cam_fovy + draws.normal(level.fovy_deg, model.ncam),
        }
        if level.orbit:
            self._orbit(fields, draws)
        return fields

    def _orbit(self, fields: Fields, draws: Draws) -> None:
        """Put the third-person camera anywhere on a hemisphere, looking at the workspace."""
        third = self._model.camera("third_person").id
        azimuth, elevation = draws.uniform((-np.pi, np.pi)), draws.uniform((0.2, 1.2))
        flat = np.cos(elevation)
        offset = np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)], 1)
        target = np.array([0.6, 0.0, 0.5]) + draws.normal(0.1, 3)
        fields["cam_pos"][:, third] = target + draws.uniform((0.9, 2.0), 1) * offset
        right = np.cross(-offset, [0, 0, 1])
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        axes = np.stack([right, np.cross(right, -offset), offset], axis=2)  # it looks along -z
        for quat, matrix in zip(fields["cam_quat"][:, third], axes, strict=True):
            mujoco.mju_mat2Quat(quat, matrix.flatten())
        fields["cam_fovy"][:, third] = draws.uniform((35, 60))


def _turned(
    quat: Float[np.ndarray, "C 4"], turn_rad: Float[np.ndarray, "K C 3"]
) -> Float[np.ndarray, "K C 4"]:
    """Frames after small rotations about their own axes: q (1, turn / 2), normalised."""
    scalar, vector = quat[:, :1], quat[:, 1:]
    half = turn_rad / 2
    product = np.concatenate(
        [
            scalar - (vector * half).sum(-1, keepdims=True),
            scalar * half + vector + np.cross(vector, half),
        ],
        axis=-1,
    )
    return product / np.linalg.norm(product, axis=-1, keepdims=True)


class _Dynamics:
    """Draws the physical fields."""

    def __init__(self, model, level: DynamicsLevel):
        self._model, self._level = model, level
        self._loose = _loose_bodies(model)

    def __call__(self, draws: Draws) -> Fields:
        model, level = self._model, self._level
        heavier = np.ones((draws.count, model.nbody))
        heavier[:, self._loose] = draws.factor(level.mass, len(self._loose))
        stiffer = draws.factor(level.stiffness, model.nu)
        gain = _repeated(model.actuator_gainprm, draws.count)
        bias = _repeated(model.actuator_biasprm, draws.count)
        gain[..., 0] *= stiffer  # force = gain[0] target + bias[1] q + bias[2] velocity
        bias[..., 1] *= stiffer
        bias[..., 2] *= draws.factor(level.damping, model.nu)
        return {
            "geom_friction": model.geom_friction * draws.factor(level.friction, 1, 1),
            "body_mass": model.body_mass * heavier,
            "body_inertia": model.body_inertia * heavier[..., None],
            "actuator_gainprm": gain,
            "actuator_biasprm": bias,
            "dof_damping": model.dof_damping * draws.factor(level.joint_damping, 1),
        }
