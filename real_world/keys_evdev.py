"""The keyboards themselves, through Linux' evdev: keys go down and up, several at once."""

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from real_world.keys import STOP_KEY, KeyLog, KeysError, Listener
from real_world.keys_terminal import RawTerminal


class EvdevKeys(Listener):
    """Every keyboard of this computer through evdev: keys go up here. Raises KeysError.

    Keys count whichever window they are typed into.
    """

    def __init__(
        self,
        on_stop: Callable[[str], object] = lambda reason: None,
        stop: str = STOP_KEY,
        library: Any = None,
    ):
        self._evdev = library or load_evdev()
        self._boards: Mapping[int, Any] = {board.fd: board for board in keyboards(self._evdev)}
        self._terminal: RawTerminal | None = None
        with contextlib.suppress(KeysError, OSError, ValueError):  # what is typed stays unseen
            self._terminal = RawTerminal(sys.stdin.fileno())
        super().__init__(KeyLog(true_ups=True), on_stop, stop)
        self._thread.start()

    def close(self) -> None:
        super().close()
        for board in self._boards.values():
            board.close()
        if self._terminal is not None:
            self._terminal.close()

    def _handles(self) -> list[int]:
        return list(self._boards)

    def _read(self, ready: list[int]) -> None:
        codes = self._evdev.ecodes
        for handle in ready:
            for event in self._boards[handle].read():
                if event.type != codes.EV_KEY:
                    continue
                name = _evdev_name(codes.KEY.get(event.code, ""))
                if event.value == 1:  # 2: repeated by the kernel
                    self._down(name)
                elif event.value == 0:
                    self._log.up(name)


def _evdev_name(code: Any) -> str:
    """KEY_A -> a, KEY_SPACE -> space, KEY_PAGEUP -> page up."""
    word = (code if isinstance(code, str) else code[0]).removeprefix("KEY_").lower()
    return {"pageup": "page up", "pagedown": "page down"}.get(word, word)


def load_evdev() -> Any:
    """The library. Raises KeysError saying what to install."""
    try:
        import evdev  # pyright: ignore[reportMissingImports]

        return evdev
    except ImportError as error:
        raise KeysError(
            'keys=evdev needs evdev (Linux): pip install -e ".[teleop]". Without it: keys=terminal'
        ) from error


def keyboards(library: Any) -> list[Any]:
    """Opened input devices that have letters and a space bar. KeysError if there is none to read."""
    codes = library.ecodes
    needed = {codes.KEY_SPACE, codes.KEY_A, codes.KEY_ENTER}
    boards = []
    for path in library.list_devices():  # those that may be read
        board = library.InputDevice(path, readonly=True)
        if needed <= set(board.capabilities().get(codes.EV_KEY, [])):
            boards.append(board)
        else:
            board.close()
    if not boards:
        raise KeysError(
            "no keyboard that may be read under /dev/input: plug one in; `sudo usermod -aG input "
            "$USER` and log in again. Without it: keys=terminal"
        )
    return boards
