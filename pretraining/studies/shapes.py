"""A small labelled data set: drawn shapes, one class per folder, to run the studies with.

    python -m pretraining.studies.shapes out=data/shapes videos=100

Each video shows one shape of its class drifting and turning over a ground; class folders hold MP4
files (or PNG pictures with `kind=pictures`), as ImageFolder expects them. Place, size, angle,
colours and ground are drawn anew for each video, so that a mean colour says nothing of the class.
"""

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from tqdm import tqdm

from toto_robot.cli import parse

FPS = 30
OVERSAMPLING = 2  # edges are drawn at twice the size
GROUND = 60  # largest difference of a ground's two colours in each channel, of 255
CONTRAST = 120.0  # least distance of a shape's colour to both colours of its ground, of 441

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Draw a data set of shapes: a folder per class, a video (or picture) per example."""

    out: Path
    videos: int = 100  # per class
    frames: int = 4  # per video
    kind: Literal["videos", "pictures"] = "videos"
    size: int = 128  # px
    plain: bool = False  # light upright shapes on dark even grounds: for models of minutes
    seed: int = 0


def around(count: int, *radii: float) -> Points:
    """Points at equal angles, with the radii in turn; the first points up."""
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


HALF_CIRCLE: Points = [
    (math.cos(math.pi * i / 24), math.sin(math.pi * i / 24) - 0.4) for i in range(25)
]
# Outlines of radius about 1. They have about the same area, so that size says little either.
SHAPES: dict[str, Points] = {
    "arrow": [(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)],
    "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
              (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    "disc": around(48, 0.75),
    "half": HALF_CIRCLE,
    "ell": [(-0.7, -1), (-0.05, -1), (-0.05, 0.4), (0.8, 0.4), (0.8, 1), (-0.7, 1)],
    "square": around(4, 0.95),
    "star": around(10, 1.1, 0.5),
    "triangle": around(3, 1.1),
}  # fmt: skip


def ground(random: np.random.Generator, size: int) -> tuple[UInt8[np.ndarray, "S S 3"], np.ndarray]:
    """A gradient, stripes, checks or blotches of two colours; and the two colours [2, 3]."""
    first = random.uniform(0, 255, 3)
    colours = np.stack([first, np.clip(first + random.uniform(-GROUND, GROUND, 3), 0, 255)])
    y, x = np.mgrid[:size, :size] / size
    angle, waves = random.uniform(0, 2 * math.pi), random.uniform(2, 6)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    kind = random.integers(4)
    if kind == 0:
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        mix = np.sin(2 * math.pi * waves * along) > 0
    elif kind == 2:
        mix = np.sin(2 * math.pi * waves * along) * np.sin(2 * math.pi * waves * across) > 0
    else:
        coarse = random.uniform(0, 255, (6, 6)).astype(np.uint8)
        mix = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        mix = mix / 255
    picture = colours[0] + (colours[1] - colours[0]) * np.asarray(mix, float)[..., None]
    return picture.round().astype(np.uint8), colours


def colour_apart_from(random: np.random.Generator, others: np.ndarray) -> tuple[int, ...]:
    """A random colour that stands out; the farthest of many where two grounds leave no room."""
    candidates = random.integers(0, 256, (64, 3))
    distance = np.linalg.norm(candidates[:, None] - others, axis=2).min(1)
    far = np.flatnonzero(distance > CONTRAST)
    return tuple(candidates[far[0] if len(far) else distance.argmax()].tolist())


def even_ground(
    random: np.random.Generator, size: int
) -> tuple[UInt8[np.ndarray, "S S 3"], tuple[int, ...]]:
    """One dark colour everywhere, and a light one for the shape."""
    dark, light = random.integers(0, 60, 3), random.integers(190, 256, 3)
    return np.full((size, size, 3), dark, np.uint8), tuple(light.tolist())


def canvas(
    random: np.random.Generator, size: int, plain: bool
) -> tuple[UInt8[np.ndarray, "S S 3"], tuple[int, ...]]:
    """A ground, and a colour for what is drawn on it."""
    if plain:
        return even_ground(random, size)
    picture, colours = ground(random, size)
    return picture, colour_apart_from(random, colours)


def draw_video(
    name: str, random: np.random.Generator, frames: int, size: int, plain: bool = False
) -> UInt8[np.ndarray, "T S S 3"]:
    """One shape over one ground, drifting and turning evenly."""
    big = OVERSAMPLING * size
    picture, colour = canvas(random, big, plain)
    radius = random.uniform(0.2, 0.36) * big
    centre = random.uniform(1.2 * radius, big - 1.2 * radius, 2)
    drift, spin = random.uniform(-0.04, 0.04, 2) * big, random.uniform(-0.15, 0.15)
    angle = random.uniform(-math.pi / 5, math.pi / 5)
    if plain:
        angle, spin = 0.0, 0.0
    outline = np.array(SHAPES[name])
    shown = []
    for i in range(frames):
        turn = angle + spin * i
        matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        points = radius * outline @ matrix + centre + drift * i
        image = Image.fromarray(picture)
        ImageDraw.Draw(image).polygon([tuple(p) for p in points.tolist()], fill=colour)
        shown.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
    return np.stack(shown)


def write_video(frames: UInt8[np.ndarray, "T S S 3"], path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "16"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main(config: Config) -> None:
    for number, name in enumerate(tqdm(SHAPES, unit="class", desc="shapes")):
        folder = config.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(config.videos):
            random = np.random.default_rng((config.seed, number, i))
            frames = draw_video(name, random, config.frames, config.size, config.plain)
            if config.kind == "videos":
                write_video(frames, folder / f"{i:04d}.mp4")
            else:
                Image.fromarray(frames[0]).save(folder / f"{i:04d}.png")
    print(f"{len(SHAPES)} classes of {config.videos} {config.kind} in {config.out}")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
