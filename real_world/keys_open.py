"""Which keys there are: a terminal's, a keyboard's, or none."""

import sys
from collections.abc import Callable
from typing import Literal

from real_world.keys import STOP_KEY, Keys, KeysError, NoKeys
from real_world.keys_evdev import EvdevKeys
from real_world.keys_terminal import TerminalKeys


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
        return EvdevKeys(on_stop, stop)
    try:
        return TerminalKeys(on_stop, stop)
    except (KeysError, OSError, ValueError) as error:  # of a standard input that is closed
        if kind == "terminal":
            raise KeysError(str(error)) from error
        print(f"{error}. The stop key does not work here", file=sys.stderr)
        return NoKeys()
