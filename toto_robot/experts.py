"""The expert that a name stands for: what demonstrations show and DAgger's labels are."""

from pathlib import Path
from typing import Any

from envs.experts import GOALS, ScriptedExpert
from envs.spec import TASK_NAMES
from policies.policy import PolicySpec, read_spec
from policies.teacher import Expert, load_teacher, teacher_folder

NAMES = ("scripted", "teacher")


def check_expert(name: str, env: str, control_rate_hz: float) -> PolicySpec | None:
    """What the expert's policy folder says of itself; None for the scripted one.

    `name`: `scripted`, `teacher` (the packaged one), or a policy folder. Raises FileNotFoundError
    or ValueError unless it is there and was made for this task at this rate.
    """
    if name == "scripted":
        if TASK_NAMES[env] not in GOALS:
            raise ValueError(f"env={env} has no scripted expert; use expert=teacher")
        return None
    spec = read_spec(teacher_folder(env if name == "teacher" else name))
    if spec.env != env or spec.control_rate_hz != control_rate_hz:
        hint = "; expert=scripted acts at any rate" if TASK_NAMES[env] in GOALS else ""
        raise ValueError(
            f"expert={name} is of env={spec.env} control_rate_hz={spec.control_rate_hz:g}, this is "
            f"env={env} control_rate_hz={control_rate_hz:g}{hint}"
        )
    return spec


def make_expert(name: str, env: str, task: Any) -> Expert:
    """The expert, which reads `obs["oracle"]`, in the worlds of `task`; one that `check_expert` lets pass."""
    if name == "scripted":
        return ScriptedExpert(task)
    return load_teacher(env if name == "teacher" else Path(name))
