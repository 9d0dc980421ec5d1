"""Convert demonstrations: `python -m toto_robot.convert source=demos.hdf5 out=lerobot_folder`.

| source                                           | out=<file>.hdf5 | out=<folder>       |
|--------------------------------------------------|-----------------|--------------------|
| file of `toto_robot.demos`, or of robomimic      |                 | LeRobotDataset v3  |
| LeRobotDataset v3                                | one file        |                    |
| folder that `real_world/record_demos.py` recorded | one file        | LeRobotDataset v3  |
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from policies.demonstrations import Demonstration, DemonstrationFile, assemble, write_episode
from policies.lerobot import read_about, read_dataset, read_info
from policies.lerobot_writer import write_dataset
from policies.recorded import is_recorded, read_recorded, successes
from policies.recorded import read_about as read_recorded_about
from toto_robot._siblings import check_siblings
from toto_robot.cli import parse

TEXTS = {
    "franka_pick": "pick up the cube",
    "kuka_pick": "pick up the cube",
    "franka_cabinet": "open the drawer",
    "kuka_cabinet": "open the drawer",
}


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert demonstrations between robomimic's HDF5 and LeRobotDataset v3."""

    source: Path  # an HDF5 file, a data set's folder, or a folder of recorded episodes
    out: Path  # recorded episodes: <name>.hdf5 is one file, any other name a data set
    task: str = ""  # what the robot does, in words; by default that of the simulator's task
    robot: str = ""  # franka, kuka, ...; by default that of the simulator's task
    fps: int = 0  # steps a second; by default what the file says of itself


def to_lerobot(config: ConvertConfig) -> int:
    """HDF5, or recorded episodes -> data set; returns the number of demonstrations."""
    if is_recorded(config.source):
        about, env_args = read_recorded_about(config.source)
        total = len(successes(config.source))
        return _write_dataset(config, read_recorded(config.source), total, about, env_args)
    with DemonstrationFile(config.source) as file:
        return _write_dataset(config, file, len(file), file.about, file.env_args)


def _write_dataset(
    config: ConvertConfig,
    demos: Iterable[Demonstration],
    total: int,
    about: Mapping[str, Any],
    env_args: Mapping[str, Any],
) -> int:
    options = about.get("options", {})
    env = options.get("env", "")
    fps = config.fps or options.get("control_rate_hz", 0)
    if not fps:
        raise ValueError(f"{config.source} does not say its rate: give fps=")
    robot = config.robot or about.get("robot") or env.partition("_")[0] or "unknown"
    return write_dataset(
        config.out,
        tqdm(demos, total=total, unit="demo", desc="converting"),
        int(fps),
        robot,
        config.task or TEXTS.get(env, "unknown"),
        {"about": about, "env_args": env_args},
    )


def to_hdf5(config: ConvertConfig) -> int:
    """Data set, or recorded episodes -> HDF5; returns the number of demonstrations."""
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists; choose another out=")
    if is_recorded(config.source):
        about, env_args = read_recorded_about(config.source)
        total, demos = len(successes(config.source)), read_recorded(config.source)
    else:
        info, known = read_info(config.source), read_about(config.source)
        rate = {"options": {"control_rate_hz": info["fps"]}, "robot": info.get("robot_type")}
        args = {"env_name": info.get("robot_type") or "unknown", "type": 2, "env_kwargs": {}}
        about, env_args = known.get("about") or rate, known.get("env_args") or args
        total, demos = info["total_episodes"], read_dataset(config.source)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out.parent) as folder:
        paths = []
        for i, demo in enumerate(tqdm(demos, total=total, unit="demo")):
            paths.append(Path(folder) / f"{i:06d}.hdf5")
            write_episode(paths[-1], demo)
        return assemble(config.out, paths, env_args, about)


def main() -> None:
    check_siblings()
    config = parse(ConvertConfig, sys.argv[1:])
    try:
        to_file = config.source.is_dir() and not (
            is_recorded(config.source) and config.out.suffix != ".hdf5"
        )
        count = (to_hdf5 if to_file else to_lerobot)(config)
    except (ValueError, OSError, ModuleNotFoundError, json.JSONDecodeError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{count} demonstrations in {config.out}")


if __name__ == "__main__":
    main()
