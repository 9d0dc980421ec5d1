"""Frames without a pre-trained network: `backbone=cnn` learns to see, `backbone=pixels` does not."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from toto_robot.backbone.frames import Frames, check_frames, to_resolution
from toto_robot.backbone.images import ImageEncoder
from toto_robot.backbone.patches import DEVIATION, MEAN, patch_width, to_patches
from toto_robot.backbone.weights import tensors_sha256

NO_WEIGHTS = tensors_sha256({})  # what both of them name as their weights' hash


class Pixels(nn.Module):
    """`backbone=cnn`: stands where a FrozenBackbone stands and hands out the frames, resized.

    Attributes:
        trainable: True, which tells a policy to bring an image network of its own.
        feature_shape: (3, R, R), of the image that the network reads; frames come out as
            uint8 [B, R, R, 3] all the same.
    """

    name, trainable, untrained = "cnn", True, False
    layer = num_layers = 0
    context, precision = 1, "auto"

    def __init__(self, resolution: int = 128, readout: str = "grid", device: str = "cpu") -> None:
        super().__init__()
        self.resolution, self.readout, self.device = resolution, readout, device
        self.num_features = 3
        self.feature_shape = (3, resolution, resolution)
        self.weights_hash = NO_WEIGHTS

    def digest(self) -> str:
        """The same for all: there are no weights."""
        return NO_WEIGHTS

    @torch.no_grad()
    def forward(self, frames: Frames) -> UInt8[Tensor, "B R R 3"]:
        """Frames uint8 [B, H, W, 3] at the resolution of the network. Errors as FrozenBackbone's."""
        if frames.ndim != 4:
            raise ValueError(f"frames of shape {tuple(frames.shape)}, expected [B, H, W, 3]")
        videos = check_frames(frames).squeeze(1)
        return to_resolution(videos.to(self.device), self.resolution)


@dataclass(frozen=True)
class PixelConfig:
    patch: int = 8  # px
    resolution: int = 64  # px: as many tokens as the grid of a Toto, of about as many values
    layers: int = 0

    @property
    def dim(self) -> int:
        return patch_width(self.patch)


class PixelPatches(ImageEncoder):
    """`backbone=pixels`: tokens are patches of the frame as they are, read out like any features.

    What a comparison of frozen features begins with: it says what the read-out does alone.
    """

    has_cls, any_size = False, True

    def __init__(self, config: PixelConfig | None = None) -> None:
        super().__init__((MEAN,) * 3, (DEVIATION,) * 3)
        self.config = config or PixelConfig()

    def states(self, frames: UInt8[Tensor, "B R R 3"], depth: int) -> list[Float[Tensor, "B N D"]]:
        patches = to_patches(frames, self.config.patch).flatten(1, 2)
        return [torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)]
