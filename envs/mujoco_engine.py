"""CPU engine: MuJoCo's C physics on threads, images by its C renderer."""

import os

import mujoco
import mujoco.batch
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from envs import gl  # importing envs has set MUJOCO_GL before the line above
from envs.rendering import RenderPool, VisualFields

_AT_NEW_STATE = int(mujoco.mjtStage.mjSTAGE_VEL)  # else derived fields lag one substep


class MujocoEngine:
    """`envs.physics.Physics` over `mujoco.batch.Batch`. See that protocol for the methods.

    `visual_fields` maps an MjModel field (`geom_rgba`, `cam_pos`, ...) to per-world values that
    are used when that world is drawn; physics never sees them.
    """

    def __init__(self, spec: mujoco.MjSpec, num_worlds: int, threads: int | None = None):
        self.num_worlds = num_worlds
        self.model = spec.compile()
        self.threads = threads or len(os.sched_getaffinity(0))
        self._batch = mujoco.batch.Batch(self.model, num_worlds, self.threads)
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self._site_pos, self._sensors = (
            self._batch.bind("site_xpos"),
            self._batch.bind("sensordata"),
        )
        self._pool = RenderPool(self.model, min(self.threads, num_worlds))
        self.visual_fields: VisualFields = {}
        self.has_images = gl.BACKEND is not None
        joint_of_actuator = self.model.actuator_trnid[:, 0]
        self._driven = self.model.jnt_qposadr[joint_of_actuator]

    def site_id(self, name: str) -> int:
        return self.model.site(name).id

    def reset(self, ids: Int[Tensor, " K"], qpos: Float[Tensor, "K nq"]) -> None:
        worlds = ids.numpy()
        self._batch.reset(worlds, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        self._qpos[worlds] = qpos.double().numpy()
        self._ctrl[worlds] = self._qpos[worlds][:, self._driven]
        self._batch.forward(worlds, stage=_AT_NEW_STATE)

    def step(self, targets: Float[Tensor, "N nu"], substeps: int) -> Int[Tensor, " K"]:
        self._ctrl[:] = targets.double().numpy()
        before = self._batch.warning[:, :, 1].copy()  # counts [N, kind of warning]
        self._batch.step(nstep=substeps, stage=_AT_NEW_STATE)
        # MuJoCo resets a diverging world by itself and only leaves a warning.
        diverged = self._new_warnings(before) | ~np.isfinite(self._qpos).all(1)
        return torch.from_numpy(np.flatnonzero(diverged))

    def _new_warnings(self, before: np.ndarray) -> np.ndarray:
        grown = self._batch.warning[:, :, 1] != before
        kinds = [
            int(mujoco.mjtWarning.mjWARN_BADQPOS),
            int(mujoco.mjtWarning.mjWARN_BADQVEL),
            int(mujoco.mjtWarning.mjWARN_BADQACC),
        ]
        return grown[:, kinds].any(1)

    def read(self) -> dict[str, Tensor]:
        fields = {
            "qpos": self._qpos, "qvel": self._qvel,
            "site_pos": self._site_pos, "sensors": self._sensors,
        }  # fmt: skip
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in fields.items()}

    def camera_pose(self, name: str) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        """Position (world, m) and axes (columns: right, up, backward) of a camera."""
        camera = self.model.camera(name).id
        position = self._batch.bind("cam_xpos")
        axes = self._batch.bind("cam_xmat")
        if not position.any():  # a field bound just now is filled by the next call
            self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
        rotation = axes[:, camera].reshape(-1, 3, 3)
        return (
            torch.from_numpy(position[:, camera].astype(np.float32)),
            torch.from_numpy(rotation.astype(np.float32)),
        )

    def render(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> UInt8[Tensor, "K H W 3"]:
        return torch.from_numpy(self._draw(camera, height, width, ids, segmentation=False))

    def render_geom_ids(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> Int[Tensor, "K H W"]:
        """Id of the geom seen in each pixel, -1 for the background."""
        return torch.from_numpy(self._draw(camera, height, width, ids, segmentation=True))

    def _draw(self, camera, height, width, ids, segmentation) -> np.ndarray:
        worlds = np.arange(self.num_worlds) if ids is None else ids.numpy()
        return self._pool.render(
            worlds, self._qpos[worlds], camera, height, width, self.visual_fields, segmentation
        )

    def close(self) -> None:
        self._pool.close()
