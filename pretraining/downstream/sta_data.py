"""Ego4D's short-term anticipation as it is distributed: annotations, frames, videos.

`<root>/annotations/fho_sta_{train,val,test_unannotated}.json` (root: the given folder, or v2/ or v1/ in
it): `info.video_metadata.<video>` has frame_width, frame_height and fps; each of `annotations` has uid,
video_uid (video_id in older files), frame, clip_uid, clip_frame and, but for the test set, objects,
with box (x1, y1, x2, y2 in pixels of the whole video), noun_category_id, verb_category_id and
time_to_contact (s); noun_categories and verb_categories have id and name.

Frames are looked for in what the benchmark's scripts extract, object_frames/<video>_<frame, 7
digits>.jpg and lmdb/<video> with keys <video>_<frame, 10 digits>, and in the videos themselves,
full_scale/, video_540ss/ or clips/.

Facts: github.com/EGO4D/docs, docs/data/annotations-schemas.md; github.com/EGO4D/forecasting,
SHORT_TERM_ANTICIPATION.md, tools/short_term_anticipation/{extract_object_frames,
dump_frames_to_lmdb_files}.py and ego4d_forecasting/datasets/short_term_anticipation.py (Ego4DHLMDB).
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pretraining.downstream.sta_metrics import Objects
from pretraining.sources import Source
from pretraining.video import CorruptSourceError, CorruptVideoError, frames_of

PARTS = {"train": "train", "val": "val", "test": "test_unannotated"}
Kind = Literal["pictures", "lmdb", "videos", "clips"]
FOLDERS: dict[str, Kind] = {  # in the order in which they are asked
    "object_frames": "pictures",
    "lmdb": "lmdb",
    "video_540ss": "videos",
    "full_scale": "videos",
    "clips": "clips",
}


@dataclass(frozen=True)
class Example:
    """A frame, and what will be touched next (None in the test set)."""

    uid: str
    video: str
    frame: int  # its number in the video, from 0
    clip: str | None
    clip_frame: int | None
    size: tuple[int, int]  # width, height in which the boxes are
    objects: Objects | None


@dataclass(frozen=True)
class Part:
    """The examples of one annotation file, and the names of its categories by id."""

    examples: list[Example]
    nouns: dict[int, str]
    verbs: dict[int, str]
    version: str


def find_root(data: Path) -> Path:
    """The folder with annotations/; FileNotFoundError says what was looked for."""
    for root in (data, data / "v2", data / "v1"):
        if (root / "annotations" / "fho_sta_val.json").is_file():
            return root
    raise FileNotFoundError(
        f"no annotations/fho_sta_val.json in {data.absolute()}, or in v2/ or v1/ there: expected "
        "Ego4D as its own command downloads it (--datasets annotations --benchmarks FHO)"
    )


def read_part(root: Path, part: str, limit: int = 0) -> Part:
    """Annotations of "train", "val" or "test", the first `limit` of them (0: all).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON of this kind; names the annotation and what it lacks.
    """
    path = root / "annotations" / f"fho_sta_{PARTS[part]}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content["annotations"]
        sizes = content["info"]["video_metadata"]
        nouns, verbs = (
            {row["id"]: row["name"] for row in content[f"{kind}_categories"]}
            for kind in ("noun", "verb")
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: {type(error).__name__} {error}; expected info.video_metadata, annotations, "
            "noun_categories and verb_categories"
        ) from error
    examples = []
    for number, row in enumerate(rows[: limit or None]):
        try:
            examples.append(example_of(row, sizes))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: annotation {number} (uid {row.get('uid')}): {type(error).__name__} {error}"
            ) from error
    if not examples:
        raise ValueError(f"{path} has no annotations")
    return Part(examples, nouns, verbs, str(content["info"].get("version", "")))


def example_of(row: Mapping[str, Any], sizes: Mapping[str, Any]) -> Example:
    video = row["video_uid"] if "video_uid" in row else row["video_id"]
    size = sizes[video]
    return Example(
        uid=row["uid"],
        video=video,
        frame=int(row["frame"]),
        clip=row.get("clip_uid"),
        clip_frame=row.get("clip_frame"),
        size=(int(size["frame_width"]), int(size["frame_height"])),
        objects=Objects.from_json(row["objects"]) if "objects" in row else None,
    )


def with_area(example: Example) -> Example | None:
    """The example with the boxes that are not empty, as StillFast trains on; None without any."""
    objects = example.objects
    if objects is None:
        return None
    whole = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(1)
    if not whole.any():
        return None
    columns = (objects.boxes, objects.nouns, objects.verbs, objects.ttcs_s)
    kept = Objects(*(column[whole] for column in columns))
    return Example(**{**vars(example), "objects": kept})


def picture_name(example: Example) -> str:
    return f"{example.video}_{example.frame:07d}.jpg"


@dataclass(frozen=True)
class Frames:
    """One place that frames are read from."""

    kind: Kind
    folder: Path

    def path(self, example: Example) -> Path:
        """The file, or LMDB's folder, that has to be there."""
        if self.kind == "pictures":
            return self.folder / picture_name(example)
        if self.kind == "lmdb":
            return self.folder / example.video
        return self.folder / f"{example.clip if self.kind == 'clips' else example.video}.mp4"

    def read(self, example: Example, numbers: list[int]) -> list[av.VideoFrame]:
        """Frames of these numbers in the example's video; a negative one is the first.

        Raises:
            CorruptSourceError: a file or a frame is missing or damaged; with its name.
        """
        path = self.path(example)
        if not path.exists():
            raise CorruptSourceError(f"no {path}")
        wanted = [max(0, number) for number in numbers]
        if self.kind == "pictures":
            assert wanted == [example.frame], "pictures are of the annotated frame only"
            source = Source(path.name, path, "image", path.stat().st_size)
            return list(frames_of(source))
        if self.kind == "lmdb":
            return read_lmdb(path, [f"{example.video}_{number:010d}" for number in wanted])
        if self.kind == "clips":
            if example.clip_frame is None:
                raise CorruptSourceError(f"uid {example.uid} has no clip_frame to read {path} at")
            first = example.frame - example.clip_frame
            wanted = [max(0, number - first) for number in numbers]
        found = frames_at(path, set(wanted))
        return [found[number] for number in wanted]


