"""Encoders of single images behind the interface of the frozen backbone, to compare with.

They stand where the causal model stands, and `Frames` where its tokenizer does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from toto_robot.backbone.patches import PatchConfig


class Frames(nn.Module):
    """In the place of a tokenizer's encoder: frames as they are, read in patches of `stride` px."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.config = PatchConfig(stride)

    def encode(self, frames: UInt8[Tensor, "B R R 3"]) -> UInt8[Tensor, "B R R 3"]:
        return frames


class ImageEncoder(nn.Module):
    """What a frozen backbone needs of an image encoder.

    Attributes:
        config: `dim`, `layers` and `patch`, as of a causal model.
        has_cls: whether there is a class token.
        any_size: whether it reads frames of other sizes than it was made for.
    """

    config: Any
    has_cls, any_size = True, False

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def pixels(self, frames: UInt8[Tensor, "B R R 3"]) -> Float[Tensor, "B 3 R R"]:
        """(value / 255 - mean) / std by channel, channels first."""
        return ((frames.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def states(self, frames: UInt8[Tensor, "B R R 3"], depth: int) -> list[Float[Tensor, "B N D"]]:
        """States after 0, 1, … `depth` blocks: the class token (or zeros), then the patches in
        raster order."""
        raise NotImplementedError
