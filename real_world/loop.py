"""One episode on an arm: look, think, limit, send, on time; and hold the arm when anything is wrong.

Ticks come at the command rate, of which every m-th is the policy's. Frames and joints are matched by
the time of receipt. A plan is the next K actions; an action is a change of the joint targets
(`envs.vec_task`), counted from the target that was really sent, so limits do not wind up.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.spec import CONTROL_RATE_HZ, FRANKA, OBS, STATES, TARGETS
from real_world.contracts import (
    ARM_JOINTS,
    Camera,
    Command,
    Frame,
    RobotError,
    RobotState,
)
from real_world.guard import Guard
from real_world.pacing import Clock, Deadlines, Pacer, Stages, Tick
from real_world.sight import Sight
from real_world.thinking import BlendedPlans, Fault, PolicyLike, Thinker

HISTORY = 128  # newest robot states, to match with frames


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Rates in Hz, times in s."""

    policy_hz: float
    command_hz: float
    max_seconds: float = 10.0
    hold_seconds: float = 1.0  # the policy goes on so long after success
    max_frame_age_s: float = 0.25
    starved_s: float = 0.3  # without an action for so long, the policy is late
    missed_in_a_row: int = 5
    replan_every: int = 1  # policy steps that are played of a plan before the next is asked for
    threaded: bool = False  # the policy thinks beside the loop, which never waits for it too long
    send_after_s: float = 0.0  # no command leaves earlier in its tick: an even beat
    blend: float = 0.0  # share of the older plan where plans overlap; 0: the newest counts

    def __post_init__(self) -> None:
        ratio = self.command_hz / self.policy_hz
        if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
            raise ValueError(
                f"command_hz={self.command_hz:g} must be a multiple of the policy's rate, "
                f"{self.policy_hz:g} Hz"
            )
        if not 0 <= self.send_after_s < 1 / self.command_hz:
            raise ValueError(
                f"commands are sent {1000 * self.send_after_s:g} ms into a tick: expected 0 or more, "
                f"and less than the {1000 / self.command_hz:.3g} ms that it lasts"
            )

    @property
    def commands_per_step(self) -> int:
        return round(self.command_hz / self.policy_hz)


@dataclass
class Outcome:
    """How an episode ended. `success` None: nobody said."""

    success: bool | None
    end_reason: str
    fault: bool
    steps: int
    seconds: float
    limit_events: dict[str, int] = field(default_factory=dict)


def observation(
    frames: Sequence[np.ndarray], state: RobotState, target: Command
) -> dict[str, Tensor]:
    """What policies are given, of one world: images and proprioception as in `envs.task`, and the
    joint targets that were last sent."""
    images = [torch.from_numpy(np.ascontiguousarray(frame)) for frame in frames]
    fingers = [state.gripper_m / 2] * 2
    q = np.array([*state.q_rad, *fingers])
    dq = np.array([*state.dq_rad_s, *[state.gripper_m_s / 2] * 2])
    lower, upper = np.array(FRANKA.lower), np.array(FRANKA.upper)
    vector = np.concatenate([2 * (q - lower) / (upper - lower) - 1, 0.1 * dq])
    stacked = images[0] if len(images) == 1 else torch.stack(images)
    targets = torch.tensor([*target.q_rad, *[target.gripper_m / 2] * 2], dtype=torch.float32)
    states = torch.tensor(vector, dtype=torch.float32)
    return {OBS: stacked[None], STATES: states[None], TARGETS: targets[None]}


