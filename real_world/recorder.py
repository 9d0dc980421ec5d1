"""Episodes on disk while they happen, such that `kill -9` costs at most the last second.

One file `episode_NNNN.hdf5` each, in the layout of `policies.demonstrations`, called `….hdf5.part` until
it is complete. The part is HDF5 in single-writer-multiple-reader mode: at any moment what was flushed
can be read (without that mode one file in twelve was lost to a kill). All columns exist from the first
step on and nothing is created later, as that mode demands; how an episode ended goes into attributes
that are there from the beginning, and say "killed" until then.

A thread writes. `append` only copies the step into a bounded queue, and never waits: when the disk does
not keep up, steps are dropped, counted and reported. Frames are stored raw.
"""

import fcntl
import json
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike

from policies.demonstrations import END, FORMAT, Fact

EPISODE = "episode_{:04d}.hdf5"
PART = ".part"
KILLED = "killed"
END_BYTES = 8192  # room for how the episode ended, as JSON
FLUSH_S = 0.5  # the longest time that a step waits to be flushed when the disk is slow
RAW_CHUNK = 64  # steps of a vector that are stored together
FREE_BYTES = 64 << 20  # with less room on the disk an episode is ended while that still works
SMALLEST_BYTES = 2048  # of a part that has its columns
WAIT_S = 20.0  # for the writer to finish an episode


class RecorderError(RuntimeError):
    """Recording cannot go on: disk full, folder in use, file damaged. What is on disk stays."""


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
        episode: _Episode | None = None
        begun = None
        while (message := self._queue.get()) is not None:
            try:
                if isinstance(message, _Begin):
                    begun, episode = message, None
                elif isinstance(message, _Step) and not self.failure and begun is not None:
                    if episode is None:
                        episode = _Episode(begun, self._header, message.row)
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

    def _watch_disk(self, episode: "_Episode") -> None:
        if episode.steps % 16 == 1:
            free = shutil.disk_usage(self.folder).free
            if free < self._free_bytes:
                self.failure = (
                    f"disk full: {free / 1e6:.0f} MB are free in {self.folder}, "
                    f"{self._free_bytes / 1e6:.0f} MB are kept; the steps so far are on disk"
                )

    def _close_episode(self, episode: "_Episode | None", end: Mapping[str, Fact] | None) -> None:
        if episode is None:
            if end is not None and not self.failure:
                self.failure = "the episode has no step, there is nothing to keep"
        elif end is None:
            episode.throw_away()
        else:
            told = {**end, "recording": self.failure} if self.failure else end
            episode.finish(told)


class _Episode:
    """The file of the running episode; lives in the writer's thread."""

    def __init__(self, begun: _Begin, header: Mapping[str, Any], first: Mapping[str, np.ndarray]):
        self.path, self.part = begun.path, begun.path.with_name(begun.path.name + PART)
        self.steps, self._flushed_s = 0, 0.0
        self._own_rewards = "rewards" not in first
        self._file = h5py.File(self.part, "w", libver="latest")
        self._group: Any = self._file.create_group("data/demo_0")
        _write_header(self._file["data"], header["about"], header["env_args"])
        group = self._group
        for key, fact in begun.facts.items():
            group.attrs[key] = fact
        group.attrs["num_samples"] = 0
        end = json.dumps({"success": False, "end_reason": KILLED})
        group.attrs.create(END, np.bytes_(end.encode()), dtype=f"S{END_BYTES}")
        columns = {"dones": np.uint8(0), "rewards": np.float32(0), **first}
        # `actions` last: a step whose action is there is there.
        keys = sorted(columns, key=lambda key: (key == "actions", key))
        self._columns = {key: _create(group, key, np.asarray(columns[key])) for key in keys}
        self._file.swmr_mode = True

    def add(self, row: Mapping[str, np.ndarray], more: bool) -> None:
        """Write a step; flush unless more steps are waiting and the last flush is recent."""
        own = {"dones": 0, "rewards": 0.0, **row}
        for key, column in self._columns.items():
            column.resize(self.steps + 1, axis=0)
            column[self.steps] = own[key]
        self.steps += 1
        if not more or time.monotonic() - self._flushed_s > FLUSH_S:
            self._file.flush()
            self._flushed_s = time.monotonic()

    def finish(self, end: Mapping[str, Fact]) -> None:
        self._columns["dones"][-1] = 1
        if self._own_rewards:
            self._columns["rewards"][-1] = float(bool(end["success"]))
        self._group.attrs.modify("num_samples", self.steps)
        self._file["data"].attrs.modify("total", self.steps)
        text = json.dumps(dict(end)).encode()
        self._group.attrs.modify(END, np.array(text, dtype=f"S{END_BYTES}"))
        self._file.close()  # a kill between here and the new name is repaired as any other
        _publish(self.part, self.path)

    def throw_away(self) -> None:
        self._file.close()
        self.part.unlink()


