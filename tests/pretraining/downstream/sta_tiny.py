"""A set of a few seconds in Ego4D's layout: a white hand moves towards one of two coloured blocks."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, FPS = 160, 120, 30
NOUNS = [{"id": 0, "name": "brick_(red)"}, {"id": 2, "name": "brick_(blue)"}]  # not 0, 1
VERBS = [{"id": 1, "name": "take"}, {"id": 4, "name": "push"}]
COLOURS = {0: (220, 40, 40), 2: (40, 60, 220)}
FRAMES = 40
SPEED = 2.5  # px per frame


def draw(noun: int, verb: int, top: int, frame: int) -> np.ndarray:
    """The block stands at the right; the hand (tall: take, flat: push) touches it in frame 39."""
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    picture[top : top + 40, 110:150] = COLOURS[noun]
    high, wide = (30, 10) if verb == 1 else (10, 30)
    right = round(110 - SPEED * (FRAMES - 1 - frame))
    picture[top + 5 : top + 5 + high, max(0, right - wide) : max(0, right)] = 240
    return picture


def annotation(uid: str, number: int, frame: int, objects: list[dict] | None) -> dict:
    row = {
        "uid": uid,
        "video_uid": f"video-{number}",
        "frame": frame,
        "clip_id": number,
        "clip_uid": f"clip-{number}",
        "clip_frame": frame - 5,  # the clip begins at frame 5
    }
    return row if objects is None else row | {"objects": objects}


def write_video(path: Path, pictures: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(FPS), options={"crf": "10", "g": "8"}
        )
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_tiny(root: Path, videos: int = 8, frames: tuple[int, ...] = (12, 30)) -> Path:
    """Half of the videos to train on, a quarter to validate, a quarter to test; all layouts."""
    random = np.random.default_rng(0)
    parts: dict[str, list[dict]] = {"train": [], "val": [], "test_unannotated": []}
    sizes = {}
    for folder in ("annotations", "object_frames"):
        (root / folder).mkdir(parents=True)
    for number in range(videos):
        part = ("train", "val", "train", "test_unannotated")[number // 2 % 4]
        noun, verb = NOUNS[number % 2]["id"], VERBS[(number // 2 + number // 4) % 2]["id"]
        top = int(random.integers(0, HEIGHT - 45))
        pictures = [draw(noun, verb, top, frame) for frame in range(FRAMES)]
        write_video(root / "full_scale" / f"video-{number}.mp4", pictures)
        write_video(root / "clips" / f"clip-{number}.mp4", pictures[5:])
        sizes[f"video-{number}"] = {"frame_width": WIDTH, "frame_height": HEIGHT, "fps": FPS}
        for frame in frames:
            picture = root / "object_frames" / f"video-{number}_{frame:07d}.jpg"
            Image.fromarray(pictures[frame]).save(picture, quality=95)
            thing = {
                "box": [110.0, float(top), 150.0, float(top + 40)],
                "noun_category_id": noun,
                "verb_category_id": verb,
                "time_to_contact": (FRAMES - 1 - frame) / FPS,
            }
            objects = None if part == "test_unannotated" else [thing]
            parts[part].append(annotation(f"uid-{number}-{frame}", number, frame, objects))
    for part, rows in parts.items():
        content = {
            "info": {
                "description": "Ego4D Short-Term Object Interaction Anticipation",
                "version": "2.0",
                "split": part,
                "include_annotations": part != "test_unannotated",
                "video_metadata": sizes,
                "year": "2023",
                "date_created": "2023-02-01",
            },
            "annotations": rows,
            "noun_categories": NOUNS,
            "verb_categories": VERBS,
        }
        (root / "annotations" / f"fho_sta_{part}.json").write_text(json.dumps(content))
    return root
