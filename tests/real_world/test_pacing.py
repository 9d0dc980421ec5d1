import pytest

from real_world.pacing import Deadlines, Pacer, Stages, Tick, VirtualClock


def test_ticks_come_at_absolute_times_whatever_the_work_takes():
    clock = VirtualClock()
    pacer = Pacer(clock, 10)
    due = []
    for work_s in [0.01, 0.09, 0.0, 0.05] * 25:
        due.append(pacer.wait().due_s)
        clock.sleep_until(clock.now() + work_s)
    assert due == pytest.approx([0.1 * k for k in range(100)])


def test_slots_that_are_over_are_skipped_not_made_up_for():
    clock = VirtualClock()
    pacer, deadlines = Pacer(clock, 10), Deadlines(0.1)
    for work_s in (0.05, 0.35, 0.05, 0.12, 0.05):
        tick = pacer.wait()
        clock.sleep_until(clock.now() + work_s)
        deadlines.count(tick, clock.now())
    # Slots 0, 1, then 4 (two skipped), 5, 6: late by 0.02, and nothing skipped.
    assert (tick.number, tick.skipped) == (6, 0)
    assert (tick.due_s, tick.late_s) == pytest.approx((0.6, 0.02))
    assert (deadlines.deadlines, deadlines.missed) == (7, 1 + 2 + 1)


def test_misses_in_a_row_are_forgotten_by_one_in_time():
    deadlines = Deadlines(0.1)
    for done_s, row in ((0.2, 1), (0.3, 2), (0.05, 0)):
        deadlines.count(Tick(0, 0.0, 0.0, 0), done_s)
        assert deadlines.in_a_row == row


def test_percentiles_of_a_stage():
    stages = Stages(VirtualClock())
    for ms in range(1, 101):
        stages.add("send", ms / 1000)
    assert stages.report_ms()["send"] == pytest.approx(
        {"p50": 50.5, "p90": 90.1, "p99": 99.01, "max": 100.0}
    )


def test_a_rate_must_be_positive():
    with pytest.raises(ValueError, match="rate_hz=0"):
        Pacer(VirtualClock(), 0)
