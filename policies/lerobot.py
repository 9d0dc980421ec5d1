"""Demonstrations to and from a LeRobotDataset on disk (format v3.0), without the lerobot package.

The package pins older versions of torch, NumPy and PyAV than ours (LOG.md), so its folder layout is
written and read here with pyarrow and PyAV:

    meta/info.json, meta/stats.json, meta/tasks.parquet     features, rates, statistics, task texts
    meta/episodes/chunk-000/file-000.parquet                where each episode's rows and frames are
    data/chunk-000/file-000.parquet                         one row a step
    videos/<camera>/chunk-000/file-000.mp4                  all episodes one after the other

Vectors and actions come back to the bit, images as well as H.264 keeps them. Facts of episodes that
the format has no place for are in meta/toto.json, which its readers pass over.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from policies.demonstrations import Demonstration

VERSION = "v3.0"
CHUNK = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{CHUNK}.parquet", "videos/{video_key}/" + CHUNK + ".mp4"
FIRST = {"chunk_index": 0, "file_index": 0}  # all that we write is in the first file of each kind
CAMERA = "observation.images."
VECTORS = {"proprioception": "observation.state", "oracle": "observation.environment_state"}
INDICES = ("frame_index", "episode_index", "index", "task_index")


def arrow() -> Any:
    """pyarrow. Raises ModuleNotFoundError that says how to get it."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LeRobot data sets need pyarrow: pip install -e '.[lerobot]'"
        ) from error
    return pyarrow


def read_info(folder: Path) -> dict[str, Any]:
    """`meta/info.json`. Raises FileNotFoundError without one, ValueError for another version."""
    path = folder / "meta/info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no LeRobot data set: {path} is missing")
    info = json.loads(path.read_text())
    if not str(info.get("codebase_version")).startswith("v3."):
        raise ValueError(
            f"{folder} has codebase_version {info.get('codebase_version')}, this code reads v3.x; "
            "lerobot's own converter brings older data sets up to it"
        )
    return info


def read_about(folder: Path) -> dict[str, Any]:
    """`about` of the demonstrations that the data set was made of; empty if others made it."""
    return _extra(folder).get("about", {})


def read_dataset(folder: Path) -> Iterator[Demonstration]:
    """The episodes in order. Success comes from meta/toto.json or `next.success`; without either it
    is whether the last reward is positive.

    Raises FileNotFoundError, ValueError: no data set of version 3, or its parts do not fit.
    """
    info, extra = read_info(folder), _extra(folder).get("episodes", [])
    pq: Any = arrow().parquet
    tables = [pq.read_table(p) for p in sorted(folder.glob("meta/episodes/*/*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    cameras = [key for key, f in info["features"].items() if f["dtype"] == "video"]
    if images := [key for key, f in info["features"].items() if f["dtype"] == "image"]:
        raise ValueError(f"{folder} keeps {images} as single images; only videos are read")
    opened = _Opened(folder, info)
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        table = opened.rows(row)
        demo = _demonstration(table, {c: opened.frames(c, row) for c in cameras}, row)
        if row["episode_index"] < len(extra):
            known = extra[row["episode_index"]]
            demo = replace(demo, success=known["success"], facts=known["facts"])
        demo.check(f"{folder}: episode {row['episode_index']}")
        yield demo


class _Opened:
    """The data files and videos of a set, read from front to back, each opened once."""

    def __init__(self, folder: Path, info: Mapping[str, Any]):
        self._folder, self._info = folder, info
        self._tables: dict[Path, Any] = {}
        self._films: dict[Path, tuple[Iterator[np.ndarray], int]] = {}

    def rows(self, row: Mapping[str, Any]) -> Any:
        place = {k: row[f"data/{k}"] for k in FIRST}
        path = self._folder / self._info["data_path"].format(**place)
        if path not in self._tables:
            self._tables = {path: arrow().parquet.read_table(path)}
        table = self._tables[path]
        mine = np.flatnonzero(table["episode_index"].to_numpy() == row["episode_index"])
        if len(mine) != row["length"]:
            raise ValueError(
                f"{path} has {len(mine)} rows of episode {row['episode_index']}, "
                f"its length is {row['length']}"
            )
        return table.take(mine)

    def frames(self, camera: str, row: Mapping[str, Any]) -> np.ndarray:
        """uint8 [T, H, W, 3] of one episode."""
        place = {k: row[f"videos/{camera}/{k}"] for k in FIRST}
        path = self._folder / self._info["video_path"].format(video_key=camera, **place)
        first = round(row[f"videos/{camera}/from_timestamp"] * self._info["fps"])
        film, position = self._films.get(path, (iter(()), -1))
        if position < 0 or first < position:
            film, position = _decode(path), 0
        for _ in range(first - position):
            next(film, None)
        frames = list(islice(film, row["length"]))
        self._films[path] = film, first + len(frames)
        if len(frames) != row["length"]:
            raise ValueError(
                f"{path} ends after {len(frames)} of the {row['length']} frames of episode "
                f"{row['episode_index']}"
            )
        return np.stack(frames)


def _decode(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _demonstration(
    table: Any, frames: Mapping[str, np.ndarray], row: Mapping[str, Any]
) -> Demonstration:
    columns: dict[str, np.ndarray] = {
        key: np.array(table[key].to_pylist(), _dtype(table[key].type))
        for key in table.column_names
        if key not in (*INDICES, "timestamp")
    }
    names = {feature: vector for vector, feature in VECTORS.items()}
    rewards = columns.pop("next.reward", np.zeros(len(table), np.float32)).reshape(-1)
    success = columns.pop("next.success", rewards[-1:] > 0)
    columns.pop("next.done", None)
    actions = columns.pop("action")
    vectors = {
        names.get(key, key.removeprefix("observation.")): columns.pop(key)
        for key in list(columns)
        if key.startswith("observation.")
    }
    return Demonstration(
        images={key.removeprefix(CAMERA): images for key, images in frames.items()},
        vectors=vectors,
        actions=actions,
        rewards=rewards,
        success=bool(np.any(success)),
        columns=columns,
        facts={"task": "; ".join(row["tasks"])},
    )


def _extra(folder: Path) -> dict[str, Any]:
    path = folder / "meta/toto.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _dtype(kind: Any) -> Any:
    return (kind.value_type if hasattr(kind, "value_type") else kind).to_pandas_dtype()
