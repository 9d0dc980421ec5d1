"""Gymnasium ids; `import envs` registers them (Gymnasium 1.x no longer loads plug-ins)."""

import gymnasium

from envs import spec


def register_envs() -> None:
    """Register `toto_robot/FrankaPick-v0` and its siblings (idempotent)."""
    for task in spec.TASK_NAMES.values():
        env_id = f"toto_robot/{task}-v0"
        if env_id in gymnasium.registry:
            continue
        gymnasium.register(
            id=env_id,
            entry_point="envs.gymnasium_env:SingleTaskEnv",
            vector_entry_point="envs.gymnasium_env:BatchedTaskEnv",
            kwargs={"task": task},
        )
