"""Drawn data in ImageNet's and Kinetics' layouts: which shape it is, and how a shape moves.

Pictures are those of pretraining.studies.shapes. Of videos the class is the motion alone: shape, colours,
ground, place and size are drawn anew for each, and the middle frame is drawn alike for all classes, so
that a single frame tells next to nothing.
"""

import csv
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pretraining.studies.shapes import (
    OVERSAMPLING,
    SHAPES,
    canvas,
    draw_video,
    write_video,
)

MOTIONS: dict[str, tuple[float, float, float, float]] = {  # right, down, turn, growth; -1, 0 or 1
    "clockwise": (0, 0, 1, 0),
    "counterclockwise": (0, 0, -1, 0),
    "down": (0, 1, 0, 0),
    "growing": (0, 0, 0, 1),
    "left": (-1, 0, 0, 0),
    "right": (1, 0, 0, 0),
    "shrinking": (0, 0, 0, -1),
    "up": (0, -1, 0, 0),
}
PATH, TURN, GROWTH = 0.3, 1.5, 0.5  # over a video: of the side; rad; log of the size's ratio


def draw_motion(
    motion: str, random: np.random.Generator, frames: int, size: int, plain: bool = False
) -> UInt8[np.ndarray, "T S S 3"]:
    """A shape that is not round, at its random place in the middle of the video."""
    big = OVERSAMPLING * size
    picture, colour = canvas(random, big, plain)
    names = [name for name in SHAPES if name != "disc"]
    outline = np.array(SHAPES[names[random.integers(len(names))]])
    radius, angle = random.uniform(0.16, 0.24) * big, random.uniform(0, 2 * math.pi)
    centre = random.uniform(0.38, 0.62, 2) * big
    right, down, turn, growth = MOTIONS[motion]
    shown = []
    for time in np.linspace(-0.5, 0.5, frames):
        a = angle + turn * TURN * time
        matrix = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        place = centre + np.array([right, down]) * PATH * big * time
        points = radius * math.exp(growth * GROWTH * 2 * time) * outline @ matrix + place
        image = Image.fromarray(picture)
        ImageDraw.Draw(image).polygon([tuple(p) for p in points.tolist()], fill=colour)
        shown.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
    return np.stack(shown)


def write_pictures(root: Path, train: int, validation: int, size: int, plain: bool = False) -> None:
    """`train/<wnid>/<wnid>_<n>.JPEG` and `val/<wnid>/ILSVRC2012_val_<n>.JPEG`, so many of each class.
    `plain`: light shapes, upright, on dark even grounds."""
    for number, name in enumerate(SHAPES):
        wnid = f"n{number + 1:08d}"
        for part, count, prefix in (
            ("train", train, wnid),
            ("val", validation, "ILSVRC2012_val"),
        ):
            folder = root / part / wnid
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                random = np.random.default_rng((number, i, part == "val"))
                (picture,) = draw_video(name, random, 1, size, plain)
                path = folder / f"{prefix}_{number * count + i + 1:08d}.JPEG"
                Image.fromarray(picture).save(path, format="JPEG", quality=95)


def write_clips(
    root: Path, train: int, validation: int, frames: int, size: int, plain: bool = False
) -> None:
    """`{train,val}/<id>_000000_000010.mp4` and annotations/{train,val}.csv, so many of each class.
    `plain`: light shapes on dark even grounds."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("val", validation)):
        (root / part).mkdir(exist_ok=True)
        rows = []
        for number, motion in enumerate(MOTIONS):
            for i in range(count):
                random = np.random.default_rng((number, i, part == "val"))
                name = f"{part[0]}{number:02d}{i:08d}"  # as long as YouTube's
                film = draw_motion(motion, random, frames, size, plain)
                write_video(film, root / part / f"{name}_000000_000010.mp4")
                rows.append((motion, name, 0, 10, part))
        with open(root / "annotations" / f"{part}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
            writer.writerows(rows)