class EpisodeLoop:
    """Runs episodes of `policy` on `robot`.

    `picture(frame)` is what the policy is shown of a camera frame. `judge()` says success (True),
    failure (False) or nothing yet (None); `stop_asked()` a reason to stop, or "". `record` gets one
    mapping per policy step.
    """

    def __init__(
        self,
        robot: Guard,
        cameras: Sequence[Camera],
        policy: PolicyLike,
        options: LoopOptions,
        clock: Clock,
        picture: Callable[[Frame], np.ndarray] = lambda frame: frame.colour,
        judge: Callable[[], bool | None] = lambda: None,
        stop_asked: Callable[[], str] = lambda: "",
        record: Callable[[Mapping[str, Any]], object] = lambda step: None,
    ):
        self.robot, self.cameras, self.options = robot, cameras, options
        self.clock, self.picture, self.judge = clock, picture, judge
        self.stop_asked, self.record = stop_asked, record
        self.stages = Stages(clock)
        self._thinker = Thinker(policy, self.stages, options.threaded)
        self.deadlines = Deadlines(1 / options.command_hz)
        self.plans = self.late_plans = 0  # made, and of these played later than in their own tick
        self._sights = [Sight(camera.name, options.max_frame_age_s) for camera in cameras]
        pace = CONTROL_RATE_HZ / options.policy_hz
        self._step = pace * np.array(FRANKA.action_step)

    def run(self) -> Outcome:
        """One episode; never raises for what can go wrong on the way: the arm holds then."""
        self._plans, self._states = BlendedPlans(self.options.blend), deque(maxlen=HISTORY)
        self._asked, self._asked_from = -self.options.replan_every, np.zeros(FRANKA.num_actions)
        for sight in self._sights:
            sight.begin()
        self._steps, self._acted_s, self._won_s = 0, self.clock.now(), None
        before, start_s = dict(self.robot.events), self.clock.now()
        fault, reason = True, ""
        try:
            self.robot.hold_here()
            self._thinker.begin()
            start_s = self._acted_s = self.clock.now()
            reason = self._play(self._thinker, start_s)
            fault = False
        except (RuntimeError, ValueError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        except BaseException as error:  # anything else is ours: the arm holds all the same
            self.robot.stop(f"{type(error).__name__}: {error}")
            raise
        if fault or reason.startswith("stopped"):
            self.robot.stop(reason)
        else:
            self.robot.rest()  # until the next episode, however long the files of this one take
        success = True if self._won_s is not None else self.judge()
        events = {k: n - before.get(k, 0) for k, n in self.robot.events.items()}
        seconds = self.clock.now() - start_s
        return Outcome(
            success, reason, fault, self._steps, seconds, {k: n for k, n in events.items() if n}
        )

    def _play(self, thinker: Thinker, start_s: float) -> str:
        pacer = Pacer(self.clock, self.options.command_hz)
        start, goal = self.robot.target, self.robot.target
        every = self.options.commands_per_step
        part = every  # of a policy step, in commands; beyond its last one: time to look again
        last_s: float | None = None
        while True:
            tick = pacer.wait()
            if end := self._ended(tick, start_s):
                return end
            state, part = self._read(), part + 1 + tick.skipped
            row: dict[str, Any] = {}
            if part >= every:
                part, start = 0, self.robot.target
                obs = self._look(state)
                if self._plan_is_due() and thinker.think(obs, self._steps):
                    self._asked = self._steps
                    self._asked_from = obs[TARGETS][0].double().numpy()
                leaves_s = tick.due_s + self.options.send_after_s
                goal, action = self._goal(thinker.result(leaves_s - self.clock.now()), start)
                row = self._row(obs, action, goal, state, tick)
            q = start.q_rad + (goal.q_rad - start.q_rad) * (part + 1) / every
            self.clock.sleep_until(tick.due_s + self.options.send_after_s)
            with self.stages.timed("send"):
                sent = self.robot.send(Command(q, goal.gripper_m))
            sent_s = self.clock.now()
            if last_s is not None:  # of the time between two commands
                apart_s = pacer.period_s * (1 + tick.skipped)
                self.stages.add("jitter", abs(sent_s - last_s - apart_s))
            last_s = sent_s
            if row:
                row |= {"q_sent_rad": np.append(sent.q_rad, sent.gripper_m), "t_sent_s": sent_s}
                with self.stages.timed("record"):
                    self.record(row)
                self._steps += 1
            self.deadlines.count(tick, self.clock.now())
            if self.deadlines.in_a_row >= self.options.missed_in_a_row:
                raise Fault(f"{self.deadlines.in_a_row} deadlines in a row were missed")

    def _plan_is_due(self) -> bool:
        played_out = self._plans.action(self._steps) is None
        return played_out or self._steps - self._asked >= self.options.replan_every

    def _ended(self, tick: Tick, start_s: float) -> str:
        if reason := self.stop_asked():
            return f"stopped: {reason}"
        now_s, verdict = self.clock.now(), self.judge()
        if verdict is False:
            return "failure"
        if verdict and self._won_s is None:
            self._won_s = now_s
        if self._won_s is not None and now_s - self._won_s >= self.options.hold_seconds:
            return "success"
        return "time limit" if tick.due_s - start_s >= self.options.max_seconds else ""

    def _read(self) -> RobotState:
        with self.stages.timed("read"):
            state = self.robot.read()
        if state.mode != "ready":
            raise RobotError(f"the arm is in mode {state.mode}: {state.message}")
        if not np.isfinite([*state.q_rad, *state.dq_rad_s, state.gripper_m]).all():
            raise Fault(f"the robot's state is not finite: {state}")
        self._states.append(state)
        return state

    def _look(self, state: RobotState) -> dict[str, Tensor]:
        """The newest frame of each camera, and the joints of that time."""
        frames = []
        with self.stages.timed("look"):
            for camera, sight in zip(self.cameras, self._sights, strict=True):
                age_s = sight.check(frame := camera.latest(), self.clock.now(), state.q_rad)
                self.stages.add("frame_age", age_s)
                frames.append(frame)
            pictures = [self.picture(frame) for frame in frames]
        seen_s = max(frame.received_s for frame in frames)
        nearest = min(self._states, key=lambda s: abs(s.received_s - seen_s), default=state)
        return observation(pictures, nearest, self.robot.target)

    def _goal(
        self, thought: tuple[int, np.ndarray] | None, start: Command
    ) -> tuple[Command, np.ndarray]:
        """Where this policy step leads to. Without an action the target stays."""
        if thought is not None:
            seen_at, plan = thought
            late = min(self._steps - seen_at, len(plan) - 1)
            if late:
                plan = self._caught_up(plan, late, start)
            self._plans.add(plan, seen_at, self._steps)
            self.plans += 1
            self.late_plans += seen_at < self._steps
        action, now_s = self._plans.action(self._steps), self.clock.now()
        if action is not None:
            self._acted_s = now_s
        elif now_s - self._acted_s > self.options.starved_s:
            raise Fault(f"the policy is late: no action for {now_s - self._acted_s:.2f} s")
        else:
            action = np.zeros(FRANKA.num_actions)
        change = self._step * action
        return Command(
            start.q_rad + change[:ARM_JOINTS],
            float(np.clip(start.gripper_m + change[ARM_JOINTS:].sum(), 0.0, 0.08)),
        ), action

    def _caught_up(
        self, plan: Float[np.ndarray, "K A"], late: int, start: Command
    ) -> Float[np.ndarray, "K A"]:
        """A late plan whose first action to be played leads to where the plan wanted to be by then: the
        actions before it, which will not be played, hold what the policy corrected."""
        wanted = self._asked_from + self._step * plan[:late].sum(axis=0)
        now = np.array([*start.q_rad, *[start.gripper_m / 2] * 2])
        largest = np.abs(plan).max()
        plan = plan.copy()
        plan[late] = np.clip(plan[late] + (wanted - now) / self._step, -largest, largest)
        return plan

    def _row(self, obs, action, goal, state, tick: Tick) -> dict[str, Any]:
        images = obs[OBS][0] if obs[OBS].ndim == 5 else obs[OBS]
        names = [camera.name for camera in self.cameras]
        return {
            **{f"obs/{n}_image": image.numpy() for n, image in zip(names, images, strict=True)},
            "obs/proprioception": obs[STATES][0].numpy(),
            TARGETS: obs[TARGETS][0].numpy(),
            "actions": action.astype(np.float32),
            "q_wanted_rad": np.append(goal.q_rad, goal.gripper_m),
            "q_rad": np.append(state.q_rad, state.gripper_m),
            "t_due_s": tick.due_s,
        }
