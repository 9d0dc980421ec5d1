"""DAVIS-2017 as it is distributed, and result folders as its evaluation program reads them.

<data>/ImageSets/2017/val.txt               names of sequences
<data>/JPEGImages/480p/<sequence>/00000.jpg …
<data>/Annotations/480p/<sequence>/00000.png …  palette PNGs: 0 ground, 1 … objects, 255 void
<results>/<sequence>/00000.png …            the same, predicted
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from pretraining.downstream.davis_metrics import (
    Statistics,
    boundary_accuracy,
    region_similarity,
    statistics,
)

VOID = 255
SHORTEST = 3  # frames; the first and the last are not scored
NAMED = 3  # missing files that an error names


@dataclass(frozen=True)
class Sequence:
    name: str
    frames: list[Path]
    masks: list[Path]


def find_sequences(
    data: Path, subset: str = "val", resolution: str = "480p", only: tuple[str, ...] = ()
) -> list[Sequence]:
    """The sequences of a subset, or some of them, checked to be whole.

    Raises:
        FileNotFoundError: a folder, a frame or a mask is missing; says which.
        ValueError: `only` names a sequence that is not in the subset; one is too short.
    """
    listing = data / "ImageSets" / "2017" / f"{subset}.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"{listing} is not there: data= is the folder DAVIS of DAVIS-2017-trainval-480p, with "
            "JPEGImages, Annotations and ImageSets in it"
        )
    names = listing.read_text().split()
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"{', '.join(unknown)}: not in {listing} ({', '.join(names)})")
    return [whole(data, resolution, name) for name in (only or names)]


def whole(data: Path, resolution: str, name: str) -> Sequence:
    """One sequence, frames and masks numbered from 00000 without a gap; errors as above."""
    pictures = data / "JPEGImages" / resolution / name
    annotations = data / "Annotations" / resolution / name
    stems = {path.stem for path in pictures.glob("*.jpg")} | {
        path.stem for path in annotations.glob("*.png")
    }
    if not stems:
        raise FileNotFoundError(f"no frames of sequence {name} in {pictures}")
    count = 1 + max((int(stem) for stem in stems if stem.isdecimal()), default=-1)
    frames = [pictures / f"{i:05d}.jpg" for i in range(count)]
    masks = [annotations / f"{i:05d}.png" for i in range(count)]
    if missing := [str(path) for path in (*frames, *masks) if not path.is_file()]:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise FileNotFoundError(
            f"sequence {name} of {count} frames lacks {', '.join(missing[:NAMED])}{more}"
        )
    if count < SHORTEST:
        raise ValueError(f"sequence {name} has {count} frames; at least {SHORTEST} can be scored")
    return Sequence(name, frames, masks)


def read_frame(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """ValueError, with the file's name, when it is damaged."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_mask(path: Path) -> tuple[UInt8[np.ndarray, "H W"], list[int] | None]:
    """Ids with void as ground, and the palette; ValueError when it is damaged or no mask."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(
                    f"{path} is a picture of mode {picture.mode}; expected a palette PNG whose "
                    "pixels are ids of objects"
                )
            ids, palette = np.array(picture), picture.getpalette()
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    ids[ids == VOID] = 0
    return ids, palette


def write_mask(path: Path, ids: UInt8[np.ndarray, "H W"], palette: list[int] | None) -> None:
    picture = Image.fromarray(ids)
    picture.putpalette(palette or davis_palette())
    picture.save(path)


def davis_palette() -> list[int]:
    """The benchmark's colours, which are PASCAL VOC's: bits of the id, spread over the channels."""
    ids = np.arange(256)[:, None]
    bits = [((ids >> (3 * i + np.arange(3))) & 1) << (7 - i) for i in range(8)]
    return np.sum(bits, axis=0).ravel().tolist()


def count_objects(sequence: Sequence) -> int:
    """The largest id in the first mask; objects that come later do not count, as in the benchmark."""
    return int(read_mask(sequence.masks[0])[0].max())


def score_sequence(
    sequence: Sequence, results: Path
) -> tuple[Float[np.ndarray, "objects T"], Float[np.ndarray, "objects T"]]:
    """J and F of each object in each frame but the first and the last.

    Raises:
        FileNotFoundError: there is no mask for a frame.
        ValueError: a mask is damaged, of another size, or has an id that no object has.
    """
    objects = count_objects(sequence)
    shape = objects, len(sequence.masks) - 2
    similarity, accuracy = np.zeros(shape), np.zeros(shape)
    for frame, path in enumerate(sequence.masks[1:-1]):
        predicted_path = results / sequence.name / path.name
        if not predicted_path.is_file():
            raise FileNotFoundError(f"{predicted_path} is not there: a mask for every frame")
        truth, prediction = read_mask(path)[0], read_mask(predicted_path)[0]
        if truth.shape != prediction.shape:
            raise ValueError(
                f"{predicted_path} is {prediction.shape[::-1]} px, {path} {truth.shape[::-1]}"
            )
        if prediction.max() > objects:
            raise ValueError(f"{predicted_path} has id {prediction.max()}, objects are {objects}")
        for number in range(objects):
            pair = truth == number + 1, prediction == number + 1
            similarity[number, frame] = region_similarity(*pair)
            accuracy[number, frame] = boundary_accuracy(*pair)
    return similarity, accuracy


@dataclass(frozen=True)
class ObjectScore:
    sequence: str
    number: int  # its id in the masks
    j: Statistics
    f: Statistics

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.j.mean + self.f.mean) / 2


def score_folder(sequences: list[Sequence], results: Path, show: bool = False) -> list[ObjectScore]:
    """Every object of every sequence, from masks on disk. Errors as `score_sequence`."""
    found = []
    for sequence in tqdm(sequences, desc=f"scoring {results.name}", disable=not show):
        similarity, accuracy = score_sequence(sequence, results)
        found += [
            ObjectScore(sequence.name, number + 1, statistics(j), statistics(f))
            for number, (j, f) in enumerate(zip(similarity, accuracy, strict=True))
        ]
    return found
