"""What each recorded step says of the loop."""

import numpy as np

from real_world.limits import EVENTS
from real_world.measures import NOT_MEASURED, STAGES, StepMeasures
from real_world.pacing import Deadlines, Stages, Tick, VirtualClock


def test_a_step_has_what_happened_since_the_step_before():
    stages, deadlines, events = Stages(VirtualClock()), Deadlines(0.1), {"box": 7}
    measures = StepMeasures(stages, deadlines, events)
    for took_s in (0.002, 0.005, 0.001):
        stages.add("send", took_s)
    events |= {"box": 9, "speed": 1}
    deadlines.count(Tick(3, 1.0, 0.0, skipped=2), done_s=1.2)
    first, second = measures(), measures()

    ms = dict(zip(STAGES, first["latency_ms"], strict=True))
    assert ms.pop("send") == np.float32(5) and set(ms.values()) == {NOT_MEASURED}
    assert dict(zip(EVENTS, first["limit_events"], strict=True)) == {
        "joint": 0, "speed": 1, "acceleration": 0, "box": 2, "gripper": 0}  # fmt: skip
    assert first["missed"] == 3
    assert (second["latency_ms"] == NOT_MEASURED).all()
    assert not second["limit_events"].any() and second["missed"] == 0
    layout = [(k, v.shape, v.dtype) for k, v in first.items()]
    assert layout == [(k, v.shape, v.dtype) for k, v in second.items()], "as the recorder wants it"


def test_every_limit_has_a_place():
    """A limit that EVENTS does not name would not be counted."""
    from real_world.contracts import Command
    from real_world.limits import Limits, limit
    from tests.real_world.fakes import HOME

    limits = Limits(box_m=((-0.1, -0.1, 0.0), (0.1, 0.1, 0.1)))
    last = Command(HOME, 0.04)
    wanted = Command(HOME + np.array([9.0, 0, 0, 0, 0, 0, 0]), 9.0)
    assert set(limit(wanted, last, np.zeros(7), 1 / 30, limits).events) <= set(EVENTS)
