"""Between a policy and an arm: limits on every target, and a watchdog that holds the arm.

A `Guard` is a robot itself, so everything that moves an arm moves it through one.
"""

import threading

import numpy as np

from real_world.contracts import Command, Robot, RobotError, RobotState
from real_world.limits import Limits, limit
from real_world.pacing import Clock, WallClock

FROZEN_S = 0.1  # a robot whose own clock stands still for so long is lost


class Guard:
    """`robot` within `limits`, stopped when no target comes for `watchdog_s`.

    `dry_run` reads the arm and says what would be sent, and sends nothing.
    `events` counts which limits changed a target. `stopped` is why the arm was stopped, or "".
    """

    def __init__(
        self,
        robot: Robot,
        limits: Limits,
        watchdog_s: float = 0.25,
        clock: Clock | None = None,
        dry_run: bool = False,
    ):
        self.robot, self.limits, self.dry_run = robot, limits, dry_run
        self.name, self.rate_hz = robot.name, robot.rate_hz
        self.events: dict[str, int] = {}
        self.last_events: tuple[str, ...] = ()
        self.stopped = ""
        self._watchdog_s, self._clock = watchdog_s, clock or WallClock()
        self._lock = threading.RLock()
        self._sent_s: float | None = None  # None: the watchdog sleeps
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Connect, and take the arm's present pose as the last target."""
        self.robot.connect()
        self.hold_here()
        self.stopped = ""
        self._closed.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def hold_here(self) -> None:
        """Begin anew from where the arm is. The watchdog sleeps until the next `send`."""
        state = self.robot.read()
        with self._lock:
            self._last = Command(np.array(state.q_rad, float), float(state.gripper_m))
            self._speed, self._sent_s = np.zeros(len(state.q_rad)), None
            self._robot_time_s, self._changed_s = state.robot_time_s, self._clock.now()

    def rest(self) -> None:
        """Stay at the last target; the watchdog sleeps until the next `send`."""
        self._sent_s = None

    @property
    def target(self) -> Command:
        """What was last sent."""
        return self._last

    def read(self) -> RobotState:
        """The robot's state; mode `lost` if its clock has stood still for `FROZEN_S`."""
        state, now = self.robot.read(), self._clock.now()
        if state.robot_time_s != self._robot_time_s:
            self._robot_time_s, self._changed_s = state.robot_time_s, now
        elif state.mode == "ready" and now - self._changed_s > FROZEN_S:
            age_ms = 1000 * (now - self._changed_s)
            words = {
                "mode": "lost",
                "message": f"the robot's clock stands still for {age_ms:.0f} ms",
            }
            return RobotState(**{**vars(state), **words})
        return state

    def send(self, command: Command) -> Command:
        """Send what the limits leave of `command`; returns that. Raises as `Robot.send`, and
        RobotError once the arm was stopped."""
        with self._lock:
            if self.stopped:
                raise RobotError(f"the arm was stopped: {self.stopped}. Connect again to go on")
            now = self._clock.now()
            period_s = 1 / self.rate_hz
            # After a gap the arm has waited: it may not make up for it in one jump.
            gap_s = period_s if self._sent_s is None else min(now - self._sent_s, 2 * period_s)
            dt_s = max(gap_s, 0.25 * period_s)
            limited = limit(command, self._last, self._speed, dt_s, self.limits)
            sent = limited.command if self.dry_run else self.robot.send(limited.command)
            self._last, self._speed, self._sent_s = sent, limited.speed_rad_s, now
            self.last_events = limited.events
            for event in limited.events:
                self.events[event] = self.events.get(event, 0) + 1
            return sent

    def stop(self, reason: str) -> None:
        """Hold the arm; the first reason is kept."""
        self.stopped = self.stopped or reason
        self._sent_s = None
        if not self.dry_run:
            self.robot.stop(reason)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None
        self.robot.close()

    def _watch(self) -> None:
        """Never takes the lock: the thread that holds it may be the one that hangs."""
        while not self._closed.wait(self._watchdog_s / 5):
            sent_s = self._sent_s
            if sent_s is not None and self._clock.now() - sent_s > self._watchdog_s:
                self.stop(f"watchdog: no target for {self._watchdog_s:.2f} s")
