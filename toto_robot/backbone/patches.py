"""Continuous tokens: square patches of pixels, read as they are and predicted as pixels or as codes.

The paper's Table 3 compares them with codes: patch in, next patch out ("patch-patch"), and patch in,
next dVAE code out. It leaves the loss open; this is that of MAE (He et al. 2021) and AIM (El-Nouby
et al. 2024): squared error against pixels that are normalised patch by patch.

To the blocks a patch is a token like any other. A sequence is again [start, frame 1 in raster order,
frame 2, ...]; each row holds the P = 3 * patch^2 values of a patch and two more that are 1 in the
start row of a video or of an image sequence, so that one linear map embeds patches and starts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

CHANNELS = 3
STARTS = 2  # columns that mark the start of a video, of an image sequence
MEAN, DEVIATION = 0.5, 0.25  # about those of photographs, in units of full brightness
EPS = 1e-6  # MAE's; keeps patches of one colour finite


def patch_width(patch: int) -> int:
    """Values in a patch of `patch` x `patch` pixels."""
    return CHANNELS * patch**2


def to_patches(frames: UInt8[Tensor, "B R R 3"], patch: int) -> Float[Tensor, "B h w P"]:
    """`cut` with about zero mean and unit variance."""
    return (cut(frames, patch).float() / 255 - MEAN) / DEVIATION


def cut(frames: UInt8[Tensor, "B R R 3"], patch: int) -> UInt8[Tensor, "B h w P"]:
    """Pixels of each patch, row by row, channels last.

    Raises:
        ValueError: the side of the frames is no multiple of the patch's.
    """
    B, R = frames.shape[:2]
    if R % patch:
        raise ValueError(f"patches of {patch} px do not divide frames of {R} px")
    grid = frames.view(B, R // patch, patch, R // patch, patch, CHANNELS).transpose(2, 3)
    return grid.flatten(3)


def normalised(patches: Float[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
    """Each patch with zero mean and unit variance over its values: what is predicted."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * (variance + EPS).rsqrt()


def to_patch_sequence(
    patches: Float[Tensor, "B *grid P"], is_image: bool | Tensor
) -> Float[Tensor, "B N W"]:
    """Start row followed by the patches in raster order, W = P + 2; `is_image` bool or bool [B]."""
    patches = patches.flatten(1, -2)
    B, N, P = patches.shape
    images = torch.as_tensor(is_image, device=patches.device).expand(B)
    sequence = patches.new_zeros(B, N + 1, P + STARTS)
    sequence[:, 1:, :P] = patches
    sequence[:, 0, P], sequence[:, 0, P + 1] = ~images, images
    return sequence


class PatchEmbedding(nn.Linear):
    """Rows of a patch sequence -> states; float32 under autocast too, as an embedding table's are."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__(patch_width(patch) + STARTS, dim, bias=False)

    def forward(self, input: Float[Tensor, "B N W"]) -> Float[Tensor, "B N D"]:
        return super().forward(input).float()


class PatchConfig(NamedTuple):
    stride: int  # pixels a side


class PatchEncoder(nn.Module):
    """Stands where a tokenizer's encoder stands, in front of a model that reads patches."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, frames: UInt8[Tensor, "B R R 3"]) -> Float[Tensor, "B h w P"]:
        return to_patches(frames, self.config.stride)
