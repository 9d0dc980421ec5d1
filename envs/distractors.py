"""Things that do not belong in a scene: shapes without contacts, placed anew in each episode.

They are part of the world body, so they neither move nor touch anything: the physics of an episode
is the same with and without them.
"""

from typing import Protocol

import mujoco
import numpy as np
from jaxtyping import Float, Int

from envs.furniture import TABLE_TOP_M
from envs.primitives import BOX, CYLINDER, NO_CONTACT

_SPHERE = mujoco.mjtGeom.mjGEOM_SPHERE
_PREFIX = "distractor_"
_TABLE = "table"
# Half sizes, m. On a table: two cubes like the one to pick, cans, balls.
_SMALL = [
    (BOX, (0.0225, 0.0225, 0.0225)),
    (CYLINDER, (0.025, 0.05, 0)),
    (_SPHERE, (0.03, 0, 0)),
    (BOX, (0.03, 0.03, 0.03)),
    (CYLINDER, (0.035, 0.025, 0)),
    (BOX, (0.05, 0.025, 0.015)),
]
# Beside a cabinet: posts and boxes on the floor.
_LARGE = [
    (BOX, (0.1, 0.1, 0.3)),
    (CYLINDER, (0.08, 0.35, 0)),
    (_SPHERE, (0.15, 0, 0)),
    (BOX, (0.12, 0.08, 0.2)),
    (CYLINDER, (0.12, 0.2, 0)),
    (BOX, (0.06, 0.06, 0.4)),
]
# Where: cells around where the cube is put (x 0.4 to 0.6, y -0.2 to 0.2), and to the cabinet's sides.
_ON_TABLE = [
    (x, side * y) for x in (0.27, 0.42, 0.57, 0.72) for y in (0.3, 0.42) for side in (-1, 1)
]
_ON_FLOOR = [(x, side * y) for x in (0.1, 0.4, 0.7) for y in (0.6, 0.9) for side in (-1, 1)]
_TABLE_JITTER_M, _FLOOR_JITTER_M = 0.02, 0.05


class Draws(Protocol):
    """What `place` needs of `envs.randomisation.Draws`."""

    count: int

    def uniform(self, span: tuple[float, float], *shape: int) -> np.ndarray: ...


def add_distractors(spec: mujoco.MjSpec, count: int) -> None:
    """Add `count` shapes without contacts, out of sight until `place` puts them somewhere."""
    names = {geom.name for geom in spec.worldbody.geoms}
    shapes = _SMALL if _TABLE in names else _LARGE
    for i in range(count):
        kind, size = shapes[i % len(shapes)]
        spec.worldbody.add_geom(
            name=f"{_PREFIX}{i}", type=kind, size=size, pos=[0, 0, -2], **NO_CONTACT
        )


def geoms(model) -> Int[np.ndarray, " D"]:
    """Ids of a scene's distractors."""
    return np.array([i for i in range(model.ngeom) if model.geom(i).name.startswith(_PREFIX)], int)


def place(model, draws: Draws) -> Float[np.ndarray, "K ngeom 3"]:
    """`geom_pos` of K worlds: each distractor stands in a cell of its own, all else as it was.

    Raises ValueError for a scene without distractors."""
    own = geoms(model)
    if not len(own):
        raise ValueError("this scene has no distractors: call add_distractors before compiling it")
    on_table = any(model.geom(i).name == _TABLE for i in range(model.ngeom))
    cells = np.array(_ON_TABLE if on_table else _ON_FLOOR)
    jitter_m = _TABLE_JITTER_M if on_table else _FLOOR_JITTER_M
    chosen = draws.uniform((0, 1), len(cells)).argsort(axis=1)[:, : len(own)]
    position = np.repeat(model.geom_pos[None], draws.count, axis=0)
    position[:, own, :2] = cells[chosen] + draws.uniform((-jitter_m, jitter_m), len(own), 2)
    position[:, own, 2] = (TABLE_TOP_M if on_table else 0.0) + _half_height(model, own)
    return position


def _half_height(model, ids: np.ndarray) -> np.ndarray:
    column = {int(BOX): 2, int(CYLINDER): 1, int(_SPHERE): 0}
    return np.array([model.geom_size[i, column[int(model.geom_type[i])]] for i in ids])
