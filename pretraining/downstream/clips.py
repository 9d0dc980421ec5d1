"""Pictures and clips as an evaluation reads them: which frames of a file, and which square of them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from pretraining.sources import Source
from pretraining.video import (
    CENTRE,
    CorruptSourceError,
    CorruptVideoError,
    Crop,
    count_frames,
    frames_of,
    to_square,
)

AHEAD = 2  # chunks that are decoded while one is encoded


@dataclass(frozen=True, kw_only=True)
class View:
    """Which frames of a source, and which square of them.

    Attributes:
        frames: how many; 1 for a picture.
        stride: from each to the next; None: evenly over the whole video, ends included.
        share: place of the clip in what is left of the video: 0 its start, 1 its end, 0.5 between
            (with one frame and no stride: of that frame).
        crop: of the square, after the shortest side is resized to the resolution.
    """

    frames: int = 1
    stride: int | None = None
    share: float = 0.5
    crop: Crop = CENTRE

    def places(self, count: int) -> list[int]:
        """Numbers of the frames in a video of `count` frames.

        A video that is shorter than the clip repeats its last frame.
        """
        if self.stride is None and self.frames > 1:
            return np.linspace(0, count - 1, self.frames).round().astype(int).tolist()
        span = (self.frames - 1) * (self.stride or 1)
        first = int(self.share * max(0, count - 1 - span))
        return [min(first + i * (self.stride or 1), count - 1) for i in range(self.frames)]


@dataclass(frozen=True)
class Clip:
    """A view of a source; a picture is a clip of one frame."""

    source: Source
    view: View = View()


def read_views(
    source: Source, views: Sequence[View], resolution: int
) -> list[UInt8[np.ndarray, "T R R 3"]]:
    """Frames of each view, RGB, in one pass over the file. Nothing after the last is decoded.

    Raises:
        CorruptSourceError: with the file's name and the decoder's complaint.
    """
    count = count_frames(source)
    if not count:
        next(frames_of(source))  # tells the reason
        raise CorruptVideoError(f"{source.name} has no frames")
    places = [view.places(count) for view in views]
    crops: dict[int, set[Crop]] = {}
    for view, numbers in zip(views, places, strict=True):
        for number in numbers:
            crops.setdefault(number, set()).add(view.crop)
    found = {
        (number, crop): to_square(frame, resolution, crop)
        for number, frame in enumerate(itertools.islice(frames_of(source), max(crops) + 1))
        for crop in crops.get(number, ())
    }
    return [
        np.stack([found[number, view.crop] for number in numbers])
        for view, numbers in zip(views, places, strict=True)
    ]


def read_clip(clip: Clip, resolution: int) -> UInt8[np.ndarray, "T R R 3"]:
    """The clip's frames; CorruptSourceError as `read_views`."""
    return read_views(clip.source, [clip.view], resolution)[0]


def read_clips(
    chunks: Iterable[Sequence[Clip]], resolution: int, workers: int
) -> Iterator[list[UInt8[np.ndarray, "T R R 3"] | str]]:
    """Chunk after chunk, decoded by threads ahead of time; of a corrupt clip the reason.

    Clips of one source that follow each other are read together.
    """

    def attempt(clips: list[Clip]) -> list[np.ndarray] | list[str]:
        try:
            return read_views(clips[0].source, [clip.view for clip in clips], resolution)
        except CorruptSourceError as error:
            return [str(error)] * len(clips)

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode") as pool:
        waiting = []
        try:
            for chunk in chunks:
                sources = itertools.groupby(chunk, key=lambda clip: clip.source)
                waiting.append([pool.submit(attempt, list(clips)) for _, clips in sources])
                if len(waiting) > AHEAD:
                    yield [clip for future in waiting.pop(0) for clip in future.result()]
            for futures in waiting:
                yield [clip for future in futures for clip in future.result()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
