"""Keys for a person beside the arm: one that stops it at once, one that must be held, single letters.

A terminal says when a key goes down and repeats it while it is held; it never says that it went up.
So there a key counts as held from its first quick repeat (half a second after it went down, by the
desktop's setting) until `REPEAT_S` after the last one, and only the key pressed last repeats. `evdev`
(Linux) hears the keyboard itself: several keys at once, up and down at once, in whatever window.

A thread listens, so the stop key works while the loop hangs. Keys never make the hardware stop button
needless.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol

REPEAT_S = 0.15  # keyboards repeat 10 to 30 times a second
ESCAPE_S = 0.03  # the rest of an arrow key's bytes comes within it
STOP_KEY = "space"
ALWAYS_STOP = {"ctrl-z", "ctrl-\\"}  # suspended or gone, the process would leave the arm alone
NAMES = {" ": "space", "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace",
         "\x1b": "esc", "\x1a": "ctrl-z", "\x1c": "ctrl-\\"}  # fmt: skip
SEQUENCES = {"[A": "up", "[B": "down", "[C": "right", "[D": "left", "[5~": "page up", "[6~": "page down",
             "OA": "up", "OB": "down", "OC": "right", "OD": "left"}  # fmt: skip


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


class RawTerminal:
    """A terminal that hands out keys one by one and unseen, until `close`.

    It is restored by `close`, at the interpreter's exit, and by SIGTERM and SIGHUP where nobody else
    handles them (they raise SystemExit then). Ctrl-C stays a signal; Ctrl-Z and Ctrl-\\ become keys.
    Raises KeysError for what is no terminal, or a job in the background.
    """

    def __init__(self, handle: int):
        if not os.isatty(handle):
            raise KeysError("no keys: standard input is no terminal; start it in one, or keys=none")
        with contextlib.suppress(OSError):  # a terminal that is not this session's has no jobs
            if os.tcgetpgrp(handle) != os.getpgrp():
                raise KeysError("no keys: the command runs in the background; `fg` first")
        self.handle, self._before = handle, termios.tcgetattr(handle)
        mode = termios.tcgetattr(handle)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        off = bytes([os.fpathconf(handle, "PC_VDISABLE")])
        mode[6][termios.VSUSP] = mode[6][termios.VQUIT] = off
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(handle, termios.TCSADRAIN, mode)
        self._open = True
        atexit.register(self.close)
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, _leave)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        with contextlib.suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(self.handle, termios.TCSAFLUSH, self._before)  # drops what was typed
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


class TerminalKeys(Listener):
    """The terminal's keys. Raises KeysError where standard input is none."""

    def __init__(
        self,
        on_stop: Callable[[str], object] = lambda reason: None,
        stop: str = STOP_KEY,
        handle: int | None = None,
    ):
        self._terminal = RawTerminal(sys.stdin.fileno() if handle is None else handle)
        self._rest = b""
        super().__init__(KeyLog(true_ups=False), on_stop, stop)
        self._thread.start()

    def close(self) -> None:
        super().close()
        self._terminal.close()

    def _handles(self) -> list[int]:
        return [self._terminal.handle]

    def _patience_s(self) -> float | None:
        return ESCAPE_S if self._rest else None

    def _read(self, ready: list[int]) -> None:
        data = os.read(self._terminal.handle, 4096) if self._terminal.handle in ready else b""
        if ready and not data:
            raise OSError("the terminal was closed")
        names, self._rest = parse_keys(self._rest + data, whole=not ready)
        for name in names:
            self._down(name)


def parse_keys(data: bytes, whole: bool = True) -> tuple[list[str], bytes]:
    """Names of the keys in a terminal's bytes, and the bytes of a key that is not yet complete (none
    with `whole`: nothing more will come, a lone escape is the key). Unknown keys are left out."""
    text, names, i = data.decode("utf-8", "ignore"), [], 0
    while i < len(text):
        if text[i] != "\x1b":
            name = NAMES.get(text[i], text[i])
            names += [name] if len(name) > 1 or name.isprintable() else []
            i += 1
            continue
        tail = text[i + 1 : i + 9]
        length = _sequence_length(tail)
        if length is None:
            if not whole:
                return names, text[i:].encode()
            names, i = [*names, "esc"], i + 1
        else:
            names += [SEQUENCES[tail[:length]]] if tail[:length] in SEQUENCES else []
            names += ["esc"] if length == 0 else []
            i += 1 + length
    return names, b""


def _sequence_length(tail: str) -> int | None:
    """How many characters after an escape belong to its key; None: more may come."""
    if not tail:
        return None
    if tail[0] not in "[O":
        return 0
    for n, letter in enumerate(tail[1:], 2):
        if "@" <= letter <= "~":
            return n
    return None if len(tail) < 8 else 0


def open_keys(
    kind: Literal["auto", "terminal", "evdev", "none"],
    on_stop: Callable[[str], object],
    stop: str = STOP_KEY,
) -> Keys:
    """The keys of that kind; `auto`: the terminal's, or none where there is no terminal, which is
    said. Raises KeysError."""
    if kind == "none":
        return NoKeys()
    if kind == "evdev":
        from real_world.keys_evdev import EvdevKeys

        return EvdevKeys(on_stop, stop)
    try:
        return TerminalKeys(on_stop, stop)
    except (KeysError, OSError, ValueError) as error:  # of a standard input that is closed
        if kind == "terminal":
            raise KeysError(str(error)) from error
        print(f"{error}. The stop key does not work here", file=sys.stderr)
        return NoKeys()
