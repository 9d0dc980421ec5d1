"""The recorder: what is on disk after a kill, a full disk, a slow disk."""

import json
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from policies.demonstrations import DemonstrationFile, assemble
from real_world import episode_file
from real_world import recorder as module
from real_world.episode_file import RecorderError, repair
from real_world.recorder import Recorder

CHILD = """
import sys, time
import numpy as np
from real_world.recorder import Recorder
recorder = Recorder(sys.argv[1], {"options": {"control_rate_hz": 100}})
recorder.begin(seed=7)
for step in range(100_000):
    recorder.append({
        "obs/wrist_image": np.full((64, 64, 3), step % 256, np.uint8),
        "actions": np.full(9, step, np.float32),
        "q_sent_rad": np.full(7, step, float),
    })
    print(step, time.monotonic(), flush=True)
    time.sleep(0.01)
"""
LIMITED = """
import os, resource, sys, time
import numpy as np
from real_world.episode_file import RecorderError
from real_world.recorder import Recorder
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
recorder = Recorder(sys.argv[1])
recorder.begin()
try:
    for number in range(500):
        recorder.append({"obs/wrist_image": np.full((64, 64, 3), number % 256, np.uint8),
                         "actions": np.full(9, number, np.float32)})
        time.sleep(0.002)
except RecorderError as error:
    print("told:", error, flush=True)
try:
    print("ended", recorder.end(False, "disk full"))
except RecorderError as error:
    print("kept:", error, flush=True)
os._exit(0)
"""


def step(number: int, size: int = 8) -> dict[str, np.ndarray]:
    return {
        "obs/wrist_image": np.full((size, size, 3), number, np.uint8),
        "obs/proprioception": np.full(18, number, np.float32),
        "actions": np.full(9, number / 100, np.float32),
        "q_sent_rad": np.full(7, number, float),
    }


def record(folder, steps: int = 3, **options):
    with Recorder(folder, {"options": {"control_rate_hz": 30}}, **options) as recorder:
        recorder.begin(seed=4, operator="twin")
        for number in range(steps):
            assert recorder.append(step(number))
        return recorder.end(True, "success", limit_events=2)


def test_an_episode_is_a_demonstration(tmp_path):
    path = record(tmp_path)
    assert path.name == "episode_0000.hdf5"
    with DemonstrationFile(path) as file:
        demo = file.read("demo_0")
        assert file.facts("demo_0") == {
            "num_samples": 3, "seed": 4, "operator": "twin", "success": True,
            "end_reason": "success", "dropped_steps": 0, "limit_events": 2,
        }  # fmt: skip
        assert file.about == {"options": {"control_rate_hz": 30}, "format": 1}
    np.testing.assert_array_equal(demo.actions, np.stack([step(i)["actions"] for i in range(3)]))
    np.testing.assert_array_equal(demo.images["wrist"][2], step(2)["obs/wrist_image"])
    np.testing.assert_array_equal(demo.rewards, [0, 0, 1])
    assert demo.success and demo.columns["q_sent_rad"].dtype == np.float64
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data/demo_0/dones"][:], [0, 0, 1])  # pyright: ignore
        assert file["data"].attrs["total"] == 3


def test_episodes_are_numbered_on_and_assembled(tmp_path):
    paths = [record(tmp_path, 3), record(tmp_path, 5)]
    assert [path.name for path in paths] == ["episode_0000.hdf5", "episode_0001.hdf5"]
    assert assemble(tmp_path / "demos.hdf5", paths, {"env_name": "x"}, {"robot": "sim"}) == 2
    with DemonstrationFile(tmp_path / "demos.hdf5") as file:
        assert [len(demo) for demo in file] == [3, 5]
        assert file.facts("demo_1")["end_reason"] == "success"


@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.3])
def test_a_kill_costs_less_than_a_second(tmp_path, seconds):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        lines = [line.split() for line in [first, *child.stdout.read().splitlines()[:-1]]]
    before = [int(number) for number, at_s in lines if float(at_s) < killed_s - 1.0]
    with Recorder(tmp_path) as after:
        assert [path.name for path in after.repaired] == ["episode_0000.hdf5"]
        assert after.begin().name == "episode_0001.hdf5"
        after.abandon()
    with DemonstrationFile(tmp_path / "episode_0000.hdf5") as file:
        demo, facts = file.read("demo_0"), file.facts("demo_0")
    assert len(demo) > max(before, default=0)
    np.testing.assert_array_equal(demo.actions[:, 0], np.arange(len(demo)))
    np.testing.assert_array_equal(demo.images["wrist"][:, 0, 0, 0], np.arange(len(demo)) % 256)
    assert (facts["success"], facts["end_reason"], facts["seed"]) == (False, "killed", 7)
    assert not list(tmp_path.glob("*.part"))


