"""Convert demonstrations: `python -m toto_robot.convert source=demos.hdf5 out=lerobot_folder`.

A file of `toto_robot.demos` (or of robomimic) becomes a LeRobotDataset v3, a folder of one becomes
a file; which way it goes is seen from `source`.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from policies.demonstrations import DemonstrationFile, assemble, write_episode
from policies.lerobot import read_about, read_dataset, read_info
from policies.lerobot_writer import write_dataset
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

    source: Path  # an HDF5 file, or the folder of a data set
    out: Path
    task: str = ""  # what the robot does, in words; by default that of the simulator's task
    robot: str = ""  # franka, kuka, ...; by default that of the simulator's task
    fps: int = 0  # steps a second; by default what the file says of itself


def to_lerobot(config: ConvertConfig) -> int:
    """HDF5 -> data set; returns the number of demonstrations."""
    with DemonstrationFile(config.source) as file:
        options = file.about.get("options", {})
        env = options.get("env", "")
        fps = config.fps or options.get("control_rate_hz", 0)
        if not fps:
            raise ValueError(f"{config.source} does not say its rate: give fps=")
        about = {"about": file.about, "env_args": file.env_args}
        demos = tqdm(file, total=len(file), unit="demo", desc="converting")
        robot = config.robot or env.partition("_")[0] or "unknown"
        return write_dataset(
            config.out, demos, int(fps), robot, config.task or TEXTS.get(env, "unknown"), about
        )


def to_hdf5(config: ConvertConfig) -> int:
    """Data set -> HDF5; returns the number of demonstrations."""
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists; choose another out=")
    info, known = read_info(config.source), read_about(config.source)
    rate = {"options": {"control_rate_hz": info["fps"]}, "robot": info.get("robot_type")}
    args = {"env_name": info.get("robot_type") or "unknown", "type": 2, "env_kwargs": {}}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out.parent) as folder:
        paths = []
        demos = tqdm(read_dataset(config.source), total=info["total_episodes"], unit="demo")
        for i, demo in enumerate(demos):
            paths.append(Path(folder) / f"{i:06d}.hdf5")
            write_episode(paths[-1], demo)
        return assemble(
            config.out, paths, known.get("env_args") or args, known.get("about") or rate
        )


def main() -> None:
    check_siblings()
    config = parse(ConvertConfig, sys.argv[1:])
    try:
        count = (to_hdf5 if config.source.is_dir() else to_lerobot)(config)
    except (ValueError, OSError, ModuleNotFoundError, json.JSONDecodeError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{count} demonstrations in {config.out}")


if __name__ == "__main__":
    main()
