"""Plans are played in their time; the thread that makes them never holds anything up."""

import subprocess
import sys

import numpy as np

from real_world.thinking import BlendedPlans

HUNG = """
import threading
from real_world.pacing import Stages, WallClock
from real_world.thinking import Thinker
from tests.real_world.fakes import Steady

thinker = Thinker(Steady(before=lambda step: threading.Event().wait()), Stages(WallClock()), threaded=True)
assert thinker.think({}, 0) and thinker.result(0.05) is None
print("the arm was held")
"""


def test_plans_are_played_in_time_and_blended():
    plans = BlendedPlans(blend=0.25)

    def action(k: int) -> float:
        played = plans.action(k)
        assert played is not None
        return played[0]

    plans.add(np.arange(4.0)[:, None], seen_at=0, now=0)
    assert [action(k) for k in (0, 1)] == [0, 1]
    plans.add(10 + np.arange(4.0)[:, None], seen_at=1, now=2)  # its first action is over
    assert action(2) == 0.25 * 2 + 0.75 * 11
    assert action(4) == 13 and plans.action(5) is None
    plans = BlendedPlans(0.0)
    plans.add(np.ones((1, 1)), seen_at=0, now=3)
    assert action(3) == 1, "the last action of a late plan is played"


def test_a_policy_that_hangs_does_not_keep_the_process_from_ending() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "the arm was held\n"), ended.stderr
