"""A small DAVIS-2017 in the layout of the real one: textured squares that drift over a texture."""

from pathlib import Path

import numpy as np
from PIL import Image

from pretraining.downstream.davis_data import davis_palette

HEIGHT, WIDTH = 96, 160


def texture(random: np.random.Generator, height: int, width: int, tint: int) -> np.ndarray:
    """Coarse noise around a colour."""
    cells = random.integers(-60, 60, (-(-height // 8), -(-width // 8), 3))
    colour = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (128, 128, 128)][tint])
    full = (colour + cells).repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return full.clip(0, 255).astype(np.uint8)


def write_sequence(root: Path, name: str, seed: int, frames: int, objects: int) -> None:
    random = np.random.default_rng(seed)
    ground = texture(random, HEIGHT, WIDTH, 3)
    squares = [texture(random, 32, 32, tint) for tint in range(objects)]
    places = random.integers(4, 24, (objects, 2)) + np.array([[0, 56 * i] for i in range(objects)])
    steps = random.integers(2, 5, (objects, 2))
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p" / name).mkdir(parents=True)
    for t in range(frames):
        picture, ids = ground.copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, (square, (y, x)) in enumerate(zip(squares, places + t * steps, strict=True), 1):
            picture[y : y + 32, x : x + 32] = square[: HEIGHT - y, : WIDTH - x]
            ids[y : y + 32, x : x + 32] = number
        Image.fromarray(picture).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=95)
        mask = Image.fromarray(ids)
        mask.putpalette(davis_palette())
        mask.save(root / f"Annotations/480p/{name}/{t:05d}.png")


def write_davis(root: Path, frames: int = 6) -> Path:
    """Two sequences of `frames` frames, of one and of two objects."""
    write_sequence(root, "one-square", 0, frames, 1)
    write_sequence(root, "two-squares", 1, frames, 2)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("one-square\ntwo-squares\n")
    return root