def repair(folder: Path) -> list[Path]:
    """Complete what killed runs left in `folder`: every `.part` becomes an episode with the steps that
    are whole, success=False, end_reason="killed". A part without a whole step is called `.damaged`.

    Returns the files. RecorderError if there is no room for one; its part is kept.
    """
    repaired = []
    for part in sorted(folder.glob("episode_*.hdf5" + PART)):
        path = part.with_name(part.name.removesuffix(PART))
        try:
            steps = 0 if path.exists() else _rewrite(part, path)
        except OSError as error:
            raise RecorderError(f"{part} cannot be completed: {error}") from error
        if steps:
            part.unlink()
            repaired.append(path)
        else:
            os.replace(part, part.with_suffix(".damaged"))
            print(f"{part} has no whole step; it is called .damaged now", file=sys.stderr)
    return repaired


def _rewrite(part: Path, path: Path) -> int:
    """Copy the whole steps of `part` into a new file; returns how many there were."""
    if part.stat().st_size < SMALLEST_BYTES:  # HDF5 would wait for the rest of it for ever
        return 0
    try:
        old = h5py.File(part, "r", libver="latest", swmr=True)
    except OSError:  # killed while the columns were made
        return 0
    with old:
        source: Any = old.get("data/demo_0", {})
        columns = _paths(source)
        steps = whole_steps([source[key] for key in columns]) if "actions" in columns else 0
        if steps:
            partial = path.with_suffix(".repair")
            with h5py.File(partial, "w") as new:
                group: Any = new.create_group("data/demo_0")
                for key in columns:
                    column = _create(group, key, source[key][0], steps)
                    for step in range(steps):  # one at a time: an episode may not fit into memory
                        column[step] = source[key][step]
                group["dones"][-1] = 1
                group.attrs.update({**source.attrs, "num_samples": steps})
                new["data"].attrs.update({**old["data"].attrs, "total": steps})
            _publish(partial, path)
    return steps


def _paths(group: Any) -> list[str]:
    found: list[str] = []
    if group:
        group.visititems(lambda key, item: found.append(key) if hasattr(item, "shape") else None)
    return found


def whole_steps(columns: list[Any]) -> int:
    """Steps that all columns have, without the last ones that were made room for but not written."""
    steps = min(len(column) for column in columns)
    unwritten = [column for column in columns if column.dtype.kind == "f"]
    while steps and any(np.isnan(column[steps - 1]).any() for column in unwritten):
        steps -= 1
    return steps


def _create(group: Any, key: str, value: np.ndarray, steps: int = 0) -> Any:
    """A column of steps like `value`; a frame is a chunk, so that reading one step reads one frame."""
    chunk = 1 if value.ndim > 1 else RAW_CHUNK
    fill = np.nan if value.dtype.kind == "f" else None  # tells what was never written
    return group.create_dataset(
        key, (steps, *value.shape), value.dtype, maxshape=(None, *value.shape),
        chunks=(chunk, *value.shape), fillvalue=fill,
    )  # fmt: skip


def _write_header(data: Any, about: Mapping[str, Any], env_args: Mapping[str, Any]) -> None:
    data.attrs["total"] = 0
    data.attrs["env_args"] = json.dumps(dict(env_args))
    data.attrs["about"] = json.dumps({**about, "format": FORMAT})


def _publish(partial: Path, path: Path) -> None:
    """On the disk first, then under its name, and the name on the disk as well."""
    for place in (partial, path.parent):
        if place == path.parent:
            os.replace(partial, path)
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
