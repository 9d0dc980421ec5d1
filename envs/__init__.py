"""Batched MuJoCo tasks with the IsaacGymEnvs surface. `import envs` is light; `make` is not."""

import difflib
from typing import TYPE_CHECKING, Any

from envs import gl, spec
from envs.registration import register_envs

if TYPE_CHECKING:
    from envs.vec_task import VecTask

__all__ = ["gl", "make", "spec"]

register_envs()


def make(
    task: str,
    num_envs: int,
    sim_device: str = "cpu",
    rl_device: str = "cpu",
    seed: int = 0,
    **options: Any,
) -> "VecTask":
    """Build a batched task, for example `envs.make(task="FrankaPick", num_envs=64)`.

    Args:
        task: a name in `spec.TASK_NAMES`, in either spelling (`FrankaPick`, `franka_pick`).
        num_envs: number of worlds.
        sim_device, rl_device: only "cpu" so far.
        seed: seeds the reset distribution.
        options: see `envs.vec_task.VecTask` (`obs`, `image_size`, `camera`, `threads`).

    Raises:
        ValueError: unknown task (with the nearest name) or device.
    """
    from envs.franka_pick import FrankaPick
    from envs.vec_task import VecTask

    tasks = {"FrankaPick": FrankaPick}
    name = spec.TASK_NAMES.get(task, task)
    if name not in tasks:
        near = difflib.get_close_matches(task, [*tasks, *spec.TASK_NAMES], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown task {task!r}{hint} Valid tasks: {sorted(tasks)}")
    for label, device in (("sim_device", sim_device), ("rl_device", rl_device)):
        if device != "cpu":
            raise ValueError(f"{label}={device!r}: the only engine so far runs on 'cpu'")
    return VecTask(tasks[name](), num_envs, seed, **options)
