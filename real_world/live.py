"""A run as it happens, and a log to look at later, with rerun (`pip install -e ".[live]"`).

`run.rrd` opens with `rerun run.rrd`: camera pictures, joints as measured, wanted by the policy and really
sent, the gripper, latencies, limits and deadlines, over the monotonic clock, steps and episodes.

Nothing here may disturb the loop. It hands a step to a bounded queue and goes on; another thread does
the rest. When that thread is slow or hangs, steps are dropped and counted; when it fails, the episode
goes on without a view.
"""

import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from policies.demonstrations import IMAGE
from real_world.contracts import ARM_JOINTS
from real_world.limits import EVENTS
from real_world.measures import NOT_MEASURED, STAGES

FILE = "run.rrd"
QUEUE_STEPS = 32  # about a second
WAIT_S = 0.2  # for room in the queue, between episodes
CLOSE_S = 10.0
JPEG_QUALITY = 80
STARTED_S = 10.0  # a viewer that does not answer by then is not there
JOINTS = {"q_rad": "measured", "q_wanted_rad": "wanted", "q_sent_rad": "sent"}
HOST = "127.0.0.1"  # pictures of a laboratory are for this computer only; else: ssh -L
HINT = 'a log and a live view need rerun: pip install -e ".[live]"; or log=none headless=true'


class Sink(Protocol):
    """Where a run goes. Called from one thread; may be slow, hang or raise."""

    def begin(self, number: int) -> None: ...
    def step(self, row: Mapping[str, Any]) -> None: ...
    def end(self, episode: Mapping[str, Any]) -> None:
        """`episode` as in `episodes.jsonl`."""
        ...

    def close(self) -> None: ...


