"""The Franka hand beside the arm's loop: its calls block for seconds, so they have threads of their own."""

import logging
import math
import os
import threading
import time
from typing import Any

GRIPPER_MAX_M = 0.08
MOVES_M = 0.0003  # between two looks, 0.03 s apart: the fingers move, at 0.01 m/s or faster
SETTLE_S = 0.3  # that closing the hand waits for moving fingers to come to rest
log = logging.getLogger(__name__)


class GripperThread:
    """The hand, whose calls block for seconds: the last width (m) asked for wins, until `stop`."""

    def __init__(self, hand: Any, speed_m_s: float, deadband_m: float):
        self._hand, self._speed, self._deadband = hand, speed_m_s, deadband_m
        self.width_m, self.failures = float(hand.width), 0
        self._wanted_m: float | None = None
        self._moved_to_m = self.width_m
        self._news = threading.Condition()
        self._stopped = self._busy = False
        self._over_s = math.inf  # when nobody looks at the fingers any more
        self._threads = [
            threading.Thread(target=work, name=f"franka-{work.__name__}", daemon=True)
            for work in (self._run, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def move(self, width_m: float) -> None:
        """Ask for a width. Changes below the deadband are left out, but for the ends."""
        with self._news:
            last = self._moved_to_m if self._wanted_m is None else self._wanted_m
            at_end = width_m in (0.0, GRIPPER_MAX_M) and width_m != last
            if not self._stopped and (at_end or abs(width_m - last) >= self._deadband):
                self._wanted_m = width_m
                self._news.notify()

    def stop(self) -> None:
        """No width is gone to any more, and fingers that move come to rest. Fingers at rest are left
        alone: they may hold something, and the hand's own stop lets go of what it holds."""
        with self._news:
            self._stopped, self._wanted_m = True, None
            self._news.notify()

    def close(self) -> None:
        self.stop()
        self._over_s = time.monotonic() + (SETTLE_S if self._busy else 0.0)
        for thread in self._threads:
            thread.join(0.5)  # a call that blocks ends by itself

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._stopped or self._wanted_m is not None)
                if self._stopped:
                    return
                width, self._wanted_m = self._wanted_m, None
                assert width is not None
                closes = width < self._moved_to_m
                self._moved_to_m, self._busy = width, True
            try:
                # A grasp stops at what is between the fingers and holds it; a move would fail there.
                if closes:
                    self._hand.grasp(width, self._speed, 20.0, 0.08, 0.08)
                else:
                    self._hand.move(width, self._speed)
            except Exception as error:  # noqa: BLE001 - a hand that fails must not end the arm's run
                if not self._stopped:
                    self.failures += 1
                    log.warning("the gripper did not reach %.3f m: %s", width, error)
            self._busy = False

    def _watch(self) -> None:
        while time.monotonic() < self._over_s:
            try:
                state, before_m = self._hand.state, self.width_m
                self.width_m = float(state.width)
                moves = abs(self.width_m - before_m) > MOVES_M
            except Exception as error:  # noqa: BLE001 - as above; the last width stays
                log.warning("the gripper cannot be read: %s", error)
                return
            if self._stopped and moves and not state.is_grasped:
                self._halt()  # does not always reach the hand: again while they move
            time.sleep(0.03)

    def _halt(self) -> None:
        try:
            share_core(self._threads)
            self._hand.stop()
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("the gripper did not stop: %s", error)


def share_core(threads: list[threading.Thread]) -> None:
    """Run these threads on one core, where there is a choice.

    A call of libfranka that waits for the hand holds a lock, and lets go of it every 10 ms for less time
    than a thread on another core needs to wake up: there a stop would wait until the fingers are shut.
    """
    if hasattr(os, "sched_setaffinity"):
        core = {min(os.sched_getaffinity(0))}
        for thread in threads:
            if thread.native_id is not None and thread.is_alive():
                os.sched_setaffinity(thread.native_id, core)
