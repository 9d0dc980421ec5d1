"""The loop plays what a policy plans, and holds the arm whenever something is wrong."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import envs
from envs.spec import FRANKA
from real_world.contracts import RobotError
from real_world.guard import Guard
from real_world.limits import Limits
from real_world.loop import EpisodeLoop, LoopOptions
from real_world.pacing import VirtualClock, WallClock
from real_world.sim import SimCamera, SimRobot, SimWorld
from tests.real_world.fakes import HOME, Arm, Eye, Steady

WIDE = Limits(
    box_m=((-2.0,) * 3, (2.0,) * 3),
    speed_rad_s=(1e3,) * 7,
    acceleration_rad_s2=(1e6,) * 7,
    margin_rad=0.0,
    gripper_speed_m_s=1e3,
)


def cell(policy, clock=None, hz=30, watchdog_s=1e9, **given):
    clock = clock or VirtualClock()
    arm, eye, rows = Arm(clock), Eye(clock), []
    guard = Guard(arm, WIDE, clock=clock, watchdog_s=watchdog_s)
    guard.connect()
    words = {"policy_hz": hz, "command_hz": hz, "max_seconds": 1.0} | given.pop("options", {})
    loop = EpisodeLoop(
        guard, [eye], policy, LoopOptions(**words), clock, record=rows.append, **given
    )
    return loop, arm, eye, rows


def test_an_arm_that_is_gone_before_an_episode_is_a_fault_of_the_episode():
    loop, arm, _, rows = cell(Steady())

    def gone():
        raise RobotError("the simulated world stands still")

    arm.read = gone
    outcome = loop.run()
    assert outcome.fault and "stands still" in outcome.end_reason and not rows and arm.stops


def test_a_policy_moves_the_simulated_arm_as_it_does_in_training():
    """The same actions through the loop and through the batched task: the same joints."""
    rng = np.random.default_rng(0)
    actions = torch.tensor(rng.uniform(-1, 1, (20, 1, 1, 9)) * 0.3, dtype=torch.float32)
    actions[..., 8] = actions[..., 7]  # a gripper moves both fingers
    task = envs.make(task="FrankaPick", num_envs=1, seed=3, control_rate_hz=30)
    task.reset()
    for action in actions:
        task.step(action[0])
    wanted = task.engine.read()["qpos"][0]

    clock = VirtualClock()
    world = SimWorld("franka_pick", clock, seed=3)
    guard = Guard(SimRobot(world, 30), WIDE, clock=clock, watchdog_s=1e9)
    camera = SimCamera(world, size_px=16)
    guard.connect()
    camera.connect()
    policy = Steady(at=dict(enumerate(actions)))
    loop = EpisodeLoop(
        guard,
        [camera],
        policy,
        LoopOptions(policy_hz=30, command_hz=30, max_seconds=20 / 30),
        clock,
    )
    # The loop counts from the joints as they are, the task from where it put them: the same here.
    outcome = loop.run()
    assert (outcome.end_reason, outcome.steps) == ("time limit", 20)
    assert torch.allclose(world.task.engine.read()["qpos"][0][:7], wanted[:7], atol=2e-3)
    guard.close()
    world.close()
    task.close()


def test_commands_between_policy_steps_lie_on_the_way():
    loop, arm, _, rows = cell(Steady(0.1), hz=10, options={"command_hz": 30, "max_seconds": 0.35})
    loop.run()
    path = np.array([c.q_rad[0] for c in arm.sent]) - HOME[0]
    assert len(rows) == 4
    assert np.allclose(np.diff(path, prepend=0.0), 0.1 * 0.75 / 3)


def test_success_ends_the_episode_after_a_while():
    loop, arm, _, rows = cell(Steady(), judge=lambda: len(arm.sent) >= 10 or None,
                              options={"hold_seconds": 0.2, "max_seconds": 9.0})  # fmt: skip
    outcome = loop.run()
    assert (outcome.success, outcome.end_reason, outcome.fault) == (True, "success", False)
    assert outcome.steps == 16 and not arm.stops


def test_between_episodes_the_arm_stays_where_it_is_and_the_watchdog_sleeps():
    loop, arm, _, _ = cell(Steady(0.1), watchdog_s=0.05)
    for _ in range(2):
        assert loop.run().end_reason == "time limit"
        loop.clock.sleep_until(loop.clock.now() + 60.0)  # files and films are written
        time.sleep(0.1)  # the watchdog has looked
        assert not arm.stops and not loop.robot.stopped


def spoil(eye, **fields):
    """From its 10th frame on."""
    eye.change = lambda frame: replace(frame, **fields) if frame.number > 10 else frame


FAULTS = {
    "camera disappears": (
        lambda arm, eye, policy: setattr(eye, "change", lambda f: _vanish(eye, f)), "unplugged"),
    "camera freezes": (lambda arm, eye, policy: spoil(eye, received_s=0.0), "ms old"),
    "wrong size": (lambda arm, eye, policy: spoil(eye, colour=np.zeros((4, 8, 3), np.uint8)), "(4, 8, 3)"),
    "torn": (lambda arm, eye, policy: spoil(eye, colour=np.zeros((8, 8, 3), np.float32)), "float32"),
    "same picture": (
        lambda arm, eye, policy: (spoil(eye, colour=np.zeros((8, 8, 3), np.uint8)), policy.at.update(
            {step: torch.full((1, 1, 9), 0.5) for step in range(9, 30)})), "hangs"),
    "jumps back": (lambda arm, eye, policy: spoil(eye, number=3), "jumped"),
    "jumps ahead": (lambda arm, eye, policy: spoil(eye, received_s=1e6), "jumped"),
    "no frame": (lambda arm, eye, policy: setattr(eye, "latest", lambda *a, **k: None), "no frame"),
    "reflex": (lambda arm, eye, policy: _later(policy, arm, "mode", "reflex"), "reflex"),
    "link lost": (lambda arm, eye, policy: _later(policy, arm, "frozen_s", 0.3), "stands still"),
    "send fails": (
        lambda arm, eye, policy: _later(policy, arm, "fail", RobotError("UDP timeout")), "UDP"),
    "NaN": (lambda arm, eye, policy: policy.at.update({10: torch.full((1, 1, 9), torch.nan)}), "not finite"),
    "huge": (lambda arm, eye, policy: policy.at.update({10: torch.full((1, 1, 9), 1e3)}), "1e+03"),
    "wrong shape": (lambda arm, eye, policy: policy.at.update({10: torch.zeros(1, 1, 8)}), "(1, 1, 8)"),
    "joints not finite": (lambda arm, eye, policy: _later(policy, arm, "error_rad", np.nan), "not finite"),
}  # fmt: skip


def _vanish(eye, frame):
    eye.gone = frame.number >= 10
    return frame


def _later(policy, thing, name, value):
    policy.before = lambda step: setattr(thing, name, value) if step == 10 else None


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_in_a_hold_with_its_reason(fault):
    policy = Steady(0.01)
    loop, arm, eye, rows = cell(policy, options={"max_seconds": 3.0})
    inject, words = FAULTS[fault]
    inject(arm, eye, policy)
    outcome = loop.run()
    assert outcome.fault and words in outcome.end_reason, outcome.end_reason
    assert arm.stops == [outcome.end_reason]
    assert all(np.isfinite(c.q_rad).all() for c in arm.sent)
    assert len(arm.sent) <= 15 and loop.robot.stopped
    assert outcome.steps == len(rows)


def test_a_policy_that_raises_stops_the_arm_and_says_so():
    def crash(step):
        raise ZeroDivisionError("oh")

    loop, arm, _, _ = cell(Steady(before=crash))
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert arm.stops == ["ZeroDivisionError: oh"]


def test_a_recorder_that_cannot_write_stops_the_arm():
    def full(row):
        raise OSError(28, "No space left on device")

    loop, arm, _, _ = cell(Steady())
    loop.record = full
    outcome = loop.run()
    assert outcome.fault and "No space left" in outcome.end_reason and arm.stops


def test_a_stop_that_is_asked_for_holds_the_arm():
    loop, arm, _, _ = cell(Steady(), stop_asked=lambda: "space bar" if len(arm.sent) > 5 else "")
    outcome = loop.run()
    assert (outcome.end_reason, outcome.fault) == ("stopped: space bar", False)
    assert arm.stops == ["stopped: space bar"]


def test_a_slow_policy_misses_deadlines_and_the_arm_holds():
    slow = Steady(before=lambda step: time.sleep(0.08) if step > 3 else None)
    loop, arm, _, _ = cell(slow, WallClock(), options={"max_seconds": 5.0})
    outcome = loop.run()
    assert outcome.fault and "deadlines in a row" in outcome.end_reason
    assert loop.deadlines.missed >= 5 and arm.stops


def test_a_slow_policy_on_its_own_thread_misses_none():
    slow = Steady(0.01, horizon=8, before=lambda step: time.sleep(0.08))
    loop, arm, _, _ = cell(slow, WallClock(), options={"max_seconds": 1.0, "threaded": True})
    outcome = loop.run()
    assert not outcome.fault, outcome.end_reason
    assert loop.deadlines.missed <= 1 and 0.01 < arm.q[0] - HOME[0]


def test_a_late_plan_is_played_a_tick_later_and_its_command_is_on_time():
    slow = Steady(0.01, horizon=8, before=lambda step: time.sleep(0.05) if step == 3 else None)
    options = {"max_seconds": 1.0, "threaded": True, "send_after_s": 0.02}
    loop, _, _, rows = cell(slow, WallClock(), options=options)
    assert not loop.run().fault
    assert 1 <= loop.late_plans <= 3 < loop.plans and loop.deadlines.missed <= 1
    sent_s = np.array([row["t_sent_s"] - row["t_due_s"] for row in rows])
    assert sent_s.min() >= 0.02 and np.median(sent_s) < 0.025


def test_a_late_plan_makes_up_for_what_was_not_played():
    """Its first action holds what the policy corrected; dropped, no correction would ever be made."""
    loop, arm, _, _ = cell(Steady(), options={"threaded": True})
    loop.run()
    here = loop.robot.target
    loop._asked_from = np.array([*here.q_rad, *[here.gripper_m / 2] * 2])
    plan = np.array([0.2, 0.1, -0.4])[:, None] * np.ones(9)
    assert np.allclose(loop._caught_up(plan, 1, here)[:, 0], [0.2, 0.3, -0.4])
    assert np.allclose(loop._caught_up(plan, 2, here)[2], -0.1)
    loop._asked_from[0] += 1.0  # further than actions of this plan go
    assert np.allclose(loop._caught_up(plan, 1, here)[1, :2], [0.4, 0.3])
    assert plan[1, 0] == 0.1


def test_commands_leave_when_they_should_in_their_tick():
    loop, _, _, rows = cell(Steady(0.01), options={"send_after_s": 0.02})
    loop.run()
    assert np.allclose([row["t_sent_s"] - row["t_due_s"] for row in rows], 0.02)
    with pytest.raises(ValueError, match="33"):
        LoopOptions(policy_hz=30, command_hz=30, send_after_s=0.05)


def test_a_plan_is_played_as_far_as_in_the_evaluation():
    ramp = 0.1 * torch.arange(1.0, 9.0)[None, :, None].expand(1, 8, 9)
    policy = Steady(at={call: ramp for call in range(99)})
    loop, _, _, rows = cell(policy, options={"replan_every": 3})
    loop.run()
    actions = [row["actions"][0] for row in rows]
    assert np.allclose(actions, [(0.1, 0.2, 0.3)[i % 3] for i in range(len(rows))])
    assert (loop.plans, loop.late_plans) == (-(-len(rows) // 3), 0)


def test_an_episode_begins_when_the_one_before_is_thought_through(monkeypatch):
    """Else a late thought would be remembered as the new episode's, or end up in two threads."""
    said, slow = [], threading.Event()
    policy = Steady(0.01, horizon=30, before=lambda step: slow.wait(0.3) or said.append("thought"))
    monkeypatch.setattr(policy, "reset", lambda worlds: said.append("reset"))
    loop, _, _, _ = cell(policy, WallClock(), options={"max_seconds": 0.1, "threaded": True})
    loop.run()
    loop.run()
    assert said[:3] == ["reset", "thought", "reset"]
    monkeypatch.setattr("real_world.thinking.SETTLE_S", 0.05)
    outcome = loop.run()
    assert outcome.fault and "since the episode before" in outcome.end_reason
    slow.set()


def test_a_policy_that_never_answers_starves_the_arm():
    answer = threading.Event()
    loop, arm, _, _ = cell(
        Steady(before=lambda step: answer.wait(5)), WallClock(), options={"threaded": True}
    )
    outcome = loop.run()
    answer.set()
    assert outcome.fault and "late" in outcome.end_reason and arm.stops
    assert all(np.array_equal(c.q_rad, HOME) for c in arm.sent)


def test_rates_must_divide():
    with pytest.raises(ValueError, match="multiple"):
        LoopOptions(policy_hz=30, command_hz=50)


def test_states_and_frames_are_of_the_same_time():
    """A camera that is 100 ms late is answered with the joints of 100 ms ago."""
    loop, arm, eye, rows = cell(Steady(0.1))
    eye.change = lambda frame: replace(frame, received_s=frame.received_s - 0.1)
    loop.run()
    seen = np.array([row["obs/proprioception"][0] for row in rows])
    now = np.array([row["q_rad"][0] for row in rows])
    lower, upper = FRANKA.lower[0], FRANKA.upper[0]
    assert np.allclose(seen[8:], 2 * (now[5:-3] - lower) / (upper - lower) - 1, atol=1e-5)
