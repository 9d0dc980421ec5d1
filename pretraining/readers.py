"""Ways to read the frames of a source: PyAV, or torchcodec, which decodes on the GPU where there is one."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import av
import numpy as np
import PIL
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from pretraining.sources import Source
from pretraining.video import CorruptVideoError, Crop, address, place, read_source

CHUNK = 8  # frames decoded at a time: as floats, 200 MB of 1080p


class FrameReader(Protocol):
    """Frames of a source as squares.

    Attributes:
        version: of all that decides about the pixels, for the manifest.
    """

    version: str

    def squares(
        self, source: Source, resolution: int, crops: list[Crop]
    ) -> Iterator[UInt8[np.ndarray, "crops R R 3"]]:
        """All frames, RGB, the shortest side resized to `resolution`; of square ones a single crop.

        Raises:
            CorruptSourceError: with the name of the source and the complaint.
        """
        ...


class PyAVReader:
    """FFmpeg's software decoders, as they come in PyAV's wheel; Pillow for pictures."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.version = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
        self.version += f", Pillow {PIL.__version__}"

    def squares(
        self, source: Source, resolution: int, crops: list[Crop]
    ) -> Iterator[UInt8[np.ndarray, "crops R R 3"]]:
        return read_source(source, resolution, crops)


class TorchcodecReader:
    """The FFmpeg of the machine through torchcodec, on CUDA with NVDEC; resized there by torch.

    Undecoded pixels are those of PyAV, bit by bit; resized ones differ by a level or so, as PyAV
    resizes brightness and colour before they are made RGB. Pictures are read as by PyAV's reader.

    Raises:
        ImportError: torchcodec, or an FFmpeg for it, is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        self.decoders, version = import_torchcodec()
        self.device = device
        self.version = f"torchcodec {version} on {device.type}, Pillow {PIL.__version__}"

    def squares(
        self, source: Source, resolution: int, crops: list[Crop]
    ) -> Iterator[UInt8[np.ndarray, "crops R R 3"]]:
        if source.kind == "image" or source.broken_archive:
            yield from read_source(source, resolution, crops)
            return
        for frames in self._decoded(source):
            if frames.shape[-1] == frames.shape[-2]:
                crops = crops[:1]
            yield from to_squares(frames, resolution, crops)

    def _decoded(self, source: Source) -> Iterator[UInt8[Tensor, "n 3 H W"]]:
        try:
            decoder = self.decoders.VideoDecoder(address(source), device=self.device)
            promised = decoder.metadata.num_frames_from_header or 0
            for first in range(0, len(decoder), CHUNK):
                yield decoder.get_frames_in_range(first, min(first + CHUNK, len(decoder))).data
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptVideoError(f"{source.name} cannot be decoded: {reason}") from error
        if len(decoder) < max(promised, 1):
            raise CorruptVideoError(
                f"{source.name} ends after {len(decoder)} frames, its header promises {promised}"
            )


READERS: dict[str, Callable[[torch.device], FrameReader]] = {
    "pyav": PyAVReader,
    "torchcodec": TorchcodecReader,
}


def to_squares(
    frames: UInt8[Tensor, "n 3 H W"], resolution: int, crops: list[Crop]
) -> UInt8[np.ndarray, "n crops R R 3"]:
    """`video.to_square` in torch, for many frames, on the device where they are."""
    height, width = frames.shape[-2:]
    if min(height, width) != resolution:
        scale = resolution / min(height, width)
        height, width = round(height * scale), round(width * scale)
        mode = "area" if scale < 1 else "bilinear"
        floats = F.interpolate(frames.float(), (height, width), mode=mode)
        frames = floats.round().clamp(0, 255).to(torch.uint8)
    squares = []
    for crop in crops:
        top, left = place(crop.down, height - resolution), place(crop.right, width - resolution)
        square = frames[..., top : top + resolution, left : left + resolution]
        squares.append(square.flip(-1) if crop.mirrored else square)
    return torch.stack(squares, 1).permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()


def import_torchcodec() -> tuple[Any, str]:
    """`torchcodec.decoders` and the version."""
    try:
        torchcodec = importlib.import_module("torchcodec")
        decoders = importlib.import_module("torchcodec.decoders")
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # the last two: libraries it does not find
        raise ImportError(
            "reader=torchcodec needs FFmpeg 4 to 8 with shared libraries (apt install ffmpeg) and a "
            "torchcodec built for this torch: pip install torchcodec with CUDA, torchcodec==0.13.0 "
            f"without; or use reader=pyav ({str(error).splitlines()[0]})"
        ) from error
    return decoders, torchcodec.__version__
