"""The live log: what was played is in it, and nothing that happens to it reaches the loop."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from policies.demonstrations import DemonstrationFile
from real_world import live, run_bc
from real_world.limits import EVENTS
from real_world.live import Live, RerunSink, open_live
from real_world.run_bc import run
from real_world.run_config import RunConfig
from tests.real_world.rows import row

SHORT = RunConfig(paced=False, episodes=2, seconds=0.3)


class Deaf:
    """Takes nothing, for ever or until it is told to go on."""

    def __init__(self):
        self.go_on, self.steps = threading.Event(), []

    def begin(self, number): ...

    def step(self, row):
        self.go_on.wait(30)
        self.steps.append(row)

    def end(self, episode): ...

    def close(self): ...


class Broken(Deaf):
    def step(self, row):
        raise BlockingIOError("the viewer is gone")


def read(path) -> dict[str, list]:
    """Entity -> its rows as dicts, without the static ones."""
    from rerun.chunk import RrdReader

    found: dict[str, list] = {}
    for chunk in RrdReader(path).stream():
        if not chunk.is_static:
            found.setdefault(chunk.entity_path, []).extend(chunk.to_record_batch().to_pylist())
    for lines in found.values():
        lines.sort(key=lambda line: line["rerun.controls.RowId"])  # they count up
    return found


def test_a_sink_that_hangs_costs_the_loop_nothing(capsys):
    deaf = Deaf()
    shown = Live(deaf, queue_steps=4)
    shown.begin(0)
    start = time.perf_counter()
    for k in range(100):
        shown.step(row(k))
    assert time.perf_counter() - start < 0.5
    assert 95 <= shown.dropped <= 98, "one may be in its hands, four are queued"
    shown.close(timeout_s=0.3)
    assert "did not finish" in shown.failure and "the run goes on" in capsys.readouterr().err
    deaf.go_on.set()


def test_a_sink_that_raises_is_given_up_once(capsys):
    shown = Live(Broken(), queue_steps=4)
    for k in range(20):
        shown.step(row(k))
        time.sleep(0.005)
    shown.end({})
    start = time.perf_counter()
    shown.close()
    assert time.perf_counter() - start < 1, "nobody waits for a thread that ended"
    assert shown.failure == "BlockingIOError: the viewer is gone" and shown.dropped >= 15
    assert capsys.readouterr().err.count("no view any more") == 1


def test_episodes_are_the_same_whatever_becomes_of_the_view(tmp_path, monkeypatch):
    plain = run(replace(SHORT, out=tmp_path / "plain"))
    bad = Deaf()
    monkeypatch.setattr(live, "CLOSE_S", 0.3)
    monkeypatch.setattr(run_bc, "open_live", lambda *_: Live(bad, queue_steps=3))
    disturbed = run(replace(SHORT, out=tmp_path / "disturbed"))
    bad.go_on.set()
    assert disturbed.pop("steps_not_shown") >= 12 and plain.pop("steps_not_shown") == 0
    assert disturbed == plain


def test_what_was_played_is_in_the_log(tmp_path):
    report = run(replace(SHORT, log="rrd", out=tmp_path))
    assert report["steps_not_shown"] == 0
    logged = read(tmp_path / "run.rrd")
    with DemonstrationFile(tmp_path / report["episodes"][1]["file"]) as file:
        demo = file.read("demo_0")
    steps = len(demo)
    second = slice(steps, 2 * steps)
    for key, kind in live.JOINTS.items():
        lines = logged[f"/joints/{kind}"]
        assert [line["step"] for line in lines] == list(range(2 * steps))
        assert [line["episode"] for line in lines] == [0] * steps + [1] * steps
        values = np.array([line["Scalars:scalars"] for line in lines[second]])
        assert (values == demo.columns[key][:, :7]).all()
        times_s = [line["monotonic"].total_seconds() for line in lines[second]]
        assert times_s == pytest.approx(demo.columns["t_sent_s"], abs=1e-5)
    jpeg = bytes(logged["/camera/wrist"][second][5]["EncodedImage:blob"][0])
    picture = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert np.abs(picture - demo.images["wrist"][5]).mean() < 4
    widths = np.array([line["Scalars:scalars"] for line in logged["/gripper"]])
    assert widths.shape == (2 * steps, 3)
    texts = [line["TextLog:text"][0] for line in logged["/log"]]
    assert texts[0] == "episode 0 begins" and texts[-1].startswith("episode 1 ends: time limit")


def test_limits_misses_and_faults_are_said(tmp_path):
    with Live(RerunSink(tmp_path / "run.rrd", ["wrist"])) as shown:
        shown.begin(4)
        for k in range(5):
            shown.step(row(k))
        shown.end({"number": 4, "success": None, "fault": True, "end_reason": "reflex"})
    logged = read(tmp_path / "run.rrd")
    said = [(line["TextLog:text"][0], line["TextLog:level"][0]) for line in logged["/log"]]
    assert said == [
        ("episode 4 begins", "INFO"),
        ("limits: speed 1", "WARN"),
        ("1 deadlines missed", "WARN"),
        ("limits: speed 1", "WARN"),
        ("episode 4 ends: reflex (not judged)", "ERROR"),
    ]
    assert EVENTS[1] == "speed"
    assert [line["Scalars:scalars"] for line in logged["/missed"]] == [[0], [0], [0], [1], [1]]


KILLED = """
import os, signal, time
from pathlib import Path
from real_world.live import Live, RerunSink
from tests.real_world.rows import row
shown = Live(RerunSink(Path("run.rrd"), ["wrist"]), queue_steps=100)
shown.begin(0)
for k in range(50):
    shown.step(row(k))
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.filterwarnings("ignore::rerun.error_utils.RerunWarning")  # no index: that is the point
def test_a_killed_run_leaves_a_log_that_can_be_read(tmp_path):
    path = os.pathsep.join([os.getcwd(), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert len(read(tmp_path / "run.rrd")["/joints/sent"]) == 50


def test_a_page_to_look_at_where_there_is_no_display(tmp_path, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    shown = open_live(tmp_path, "rrd", False, ["wrist"])
    page = capsys.readouterr().out.split()[2]
    with urllib.request.urlopen(page, timeout=5) as answer:
        assert b"rerun" in answer.read().lower()
    shown.step(row(0))
    shown.close()
    assert not shown.failure and len(read(tmp_path / "run.rrd")["/joints/sent"]) == 1
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page, timeout=1)


def test_a_viewer_that_dies_leaves_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    shown = open_live(tmp_path, "rrd", False, ["wrist"])
    for k in range(10):
        shown.step(row(k))
        if k == 4:
            time.sleep(0.2)
            assert shown._viewer is not None
            shown._viewer.close()
    shown.close()
    assert len(read(tmp_path / "run.rrd")["/joints/sent"]) == 10


def test_without_rerun_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    for log, headless in (("rrd", True), ("none", False)):
        with pytest.raises(ValueError, match=r"\[live\]"):
            open_live(tmp_path, log, headless, [])
    assert open_live(tmp_path, "none", True, []).close() is None, "nobody asked for it"
