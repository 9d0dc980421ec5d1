"""Keys for a person beside the arm: one that stops it at once, one that must be held, single letters.

A terminal says when a key goes down and repeats it while it is held; it never says that it went up.
So there a key counts as held from its first quick repeat (half a second after it went down, by the
desktop's setting) until `REPEAT_S` after the last one, and only the key pressed last repeats. `evdev`
(Linux) hears the keyboard itself: several keys at once, up and down at once, in whatever window.

A thread listens, so the stop key works while the loop hangs. Keys never make the hardware stop button
needless.
"""

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

REPEAT_S = 0.15  # keyboards repeat 10 to 30 times a second
STOP_KEY = "space"
ALWAYS_STOP = {"ctrl-z", "ctrl-\\"}  # suspended or gone, the process would leave the arm alone


class KeysError(RuntimeError):
    """There are no keys here: no terminal, no keyboard, a library missing. Says what to do."""


class Keys(Protocol):
    """What the loop asks. Names: letters and digits as typed, and `space enter esc up down …`."""

    def pressed(self) -> list[str]:
        """Keys that went down since the last call, in order. Never waits."""
        ...

    def held(self, key: str) -> bool: ...

    def stop_asked(self) -> str:
        """Why to stop, once the stop key was pressed or the keys are gone; "" before that."""
        ...

    def close(self) -> None:
        """May be called again."""
        ...


class NoKeys:
    """Where there are none: nothing is ever pressed or held."""

    def pressed(self) -> list[str]:
        return []

    def held(self, key: str) -> bool:
        return False

    def stop_asked(self) -> str:
        return ""

    def close(self) -> None: ...


class KeyLog:
    """What the listening thread writes and the loop reads. `true_ups`: the source tells of keys that
    go up; without that a key is held while its events are at most `REPEAT_S` apart."""

    def __init__(self, true_ups: bool, clock: Callable[[], float] = time.monotonic):
        self._true_ups, self._clock = true_ups, clock
        self._events: deque[str] = deque(maxlen=1000)
        self._times: dict[str, tuple[float, float]] = {}  # of the newest event and the one before
        self._down: set[str] = set()

    def down(self, key: str) -> None:
        last, _ = self._times.get(key, (-1e9, -1e9))
        self._times[key] = self._clock(), last
        self._down.add(key)
        self._events.append(key)

    def up(self, key: str) -> None:
        self._down.discard(key)

    def all_up(self) -> None:
        self._down.clear()
        self._times.clear()

    def held(self, key: str) -> bool:
        if self._true_ups:
            return key in self._down
        newest, before = self._times.get(key, (-1e9, -2e9))
        return newest - before <= REPEAT_S and self._clock() - newest <= REPEAT_S

    def take(self) -> list[str]:
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._events.popleft())
        return taken


class Listener:
    """A thread that reads file descriptors until `close`, and calls `on_stop(reason)` at once when the
    stop key goes down or the keys are lost. Subclasses say how to read."""

    def __init__(self, log: KeyLog, on_stop: Callable[[str], object], stop: str):
        self._log, self._on_stop, self._stop = log, on_stop, stop
        self._reason = ""
        self._wake_r, self._wake_w = os.pipe()
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="keys", daemon=True)

    def pressed(self) -> list[str]:
        return self._log.take()

    def held(self, key: str) -> bool:
        return self._log.held(key)

    def stop_asked(self) -> str:
        return self._reason

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.write(self._wake_w, b"x")
        self._thread.join(timeout=1.0)
        for handle in (self._wake_r, self._wake_w):
            os.close(handle)

    def _down(self, key: str) -> None:
        self._log.down(key)
        if key == self._stop or key in ALWAYS_STOP:
            self._ask_to_stop(f"the {key} key")

    def _ask_to_stop(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._on_stop(reason)

    def _listen(self) -> None:
        while True:
            handles = [*self._handles(), self._wake_r]
            ready, _, _ = select.select(handles, [], [], self._patience_s())
            if self._wake_r in ready:
                return
            try:
                self._read(ready)
            except OSError as error:
                self._log.all_up()
                self._ask_to_stop(f"the keys are gone ({error})")
                return

    def _handles(self) -> list[int]:
        raise NotImplementedError

    def _patience_s(self) -> float | None:
        return None

    def _read(self, ready: list[int]) -> None:
        raise NotImplementedError
