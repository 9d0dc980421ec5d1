"""Film of evaluation episodes: third-person and wrist camera side by side, one tile per world; and a
contact sheet of stills, for those who do not play films."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from policies.demonstrations import Demonstration
from policies.evaluation import Episode

GREEN, RED, WHITE = (40, 170, 60), (200, 50, 40), (255, 255, 255)
BAR_PX = 18
STILL_EVERY = 5  # filmed frames between two stills kept for the contact sheet


class EpisodeFilm:
    """Writes the first episode of `num_worlds` worlds to an H.264 file, as `evaluate`'s watcher.

    Use as a context manager. Every `every`-th control step is filmed; a world whose episode has
    ended stands still, framed green (success) or red. `stamp` is written over the whole film.
    """

    def __init__(
        self,
        path: Path,
        task: Any,
        num_worlds: int,
        size_px: int = 192,
        rate_hz: float = 60.0,
        every: int = 2,
        stamp: str = "",
    ):
        self.path = Path(path)
        self.worlds = list(range(min(num_worlds, task.num_envs)))
        self._task, self._size_px, self._every, self._stamp = task, size_px, every, stamp
        self._columns = 1 if len(self.worlds) == 1 else 2
        self._rate_hz, self._step = rate_hz, 0
        self._tiles = [self._blank() for _ in self.worlds]
        self._stills: list[list[np.ndarray]] = [[] for _ in self.worlds]
        self._closed: set[int] = set()
        self._container = av.open(str(self.path), "w")
        self._stream: Any = self._container.add_stream("libx264", rate=round(rate_hz / every))
        self._stream.pix_fmt = "yuv420p"
        frame = self._compose()
        self._stream.height, self._stream.width = frame.shape[:2]

    def __enter__(self) -> "EpisodeFilm":
        return self

    def __exit__(self, *_: object) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()

    def __call__(self, ended: Mapping[int, Episode]) -> None:
        """Film the present state; `ended` holds the first episode of the worlds done with it."""
        for world in self.worlds:
            if world in ended and world not in self._closed:
                self._closed.add(world)
                self._tiles[world] = _outcome(self._tiles[world], ended[world], self._rate_hz)
                self._stills[world].append(self._tiles[world])
                self._write()
        running = [w for w in self.worlds if w not in ended]
        if running and self._step % self._every == 0:
            self._film(running)
            self._write()
        self._step += 1

    def finish(self, ended: Mapping[int, Episode], hold_s: float = 1.0) -> None:
        """Mark the last outcomes and hold the final picture."""
        self(ended)
        for _ in range(int(hold_s * float(self._stream.average_rate or 30))):
            self._write()

    def _film(self, running: list[int]) -> None:
        views = [
            np.asarray(
                self._task.render_film(
                    running, camera=camera, height=self._size_px, width=self._size_px
                )
            )
            for camera in ("third_person", "wrist")
        ]
        for row, world in enumerate(running):
            tile = np.concatenate([view[row] for view in views], axis=1)
            seed, number, _ = self._task.names[world].tolist()
            text = f"seed {seed}, world {number}: {self._step / self._rate_hz:.1f} s"
            self._tiles[world] = _bar(tile, text, (60, 60, 60))
            if self._step % (STILL_EVERY * self._every) == 0:
                self._stills[world].append(self._tiles[world])

    def contact_sheet(self, path: Path, columns: int = 5) -> None:
        """PNG: a row for each episode, stills at even times, the last as it ended."""
        rows = []
        for stills in self._stills:
            chosen = np.linspace(0, len(stills) - 1, columns).round().astype(int)
            rows.append(np.concatenate([stills[i] for i in chosen], axis=1))
        sheet = np.concatenate(rows, axis=0)
        sheet = _bar(sheet, self._stamp, RED) if self._stamp else sheet
        Image.fromarray(sheet).save(str(path))

    def _blank(self) -> np.ndarray:
        return np.zeros((self._size_px + BAR_PX, 2 * self._size_px, 3), np.uint8)

    def _compose(self) -> np.ndarray:
        tiles = list(self._tiles)
        while len(tiles) % self._columns:
            tiles.append(self._blank())
        rows = [
            np.concatenate(tiles[i : i + self._columns], axis=1)
            for i in range(0, len(tiles), self._columns)
        ]
        frame = np.concatenate(rows, axis=0)
        if self._stamp:
            frame = _bar(frame, self._stamp, RED)
        return frame[: len(frame) // 2 * 2]  # yuv420p needs even sides

    def _write(self) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(self._compose()), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def _bar(picture: np.ndarray, text: str, colour: tuple[int, int, int]) -> np.ndarray:
    """`picture` uint8 [H, W, 3] with a line of text above it: [H + BAR_PX, W, 3]."""
    bar = Image.new("RGB", (picture.shape[1], BAR_PX), colour)
    ImageDraw.Draw(bar).text((6, 3), text, fill=WHITE)
    return np.concatenate([np.asarray(bar), picture], axis=0)


def _outcome(tile: np.ndarray, episode: Episode, rate_hz: float) -> np.ndarray:
    """The last picture of an episode, framed and named by how it ended."""
    colour = GREEN if episode.success else RED
    word = f"success at {episode.success_step / rate_hz:.1f} s" if episode.success else "failure"
    text = (
        f"seed {episode.seed}, world {episode.world}: {word}, return {episode.episode_return:.1f}"
    )
    picture = tile[BAR_PX:].copy()
    picture[:4] = picture[-4:] = picture[:, :4] = picture[:, -4:] = colour
    return _bar(picture, text, colour)


def picture_grid(path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """PNG of titled rows of pictures uint8 [H, W, 3]."""
    named = [_bar(np.concatenate(list(row), axis=1), title, (60, 60, 60)) for title, row in rows]
    Image.fromarray(np.concatenate(named, axis=0)).save(str(path))


def film_demonstrations(
    path: Path, demos: Sequence[Demonstration], rate_hz: float, size_px: int = 192, every: int = 2
) -> None:
    """H.264 film of recorded demonstrations, cameras side by side, one tile each.

    What has ended stands still, framed green (success) or red.
    """
    length = max(len(demo) for demo in demos) + round(rate_hz)  # a second for the last outcome
    columns = 1 if len(demos) == 1 else 2
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=max(1, round(rate_hz / every)))
        stream.pix_fmt = "yuv420p"
        for step in range(0, length, every):
            tiles = [_demonstration_tile(demo, step, rate_hz, size_px) for demo in demos]
            frame = _grid(tiles, columns)
            if step == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _demonstration_tile(
    demo: Demonstration, step: int, rate_hz: float, size_px: int
) -> UInt8[np.ndarray, "H W 3"]:
    """One step of a demonstration; after its end the last one, framed by the outcome."""
    last, images = step >= len(demo) - 1, []
    for camera in demo.images.values():
        picture = Image.fromarray(camera[min(step, len(demo) - 1)])
        images.append(np.asarray(picture.resize((size_px, size_px), Image.Resampling.NEAREST)))
    tile = np.concatenate(images, axis=1).copy()
    seconds, colour, word = min(step, len(demo)) / rate_hz, (60, 60, 60), ""
    if last:
        colour, word = (GREEN, "success, ") if demo.success else (RED, "failure, ")
        tile[:4] = tile[-4:] = tile[:, :4] = tile[:, -4:] = colour
    return _bar(tile, f"{word}{seconds:.1f} s", colour)


def _grid(tiles: Sequence[np.ndarray], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles of one size in rows, with even sides, as yuv420p needs them."""
    full = [*tiles, *[np.zeros_like(tiles[0])] * (-len(tiles) % columns)]
    rows = [np.concatenate(full[i : i + columns], 1) for i in range(0, len(full), columns)]
    frame = np.concatenate(rows, 0)
    return np.ascontiguousarray(frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2])
