"""`backbone=cnn`: no frozen features; the policy's own network learns to see."""

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from toto_robot.backbone.frozen import Frames, check_frames, to_resolution
from toto_robot.backbone.weights import tensors_sha256


class Pixels(nn.Module):
    """Stands where a FrozenBackbone stands and hands out the frames, resized.

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
        self.weights_hash = self.digest()

    def digest(self) -> str:
        """The same for all: there are no weights."""
        return tensors_sha256({})

    @torch.no_grad()
    def forward(self, frames: Frames) -> UInt8[Tensor, "B R R 3"]:
        """Frames uint8 [B, H, W, 3] at the resolution of the network. Errors as FrozenBackbone's."""
        if frames.ndim != 4:
            raise ValueError(f"frames of shape {tuple(frames.shape)}, expected [B, H, W, 3]")
        videos = check_frames(frames).squeeze(1)
        return to_resolution(videos.to(self.device), self.resolution)
