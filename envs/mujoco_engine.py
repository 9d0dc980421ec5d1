"""CPU engine: MuJoCo's C physics on threads, images by its C renderer."""

import os

import mujoco  # importing envs has set MUJOCO_GL before this line
import mujoco.batch
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from envs.physics import VISUAL_FIELDS, Renderer, VisualFields, check_moved
from envs.rendering import make_renderer

_AT_NEW_STATE = int(mujoco.mjtStage.mjSTAGE_VEL)  # else derived fields lag one substep


class MujocoEngine:
    """`envs.physics.Physics` over `mujoco.batch.Batch`. See that protocol for the methods.

    Fields that only concern looks are kept apart in `visual_fields` and used when a world is drawn.
    """

    device = "cpu"

    def __init__(self, spec: mujoco.MjSpec, num_worlds: int, threads: int | None = None):
        self.num_worlds = num_worlds
        self.model = spec.compile()
        self.threads = threads or len(os.sched_getaffinity(0))
        self._batch = mujoco.batch.Batch(self.model, num_worlds, self.threads)
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self._mocap_pos = self._batch.bind("mocap_pos")
        self._site_pos = self._batch.bind("site_xpos")
        self._sensors = self._batch.bind("sensordata")
        self._renderer: Renderer | None = None
        self._process = os.getpid()
        self.visual_fields: VisualFields = {}
        self._stale = np.zeros(num_worlds, bool)  # a field was set from which others derive
        joint_of_actuator = self.model.actuator_trnid[:, 0]
        self._driven = self.model.jnt_qposadr[joint_of_actuator]

    def _check_process(self) -> None:
        """Threads and GL contexts do not survive a fork: the child would wait for ever."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "this process was forked from one that simulates or renders; start workers with "
                "multiprocessing.get_context('spawn') and build the task in each of them"
            )

    def reset(
        self,
        ids: Int[Tensor, " K"],
        qpos: Float[Tensor, "K nq"],
        mocap_pos: Float[Tensor, "K 3"] | None = None,
    ) -> None:
        self._check_process()
        worlds = ids.numpy()
        self._refresh_constants()
        self._batch.reset(worlds, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        self._qpos[worlds] = qpos.double().numpy()
        self._ctrl[worlds] = self._qpos[worlds][:, self._driven]
        if mocap_pos is not None:
            self._mocap_pos[worlds, 0] = mocap_pos.double().numpy()
        self._batch.forward(worlds, stage=_AT_NEW_STATE)

    def step(self, targets: Float[Tensor, "N nu"], substeps: int) -> Int[Tensor, " K"]:
        self._check_process()
        self._refresh_constants()
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
            "site_pos": self._site_pos, "sensors": self._sensors, "mocap_pos": self._mocap_pos,
        }  # fmt: skip
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in fields.items()}

    def _refresh_constants(self) -> None:
        if self._stale.any():
            self._batch.set_const(np.flatnonzero(self._stale))
            self._stale[:] = False

    def set_field(self, name: str, ids: Int[Tensor, " K"], values: Tensor) -> None:
        if name == "geom_pos":
            check_moved(self.model, values)
        if name in VISUAL_FIELDS:
            if name not in self.visual_fields:
                nominal = getattr(self.model, name)[None]
                self.visual_fields[name] = np.repeat(nominal, self.num_worlds, axis=0)
            self.visual_fields[name][ids.numpy()] = values.numpy()
            return
        if name not in mujoco.batch.MODEL_FIELDS:
            raise ValueError(f"{name!r} is not a model field that can differ between worlds")
        self._batch.expand(name)[ids.numpy()] = values.numpy()
        if name in mujoco.MjModel._setconst_inputs:
            self._stale[ids.numpy()] = True

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
        self._check_process()
        if self._renderer is None:
            self._renderer = make_renderer(self.model, min(self.threads, self.num_worlds))
        worlds = np.arange(self.num_worlds) if ids is None else ids.numpy()
        return self._renderer.render(
            worlds, self._qpos[worlds], self._mocap_pos[worlds], camera, height, width,
            self.visual_fields, segmentation,
        )  # fmt: skip

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
