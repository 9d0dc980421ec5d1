"""The file of one episode, such that `kill -9` costs at most the last second, and what repairs it.

`episode_NNNN.hdf5` has the layout of `policies.demonstrations` and is called `….hdf5.part` until
it is complete. The part is HDF5 in single-writer-multiple-reader mode: at any moment what was flushed
can be read (without that mode one file in twelve was lost to a kill). All columns exist from the first
step on and nothing is created later, as that mode demands; how an episode ended goes into attributes
that are there from the beginning, and say "killed" until then. Frames are stored raw.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from policies.demonstrations import END, FORMAT, Fact

PART = ".part"
KILLED = "killed"
END_BYTES = 8192  # room for how the episode ended, as JSON
FLUSH_S = 0.5  # the longest time that a step waits to be flushed when the disk is slow
RAW_CHUNK = 64  # steps of a vector that are stored together
SMALLEST_BYTES = 2048  # of a part that has its columns


class RecorderError(RuntimeError):
    """Recording cannot go on: disk full, folder in use, file damaged. What is on disk stays."""


class EpisodeFile:
    """The file of the running episode; lives in the writer's thread."""

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Fact],
        header: Mapping[str, Any],
        first: Mapping[str, np.ndarray],
    ):
        self.path, self.part = path, path.with_name(path.name + PART)
        self.steps, self._flushed_s = 0, 0.0
        self._own_rewards = "rewards" not in first
        self._file = h5py.File(self.part, "w", libver="latest")
        self._group: Any = self._file.create_group("data/demo_0")
        _write_header(self._file["data"], header["about"], header["env_args"])
        group = self._group
        for key, fact in facts.items():
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
