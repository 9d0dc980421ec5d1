"""MuJoCo Warp's ray-caster: pictures of batched states on a device, without OpenGL.

On a GPU a picture is one CUDA graph and never leaves the device.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import mujoco
import mujoco.batch
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

try:
    import mujoco_warp as mjw
    import warp as wp
except ImportError as error:
    raise ImportError('this needs MuJoCo Warp: pip install "mujoco-warp==4.0.*"') from error

from envs.physics import VisualFields, check_camera

logger = logging.getLogger(__name__)
wp.config.log_level = wp.LOG_WARNING  # no line for each kernel

_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)


@functools.cache
def announce_compilation() -> None:
    """Once per process: the first use on a machine compiles for a while."""
    wp.init()
    logger.warning(
        "MuJoCo Warp compiles its kernels when they are first used on a machine: a minute or two. "
        "They are kept in %s", wp.config.kernel_cache_dir,
    )  # fmt: skip


def settle(m: Any, d: Any) -> None:
    """Places of bodies, sites, cameras and lights at the present state; forces stay as they are."""
    mjw.kinematics(m, d)
    mjw.com_pos(m, d)
    mjw.camlight(m, d)


class Graph:
    """A fixed sequence of Warp calls: recorded once as a CUDA graph, plain calls on the CPU."""

    def __init__(self, device: Any, work: Callable[[], None]):
        self._device, self._work, self._warm = device, work, False
        self._graph: Any = None

    def __call__(self) -> None:
        with wp.ScopedDevice(self._device):
            if not self._device.is_cuda or not self._warm:
                self._work()  # the first call compiles and allocates, which a graph must not
                self._warm = True
                return
            if self._graph is None:
                with wp.ScopedCapture(self._device) as capture:
                    self._work()
                self._graph = capture.graph
            wp.capture_launch(self._graph)


class WorldModel:
    """A model on the device, some of whose fields have a value of their own in each world."""

    def __init__(self, model: mujoco.MjModel, num_worlds: int, device: Any):
        self._mjm, self._num_worlds, self._device = model, num_worlds, device
        self._own: dict[str, int] = {}
        self.mjw = self._put()

    def _put(self) -> Any:
        with wp.ScopedDevice(self._device):
            return mjw.put_model(self._mjm, batch_sizes=self._own)

    def has_own(self, name: str) -> bool:
        return name in self._own

    def expand(self, *names: str) -> None:
        """Give every world its own copy of fields; graphs recorded before no longer apply.

        Raises ValueError for a field that MuJoCo Warp shares between worlds.
        """
        before = {name: self.values(name).clone() for name in self._own}
        for name in names:
            if name not in mujoco.batch.MODEL_FIELDS or not hasattr(self.mjw, name):
                raise ValueError(f"{name!r} is not a model field that can differ between worlds")
        try:
            self._own |= dict.fromkeys(names, self._num_worlds)
            self.mjw = self._put()
        except ValueError as error:
            for name in names:
                self._own.pop(name, None)
            raise ValueError(f"{names} cannot differ between worlds: {error}") from error
        for name, values in before.items():
            self.values(name)[:] = values

    def values(self, name: str) -> Tensor:
        """All worlds' values as a torch view."""
        return wp.to_torch(getattr(self.mjw, name))


