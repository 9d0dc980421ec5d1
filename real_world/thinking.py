"""What a policy thinks, when, and how it is played: plans, and the thread that makes them."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.spec import FRANKA
from real_world.pacing import Stages

BOUND = 1.05  # actions are in [-1, 1]; one beyond this is a fault, not something to clip
SETTLE_S = 5.0  # a policy that was late at an episode's end is done with it by then


class Fault(RuntimeError):
    """Something is wrong: the arm holds, the run ends."""


class PolicyLike(Protocol):
    def reset(self, worlds: Tensor | None = None, /) -> None: ...
    def plan(self, obs: Mapping[str, Tensor], /) -> Tensor:
        """float32 [1, K, A]: the next K actions, a policy step apart."""
        ...


class BlendedPlans:
    """Plays plans back: the action of a tick is the newest plan's, blended with the one before."""

    def __init__(self, blend: float):
        self._blend = blend
        self._plans: deque[tuple[int, Float[np.ndarray, "K A"]]] = deque(maxlen=2)

    def add(self, plan: Float[np.ndarray, "K A"], seen_at: int, now: int) -> None:
        """A plan made from what was seen at policy step `seen_at`. What lies in the past is dropped,
        the last action never: of a plan that came late it is still the best there is."""
        late = min(now - seen_at, len(plan) - 1)
        self._plans.append((now, plan[late:]))

    def action(self, now: int) -> Float[np.ndarray, " A"] | None:
        """None where no plan reaches."""
        valid = [plan[now - begins] for begins, plan in self._plans if now - begins < len(plan)]
        if len(valid) < 2:
            return valid[0] if valid else None
        return self._blend * valid[0] + (1 - self._blend) * valid[1]


class Thinker:
    """Calls the policy: at once, or on a thread of its own, which never keeps the process from ending."""

    def __init__(self, policy: PolicyLike, stages: Stages, threaded: bool):
        self._policy, self._stages = policy, stages
        self._job: Future[tuple[int, np.ndarray]] | None = None
        self._work: SimpleQueue[tuple[Mapping[str, Tensor], int, Future]] | None = None
        if threaded:
            self._work = SimpleQueue()
            Thread(target=self._think_on, args=(self._work,), name="policy", daemon=True).start()

    def think(self, obs: Mapping[str, Tensor], step: int) -> bool:
        """False where it still thinks about an earlier step."""
        if self._job is not None:
            return False
        job: Future[tuple[int, np.ndarray]] = Future()
        if self._work is None:
            job.set_result(self._plan(obs, step))
        else:
            self._work.put((obs, step, job))
        self._job = job
        return True

    def _think_on(self, work: SimpleQueue) -> None:
        while True:
            obs, step, job = work.get()
            try:
                job.set_result(self._plan(obs, step))
            except BaseException as error:  # noqa: BLE001 - raised where the plan is asked for
                job.set_exception(error)

    def _plan(self, obs: Mapping[str, Tensor], step: int) -> tuple[int, np.ndarray]:
        with self._stages.timed("policy"), torch.inference_mode():
            return step, _checked(self._policy.plan(obs))

    def result(self, wait_s: float = 0.0) -> tuple[int, np.ndarray] | None:
        """(step that was seen, plan) once; None if it takes longer. Raises Fault for a plan that must
        not be played."""
        if self._job is None:
            return None
        if wait_s > 0:
            wait([self._job], wait_s)
        if not self._job.done():
            return None
        job, self._job = self._job, None
        return job.result()

    def begin(self) -> None:
        """A new episode. Raises Fault if the policy still thinks about the one before."""
        if self._job is not None and not wait([self._job], SETTLE_S).done:
            raise Fault(f"the policy has been thinking for {SETTLE_S:g} s since the episode before")
        self._job = None
        self._policy.reset(None)


def _checked(plan: Tensor) -> Float[np.ndarray, "K A"]:
    if plan.ndim != 3 or plan.shape[0] != 1 or plan.shape[2] != FRANKA.num_actions:
        raise Fault(f"the policy gave {tuple(plan.shape)}, expected [1, K, {FRANKA.num_actions}]")
    if not plan.isfinite().all():
        raise Fault("the policy's action is not finite (NaN or infinity)")
    if plan.abs().max() > BOUND:
        raise Fault(f"the policy's action is {float(plan.abs().max()):.3g}, expected -1 to 1")
    return plan[0].double().cpu().numpy()
