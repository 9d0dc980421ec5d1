"""The interfaces to a physics engine over batched worlds, and to what draws them."""

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor


class Physics(Protocol):
    """N worlds of one scene, SI units. Float tensors are float32 on `device`; ids are too."""

    model: Any  # the nominal mujoco.MjModel that every world starts from
    num_worlds: int
    device: str

    def reset(
        self,
        ids: Int[Tensor, " K"],
        qpos: Float[Tensor, "K nq"],
        mocap_pos: Float[Tensor, "K 3"] | None = None,
    ) -> None:
        """Put worlds `ids` at `qpos` with zero velocity and targets equal to the joint positions.

        `mocap_pos` (world, m) places the scene's one mocap body, where it has one. The other
        worlds are untouched.
        """
        ...

    def step(self, targets: Float[Tensor, "N nu"], substeps: int) -> Int[Tensor, " K"]:
        """Drive towards joint targets for `substeps`; returns the ids of worlds that went bad.

        A world that went bad (NaN, or numbers beyond 1e10) is put at the model's default state.
        """
        ...

    def read(self) -> dict[str, Tensor]:
        """`qpos` [N, nq], `qvel` [N, nv], `site_pos` [N, nsite, 3], `sensors` [N, nsensordata],
        `mocap_pos` [N, nmocap, 3].

        Positions are of the present state; forces are those of the last substep.
        """
        ...

    def set_field(self, name: str, ids: Int[Tensor, " K"], values: Shaped[Tensor, "K ..."]) -> None:
        """Give worlds `ids` their own value of a model field (`geom_friction`, `cam_pos`, ...).

        Raises ValueError for a field that cannot differ between worlds.
        """
        ...

    def render(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> UInt8[Tensor, "K H W 3"]:
        """Draw a named camera in worlds `ids` (all by default), at their present state."""
        ...

    def render_geom_ids(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> Int[Tensor, "K H W"]:
        """Id of the geom seen in each pixel, -1 for the background."""
        ...

    def camera_pose(self, name: str) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        """Position (world, m) and axes (columns: right, up, backward) of a camera."""
        ...

    def close(self) -> None:
        """Free threads and GL contexts; may be called again."""
        ...


VisualFields = dict[str, np.ndarray]  # MjModel field -> per-world values [N, ...]


class Renderer(Protocol):
    """Draws world states of one model."""

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
        """Draw `worlds` at `qpos` [K, nq], `mocap_pos` [K, nmocap, 3]; `fields` are of all worlds.

        Returns uint8 [K, H, W, 3], or with `segmentation` geom ids int32 [K, H, W], -1 for the sky.
        Raises ValueError for an unknown camera.
        """
        ...

    def close(self) -> None: ...


def check_camera(model: Any, name: str) -> int:
    """Id of a camera; ValueError with the scene's cameras if there is none of this name."""
    cameras = [model.camera(i).name for i in range(model.ncam)]
    if name not in cameras:
        raise ValueError(f"unknown camera {name!r}; this scene has {cameras}")
    return cameras.index(name)


# Fields that only change how a world looks: no physics engine has to hear of them. `geom_pos` is one
# for the shapes that nothing touches (`check_moved`).
VISUAL_FIELDS = frozenset(
    "geom_pos geom_rgba mat_rgba mat_texid mat_texrepeat geom_matid light_pos light_dir light_diffuse "
    "light_ambient light_specular cam_pos cam_quat cam_fovy".split()
)


def check_moved(model: Any, geom_pos: Tensor) -> None:
    """Raises ValueError if values [K, ngeom, 3] would move a shape that can touch another: it would
    be seen in one place and felt in another."""
    moved = (geom_pos.cpu().numpy() != model.geom_pos).any(axis=(0, 2))
    solid = np.flatnonzero(moved & ((model.geom_contype | model.geom_conaffinity) > 0))
    if len(solid):
        names = [model.geom(i).name or f"geom {i}" for i in solid]
        raise ValueError(f"geom_pos may move shapes without contacts only, not {names}")


def check_device(label: str, device: str) -> None:
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"{label}={device!r}: expected 'cpu', 'cuda' or 'cuda:<number>'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{label}={device!r}, but torch {torch.__version__} sees no CUDA device here; use "
            f"{label}='cpu', or install a CUDA build of torch (pytorch.org, Get started)"
        )


def uniform_draws(
    seed: int | Tensor, worlds: Tensor, episodes: Tensor, count: int
) -> Float[Tensor, "K n"]:
    """Uniform [0, 1) numbers that depend on (seed, world, episode) alone.

    Stateless, so a world's resets do not depend on its neighbours or on the number of worlds
    (counter-based Philox, Salmon et al. 2011). `seed`: one for all, or [K].
    """
    seeds = torch.as_tensor(seed).expand(len(worlds))
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, world], counter=[0, 0, 0, episode])).random(
            count
        )
        for seed, world, episode in zip(
            seeds.tolist(), worlds.tolist(), episodes.tolist(), strict=True
        )
    ]
    return torch.from_numpy(np.array(rows).reshape(-1, count)).float()
