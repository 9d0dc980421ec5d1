"""Experts that come with the code: state policies of the four tasks, as small policy folders.

An expert is anything with `act(obs) -> actions`, where `obs["oracle"]` holds the state vector.
"""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from envs.spec import ORACLE, TASK_NAMES
from policies.policy import Policy, load_policy
from policies.vec_env import TaskObs

PRETRAINED = Path(__file__).parent / "pretrained"


class Expert(Protocol):
    def act(self, obs: TaskObs, /) -> Tensor:
        """`obs["oracle"]` float32 [N, num_oracle] -> actions float32 [N, num_actions] in [-1, 1]."""
        ...


class Teacher:
    """A policy that was trained from state, acting on the oracle vector beside images."""

    def __init__(self, policy: Policy):
        if policy.spec.obs != "state":
            raise ValueError(f"an expert reads the state, this policy reads {policy.spec.obs}")
        if policy.spec.ppo.action_repeat > 1:
            raise ValueError(
                f"an expert decides at every step, this policy holds its actions for "
                f"{policy.spec.ppo.action_repeat}: expected one of ppo.action_repeat=1"
            )
        self.policy = policy

    def act(self, obs: TaskObs) -> Tensor:
        if ORACLE not in obs:
            raise ValueError(
                f"observation has keys {sorted(obs)}, an expert needs {ORACLE!r}: "
                "make the task with oracle=True"
            )
        return self.policy.plan({"obs": obs[ORACLE]})[:, 0]


def teacher_folder(source: str | Path) -> Path:
    """Of the packaged teacher of a task ("franka_pick"), or `source` itself. Raises FileNotFoundError
    if there is none."""
    folder = PRETRAINED / str(source) if str(source) in TASK_NAMES else Path(source)
    if not (folder / "policy.json").is_file():
        ready = sorted(p.parent.name for p in PRETRAINED.glob("*/policy.json"))
        raise FileNotFoundError(
            f"no policy in {folder}; give a policy folder, or one of the packaged teachers: {ready}"
        )
    return folder


def load_teacher(source: str | Path) -> Teacher:
    """The packaged teacher of a task, or the state policy in a folder.

    Raises FileNotFoundError if there is none, ValueError if it does not read the state.
    """
    return Teacher(load_policy(teacher_folder(source)))
