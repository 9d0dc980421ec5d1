"""The four tasks, and how one is built: task, engine, randomisation."""

import difflib
import os
from dataclasses import replace
from typing import Any

from envs import randomisation, spec
from envs.cabinet import FRANKA_CABINET, KUKA_CABINET
from envs.distractors import add_distractors
from envs.levels import visual_level
from envs.options import TaskOptions
from envs.physics import Physics, check_device
from envs.pick import FRANKA_PICK, KUKA_PICK
from envs.vec_task import VecTask

TASKS = {task.name: task for task in (FRANKA_PICK, KUKA_PICK, FRANKA_CABINET, KUKA_CABINET)}


def task_name(given: str) -> str:
    """The task's class name, from either spelling (`FrankaPick`, `franka_pick`)."""
    name = spec.TASK_NAMES.get(given, given)
    if name not in TASKS:
        near = difflib.get_close_matches(given, [*TASKS, *spec.TASK_NAMES], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown task {given!r}{hint} Valid tasks: {sorted(TASKS)}")
    return name


def build_engine(scene: Any, num_envs: int, device: str, options: TaskOptions) -> Physics:
    """MuJoCo's C engine on the CPU, MuJoCo Warp on a GPU, unless the options name one."""
    if (options.engine or ("mujoco" if device == "cpu" else "warp")) == "warp":
        from envs.warp_engine import WarpEngine

        return WarpEngine(scene, num_envs, device)
    if device != "cpu":
        raise ValueError(f"engine='mujoco' runs on the CPU only, got sim_device={device!r}")
    from envs.mujoco_engine import MujocoEngine

    return MujocoEngine(scene, num_envs, options.threads or len(os.sched_getaffinity(0)))


def build(
    name: str, num_envs: int, sim_device: str, rl_device: str, seed: int, options: TaskOptions
) -> VecTask:
    """A `VecTask`; see `envs.make`."""
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    check_device("sim_device", sim_device)
    check_device("rl_device", rl_device)
    task = replace(TASKS[task_name(name)], fidelity=options.fidelity)
    scene = task.scene()
    if options.assets == "menagerie":
        from envs.menagerie import dress

        dress(scene, task.robot.name)
    if (looks := visual_level(options.visuals)) is not None:
        randomisation.add_textures(scene)
        add_distractors(scene, looks.distractors)
    engine = build_engine(scene, num_envs, sim_device, options)
    randomiser = None
    if (options.visuals, options.dynamics) != ("fixed", "fixed"):
        randomiser = randomisation.Randomiser(engine, options.visuals, options.dynamics, seed)
    return VecTask(task, engine, seed, options, rl_device, randomiser)
