"""Render batched worlds with MuJoCo's C renderer: one GL context on each of a few threads."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import mujoco
import numpy as np

from envs import gl
from envs.physics import Renderer, VisualFields, check_camera

RAY_CASTER_NAME = "MuJoCo Warp ray-caster (CPU)"


def make_renderer(model: mujoco.MjModel, num_threads: int) -> Renderer:
    """MuJoCo's OpenGL renderer; where no OpenGL library is, the ray-caster of MuJoCo Warp.

    Raises:
        gl.RenderingUnavailableError: neither is there, with what to install.
    """
    if gl.BACKEND is not None:
        return RenderPool(model, num_threads)
    try:
        from envs.warp_rendering import RayCaster
    except ImportError as error:
        raise gl.RenderingUnavailableError(gl.INSTALL_HINT) from error

    warnings.warn(
        "no OpenGL library here: images come from MuJoCo Warp's ray-caster on the CPU, which is "
        "slower and compiles for a minute or two when first used.\n" + gl.INSTALL_HINT,
        stacklevel=2,
    )
    return RayCaster(model)


class _Worker:
    """A renderer of one image size; it lives on the one thread that made its GL context."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        self.model = copy.copy(model)
        # A larger off-screen buffer than needed costs time (mujoco.md 2).
        self.model.vis.global_.offheight, self.model.vis.global_.offwidth = height, width
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width, max_geom=200)

    def draw(
        self, worlds, qpos, mocap_pos, camera: str, fields: VisualFields, out, segmentation: bool
    ):
        if segmentation:
            self.renderer.enable_segmentation_rendering()
        for row, world in enumerate(worlds):
            for name, values in fields.items():
                getattr(self.model, name)[:] = values[world]
            self.data.qpos[:] = qpos[row]
            self.data.mocap_pos[:] = mocap_pos[row]
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
            self.renderer.update_scene(self.data, camera)
            image = self.renderer.render()
            out[row] = image[..., 0] if segmentation else image
        self.renderer.disable_segmentation_rendering()


@dataclass
class _Lane:
    """One thread and its renderers by image size."""

    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    workers: dict[tuple[int, int], _Worker] = field(default_factory=dict)

    def draw(self, model, size, *args):
        if size not in self.workers:
            self.workers[size] = _Worker(model, *size)
        self.workers[size].draw(*args)

    def close(self):
        for worker in self.workers.values():
            worker.renderer.close()
        self.workers.clear()


class RenderPool:
    """Draws world states of one model on `num_threads` threads (the GIL is released meanwhile)."""

    def __init__(self, model: mujoco.MjModel, num_threads: int):
        self._model = model
        self._lanes = [_Lane() for _ in range(num_threads)]

    def render(
        self, worlds, qpos, mocap_pos, camera, height, width, fields, segmentation=False
    ) -> np.ndarray:
        check_camera(self._model, camera)
        shape = (len(worlds), height, width)
        out = np.empty(shape, np.int32) if segmentation else np.empty((*shape, 3), np.uint8)
        parts = np.array_split(np.arange(len(worlds)), len(self._lanes))
        jobs = [
            lane.executor.submit(
                lane.draw, self._model, (height, width),
                worlds[part], qpos[part], mocap_pos[part], camera, fields,
                out[part[0] : part[-1] + 1], segmentation,
            )
            for lane, part in zip(self._lanes, parts, strict=True) if len(part)
        ]  # fmt: skip
        for job in jobs:
            job.result()
        return out

    def close(self) -> None:
        """Free the GL contexts, each on its own thread; may be called again."""
        while self._lanes:
            lane = self._lanes.pop()
            lane.executor.submit(lane.close).result()
            lane.executor.shutdown()


def renderer_name() -> str:
    """What draws: GL_RENDERER of a fresh context ("llvmpipe (LLVM 15.0.6, 256 bits)"), or the
    ray-caster. Raises `gl.RenderingUnavailableError` where there is neither."""
    if gl.BACKEND is None:
        try:
            import envs.warp_rendering  # noqa: F401
        except ImportError as error:
            raise gl.RenderingUnavailableError(gl.INSTALL_HINT) from error
        return RAY_CASTER_NAME
    context = mujoco.GLContext(8, 8)
    context.make_current()
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    context.free()
    return name.decode() if isinstance(name, bytes) else str(name)
