"""Batched MuJoCo tasks with the IsaacGymEnvs surface. `import envs` is light; `make` is not."""

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
        graphics_device_id, headless, multi_gpu, virtual_screen_capture, force_render: taken for
            IsaacGymEnvs' sake. Cameras draw off-screen on `sim_device`, so the first, third, fourth
            and fifth change nothing; for a window use Gymnasium's `render_mode="human"`.
        cfg: configuration in IsaacGymEnvs' layout (`envs.isaacgym`); arguments win over it.
        options: see `envs.options.TaskOptions`.

    Raises:
        ValueError: unknown task, option or setting (with the nearest name), or a missing device.
    """
    from envs import isaacgym

    if not headless:
        raise ValueError(
            "headless=False: batched tasks have no window. Watch one world with "
            'gymnasium.make("toto_robot/FrankaPick-v0", render_mode="human").'
        )
    return isaacgym.make(task, num_envs, sim_device, rl_device or sim_device, seed, cfg, options)
