"""Plans of several actions, played step by step, in each world its own."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from policies.vec_env import TaskObs

Planner = Callable[[TaskObs, Tensor | None], Tensor]


class Plans:
    """The newest plan of each world, made anew every `replan_every` steps.

    With `every_frame` the planner sees each observation; else only those from which a plan is made, so
    that frames between are never encoded.
    """

    def __init__(self, replan_every: int, every_frame: bool = False):
        self._replan_every, self._every_frame = replan_every, every_frame
        self._plans: Tensor | None = None  # [N, K, A]
        self._age = torch.zeros(0, dtype=torch.long)

    def reset(self, worlds: Tensor | None = None) -> None:
        """These worlds (None: all, however many) begin with a new plan."""
        if worlds is None:
            self._plans = None
        elif self._plans is not None:
            self._age[worlds.cpu()] = self._replan_every

    def act(self, obs: TaskObs, planner: Planner) -> Float[Tensor, "N A"]:
        """The action of this step. `planner`: observations of some worlds, and their ids (None: of
        all) -> plans [n, K, A] on the CPU, K at least `replan_every`. Raises ValueError for another
        number of worlds than before, without a `reset` between, unless each step has a plan of its
        own."""
        if self._replan_every == 1:
            return planner(obs, None)[:, 0]
        if self._plans is None:
            self._plans = planner(obs, None).clone()
            self._age = torch.zeros(len(self._plans), dtype=torch.long)
        else:
            self._renew(self._plans, obs, planner)
        actions = self._plans[torch.arange(len(self._plans)), self._age]
        self._age += 1
        return actions

    def _renew(self, plans: Tensor, obs: TaskObs, planner: Planner) -> None:
        given = len(next(iter(obs.values())))
        if given != len(plans):
            raise ValueError(
                f"observations of {given} worlds after those of {len(plans)}: call reset() between"
            )
        due = self._age >= self._replan_every
        if self._every_frame or due.all():
            plans[due] = planner(obs, None)[due]
        elif due.any():
            ids = due.nonzero().flatten()
            theirs = {key: value[ids.to(value.device)] for key, value in obs.items()}
            plans[due] = planner(theirs, ids)
        self._age[due] = 0
