"""Camera frames as a backbone takes them: checked, and of the right size."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

Frames = UInt8[Tensor, "B H W 3"] | UInt8[Tensor, "B T H W 3"] | UInt8[np.ndarray, "*shape"]


def check_frames(frames: Tensor | np.ndarray) -> UInt8[Tensor, "B T H W 3"]:
    """Frames as a tensor with a time axis; ValueError says what came and what was expected."""
    expected = "expected uint8 of shape [B, H, W, 3] or [B, T, H, W, 3]"
    if isinstance(frames, np.ndarray):
        if frames.dtype != np.uint8:
            raise ValueError(f"frames of type {frames.dtype}, {expected} with values 0 to 255")
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    if not isinstance(frames, Tensor):
        raise ValueError(f"frames of type {type(frames).__name__}, {expected} (tensor or array)")
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames of type {frames.dtype}, {expected} with values 0 to 255")
    shape = tuple(frames.shape)
    if frames.ndim not in (4, 5) or frames.shape[-1] != 3:
        hint = " (channels go last)" if frames.ndim in (4, 5) and frames.shape[-3] == 3 else ""
        raise ValueError(f"frames of shape {shape}, {expected}{hint}")
    if 0 in shape:
        raise ValueError(f"frames of shape {shape} are empty, {expected}")
    return frames if frames.ndim == 5 else frames.unsqueeze(1)


def to_resolution(frames: UInt8[Tensor, "B H W 3"], resolution: int) -> UInt8[Tensor, "B R R 3"]:
    """Shortest side to `resolution` (antialiased), centre crop; nothing when the size is right."""
    height, width = frames.shape[1:3]
    if min(height, width) != resolution:
        scale = resolution / min(height, width)
        size = [round(height * scale), round(width * scale)]
        pixels = frames.permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        frames = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        height, width = size
    top, left = (height - resolution) // 2, (width - resolution) // 2
    return frames[:, top : top + resolution, left : left + resolution]
