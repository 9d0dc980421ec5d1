"""Demonstrations on disk, in robomimic's HDF5 layout; simulator and robot record the same file.

    data                      attributes total, env_args (JSON), about (JSON: what the file says of itself)
    data/demo_0               attributes num_samples, success, and facts about the episode
    data/demo_0/obs/wrist_image      uint8 [T, H, W, 3]; one for each camera
    data/demo_0/obs/proprioception   float32 [T, D]; one for each vector
    data/demo_0/actions       float32 [T, A]: the expert's, to be imitated
    data/demo_0/rewards, dones       float32 [T], uint8 [T]
    data/demo_0/actions_sent  more columns, which robomimic passes over
    mask/train, mask/valid    names of demonstrations: robomimic's filter keys

Each episode is first a file of its own, which gets its name when it is complete; `assemble` puts
them together and replaces the whole file at once. So a kill costs the running episode, no more.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Shaped, UInt8

FORMAT = 1
IMAGE = "_image"
VALID_EVERY = 10  # the last of each ten demonstrations is for validation, as the file grows too
Fact = str | int | float | bool  # of an episode
END = "end"  # attribute of an episode: JSON of facts that were known only at its end


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One episode of T steps: what was seen before each step, and what the expert did then."""

    images: Mapping[str, UInt8[np.ndarray, "T H W 3"]]  # by camera
    vectors: Mapping[str, Float[np.ndarray, "T D"]]
    actions: Float[np.ndarray, "T A"]
    rewards: Float[np.ndarray, " T"]
    success: bool
    columns: Mapping[str, Shaped[np.ndarray, "T ..."]] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by their path in the file."""
        images = {f"obs/{camera}{IMAGE}": image for camera, image in self.images.items()}
        vectors = {f"obs/{name}": vector for name, vector in self.vectors.items()}
        steps = {"actions": self.actions, "rewards": self.rewards}
        return images | vectors | steps | dict(self.columns)

    def check(self, name: str = "demonstration") -> None:
        """Raises ValueError for no steps, other shapes than those above, NaN or infinity."""
        if self.actions.ndim != 2 or not len(self):
            raise ValueError(f"{name}: actions must be [T, A], T >= 1, got {self.actions.shape}")
        ranks = {f"obs/{camera}{IMAGE}": 4 for camera in self.images}
        ranks |= {f"obs/{vector}": 2 for vector in self.vectors} | {"rewards": 1}
        for key, array in self.arrays().items():
            rank = ranks.get(key, array.ndim)
            if array.ndim != rank or len(array) != len(self):
                raise ValueError(
                    f"{name}: {key} has shape {array.shape}, expected {rank} axes, "
                    f"the first of {len(self)} steps as in actions"
                )
            if rank == 4 and (array.dtype != np.uint8 or array.shape[-1] != 3):
                raise ValueError(
                    f"{name}: {key} must be uint8 [T, H, W, 3], got {array.dtype} {array.shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                step = int(np.argwhere(~np.isfinite(array))[0][0])
                raise ValueError(f"{name}: {key} has NaN or infinity, first at step {step}")


def write_episode(path: Path, demo: Demonstration) -> None:
    """One demonstration as a file of its own, complete or absent. ValueError: see `check`."""
    demo.check(path.name)
    partial = path.with_suffix(".part")
    with h5py.File(partial, "w") as file:
        _write(file.create_group("data/demo_0"), demo)
    _publish(partial, path)


def assemble(
    path: Path,
    episodes: Sequence[Path],
    env_args: Mapping[str, Any],
    about: Mapping[str, Any],
) -> int:
    """Add `episodes` (files of `write_episode`) behind what `path` holds; returns how many it holds.

    The file is replaced whole. Raises ValueError if an episode has other keys or widths than the
    first demonstration, or a file cannot be read.
    """
    partial = path.with_suffix(path.suffix + ".part")
    with h5py.File(partial, "w") as file:
        data: Any = file.create_group("data")
        first = None
        for source in [path, *episodes] if path.exists() else episodes:
            with DemonstrationFile(source) as given:
                for name in given.names():
                    layout = given.layout(name)
                    first = layout if first is None else first
                    if layout != first:
                        raise ValueError(f"{source} holds {layout}, {path} holds {first}")
                    given.copy(name, data, f"demo_{len(data)}")
        names = [f"demo_{i}" for i in range(len(data))]
        data.attrs["total"] = sum(int(data[name].attrs["num_samples"]) for name in names)
        data.attrs["env_args"] = json.dumps(dict(env_args))
        data.attrs["about"] = json.dumps({**about, "format": FORMAT})
        valid = names[VALID_EVERY - 1 :: VALID_EVERY] or names[1:][-1:]
        _write_masks(file, {"train": [n for n in names if n not in valid], "valid": valid})
    _publish(partial, path)
    return len(names)


class DemonstrationFile:
    """Reads a file of this layout, robomimic's own ones included. Use as a context manager.

    Raises FileNotFoundError, or ValueError for a file that is truncated or of another layout.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no demonstrations: {self.path} does not exist")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be read, it is truncated or no HDF5 file ({error}); record "
                "again with the same command, which keeps the finished episodes"
            ) from error
        if "data" not in self._file:
            self._file.close()
            raise ValueError(f"{self.path} has no group 'data', it has {sorted(self._file)}")
        self._data: Any = self._file["data"]

    def __enter__(self) -> "DemonstrationFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._data)

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of itself; empty for a file that others have written."""
        return json.loads(self._data.attrs.get("about", "{}"))

    @property
    def env_args(self) -> dict[str, Any]:
        return json.loads(self._data.attrs.get("env_args", "{}"))

    def names(self, mask: str | None = None) -> list[str]:
        """All demonstrations in order, or those of a filter key ("train", "valid")."""
        if mask is None:
            return sorted(self._data, key=lambda name: int(name.removeprefix("demo_")))
        masks: Any = self._file.get("mask", {})
        if mask not in masks:
            raise ValueError(f"{self.path} has no mask {mask!r}; it has {sorted(masks)}")
        return [name.decode() for name in masks[mask][:]]

    def facts(self, name: str) -> dict[str, Fact]:
        """Attributes of a demonstration: num_samples, success and what its recorder knew."""
        attrs = self._group(name).attrs
        facts = {k: v.item() if isinstance(v, np.generic) else v for k, v in attrs.items()}
        end = facts.pop(END, b"{}")  # robomimic passes over it
        return facts | json.loads(end)

    def layout(self, name: str) -> dict[str, tuple[int, ...]]:
        """Path of each array -> shape of one step."""
        group = self._group(name)
        paths = [*(f"obs/{key}" for key in group["obs"]), *_columns(group), "actions"]
        return {path: group[path].shape[1:] for path in sorted(paths)}

    def read(self, name: str) -> Demonstration:
        """One demonstration, checked. Raises ValueError for an unknown or damaged one."""
        group = self._group(name)
        seen = {key: column[:] for key, column in group["obs"].items()}
        images = {k.removesuffix(IMAGE): v for k, v in seen.items() if k.endswith(IMAGE)}
        facts = self.facts(name)
        facts.pop("num_samples")
        rewards = group["rewards"][:] if "rewards" in group else np.zeros(len(group["actions"]))
        demo = Demonstration(
            images=images,
            vectors={k: v for k, v in seen.items() if not k.endswith(IMAGE)},
            actions=group["actions"][:],
            rewards=rewards,
            success=bool(facts.pop("success", bool(rewards[-1:].sum() > 0))),
            columns={key: group[key][:] for key in _columns(group)},
            facts=facts,
        )
        demo.check(f"{self.path}: {name}")
        return demo

    def __iter__(self) -> Iterator[Demonstration]:
        return (self.read(name) for name in self.names())

    def copy(self, name: str, target: Any, new_name: str) -> None:
        """Copy a demonstration into a group of another file as it is stored."""
        self._file.copy(self._group(name), target, new_name)

    def _group(self, name: str) -> Any:
        if name not in self._data:
            raise ValueError(f"{self.path} has no {name!r}; it has {len(self)} demonstrations")
        group = self._data[name]
        missing = [key for key in ("obs", "actions") if key not in group]
        if missing or "num_samples" not in group.attrs:
            raise ValueError(f"{self.path}: {name} is incomplete, it has {sorted(group)}")
        if len(group["actions"]) != group.attrs["num_samples"]:
            raise ValueError(
                f"{self.path}: {name} has {len(group['actions'])} actions, "
                f"num_samples says {group.attrs['num_samples']}"
            )
        return group


def _columns(group: Any) -> list[str]:
    known = ("actions", "rewards", "dones")
    return [key for key, value in group.items() if hasattr(value, "shape") and key not in known]


def _write(group: Any, demo: Demonstration) -> None:
    for key, array in demo.arrays().items():
        if array.ndim == 4:  # a frame is a chunk, so that reading one step reads one frame
            chunk = (1, *array.shape[1:])
            group.create_dataset(key, data=array, chunks=chunk, compression="gzip",
                                 compression_opts=1)  # fmt: skip
        else:
            group.create_dataset(key, data=array)
    dones = np.zeros(len(demo), np.uint8)
    dones[-1] = 1
    group.create_dataset("dones", data=dones)
    group.attrs["num_samples"], group.attrs["success"] = len(demo), demo.success
    for key, fact in demo.facts.items():
        group.attrs[key] = fact


def _write_masks(file: Any, masks: Mapping[str, Sequence[str]]) -> None:
    for mask, names in masks.items():
        file.create_dataset(f"mask/{mask}", data=np.array(names, dtype="S"))


def _publish(partial: Path, path: Path) -> None:
    """Give a complete file its name; it is on the disk before that."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
