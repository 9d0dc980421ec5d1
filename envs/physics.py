"""The one interface between tasks and a physics engine, over batched worlds."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class Physics(Protocol):
    """N worlds of one scene. Tensors are float32 copies on the engine's device, SI units."""

    num_worlds: int

    def reset(self, ids: Int[Tensor, " K"], qpos: Float[Tensor, "K nq"]) -> None:
        """Put worlds `ids` at `qpos` with zero velocity and targets equal to the joint positions.

        The other worlds are untouched.
        """
        ...

    def step(self, targets: Float[Tensor, "N nu"], substeps: int) -> Int[Tensor, " K"]:
        """Drive towards joint targets for `substeps`; returns the ids of worlds that went bad."""
        ...

    def read(self) -> dict[str, Tensor]:
        """`qpos` [N, nq], `qvel` [N, nv], `site_pos` [N, nsite, 3], `sensors` [N, nsensordata]."""
        ...

    def render(
        self, camera: str, height: int, width: int, ids: Int[Tensor, " K"] | None = None
    ) -> UInt8[Tensor, "K H W 3"]:
        """Draw a named camera in worlds `ids` (all by default)."""
        ...


def uniform_draws(seed: int, worlds: Tensor, episodes: Tensor, count: int) -> Float[Tensor, "K n"]:
    """Uniform [0, 1) numbers that depend on (seed, world, episode) alone.

    Stateless, so a world's resets do not depend on its neighbours or on the number of worlds
    (counter-based Philox, Salmon et al. 2011).
    """
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, world], counter=[0, 0, 0, episode])).random(
            count
        )
        for world, episode in zip(worlds.tolist(), episodes.tolist(), strict=True)
    ]
    return torch.from_numpy(np.array(rows).reshape(-1, count)).float()
