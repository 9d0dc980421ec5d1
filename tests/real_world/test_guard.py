import time

import numpy as np
import pytest

from real_world.contracts import Command, RobotError
from real_world.guard import Guard
from real_world.limits import Limits
from real_world.pacing import VirtualClock, WallClock
from tests.real_world.fakes import HOME, Arm

LIMITS = Limits(box_m=((-2.0,) * 3, (2.0,) * 3))


def guarded(clock=None, **options):
    clock = clock or VirtualClock()
    arm = Arm(clock)
    guard = Guard(arm, LIMITS, clock=clock, **options)
    guard.connect()
    return guard, arm, clock


def test_what_is_sent_is_within_limits_and_is_returned():
    guard, arm, clock = guarded()
    sent = guard.send(Command(HOME + 1.0, 0.07))
    assert arm.sent == [sent] and guard.target is sent
    assert np.abs(sent.q_rad - HOME).max() < 0.02 and guard.events["speed"] == 1
    guard.close()


def test_a_gap_is_not_made_up_for():
    guard, arm, clock = guarded()
    guard.send(Command(HOME, 0.07))
    clock.sleep_until(0.2)
    sent = guard.send(Command(HOME + 1.0, 0.07))
    assert np.abs(sent.q_rad - HOME).max() <= 10.0 * (2 / 30) ** 2 + 1e-9
    guard.close()


def test_a_command_that_is_refused_moves_nothing():
    guard, arm, _ = guarded()
    with pytest.raises(ValueError, match="finite"):
        guard.send(Command(HOME * np.nan, 0.07))
    assert arm.sent == []
    guard.close()


def test_a_clock_that_stands_still_is_a_lost_arm():
    guard, arm, clock = guarded()
    clock.sleep_until(1.0)
    assert guard.read().mode == "ready"
    arm.frozen_s = 1.0
    clock.sleep_until(1.05)
    assert guard.read().mode == "ready"
    clock.sleep_until(1.2)
    state = guard.read()
    assert state.mode == "lost" and "200 ms" in state.message
    guard.close()


def test_the_watchdog_holds_an_arm_that_nobody_commands():
    guard, arm, _ = guarded(WallClock(), watchdog_s=0.05)
    time.sleep(0.15)
    assert not arm.stops, "it sleeps until the first target"
    guard.send(Command(HOME, 0.07))
    end = time.monotonic() + 2
    while not arm.stops and time.monotonic() < end:
        time.sleep(0.005)
    assert "watchdog" in arm.stops[0]
    with pytest.raises(RobotError, match="watchdog"):
        guard.send(Command(HOME, 0.07))
    guard.connect()
    guard.send(Command(HOME, 0.07))
    guard.close()


def test_the_watchdog_acts_while_a_send_hangs():
    guard, arm, _ = guarded(WallClock(), watchdog_s=0.05)
    guard.send(Command(HOME, 0.07))
    arm.send = lambda command: time.sleep(0.4)
    with pytest.raises((AttributeError, RobotError)):
        guard.send(Command(HOME, 0.07))
        guard.send(Command(HOME, 0.07))
    assert arm.stops and "watchdog" in arm.stops[0]
    guard.close()


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing():
    guard, arm, clock = guarded(dry_run=True)
    sent = guard.target
    for k in range(5):
        clock.sleep_until(k / 30)
        sent = guard.send(Command(HOME + 0.01, 0.07))
    assert np.allclose(sent.q_rad, HOME + 0.01) and arm.sent == []
    guard.stop("done")
    assert arm.stops == []
    guard.robot.close()
