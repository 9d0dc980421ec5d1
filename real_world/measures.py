"""What the loop measured of each policy step, as columns of the recorded step.

A killed run leaves no report, but its steps are on the disk: so each says how long its stages took,
which limits changed its commands and whether deadlines were missed.
"""

from collections.abc import Mapping

import numpy as np

from real_world.limits import EVENTS
from real_world.pacing import Deadlines, Stages

STAGES = ("read", "look", "frame_age", "policy", "send", "jitter", "record")
NOT_MEASURED = -1.0  # no call of the stage ended since the step before
NAMES = {"stages": STAGES, "limit_events": EVENTS}  # of the columns' numbers, for a file's `about`


class StepMeasures:
    """Call it once a step, after its command was sent: what happened since the call before.

    `latency_ms` float32 [7], in the order of `STAGES`: of a stage with several calls (commands between
    policy steps, two cameras) the slowest; `record` is that of the step before.
    `limit_events` uint16 [5], in the order of `limits.EVENTS`: how many commands each limit changed.
    `missed` uint16: deadlines missed until this step; the step's own counts in the next.
    """

    def __init__(self, stages: Stages, deadlines: Deadlines, events: Mapping[str, int]):
        self._stages, self._deadlines, self._events = stages, deadlines, events
        self._before = self._totals()

    def __call__(self) -> dict[str, np.ndarray]:
        slowest_s, before = self._stages.take_slowest(), self._before
        self._before = self._totals()
        changed = (self._before - before).astype(np.uint16)
        ms = [1000 * slowest_s[s] if s in slowest_s else NOT_MEASURED for s in STAGES]
        return {
            "latency_ms": np.array(ms, np.float32),
            "limit_events": changed[:-1],
            "missed": changed[-1],
        }

    def _totals(self) -> np.ndarray:
        return np.array([*(self._events.get(e, 0) for e in EVENTS), self._deadlines.missed])
