"""Writes a LeRobotDataset; what goes where, and why so, is told in `policies.lerobot`."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np

from policies.demonstrations import Demonstration
from policies.lerobot import (
    CAMERA,
    CHUNK,
    DATA_PATH,
    FIRST,
    INDICES,
    VECTORS,
    VERSION,
    VIDEO_PATH,
    arrow,
)

CODEC = {"crf": "14", "g": "2", "preset": "veryfast"}  # every second frame can be jumped to
PIXELS = "yuv444p"  # colours at full resolution: at 128 px a cube is a few pixels wide


def write_dataset(
    folder: Path,
    demos: Iterable[Demonstration],
    fps: int,
    robot: str,
    task: str,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Write `demos` as a data set; it appears when it is complete. Returns how many there were.

    Raises FileExistsError if `folder` exists, ValueError if there are no demonstrations or their
    arrays differ in shape.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another out=")
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ExitStack() as stack:
        writer = _Writer(partial, fps, stack)
        facts = [writer.add(demo, task) for demo in demos]
    if not facts:
        raise ValueError(f"no demonstrations to write into {folder}")
    writer.write_meta(robot, task)
    extra = {"about": dict(about or {}), "episodes": facts}
    (partial / "meta/toto.json").write_text(json.dumps(extra, indent=1) + "\n")
    os.replace(partial, folder)
    return len(facts)


class _Writer:
    """Appends demonstrations to the one data file and the one video of each camera."""

    def __init__(self, root: Path, fps: int, stack: ExitStack):
        self.root, self.fps, self._stack = root, fps, stack
        self._pa: Any = arrow()
        self._table: Any = None
        self._videos: dict[str, tuple[Any, Any]] = {}
        self._rows = 0
        self._features: dict[str, dict[str, Any]] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: list[dict[str, dict[str, np.ndarray]]] = []

    def _path(self, pattern: str, **names: str) -> Path:
        path = self.root / pattern.format(**FIRST, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, demo: Demonstration, task: str) -> dict[str, Any]:
        """One episode; returns what `meta/toto.json` keeps of it."""
        demo.check(f"episode {len(self._episodes)}")
        columns = _columns_of(demo)
        images = {CAMERA + camera: frames for camera, frames in demo.images.items()}
        features = {key: _feature(values) for key, values in columns.items()}
        features |= {key: _video_feature(frames, self.fps) for key, frames in images.items()}
        self._features = self._features or features
        if features != self._features:
            raise ValueError(f"episode {len(self._episodes)} has {features}, not {self._features}")
        count = len(self._episodes)
        for key, frames in images.items():
            self._film(key, frames)
        self._append(columns, count, len(demo))
        self._stats.append(
            {key: _statistics(values) for key, values in columns.items()}
            | {key: _image_statistics(frames) for key, frames in images.items()}
        )
        self._episodes.append(self._episode(count, task, len(demo), list(images)))
        self._rows += len(demo)
        return {"success": demo.success, "facts": dict(demo.facts)}

    def _film(self, key: str, frames: np.ndarray) -> None:
        if key not in self._videos:
            container = av.open(str(self._path(VIDEO_PATH, video_key=key)), "w")
            stream: Any = container.add_stream("libx264", rate=self.fps, options=CODEC)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = PIXELS
            self._stack.callback(_finish, container, stream)
            self._videos[key] = container, stream
        container, stream = self._videos[key]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def _append(self, columns: Mapping[str, np.ndarray], episode: int, length: int) -> None:
        steps = np.arange(length, dtype=np.int64)
        own = {
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, episode, np.int64),
            "index": self._rows + steps,
            "task_index": np.zeros(length, np.int64),
        }
        arrays = {key: _arrow_array(self._pa, value) for key, value in {**columns, **own}.items()}
        table = self._pa.table(arrays)
        if self._table is None:
            self._table = self._pa.parquet.ParquetWriter(self._path(DATA_PATH), table.schema)
            self._stack.callback(self._table.close)
        self._table.write_table(table)

    def _episode(self, index: int, task: str, length: int, videos: Sequence[str]) -> dict[str, Any]:
        row = {
            "episode_index": index, "tasks": [task], "length": length,
            "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": self._rows, "dataset_to_index": self._rows + length,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
        }  # fmt: skip
        for key in videos:
            row |= {
                f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0,
                # From whole frames, not summed seconds, which would drift.
                f"videos/{key}/from_timestamp": self._rows / self.fps,
                f"videos/{key}/to_timestamp": (self._rows + length) / self.fps,
            }  # fmt: skip
        return row

    def write_meta(self, robot: str, task: str) -> None:
        """The tables of episodes and tasks, statistics, and last of all `info.json`."""
        import pandas

        rows = [
            row | {f"stats/{k}/{n}": v.tolist() for k, s in stats.items() for n, v in s.items()}
            for row, stats in zip(self._episodes, self._stats, strict=True)
        ]
        episodes = self._path(f"meta/episodes/{CHUNK}.parquet")
        self._pa.parquet.write_table(self._pa.Table.from_pylist(rows), episodes)
        index = pandas.Index([task], name="task")
        pandas.DataFrame({"task_index": [0]}, index=index).to_parquet(
            self.root / "meta/tasks.parquet"
        )
        combined = {
            key: {n: v.tolist() for n, v in _combine([s[key] for s in self._stats]).items()}
            for key in self._stats[0]
        }
        (self.root / "meta/stats.json").write_text(json.dumps(combined, indent=1) + "\n")
        indices = {key: {"dtype": "int64", "shape": [1], "names": None} for key in INDICES}
        timestamp = {"timestamp": {"dtype": "float32", "shape": [1], "names": None}}
        info = {
            "codebase_version": VERSION, "robot_type": robot, "fps": self.fps,
            "total_episodes": len(rows), "total_frames": self._rows, "total_tasks": 1,
            "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 500,
            "splits": {"train": f"0:{len(rows)}"},
            "data_path": DATA_PATH, "video_path": VIDEO_PATH if self._videos else None,
            "features": {**self._features, **timestamp, **indices},
        }  # fmt: skip
        (self.root / "meta/info.json").write_text(json.dumps(info, indent=1) + "\n")


def _columns_of(demo: Demonstration) -> dict[str, np.ndarray]:
    """All but the images, by LeRobot's names, which have no slash."""
    vectors = {VECTORS.get(k, f"observation.{k}"): v for k, v in demo.vectors.items()}
    last = np.arange(len(demo)) == len(demo) - 1
    columns = {
        **vectors,
        "action": demo.actions,
        "next.reward": demo.rewards,
        "next.done": last,
        "next.success": last & demo.success,
        **demo.columns,
    }
    return {key.replace("/", "."): value for key, value in columns.items()}


