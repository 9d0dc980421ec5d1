"""The keys of a terminal, one by one and unseen."""

import atexit
import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from real_world.keys import STOP_KEY, KeyLog, KeysError, Listener

ESCAPE_S = 0.03  # the rest of an arrow key's bytes comes within it
NAMES = {" ": "space", "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace",
         "\x1b": "esc", "\x1a": "ctrl-z", "\x1c": "ctrl-\\"}  # fmt: skip
SEQUENCES = {"[A": "up", "[B": "down", "[C": "right", "[D": "left", "[5~": "page up", "[6~": "page down",
             "OA": "up", "OB": "down", "OC": "right", "OD": "left"}  # fmt: skip


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