class Live:
    """Hands a run to `sink` (None: to nobody) from a thread of its own. Use as a context manager.

    No method raises or waits for the sink; `begin` and `end` wait up to 0.2 s for room, `close` up to
    10 s, and closes `viewer`. Steps are handed on as they are: nobody writes into a recorded row.
    `dropped` counts the steps that did not arrive; `failure` is why the sink was given up, or "".
    """

    def __init__(
        self, sink: Sink | None, queue_steps: int = QUEUE_STEPS, viewer: "Viewer | None" = None
    ):
        self._sink, self._viewer = sink, viewer
        self._queue: queue.Queue[Any] = queue.Queue(queue_steps)
        self.dropped, self.failure = 0, ""
        self._thread = threading.Thread(
            target=self._hand_on, args=(sink,), name="live", daemon=True
        )
        if sink is not None:
            self._thread.start()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, number: int) -> None:
        self._put("begin", number, WAIT_S)

    def step(self, row: Mapping[str, Any]) -> None:
        """In the loop: costs some microseconds."""
        self._put("step", row)

    def end(self, episode: Mapping[str, Any]) -> None:
        self._put("end", episode, WAIT_S)

    def close(self, timeout_s: float | None = None) -> None:
        """Wait for what is queued and close the sink. A sink that hangs is left alone."""
        timeout_s = CLOSE_S if timeout_s is None else timeout_s
        sink, self._sink = self._sink, None
        if sink is None:
            return
        end_s = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < end_s:
            with suppress(queue.Full):  # looks again: the thread may end with its queue full
                self._queue.put(None, timeout=0.1)
                self._thread.join(max(0.0, end_s - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(f"it did not finish within {timeout_s:g} s")
        if self._viewer is not None:
            self._viewer.close()
        if self.dropped:
            print(f"live: {self.dropped} steps were dropped", file=sys.stderr)

    def _put(self, name: str, argument: Any, wait_s: float = 0.0) -> None:
        if self._sink is None:
            return
        if self.failure:
            self.dropped += name == "step"
            return
        try:
            self._queue.put((name, argument), block=wait_s > 0, timeout=wait_s or None)
        except queue.Full:
            self.dropped += 1

    def _hand_on(self, sink: Sink) -> None:
        try:
            while (message := self._queue.get()) is not None:
                getattr(sink, message[0])(message[1])
            sink.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the arm goes on without a view
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        self.failure = self.failure or why
        print(f"live: no view any more ({why}); the run goes on", file=sys.stderr)


class RerunSink:
    """Into a `.rrd` file, a viewer at address `url`, or both.

    A killed run leaves a file that can be read. Raises ValueError when rerun is not installed.
    """

    def __init__(self, path: Path | None, cameras: Sequence[str], url: str = ""):
        if find_spec("rerun") is None:
            raise ValueError(HINT)
        import rerun

        self._rerun = rerun
        self._step = self._missed = 0
        self._stream = rerun.RecordingStream("toto_robot")
        sinks: list[Any] = [rerun.FileSink(path)] if path else []
        if url:
            sinks.append(rerun.GrpcSink(url))
        self._stream.set_sinks(*sinks, default_blueprint=_blueprint(cameras))
        self._stream.set_log_tick_enabled(False)
        joints = [f"joint {i + 1}" for i in range(ARM_JOINTS)]
        names = {f"joints/{kind}": [f"{j} {kind}" for j in joints] for kind in JOINTS.values()}
        names |= {"gripper": list(JOINTS.values()), "latency_ms": STAGES, "limit_events": EVENTS}
        for entity, lines in names.items():
            self._stream.log(entity, rerun.SeriesLines(names=list(lines)), static=True)

    def begin(self, number: int) -> None:
        self._stream.set_time("episode", sequence=number)
        self._say(f"episode {number} begins")

    def step(self, row: Mapping[str, Any]) -> None:
        rerun, log = self._rerun, self._stream.log
        self._stream.set_time("step", sequence=self._step)
        self._stream.set_time("monotonic", duration=float(row["t_sent_s"]))
        self._step += 1
        for key, value in row.items():
            if key.endswith(IMAGE):
                camera = key.removeprefix("obs/").removesuffix(IMAGE)
                picture = rerun.Image(np.asarray(value)).compress(jpeg_quality=JPEG_QUALITY)
                log(f"camera/{camera}", picture)
        for key, kind in JOINTS.items():
            log(f"joints/{kind}", rerun.Scalars(row[key][:ARM_JOINTS]))
        log("gripper", rerun.Scalars([row[key][ARM_JOINTS] for key in JOINTS]))
        log("action", rerun.Scalars(row["actions"]))
        self._measures(row)

    def _measures(self, row: Mapping[str, Any]) -> None:
        if "latency_ms" not in row:
            return
        log, scalars = self._stream.log, self._rerun.Scalars
        ms = np.where(row["latency_ms"] == NOT_MEASURED, np.nan, row["latency_ms"])
        self._missed += int(row["missed"])
        log("latency_ms", scalars(ms))
        log("limit_events", scalars(row["limit_events"]))
        log("missed", scalars(self._missed))
        if row["missed"]:
            self._say(f"{row['missed']} deadlines missed", "WARN")
        if row["limit_events"].any():
            told = [f"{e} {n}" for e, n in zip(EVENTS, row["limit_events"], strict=True) if n]
            self._say("limits: " + ", ".join(told), "WARN")

    def end(self, episode: Mapping[str, Any]) -> None:
        verdict = {True: "success", False: "no success", None: "not judged"}[episode["success"]]
        text = f"episode {episode['number']} ends: {episode['end_reason']} ({verdict})"
        self._say(text, "ERROR" if episode["fault"] else "INFO")

    def _say(self, text: str, level: str = "INFO") -> None:
        self._stream.log("log", self._rerun.TextLog(text, level=level))

    def close(self) -> None:
        try:
            self._stream.flush(timeout_sec=CLOSE_S / 2)
        finally:
            self._stream.disconnect()  # the file gets its index


def _blueprint(cameras: Sequence[str]) -> Any:
    """What a viewer shows where: pictures and messages left, curves right."""
    import rerun.blueprint as rrb

    pictures = [rrb.Spatial2DView(origin=f"camera/{name}", name=name) for name in cameras]
    curves = {
        "joints": "joints, rad",
        "gripper": "gripper, m",
        "latency_ms": "latencies, ms",
        "limit_events": "commands changed by limits",
        "missed": "deadlines missed",
    }
    left = rrb.Vertical(*pictures, rrb.TextLogView(origin="log", name="what happened"))
    views = [
        rrb.TimeSeriesView(origin=entity, name=name, plot_legend=rrb.PlotLegend(visible=i > 0))
        for i, (entity, name) in enumerate(curves.items())  # of 21 joint curves it would hide all
    ]
    right = rrb.Vertical(*views, row_shares=[3, 2, 2, 2, 1])
    return rrb.Blueprint(
        rrb.Horizontal(left, right, column_shares=[2, 3]),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(state="collapsed", timeline="monotonic", play_state="following"),
    )


class Viewer:
    """rerun's viewer, as a process of its own: a window where there is a display, else a web page.

    `url` is where a run is sent to, `page` what to open in a browser ("" for a window). Raises
    ValueError when it does not start.
    """

    def __init__(self) -> None:
        port, web_port = _free_port(), _free_port()
        self.url, self.page = f"rerun+http://{HOST}:{port}/proxy", ""
        words = ["--port", str(port), "--bind", HOST]
        web = ["--serve-web", "--web-viewer-port", str(web_port)]
        if _has_display():
            self._process = _start([*words, "--expect-data-soon"], port)
            if self._process is not None:
                return
            print("live: rerun's window does not open; a web page instead", file=sys.stderr)
        self._process = _start([*words, *web], port)
        if self._process is None:
            raise ValueError(f"rerun's viewer does not start (tried `rerun {' '.join(web)}`)")
        self.page = f"http://{HOST}:{web_port}/?url={quote(self.url, safe='')}"

    def close(self) -> None:
        """End the web page's server. A window stays: who looked at it may go on."""
        if self.page and self._process is not None:
            self._process.terminate()
            self._process.wait(CLOSE_S)
            self._process = None


def _start(words: Sequence[str], port: int) -> subprocess.Popen | None:
    """rerun's own program, once it listens; None if it does not."""
    package = find_spec("rerun_cli")  # its script starts the program and cannot end it
    assert package is not None and package.origin is not None
    folder = Path(package.origin).parent
    mac = folder / "Rerun.app/Contents/MacOS/Rerun"
    program = mac if mac.exists() else folder / "rerun"
    process = subprocess.Popen(
        [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C is for the run
    )  # fmt: skip
    end_s = time.monotonic() + STARTED_S
    while process.poll() is None and time.monotonic() < end_s:
        try:
            socket.create_connection((HOST, port), 0.5).close()
            return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    process.wait()
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _has_display() -> bool:
    return sys.platform != "linux" or any(k in os.environ for k in ("DISPLAY", "WAYLAND_DISPLAY"))


def _unused(path: Path) -> Path:
    """`path`, or run_1.rrd, run_2.rrd: a command that goes on keeps what it logged before."""
    names = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(1))
    return next(p for p in itertools.chain([path], names) if not p.exists())


def open_live(out: Path, log: str, headless: bool, cameras: Sequence[str]) -> Live:
    """The live log of a run in folder `out`: `log="rrd"` writes `run.rrd`, `headless=False` shows it.

    Neither: a `Live` that does nothing. ValueError when rerun is not installed or no viewer starts.
    """
    if log == "none" and headless:
        return Live(None)
    if find_spec("rerun") is None:
        raise ValueError(HINT)
    viewer = None if headless else Viewer()
    if viewer is not None:
        print(f"live view: {viewer.page or 'a window of rerun'} (or: rerun {viewer.url})")
    path = _unused(out / FILE) if log == "rrd" else None
    return Live(RerunSink(path, cameras, viewer.url if viewer else ""), viewer=viewer)
