"""Labelled frames on disk: what DAgger has seen, and what the expert would have done."""

import json
from pathlib import Path

import numpy as np
from gymnasium import spaces


class LabelledFrames:
    """A growing data set of observations (a dict of arrays) and actions, one flat file for each.

    `capacity` rows are mapped into memory; the files are sparse until written. `space` is that of
    one observation, `folder` is made if missing, and rows of an earlier process are found again
    up to the last `flush`. Raises ValueError if the files there hold other shapes.
    """

    def __init__(self, folder: Path, capacity: int, space: spaces.Dict, num_actions: int):
        shapes = {k: (tuple(part.shape or ()), np.dtype(part.dtype)) for k, part in space.items()}
        shapes["actions"] = ((num_actions,), np.dtype(np.float32))
        layout = {key: [list(shape), str(dtype)] for key, (shape, dtype) in shapes.items()}
        self._folder, self._count_file = Path(folder), Path(folder) / "frames.json"
        self._length = 0
        if self._count_file.exists():
            saved = json.loads(self._count_file.read_text())
            if saved["layout"] != layout:
                raise ValueError(
                    f"{folder} holds frames of {saved['layout']}, this run makes {layout}: "
                    "start it in another run folder"
                )
            self._length = saved["frames"]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._layout = layout
        self._columns = {
            key: self._map(key, max(capacity, self._length), shape, dtype)
            for key, (shape, dtype) in shapes.items()
        }

    def _map(self, key: str, rows: int, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        path = self._folder / f"{key}.bin"
        path.touch()
        size = rows * int(np.prod(shape)) * np.dtype(dtype).itemsize
        if path.stat().st_size < size:
            with path.open("r+b") as file:
                file.truncate(size)  # grows with zeros that take no room
        return np.memmap(path, dtype, "r+", shape=(rows, *shape))

    def __len__(self) -> int:
        return self._length

    def append(self, obs: dict[str, np.ndarray], actions: np.ndarray) -> None:
        """Add B rows. Raises ValueError when full or for actions that are not finite."""
        if not np.isfinite(actions).all():
            raise ValueError("the expert's actions are not finite: nothing was recorded")
        rows = slice(self._length, self._length + len(actions))
        if rows.stop > len(self._columns["actions"]):
            raise ValueError(
                f"the data set holds {self._length} of {len(self._columns['actions'])} frames; "
                f"{len(actions)} more do not fit"
            )
        for key, values in {**obs, "actions": actions}.items():
            self._columns[key][rows] = values
        self._length = rows.stop

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """`count` rows drawn with replacement: observations and actions [count, A]."""
        rows = np.sort(rng.integers(0, self._length, count))
        batch = {key: np.asarray(column[rows]) for key, column in self._columns.items()}
        return batch, batch.pop("actions")

    def truncate(self, frames: int) -> None:
        """Forget rows beyond `frames` (those after a checkpoint are made again).

        Raises ValueError if there are fewer: then the checkpoint and these files do not belong
        together."""
        if frames > self._length:
            raise ValueError(
                f"{self._folder} holds {self._length} frames, the checkpoint counts {frames}: "
                "the files of labelled frames are incomplete, start anew"
            )
        self._length = frames

    def flush(self) -> None:
        for column in self._columns.values():
            column.flush()
        record = {"frames": self._length, "layout": self._layout}
        temporary = self._count_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(record) + "\n")
        temporary.replace(self._count_file)
