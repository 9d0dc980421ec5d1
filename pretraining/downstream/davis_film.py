"""Films of DAVIS sequences: predicted masks over the frames, and the true ones beside them."""

from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pretraining.downstream.davis_data import Sequence, davis_palette, read_frame, read_mask

RATE_HZ = 12  # frames per second of the film; DAVIS itself is at 24
HEIGHT_PX, BAR_PX, GAP_PX = 240, 18, 4
OPACITY = 0.55
DARK, WHITE = (40, 40, 40), (255, 255, 255)


def overlay(
    frame: UInt8[np.ndarray, "H W 3"], ids: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Objects tinted by their colours in the palette."""
    colours = np.array(davis_palette(), np.float32).reshape(-1, 3)[ids]
    mixed = np.where(ids[..., None] > 0, OPACITY * colours + (1 - OPACITY) * frame, frame)
    return mixed.round().astype(np.uint8)


def panel(picture: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "h w 3"]:
    """At most HEIGHT_PX high, under a line of text."""
    whole = Image.fromarray(picture)
    if whole.height > HEIGHT_PX:
        width = round(whole.width * HEIGHT_PX / whole.height)
        whole = whole.resize((width, HEIGHT_PX), Image.Resampling.BILINEAR)
    bar = Image.new("RGB", (whole.width, BAR_PX), DARK)
    ImageDraw.Draw(bar).text((4, 3), text, fill=WHITE)
    return np.concatenate([np.asarray(bar), np.asarray(whole)])


def write_film(path: Path, sequence: Sequence, results: Path, title: str) -> None:
    """H.264, frame by frame: prediction on the left under `title`, truth on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE_HZ)
        stream.pix_fmt = "yuv420p"
        pairs = zip(sequence.frames, sequence.masks, strict=True)
        for number, (frame_path, mask_path) in enumerate(pairs):
            frame = read_frame(frame_path)
            predicted = read_mask(results / sequence.name / mask_path.name)[0]
            left = panel(overlay(frame, predicted), title)
            right = panel(overlay(frame, read_mask(mask_path)[0]), "truth")
            gap = np.zeros((len(left), GAP_PX, 3), np.uint8)
            both = np.concatenate([left, gap, right], axis=1)
            both = both[: len(both) // 2 * 2, : both.shape[1] // 2 * 2]  # yuv420p
            if number == 0:
                stream.height, stream.width = both.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(both), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
