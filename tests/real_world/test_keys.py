"""Keys on a real pseudo-terminal, and on keyboards as evdev shows them."""

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest

from real_world import keys
from real_world.keys import KeyLog, KeysError
from real_world.keys_evdev import EvdevKeys
from real_world.keys_open import open_keys
from real_world.keys_terminal import TerminalKeys, parse_keys


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield master, slave
    for handle in (master, slave):
        try:
            os.close(handle)
        except OSError:
            pass


def wait_for(condition, seconds=3.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"s f", ["s", "space", "f"]),
        (b"\x1b[A\x1b[D\x1bOC\x1b[5~", ["up", "left", "right", "page up"]),
        (b"\x1b", ["esc"]),
        (b"\x1b[99;5~x", ["x"]),  # a key that we have no name for
        (b"\x1b ", ["esc", "space"]),  # escape held down must not swallow a stop
        (b"\r\x1a\x00", ["enter", "ctrl-z"]),
        ("ü".encode(), ["ü"]),
    ],
)
def test_bytes_of_a_terminal_are_keys(data, names):
    assert parse_keys(data) == (names, b"")


def test_an_arrow_key_may_come_in_pieces():
    names, rest = parse_keys(b"a\x1b", whole=False)
    assert (names, rest) == (["a"], b"\x1b")
    names, rest = parse_keys(rest + b"[", whole=False)
    assert (names, rest) == ([], b"\x1b[")
    assert parse_keys(rest + b"B", whole=False) == (["down"], b"")


def test_the_stop_key_stops_at_once_and_keys_come_in_order(terminal):
    master, slave = terminal
    stopped = []
    board = TerminalKeys(stopped.append, handle=slave)
    try:
        os.write(master, b"sq")
        wait_for(lambda: board._log._events and len(board._log._events) == 2)
        assert board.pressed() == ["s", "q"] and board.pressed() == []
        assert board.stop_asked() == "" and not stopped
        os.write(master, b" ")
        wait_for(lambda: stopped)
        assert stopped == ["the space key"] and board.stop_asked() == "the space key"
        os.write(master, b"\x1a")  # suspended, the process could not hold the arm
        wait_for(lambda: len(stopped) == 2)
    finally:
        board.close()


def test_another_stop_key_can_be_chosen(terminal):
    master, slave = terminal
    stopped = []
    board = TerminalKeys(stopped.append, stop="x", handle=slave)
    os.write(master, b" x")
    wait_for(lambda: stopped)
    board.close()
    assert stopped == ["the x key"]


def test_a_terminal_that_is_closed_stops(terminal):
    master, slave = terminal
    stopped = []
    board = TerminalKeys(stopped.append, handle=slave)
    os.close(master)
    wait_for(lambda: stopped)
    board.close()
    assert "gone" in board.stop_asked()


def test_the_terminal_is_as_before_after_close(terminal):
    _, slave = terminal
    before = termios.tcgetattr(slave)
    board = TerminalKeys(handle=slave)
    assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON)
    board.close()
    board.close()
    assert termios.tcgetattr(slave) == before


SCRIPT = """
import sys, time
from real_world.keys_terminal import TerminalKeys
keys = TerminalKeys(lambda reason: print(reason, flush=True))
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "number"),
    [
        ("", None),
        ("raise ValueError('broken')", None),
        ("time.sleep(30)", signal.SIGTERM),
        ("time.sleep(30)", signal.SIGHUP),
        ("time.sleep(30)", signal.SIGINT),
    ],
)
def test_the_terminal_is_as_before_however_the_process_ends(terminal, end, number):
    _, slave = terminal
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(end=end)], stdin=slave,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        if number:
            process.send_signal(number)
    assert termios.tcgetattr(slave) == before


def test_held_in_a_terminal_is_repeated():
    now = [0.0]
    log = KeyLog(true_ups=False, clock=lambda: now[0])
    log.down("up")
    assert not log.held("up")  # a tap moves nothing
    now[0] = 0.5
    log.down("up")  # the first repeat comes late
    assert not log.held("up")
    for _ in range(5):
        now[0] += 0.09  # the slowest repeat of a Linux console
        log.down("up")
        assert log.held("up") and not log.held("down")
    now[0] += keys.REPEAT_S + 0.01
    assert not log.held("up")


def test_without_a_terminal_there_are_no_keys(capsys):
    r, w = os.pipe()
    with pytest.raises(KeysError, match="no terminal"):
        TerminalKeys(handle=r)
    for handle in (r, w):
        os.close(handle)
    board = open_keys("auto", lambda reason: None)  # pytest's standard input is none
    assert board.pressed() == [] and not board.held("up") and board.stop_asked() == ""
    assert "stop key does not work" in capsys.readouterr().err
    with pytest.raises(KeysError):
        open_keys("terminal", lambda reason: None)


class Board:
    """As evdev.InputDevice: a pipe instead of a device."""

    def __init__(self, codes=(57, 30, 28)):
        self.fd, self._w = os.pipe()
        self._codes, self._gone = codes, False
        self._events: list = []

    def capabilities(self):
        return {1: list(self._codes)}

    def send(self, code, value):
        self._events.append(SimpleNamespace(type=1, code=code, value=value))
        os.write(self._w, b"x")

    def unplug(self):
        self._gone = True
        os.write(self._w, b"x")

    def read(self):
        os.read(self.fd, 4096)
        if self._gone:
            raise OSError(19, "No such device")
        events, self._events = self._events, []
        return events

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            os.close(self._w)
        self.fd = -1


def library(*boards):
    names = {57: "KEY_SPACE", 30: "KEY_A", 28: "KEY_ENTER", 103: "KEY_UP", 113: ["KEY_MUTE", "X"]}
    codes = SimpleNamespace(EV_KEY=1, KEY_SPACE=57, KEY_A=30, KEY_ENTER=28, KEY=names)
    found = dict(enumerate(boards))
    return SimpleNamespace(
        ecodes=codes, list_devices=lambda: list(found), InputDevice=lambda p, readonly: found[p]
    )


def test_evdev_knows_when_a_key_goes_up():
    mouse, board, stopped = Board(codes=[272]), Board(), []
    heard = EvdevKeys(stopped.append, library=library(mouse, board))
    assert mouse.fd < 0  # no keyboard
    for code in (103, 30):
        board.send(code, 1)
    wait_for(lambda: heard.held("up") and heard.held("a"))
    board.send(103, 0)
    wait_for(lambda: not heard.held("up"))
    assert heard.held("a") and heard.pressed() == ["up", "a"]
    board.send(57, 1)
    wait_for(lambda: stopped)
    heard.close()
    assert stopped == ["the space key"]


def test_a_keyboard_that_is_unplugged_stops_and_holds_nothing():
    board, stopped = Board(), []
    heard = EvdevKeys(stopped.append, library=library(board))
    board.send(30, 1)
    wait_for(lambda: heard.held("a"))
    board.unplug()
    wait_for(lambda: stopped)
    assert not heard.held("a") and "gone" in heard.stop_asked()
    heard.close()


def test_what_evdev_lacks_is_said(monkeypatch):
    with pytest.raises(KeysError, match="usermod -aG input"):
        EvdevKeys(library=library(Board(codes=[272])))
    monkeypatch.setitem(sys.modules, "evdev", None)
    with pytest.raises(KeysError, match="teleop"):
        open_keys("evdev", lambda reason: None)
