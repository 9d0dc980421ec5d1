"""Episodes on disk while they happen, such that `kill -9` costs at most the last second.

One file `episode_NNNN.hdf5` each (`real_world.episode_file`).

A thread writes. `append` only copies the step into a bounded queue, and never waits: when the disk does
not keep up, steps are dropped, counted and reported.
"""

import fcntl
import json
import os
import queue
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from policies.demonstrations import Fact
from real_world.episode_file import END_BYTES, EpisodeFile, RecorderError, repair

EPISODE = "episode_{:04d}.hdf5"
FREE_BYTES = 64 << 20  # with less room on the disk an episode is ended while that still works
WAIT_S = 20.0  # for the writer to finish an episode


@dataclass(frozen=True)
class _Step:
    row: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Begin:
    path: Path
    facts: dict[str, Fact]


class _End:
    def __init__(self, end: Mapping[str, Fact] | None):
        self.end = end  # None: throw the episode away
        self.done = threading.Event()


class Recorder:
    """Writes episodes into `folder`, one at a time. Use as a context manager.

    Args:
        folder: made if it is not there. What killed runs left in it is repaired at once (`repaired`).
        about: what each file says of itself, JSON-like; `{"options": {"control_rate_hz": …}}` is what
            the converters and the trainer read.
        env_args: as robomimic reads them.
        queue_steps: how many steps may wait for the disk.
        free_bytes: stop with "disk full" when less is left.
    Raises:
        RecorderError: another recorder is at work in this folder.
    """

    def __init__(
        self,
        folder: Path | str,
        about: Mapping[str, Any] | None = None,
        env_args: Mapping[str, Any] | None = None,
        queue_steps: int = 60,
        free_bytes: int = FREE_BYTES,
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder)
        self.repaired = repair(self.folder)
        self._header = {"about": dict(about or {}), "env_args": dict(env_args or {})}
        self._free_bytes = free_bytes
        self._queue: queue.Queue[Any] = queue.Queue(queue_steps)
        self._shapes: dict[str, tuple[Any, ...]] = {}
        self._path: Path | None = None
        self.dropped = self.steps = 0  # of this episode
        self.failure = ""  # why the running episode is no longer written; empty while all is well
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, error: Any, _: object) -> None:
        try:
            if self._path is not None:
                self.end(False, f"{kind.__name__}: {error}" if kind else "not ended")
        finally:
            self.close()

    def begin(self, **facts: Fact) -> Path:
        """Start an episode; returns the name that its file will have. RuntimeError while one runs."""
        if self._path is not None:
            raise RuntimeError(f"{self._path.name} still runs: `end` or `abandon` it first")
        numbers = [int(found[1]) for p in self.folder.iterdir()
                   if (found := re.match(r"episode_(\d+)\.hdf5", p.name))]  # fmt: skip
        self._path = self.folder / EPISODE.format(max(numbers, default=-1) + 1)
        self._shapes, self.dropped, self.steps, self.failure = {}, 0, 0, ""
        self._queue.put(_Begin(self._path, dict(facts)))
        return self._path

    def append(self, step: Mapping[str, ArrayLike]) -> bool:
        """Add a step: path in the file -> array or number. False: the queue was full, it is dropped.

        The first step fixes the paths, types and shapes of all. Raises RecorderError when writing has
        failed (disk full), ValueError for a step unlike the first one or with NaN or infinity.
        """
        if self._path is None:
            raise RuntimeError("no episode runs: `begin` one first")
        if self.failure:
            raise RecorderError(self.failure)
        row = {key: np.array(value) for key, value in step.items()}  # copies: the caller goes on
        self._check(row)
        try:
            self._queue.put_nowait(_Step(row))
        except queue.Full:
            self.dropped += 1
            return False
        self.steps += 1
        return True

    def end(self, success: bool, end_reason: str, **facts: Fact) -> Path:
        """Complete the episode; returns its file, on the disk now. RecorderError if that failed, or
        if there was no step."""
        ended = {
            "success": success,
            "end_reason": end_reason,
            "dropped_steps": self.dropped,
            **facts,
        }
        path, failure = self._finish(ended)
        if failure and not path.exists():
            raise RecorderError(failure)
        return path

    def abandon(self) -> None:
        """Throw the running episode away, if one runs."""
        if self._path is not None:
            self._finish(None)

    def close(self) -> None:
        """End what runs as a failure, stop the thread, free the folder. May be called again."""
        if not self._thread.is_alive() and self._lock.closed:
            return
        try:
            if self._path is not None:
                self.end(False, "closed")
        finally:
            self._queue.put(None)
            self._thread.join(WAIT_S)
            self._lock.close()

    def _check(self, row: Mapping[str, np.ndarray]) -> None:
        shapes = {key: (value.shape, value.dtype) for key, value in row.items()}
        if not self._shapes:
            kinds = [key for key, value in row.items() if value.dtype.kind not in "fiub"]
            if kinds or "actions" not in row:
                raise ValueError(f"a step needs `actions`, and numbers only; got {shapes}")
            self._shapes = shapes
        if shapes != self._shapes:
            keys = shapes.keys() | self._shapes.keys()
            differ = [k for k in sorted(keys) if shapes.get(k) != self._shapes.get(k)]
            told = ", ".join(f"{k}: {shapes.get(k)} not {self._shapes.get(k)}" for k in differ)
            raise ValueError(f"this step is unlike the episode's first ({told})")
        for key, value in row.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{key} has NaN or infinity: {value.tolist()}")

    def _finish(self, end: Mapping[str, Fact] | None) -> tuple[Path, str]:
        if self._path is None:
            raise RuntimeError("no episode runs: `begin` one first")
        if end is not None and len(json.dumps(end).encode()) > END_BYTES:
            raise ValueError(f"more than {END_BYTES} bytes about an episode's end: {end}")
        path, message = self._path, _End(end)
        self._queue.put(message)
        self._path = None
        if not message.done.wait(WAIT_S):
            raise RecorderError(f"{path} was not complete after {WAIT_S} s; its .part is kept")
        return path, self.failure

    def _write_all(self) -> None:
        """The thread: from the queue into files until None comes."""
        episode: EpisodeFile | None = None
        begun = None
        while (message := self._queue.get()) is not None:
            try:
                if isinstance(message, _Begin):
                    begun, episode = message, None
                elif isinstance(message, _Step) and not self.failure and begun is not None:
                    if episode is None:
                        episode = EpisodeFile(begun.path, begun.facts, self._header, message.row)
                    episode.add(message.row, more=not self._queue.empty())
                    self._watch_disk(episode)
                elif isinstance(message, _End):
                    self._close_episode(episode, message.end)
                    episode = begun = None
            except (
                OSError,
                RuntimeError,
                ValueError,
            ) as error:  # what h5py raises when writing fails
                where = begun.path.name if begun else self.folder
                self.failure = f"{where} cannot be written: {error}; what is on disk is kept"
            if isinstance(message, _End):
                message.done.set()

    def _watch_disk(self, episode: EpisodeFile) -> None:
        if episode.steps % 16 == 1:
            free = shutil.disk_usage(self.folder).free
            if free < self._free_bytes:
                self.failure = (
                    f"disk full: {free / 1e6:.0f} MB are free in {self.folder}, "
                    f"{self._free_bytes / 1e6:.0f} MB are kept; the steps so far are on disk"
                )

    def _close_episode(self, episode: EpisodeFile | None, end: Mapping[str, Fact] | None) -> None:
        if episode is None:
            if end is not None and not self.failure:
                self.failure = "the episode has no step, there is nothing to keep"
        elif end is None:
            episode.throw_away()
        else:
            told = {**end, "recording": self.failure} if self.failure else end
            episode.finish(told)


def _lock(folder: Path) -> Any:
    """The folder's lock, which the system frees with the process."""
    file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise RecorderError(f"{folder} is being recorded into by process {owner}") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
