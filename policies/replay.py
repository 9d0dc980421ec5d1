"""Frames of a run, kept in memory for what learns from more than the newest rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Replay:
    """At most `capacity` frames (a dict of tensors each). When full, new frames take the places of
    random ones, so that some of all ages stay."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._columns: dict[str, Tensor] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, frames: dict[str, Tensor]) -> None:
        """B frames, on the device of the first ones. Raises ValueError if B is beyond `capacity`."""
        count = len(next(iter(frames.values())))
        if count > self._capacity:
            raise ValueError(f"{count} frames do not fit into a replay of {self._capacity}")
        if not self._columns:  # a CPU gives the memory when it is written
            self._columns = {
                key: value.new_empty((self._capacity, *value.shape[1:]))
                for key, value in frames.items()
            }
        new = min(count, self._capacity - self._length)
        old = torch.randperm(self._length)[: count - new]
        rows = torch.cat([torch.arange(self._length, self._length + new), old])
        for key, column in self._columns.items():
            column[rows.to(column.device)] = frames[key]
        self._length += new

    def sample(self, count: int, keys: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`count` frames, drawn with replacement; of `keys` alone if given."""
        rows = torch.randint(self._length, (count,))
        columns = {key: self._columns[key] for key in keys or self._columns}
        return {key: column[rows.to(column.device)] for key, column in columns.items()}