def read_lmdb(folder: Path, keys: list[str]) -> list[av.VideoFrame]:
    """JPEGs of a database as the benchmark's script writes one per video."""
    try:
        import lmdb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"frames of {folder} need the lmdb package: pip install lmdb") from error
    frames = []
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as values:
        for key in keys:
            value = values.get(key.encode())
            if value is None:
                raise CorruptSourceError(f"no frame {key} in {folder}")
            with Image.open(io.BytesIO(value)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            frames.append(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
    return frames


def frames_at(path: Path, numbers: set[int]) -> dict[int, av.VideoFrame]:
    """Frames by number, decoded from the key frame before the first of them.

    Raises:
        CorruptVideoError: the video cannot be opened, or ends before the last of them.
    """
    found: dict[int, av.VideoFrame] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.average_rate is None or stream.time_base is None:
                raise CorruptVideoError(f"{path} does not say its frame rate")
            per_frame = 1 / (stream.average_rate * stream.time_base)
            start = stream.start_time or 0
            container.seek(start + int(max(0, min(numbers) - 1) * per_frame), stream=stream)
            for frame in container.decode(stream):
                number = round((frame.pts - start) / per_frame) if frame.pts is not None else -1
                if number in numbers:
                    found[number] = frame
                if number >= max(numbers):
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise CorruptVideoError(f"{path} cannot be decoded: {error}") from error
    if missing := sorted(numbers - found.keys()):
        raise CorruptVideoError(f"{path} has no frame {missing[0]}")
    return found


def squashed(frame: av.VideoFrame, resolution: int) -> UInt8[np.ndarray, "R R 3"]:
    """The whole frame as a square: an object at its side must not be cropped away."""
    frame = frame.reformat(resolution, resolution, format="rgb24", interpolation="AREA")
    return frame.to_ndarray(format="rgb24")


def places(root: Path, folder: Path | None = None) -> list[Frames]:
    """Where frames are, of all that is there; of `folder` alone if one is given.

    Raises:
        FileNotFoundError: nowhere.
    """
    known = ", ".join(FOLDERS)
    if folder is not None:
        if folder.name not in FOLDERS or not folder.is_dir():
            raise FileNotFoundError(f"frames={folder}: expected a folder called {known}")
        return [Frames(FOLDERS[folder.name], folder)]
    found = [Frames(kind, root / name) for name, kind in FOLDERS.items() if (root / name).is_dir()]
    if not found:
        raise FileNotFoundError(
            f"no frames in {root.absolute()}: expected {known}, or frames= with one of these"
        )
    return found


def read_clip(
    where: list[Frames], example: Example, count: int, stride: int, resolution: int
) -> UInt8[np.ndarray, "T R R 3"]:
    """The annotated frame, and before it `count` - 1 at this stride, each squashed to a square.

    The last comes from the first place that has it; earlier ones cannot come from pictures.

    Raises:
        CorruptSourceError: as `Frames.read`.
        FileNotFoundError: more than one frame is wanted and there are only pictures.
    """
    numbers = [example.frame - stride * i for i in range(count - 1, 0, -1)]
    moving = [place for place in where if place.kind != "pictures"]
    if numbers and not moving:
        raise FileNotFoundError(
            f"num_frames={count} needs videos or LMDB; there is only {where[0].folder}"
        )
    frames = pick(moving, example).read(example, numbers) if numbers else []
    frames += pick(where, example).read(example, [example.frame])
    return np.stack([squashed(frame, resolution) for frame in frames])


def pick(where: list[Frames], example: Example) -> Frames:
    """The first place whose file is there; without one, the first, which then says so."""
    return next((place for place in where if place.path(example).exists()), where[0])
