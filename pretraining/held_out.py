"""Loss on samples that training never sees."""

import numpy as np
import torch

from pretraining.mixture import Mixture
from pretraining.parallel import World
from pretraining.samples import Samples
from toto_robot.backbone.causal import CausalModel


@torch.no_grad()
def held_out_loss(model: CausalModel, data: Samples, batch: int, world: World, count: int) -> float:
    """Mean loss on evenly spaced held-out samples."""
    count = max(1, min(count, len(data)) // world.size) * world.size
    chosen = np.linspace(0, len(data) - 1, count).astype(int)[world.rank :: world.size]
    total = torch.zeros((), device=world.device)
    for first in range(0, len(chosen), batch):
        b = data.at(chosen[first : first + batch]).to(world.device)
        total += model.clip_losses(b.codes, b.starts, b.frames).mean(dim=1).sum()
    return world.sum(total)[0] / count


def held_out_losses(
    model: CausalModel, data: Samples, batch: int, world: World, count: int
) -> dict[str, float]:
    """`held_out_loss`; for a mixture also that of every part, and the first is their weighted mean."""
    if not isinstance(data, Mixture):
        return {"held_out_loss": held_out_loss(model, data, batch, world, count)}
    losses = {
        name: held_out_loss(model, part, batch, world, count) for name, part in data.parts.items()
    }
    mean = sum(data.shares[name] * loss for name, loss in losses.items())
    return {"held_out_loss": mean} | {f"held_out_loss_{k}": loss for k, loss in losses.items()}
