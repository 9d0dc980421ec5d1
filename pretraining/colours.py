"""Per-pixel loss weights by the rarity of a pixel's colour.

A cube of 10 px is 0.6 % of a picture: a plain pixel loss is at its best when it ignores it. As in
colourisation (Zhang et al. 2016, section 2.2) the weight of a colour is the inverse of its frequency
over the data set, smoothed and mixed with a uniform distribution; here also tempered and clipped.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

LEVELS = 16  # per channel: 4096 colours


def colour_index(frames: UInt8[Tensor, "*shape 3"]) -> Tensor:
    """Index of each pixel's quantised colour, 0 <= index < LEVELS^3."""
    red, green, blue = (frames.int() * LEVELS // 256).unbind(-1)
    return (red * LEVELS + green) * LEVELS + blue


def smooth(histogram: Float[Tensor, " colours"]) -> Float[Tensor, " colours"]:
    """Spread counts over neighbouring colours: 1-2-1 along each channel, total kept."""
    cube = histogram.view(1, 1, LEVELS, LEVELS, LEVELS)
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.einsum("i,j,k->ijk", line, line, line)[None, None]
    cube = F.conv3d(F.pad(cube, (1,) * 6, mode="replicate"), kernel)
    return (cube / cube.sum()).flatten()


def colour_weights(
    frames: UInt8[Tensor, "N H W 3"],
    *,
    temper: float = 0.5,
    uniform: float = 0.5,
    largest: float = 20.0,
) -> Float[Tensor, " colours"]:
    """Weight of each quantised colour; the mean over the pixels of `frames` is 1.

    Args:
        temper: exponent on the inverse frequency; 0 weighs all pixels alike, 1 is Zhang's choice.
        uniform: share of the uniform distribution mixed into the frequencies (Zhang's lambda).
        largest: no colour weighs more than this many times the commonest one.
    """
    counts = torch.bincount(colour_index(frames).flatten(), minlength=LEVELS**3).float()
    frequency = counts / counts.sum()
    mixed = (1 - uniform) * smooth(frequency) + uniform / LEVELS**3
    weights = mixed.pow(-temper)
    weights = weights.clamp_max(largest * weights.min())
    return weights / (weights * frequency).sum()


def colour_whitening(
    frames: UInt8[Tensor, "N H W 3"], *, temper: float = 0.5
) -> Float[Tensor, "3 3"]:
    """Matrix that evens out how much the directions of colour space vary over the data set.

    Rendered scenes vary ten times more in brightness than in hue, so a loss on RGB is content with
    grey for a long time. Errors multiplied by this matrix (a power of the inverse covariance, 0.5 is
    half-way to whitening) are measured against the spread of their own direction.

    Scaled so that the total variance of the data stays the same.
    """
    pixels = frames[:, ::4, ::4].reshape(-1, 3).double() / 255
    covariance = torch.cov(pixels.T) + 1e-6 * torch.eye(3, dtype=torch.float64)
    spread, directions = torch.linalg.eigh(covariance)
    matrix = directions @ torch.diag(spread.pow(-temper / 2)) @ directions.T
    scale = (covariance.trace() / (matrix @ covariance @ matrix.T).trace()).sqrt()
    return (matrix * scale).float()


def pixel_weights(
    frames: UInt8[Tensor, "B H W 3"], weights: Float[Tensor, " colours"]
) -> Float[Tensor, "B 1 H W"]:
    """Weights of the pixels of a batch."""
    return weights[colour_index(frames)].unsqueeze(1)
