"""Batched MuJoCo tasks with the IsaacGymEnvs surface. `import envs` is light; `make` is not."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from envs import gl, spec
from envs.registration import register_envs

if TYPE_CHECKING:
    from envs.vec_task import VecTask

__all__ = ["gl", "make", "spec"]

register_envs()


def make(
    task: str | None = None,
    num_envs: int | None = None,
    sim_device: str = "cpu",
    rl_device: str | None = None,
    seed: int = 0,
    graphics_device_id: int = -1,
    headless: bool = True,
    multi_gpu: bool = False,
    virtual_screen_capture: bool = False,
    force_render: bool = False,
    cfg: Mapping[str, Any] | None = None,
    **options: Any,
) -> "VecTask":
    """Build a batched task, for example `envs.make(task="FrankaPick", num_envs=64)`.

    Args:
        task: a name in `spec.TASK_NAMES`, in either spelling (`FrankaPick`, `franka_pick`).
        num_envs: number of worlds.
        sim_device: "cpu" (MuJoCo's C engine) or "cuda:0" (MuJoCo Warp; images on the GPU too).
        rl_device: where observations and rewards are handed out; `sim_device` by default.
        seed: seeds the reset distribution.
        headless: False opens a window on world 0.
        multi_gpu: simulate and hand out on "cuda:<LOCAL_RANK>" (torchrun sets it).
        graphics_device_id, virtual_screen_capture, force_render: taken for IsaacGymEnvs' sake and
            not used: cameras draw off-screen on `sim_device`, whenever they are asked.
        cfg: configuration in IsaacGymEnvs' layout (`envs.isaacgym`); arguments win over it.
        options: see `envs.options.TaskOptions`.

    Raises:
        ValueError: unknown task, option or setting (with the nearest name), or a missing device.
    """
    from envs import isaacgym

    if multi_gpu:
        sim_device = rl_device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    built = isaacgym.make(task, num_envs, sim_device, rl_device or sim_device, seed, cfg, options)
    if not headless:
        from envs.viewer import Viewer

        built.viewer = Viewer(built.engine)
    return built
