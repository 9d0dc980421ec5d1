"""GPU engine: physics, resets and images by MuJoCo Warp on one device. Runs on the CPU too, slowly.

Everything stays on the device: torch tensors are views of Warp's arrays, and on a GPU a control
step and a picture are each one CUDA graph. Warp's streams wait for CUDA's default stream, which is
torch's, and the other way round, so the two need no further synchronisation.
"""

import logging

import mujoco
import mujoco.batch
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from envs.physics import VISUAL_FIELDS, check_camera, check_moved
from envs.warp_rendering import Graph, Painter, WorldModel, announce_compilation, mjw, settle, wp

logger = logging.getLogger(__name__)

DIVERGED = 1e10  # MuJoCo's own limit (mjMAXVAL) of what it calls a bad state
CHECK_OVERFLOW_EVERY = 64  # control steps; a check waits for the device
_HARMLESS = int(mjw.OverflowType.ITERATIONS)  # the solver stopped at its iteration limit


class WarpEngine:
    """`envs.physics.Physics` on MuJoCo Warp. See that protocol for the methods.

    Args:
        spec: the scene.
        num_worlds: how many.
        device: "cuda", "cuda:1", or "cpu".
        contacts_per_world, constraints_per_world: room for contacts and constraint rows, on average
            over the worlds and in each. What does not fit is left out by MuJoCo Warp; then an error
            is logged that says which to raise.
    """

    def __init__(
        self,
        spec: mujoco.MjSpec,
        num_worlds: int,
        device: str = "cpu",
        contacts_per_world: int = 64,
        constraints_per_world: int = 320,
    ):
        announce_compilation()
        self.model, self.num_worlds = spec.compile(), num_worlds
        self._device = wp.get_device("cuda:0" if device == "cuda" else device)
        self.device = str(wp.device_to_torch(self._device))
        self._model = WorldModel(self.model, num_worlds, self._device)
        with wp.ScopedDevice(self._device):
            self._data = mjw.make_data(
                self.model, nworld=num_worlds, nconmax=contacts_per_world,
                njmax=constraints_per_world,
            )  # fmt: skip
        d = self._data
        self._qpos, self._qvel, self._ctrl = map(wp.to_torch, (d.qpos, d.qvel, d.ctrl))
        self._warmstart, self._sensors = map(wp.to_torch, (d.qacc_warmstart, d.sensordata))
        self._site_pos, self._overflow = map(wp.to_torch, (d.site_xpos, d.overflow))
        self._mocap_pos = self._view_mocap()
        driven = self.model.jnt_qposadr[self.model.actuator_trnid[:, 0]]
        self._driven = torch.from_numpy(driven.astype(np.int64)).to(self.device)
        self._rest = torch.from_numpy(self.model.qpos0).float().to(self.device)
        self._visual_fields: dict[str, Tensor] = {}
        self._painters: dict[int, Painter] = {}
        self._steps, self._constants_stale, self._told_overflow = 0, False, 0
        self._record_graphs()

    def _view_mocap(self) -> Tensor:
        if self.model.nmocap:
            return wp.to_torch(self._data.mocap_pos)
        return torch.zeros(self.num_worlds, 0, 3, device=self.device)

    def _record_graphs(self) -> None:
        m, d = self._model.mjw, self._data

        self._settle = Graph(self._device, lambda: settle(m, d))
        self._advance: dict[int, Graph] = {}

    def _advance_by(self, substeps: int) -> Graph:
        if substeps not in self._advance:
            m, d = self._model.mjw, self._data

            def work() -> None:
                for _ in range(substeps):
                    mjw.step(m, d)
                settle(m, d)

            self._advance[substeps] = Graph(self._device, work)
        return self._advance[substeps]

    def reset(
        self,
        ids: Int[Tensor, " K"],
        qpos: Float[Tensor, "K nq"],
        mocap_pos: Float[Tensor, "K 3"] | None = None,
    ) -> None:
        self._refresh_constants()
        self._put(ids, qpos)
        if mocap_pos is not None:
            self._mocap_pos[ids, 0] = mocap_pos
        self._settle()

    def _put(self, ids: Tensor, qpos: Tensor) -> None:
        self._qpos[ids] = qpos
        self._ctrl[ids] = qpos[..., self._driven]
        for state in (self._qvel, self._warmstart, self._sensors):
            state[ids] = 0.0

    def step(self, targets: Float[Tensor, "N nu"], substeps: int) -> Int[Tensor, " K"]:
        self._refresh_constants()
        self._ctrl[:] = targets
        self._advance_by(substeps)()
        self._steps += 1
        if self._steps % CHECK_OVERFLOW_EVERY == 0:
            self._check_overflow()
        # NaN is not smaller than anything
        sane = (self._qpos.abs().amax(1) < DIVERGED) & (self._qvel.abs().amax(1) < DIVERGED)
        bad = (~sane).nonzero().squeeze(1)
        if len(bad):
            self._put(bad, self._rest.expand(len(bad), -1))
            self._settle()
        return bad

    def _check_overflow(self) -> None:
        kinds = int(np.bitwise_or.reduce(self._overflow.cpu().numpy())) & ~_HARMLESS
        if kinds & ~self._told_overflow:
            self._told_overflow |= kinds
            logger.error(
                "MuJoCo Warp ran out of room (%s): contacts were left out. Raise "
                "contacts_per_world or constraints_per_world of WarpEngine.",
                mjw.OverflowType(kinds),
            )

    def read(self) -> dict[str, Tensor]:
        fields = {
            "qpos": self._qpos, "qvel": self._qvel, "site_pos": self._site_pos,
            "sensors": self._sensors, "mocap_pos": self._mocap_pos,
        }  # fmt: skip
        return {name: value.clone() for name, value in fields.items()}

    def set_field(self, name: str, ids: Int[Tensor, " K"], values: Tensor) -> None:
        if name == "geom_pos":
            check_moved(self.model, values)
        if name in VISUAL_FIELDS:
            if name not in self._visual_fields:
                nominal = torch.from_numpy(getattr(self.model, name)).to(self.device)
                nominal = nominal.float() if nominal.is_floating_point() else nominal
                self._visual_fields[name] = nominal.repeat(self.num_worlds, *[1] * nominal.ndim)
                if name.startswith("cam_"):  # cameras are also asked for their pose
                    self._expand(name)
            self._visual_fields[name][ids] = values.to(self._visual_fields[name])
            if not name.startswith("cam_"):
                return
        if not self._model.has_own(name):
            self._expand(name)
        own = self._model.values(name)
        own[ids] = values.to(own)
        self._constants_stale |= name in mujoco.MjModel._setconst_inputs

    def _expand(self, name: str) -> None:
        derived = ()
        if name in mujoco.MjModel._setconst_inputs:
            derived = tuple(field for field in _DERIVED if not self._model.has_own(field))
        self._model.expand(name, *derived)
        self._record_graphs()

    def _refresh_constants(self) -> None:
        """Fields that derive from masses and inertias, after one of those was set."""
        if self._constants_stale:
            with wp.ScopedDevice(self._device):
                mjw.set_const(self._model.mjw, self._data)
            self._constants_stale = False

    def camera_pose(self, name: str) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        camera = check_camera(self.model, name)
        self._settle()
        position, axes = wp.to_torch(self._data.cam_xpos), wp.to_torch(self._data.cam_xmat)
        return position[:, camera].clone(), axes[:, camera].clone()

    def render(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> UInt8[Tensor, "K H W 3"]:
        return self._draw(camera, height, width, ids, segmentation=False)

    def render_geom_ids(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> Int[Tensor, "K H W"]:
        """Id of the geom seen in each pixel, -1 for the background."""
        return self._draw(camera, height, width, ids, segmentation=True)

    def _draw(self, camera, height, width, ids, segmentation) -> Tensor:
        worlds = torch.arange(self.num_worlds, device=self.device) if ids is None else ids
        slots = self.num_worlds if len(worlds) > self.num_worlds // 2 else _few(self.num_worlds)
        if slots not in self._painters:
            self._painters[slots] = Painter(self.model, slots, self._device)
        fields = {name: values[worlds] for name, values in self._visual_fields.items()}
        return self._painters[slots].draw(
            self._qpos[worlds], self._mocap_pos[worlds], fields, camera, (height, width),
            segmentation,
        ).to(self.device)  # fmt: skip

    def close(self) -> None:
        """Nothing outlives the object."""


# What mjw.set_const writes when masses or inertias change; every world needs its own.
_DERIVED = ("body_subtreemass", "dof_invweight0", "body_invweight0", "actuator_acc0")


def _few(num_worlds: int) -> int:
    """Slots of the painter for the few worlds that have just ended an episode."""
    return max(1, min(64, num_worlds // 8))
