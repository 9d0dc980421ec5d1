"""Probes of a frozen model without a cache: clips are decoded and encoded whenever they are read.

For sets whose token features fit on no disk (ImageNet's, one layer of a base model at 256 px: 2 TB).
Unlike cached features, every epoch sees other squares of a picture (`augment`).
"""

from functools import partial
from typing import Any

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pretraining.downstream.features import encode
from pretraining.downstream.layer_heads import LayerHeads, sum_of_errors
from pretraining.downstream.tuning import TuneConfig
from toto_robot.backbone import FrozenBackbone


class LiveProbes(nn.Module):
    """Heads at every layer; the model is no part of it, so checkpoints hold the heads alone."""

    def __init__(self, config: TuneConfig, backbone: FrozenBackbone, num_classes: int) -> None:
        super().__init__()
        self.heads = LayerHeads(config, backbone, num_classes)
        options = config.features()
        self.encode = partial(
            encode,
            backbone,
            layers=self.heads.layers,
            grid=options.grid,
            start=options.start,
        )
        self.choose = self.heads.choose

    def groups(self, clips: int) -> list[dict[str, Any]]:
        return self.heads.groups()

    def losses(
        self, frames: UInt8[Tensor, "B T R R 3"], classes: Int[Tensor, " B"]
    ) -> dict[str, Float[Tensor, ""]]:
        return {"heads_nats": sum_of_errors(self.predict(frames), classes)}

    def predict(self, frames: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "K B C"]:
        return self.heads(self.encode(frames))
