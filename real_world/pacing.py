"""Time: clocks, ticks at a fixed rate, and how long everything took."""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

KEPT = 100_000  # newest durations of a stage that percentiles are made of: an hour at 30 Hz


@contextmanager
def no_pauses() -> Iterator[None]:
    """Python's garbage is collected before, and not while: that can take longer than a tick."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, never going back."""
        ...

    def sleep_until(self, time_s: float) -> None: ...


class WallClock:
    """This computer's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        wait_s = time_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


class VirtualClock:
    """Time that passes only while someone sleeps; `on_advance(now)` lets a simulation follow.

    Computing takes no time on it, so what runs on it is the same every time, and as fast as it can.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self.on_advance: Callable[[float], object] = lambda now: None

    def now(self) -> float:
        return self._now

    def sleep_until(self, time_s: float) -> None:
        if time_s > self._now:
            self._now = time_s
            self.on_advance(time_s)


@dataclass(frozen=True)
class Tick:
    """The k-th slot of a fixed rate. `skipped`: slots before it that nobody was there for."""

    number: int
    due_s: float
    late_s: float
    skipped: int


class Pacer:
    """Slots at t0 + k/rate: never a relative sleep, which drifts, and never two at once to catch up.

    A slot that is over when its turn comes is skipped and counted.
    """

    def __init__(self, clock: Clock, rate_hz: float):
        if not rate_hz > 0:
            raise ValueError(f"rate_hz={rate_hz}: expected more than 0")
        self._clock, self.period_s = clock, 1 / rate_hz
        self.start()

    def start(self) -> None:
        """The next slot is now."""
        self._start_s, self._next = self._clock.now(), 0

    def wait(self) -> Tick:
        """Sleep to the next slot."""
        over = int((self._clock.now() - self._start_s) / self.period_s + 1e-9)
        number = max(self._next, over)
        skipped, due_s = number - self._next, self._start_s + number * self.period_s
        self._clock.sleep_until(due_s)
        self._next = number + 1
        return Tick(number, due_s, max(0.0, self._clock.now() - due_s), skipped)


@dataclass
class Deadlines:
    """A tick's command is due before the next tick. Skipped ticks missed theirs.

    `in_a_row`: late ticks, one after the other. One long stall is one of them; the watchdog is for those.
    """

    period_s: float
    deadlines: int = 0
    missed: int = 0
    in_a_row: int = 0

    def count(self, tick: Tick, done_s: float) -> None:
        late = done_s > tick.due_s + self.period_s
        self.deadlines += 1 + tick.skipped
        self.missed += late + tick.skipped
        self.in_a_row = self.in_a_row + 1 if late else 0


@dataclass
class Stages:
    """Durations by stage, the newest `KEPT` of each."""

    clock: Clock
    durations_s: dict[str, deque[float]] = field(default_factory=dict)
    _slowest_s: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, duration_s: float) -> None:
        self.durations_s.setdefault(stage, deque(maxlen=KEPT)).append(duration_s)
        self._slowest_s[stage] = max(duration_s, self._slowest_s.get(stage, 0.0))

    def take_slowest(self) -> dict[str, float]:
        """The slowest call of each stage since this was called last; no entry without a call."""
        taken, self._slowest_s = self._slowest_s, {}
        return taken

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start_s = self.clock.now()
        yield
        self.add(stage, self.clock.now() - start_s)

    def report_ms(self) -> dict[str, dict[str, float]]:
        """`p50`, `p90`, `p99`, `max` in ms by stage."""
        report = {}
        for stage, durations in self.durations_s.items():
            ms = 1000 * np.array(durations)
            marks = np.percentile(ms, (50, 90, 99, 100))
            report[stage] = dict(zip(("p50", "p90", "p99", "max"), marks.tolist(), strict=True))
        return report