def _feature(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}


def _video_feature(frames: np.ndarray, fps: int) -> dict[str, Any]:
    height, width = frames.shape[1:3]
    info = {
        "video.height": height, "video.width": width, "video.codec": "h264",
        "video.pix_fmt": PIXELS, "video.is_depth_map": False, "video.fps": fps,
        "video.channels": 3, "has_audio": False,
    }  # fmt: skip
    names = ["height", "width", "channels"]
    return {"dtype": "video", "shape": [height, width, 3], "names": names, "info": info}


def _arrow_array(pa: Any, values: np.ndarray) -> Any:
    """One row a step: a scalar, or a list of fixed length."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """min, max, mean, std over the steps, and their count."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0),
        "count": np.array([len(rows)]),
    }  # fmt: skip


def _image_statistics(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Of each colour, in [0, 1], shaped [3, 1, 1]; every tenth frame is enough. Counts frames."""
    pixels = _statistics(frames[::10].reshape(-1, 3) / 255)
    shaped = {key: value.reshape(3, 1, 1) for key, value in pixels.items() if key != "count"}
    return shaped | {"count": np.array([len(frames[::10])])}


def _combine(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Statistics of several episodes as if they were one."""
    counts = np.array([part["count"][0] for part in parts])
    share = counts / counts.sum()
    mean = sum(w * part["mean"] for w, part in zip(share, parts, strict=True))
    square = sum(
        w * (part["std"] ** 2 + part["mean"] ** 2) for w, part in zip(share, parts, strict=True)
    )
    return {
        "min": np.min([part["min"] for part in parts], 0),
        "max": np.max([part["max"] for part in parts], 0),
        "mean": np.asarray(mean),
        "std": np.sqrt(np.maximum(np.asarray(square) - np.asarray(mean) ** 2, 0)),
        "count": np.array([counts.sum()]),
    }


def _finish(container: Any, stream: Any) -> None:
    container.mux(stream.encode())
    container.close()