class Painter:
    """Draws states on the device, `num_slots` of them at a time."""

    def __init__(self, model: mujoco.MjModel, num_slots: int, device: Any):
        self._mjm, self._num_slots, self._device = model, num_slots, device
        self._model = WorldModel(model, num_slots, device)
        with wp.ScopedDevice(device):
            self._data = mjw.make_data(model, nworld=num_slots, nconmax=1, njmax=1)
        self._qpos = wp.to_torch(self._data.qpos)
        self._mocap = wp.to_torch(self._data.mocap_pos) if model.nmocap else None
        self._geom_xpos = wp.to_torch(self._data.geom_xpos)
        self._of_world = torch.from_numpy(np.flatnonzero(model.geom_bodyid == 0))
        self._views: dict[tuple, tuple[Any, Graph]] = {}

    def draw(
        self,
        qpos: Float[Tensor, "K nq"],
        mocap_pos: Float[Tensor, "K nmocap 3"],
        fields: dict[str, Tensor],
        camera: str,
        size: tuple[int, int],
        segmentation: bool,
    ) -> Tensor:
        """uint8 [K, H, W, 3], or geom ids int32 [K, H, W]. `fields`: model fields, [K, ...]."""
        if new := [name for name in fields if not self._model.has_own(name)]:
            self._model.expand(*new)
            self._views.clear()
        parts = []
        for first in range(0, len(qpos), self._num_slots):
            part = slice(first, first + self._num_slots)
            count = len(qpos[part])
            self._qpos[:count] = qpos[part]
            if self._mocap is not None:
                self._mocap[:count] = mocap_pos[part]
            for name, values in fields.items():
                self._model.values(name)[:count] = values[part]
            if "geom_pos" in fields:  # Warp places the world body's shapes once, with its data
                moved = fields["geom_pos"][part][:, self._of_world]
                self._geom_xpos[:count, self._of_world] = moved
            context, graph = self._view(camera, size, segmentation)
            graph()
            picture = _geom_ids(context, size) if segmentation else _colours(context, size)
            parts.append(picture[:count].clone())
        if not parts:
            return torch.zeros((0, *size) if segmentation else (0, *size, 3), dtype=torch.uint8)
        return torch.cat(parts)

    def _view(self, camera: str, size: tuple[int, int], segmentation: bool) -> tuple[Any, Graph]:
        key = (camera, size, segmentation)
        if key not in self._views:
            check_camera(self._mjm, camera)
            with wp.ScopedDevice(self._device):
                context = mjw.create_render_context(
                    self._mjm, nworld=self._num_slots, cam_res=(size[1], size[0]),
                    cam_active=[camera], render_rgb=not segmentation, render_depth=False,
                    render_seg=segmentation, use_shadows=False, enabled_geom_groups=[0, 1, 2],
                    # rays that are computed beforehand would not follow a world's own field of view
                    use_precomputed_rays=not self._model.has_own("cam_fovy"),
                )  # fmt: skip

            def work() -> None:
                settle(self._model.mjw, self._data)
                mjw.refit_bvh(self._model.mjw, self._data, context)
                mjw.render(self._model.mjw, self._data, context)

            self._views[key] = (context, Graph(self._device, work))
        return self._views[key]


def _colours(context: Any, size: tuple[int, int]) -> UInt8[Tensor, "N H W 3"]:
    """Warp packs a pixel into 32 bits: blue, green, red, alpha."""
    packed = wp.to_torch(context.rgb_data.view(wp.int32))
    return packed.view(torch.uint8).reshape(len(packed), *size, 4)[..., [2, 1, 0]]


def _geom_ids(context: Any, size: tuple[int, int]) -> Int[Tensor, "N H W"]:
    ids, kinds = wp.to_torch(context.seg_data).reshape(-1, *size, 2).unbind(-1)
    return torch.where(kinds == _GEOM, ids, -1)


class RayCaster:
    """`envs.rendering.Renderer` without OpenGL: Warp's ray-caster on the CPU."""

    NUM_SLOTS = 4

    def __init__(self, model: mujoco.MjModel):
        announce_compilation()
        self._painter = Painter(model, self.NUM_SLOTS, wp.get_device("cpu"))

    def render(
        self,
        worlds: np.ndarray,
        qpos: np.ndarray,
        mocap_pos: np.ndarray,
        camera: str,
        height: int,
        width: int,
        fields: VisualFields,
        segmentation: bool = False,
    ) -> np.ndarray:
        own = {name: torch.from_numpy(values[worlds]) for name, values in fields.items()}
        picture = self._painter.draw(
            torch.from_numpy(qpos).float(), torch.from_numpy(mocap_pos).float(), own, camera,
            (height, width), segmentation,
        )  # fmt: skip
        return picture.numpy()

    def close(self) -> None:
        """Nothing outlives the object."""