def test_a_running_episode_can_be_repaired_from_a_copy(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.begin()
    for number in range(4):
        recorder.append(step(number))
    while not recorder._queue.empty():
        time.sleep(0.01)
    time.sleep(0.1)
    copy = tmp_path / "copy"
    copy.mkdir()
    data = (tmp_path / "episode_0000.hdf5.part").read_bytes()
    (copy / "episode_0000.hdf5.part").write_bytes(data)
    (copy / "episode_0001.hdf5.part").write_bytes(data[:500])
    recorder.abandon()
    recorder.close()
    assert not list(tmp_path.glob("episode*"))
    assert [path.name for path in repair(copy)] == ["episode_0000.hdf5"]
    assert (copy / "episode_0001.hdf5.damaged").exists()
    with DemonstrationFile(copy / "episode_0000.hdf5") as file:
        assert len(file.read("demo_0")) == 4


def test_steps_that_were_made_room_for_but_not_written_go(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        a = episode_file._create(file, "actions", np.zeros(2, np.float32), 5)
        a[:3] = 1.0
        b = episode_file._create(file, "frame", np.zeros((2, 2), np.uint8), 4)
        assert episode_file.whole_steps([a, b]) == 3


def test_a_full_disk_is_told_and_what_is_there_stays_readable(tmp_path, monkeypatch):
    free = iter([10**9, 10**9, 1000])
    usage = type("Usage", (), {})
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: setattr(usage, "free", next(free, 0)) or usage
    )
    with Recorder(tmp_path) as recorder:
        recorder.begin()
        with pytest.raises(RecorderError, match="disk full"):
            for number in range(200):
                recorder.append(step(number))
                time.sleep(0.002)
        path = recorder.end(False, "disk full")
    with DemonstrationFile(path) as file:
        assert len(file.read("demo_0")) == 33  # looked at after steps 1, 17, 33
        assert "disk full" in str(file.facts("demo_0")["recording"])


def test_a_write_that_fails_is_told_and_the_part_is_repaired(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "told: episode_0000.hdf5 cannot be written" in child.stdout, child
    assert "kept: " in child.stdout, child
    repaired = repair(tmp_path)
    with DemonstrationFile(repaired[0]) as file:
        demo = file.read("demo_0")
    assert len(demo) > 50  # 12 kB a frame, 1.5 MB were allowed
    np.testing.assert_array_equal(demo.actions[:, 0], np.arange(len(demo)))
    np.testing.assert_array_equal(demo.images["wrist"][:, 0, 0, 0], np.arange(len(demo)) % 256)


def test_a_slow_disk_drops_and_counts(tmp_path, monkeypatch):
    add = episode_file.EpisodeFile.add

    def slow(self, row, more):
        time.sleep(0.05)
        add(self, row, more)

    monkeypatch.setattr(episode_file.EpisodeFile, "add", slow)
    with Recorder(tmp_path, queue_steps=2) as recorder:
        recorder.begin()
        start = time.monotonic()
        taken = [recorder.append(step(number)) for number in range(40)]
        assert time.monotonic() - start < 0.5, "append waited for the disk"
        path = recorder.end(False, "time")
    dropped = taken.count(False)
    assert dropped >= 20
    with DemonstrationFile(path) as file:
        assert file.facts("demo_0")["dropped_steps"] == dropped
        assert len(file.read("demo_0")) == 40 - dropped


def test_two_recorders_in_one_folder(tmp_path):
    with Recorder(tmp_path), pytest.raises(RecorderError, match="recorded into by process"):
        Recorder(tmp_path)
    Recorder(tmp_path).close()


def test_what_is_wrong_is_named(tmp_path):
    with Recorder(tmp_path) as recorder:
        with pytest.raises(RuntimeError, match="begin"):
            recorder.append(step(0))
        recorder.begin()
        with pytest.raises(ValueError, match="actions"):
            recorder.append({"q": np.zeros(2)})
        recorder.append(step(0))
        with pytest.raises(ValueError, match="obs/wrist_image"):
            recorder.append(step(1, size=9))
        with pytest.raises(ValueError, match="q_sent_rad has NaN"):
            recorder.append(step(1) | {"q_sent_rad": np.full(7, np.nan)})
        with pytest.raises(RuntimeError, match="still runs"):
            recorder.begin()
        recorder.abandon()
        recorder.begin()
        with pytest.raises(RecorderError, match="no step"):
            recorder.end(True, "success")


def test_an_exception_ends_the_episode_with_its_reason(tmp_path):
    with pytest.raises(ZeroDivisionError), Recorder(tmp_path) as recorder:
        recorder.begin()
        recorder.append(step(0))
        raise ZeroDivisionError("gone")
    with DemonstrationFile(tmp_path / "episode_0000.hdf5") as file:
        facts = file.facts("demo_0")
    assert (facts["success"], facts["end_reason"]) == (False, "ZeroDivisionError: gone")
    assert json.dumps(facts)
