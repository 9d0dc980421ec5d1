"""The camera driver over the SDK's own software device and recordings, fault by fault."""

# pyright: reportOptionalMemberAccess=false

import builtins
import itertools
import threading
import time
from dataclasses import astuple

import numpy as np
import pytest

from real_world.contracts import CameraError
from real_world.realsense import RealSense
from real_world.realsense_twin import SoftwareRealSense
from tests.real_world.makers import SIZE, need, picture, recording


@pytest.fixture(autouse=True)
def _library():
    need("pyrealsense2")


def wait_until(condition, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "the state waited for did not come"
        time.sleep(0.002)
    return result


@pytest.fixture
def pair():
    """(twin, connected camera) that gives up on a stream after 0.2 s."""
    with SoftwareRealSense(picture, SIZE["rate_hz"]) as twin:
        camera = RealSense(find_device=twin.find_device, stall_s=0.2, reset=twin.reset, **SIZE)
        camera.connect()
        yield twin, camera
        camera.close()


def lost(camera) -> CameraError | None:
    try:
        camera.latest(newer_than=10**9)
    except CameraError as error:
        return error


def test_pixels_arrive_as_they_were_sent_in_rgb(pair):
    np.testing.assert_array_equal(pair[1].latest().colour, picture())
    assert astuple(pair[1].intrinsics()) == pytest.approx(astuple(pair[0].lens))


def test_depth_comes_aligned_with_its_unit_and_single_frames_are_counted():
    def depth() -> np.ndarray:
        return np.full((48, 64), 1234, np.uint16)

    with SoftwareRealSense(picture, 60, depth_source=depth) as twin:
        camera = RealSense(find_device=twin.find_device, depth=True, stall_s=5.0, **SIZE)
        camera.connect()
        frame = camera.latest()
        assert frame.depth is not None
        assert frame.depth.shape == frame.colour.shape[:2]
        assert set(np.unique(frame.depth)) <= {0, 1234}  # 0: alignment leaves holes
        assert (frame.depth == 1234).mean() > 0.8
        assert frame.depth_unit_m == pytest.approx(0.001)
        before = camera.counters.singles
        twin.silent_depth = True
        wait_until(lambda: camera.counters.singles > before + 3)
        camera.close()


def test_frames_that_never_came_are_counted(pair):
    twin, camera = pair
    before = camera.counters.gaps
    twin.drop = 7
    wait_until(lambda: camera.counters.gaps >= before + 7)
    assert camera.counters.restarts == 0


def test_a_clock_that_jumps_is_counted_and_leaves_the_time_of_receipt_alone(pair):
    twin, camera = pair
    twin.clock_shift_s = -100.0
    wait_until(lambda: camera.counters.clock_jumps == 1)
    frame = wait_until(lambda: camera.latest(newer_than=camera.latest().number, timeout_s=1.0))
    assert abs(frame.device_time_s - (time.time() - 100)) < 2
    assert time.monotonic() - frame.received_s < 1


def test_a_stream_that_stalls_is_started_anew_and_numbers_go_on(pair):
    twin, camera = pair
    twin.frozen = True
    wait_until(lambda: camera.counters.restarts >= 1)
    last = camera.latest().number
    assert camera.latest(newer_than=last) is None
    twin.frozen = False
    assert wait_until(lambda: camera.latest(newer_than=last)).number > last
    assert camera.counters.timeouts >= 1


def test_frames_of_a_wrong_size_are_never_handed_out(pair):
    twin, camera = pair
    twin.reset_helps = False
    twin.shrink = True
    wait_until(lambda: camera.counters.wrong_size > 5)
    assert camera.latest().colour.shape == (48, 64, 3)
    wait_until(lambda: lost(camera))


def test_two_restarts_then_a_reset_bring_a_camera_back(pair):
    twin, camera = pair
    last = camera.latest().number
    twin.frozen = True  # until it is reset
    wait_until(lambda: camera.counters.resets == 1 and not twin.frozen)
    wait_until(lambda: camera.latest(newer_than=last))
    assert (twin.resets, camera.counters.restarts) == (1, 2)


def test_a_camera_that_stays_away_is_an_error_that_says_what_to_do(pair):
    twin, camera = pair
    twin.reset_helps, twin.unplugged = False, True
    error = wait_until(lambda: lost(camera))
    assert "USB 3" in str(error) and "unplugged" in str(error)
    assert twin.resets == 1
    with pytest.raises(CameraError, match="unplugged"):
        camera.connect()
    twin.unplugged = False
    camera.connect()
    assert camera.latest() is not None


def test_a_stop_that_hangs_does_not_hang_close(pair, monkeypatch):
    freed = threading.Event()

    class Hanging:
        def stop(self):
            freed.wait(30)

        def close(self): ...

    monkeypatch.setattr("real_world.realsense.STOP_S", 0.1)
    pair[1]._sensors.append(Hanging())
    start = time.monotonic()
    pair[1].close()
    assert time.monotonic() - start < 2
    freed.set()


def test_a_profile_that_does_not_exist_lists_those_that_do(pair):
    camera = RealSense(find_device=pair[0].find_device, width=1280, height=720)
    with pytest.raises(CameraError, match="1280x720 at 30 Hz.*64x48 at 60 Hz"):
        camera.connect()


def test_usb2_is_warned_of():
    with SoftwareRealSense(picture, 60, usb="2.1") as twin:
        camera = RealSense(find_device=twin.find_device, **SIZE)
        with pytest.warns(RuntimeWarning, match="USB 2.1"):
            camera.connect()
        camera.close()


def test_no_camera_is_said_at_once():
    start = time.monotonic()
    with pytest.raises(CameraError, match="RealSense camera answers|no camera has serial"):
        RealSense(serial="000000").connect()
    assert time.monotonic() - start < 1.0


def test_a_recording_gives_every_frame_in_order_and_says_that_it_ended():
    numbers = []
    camera = RealSense(recording=recording(), every_frame=True, **SIZE)
    camera.connect()
    with pytest.raises(CameraError, match="at its end"):
        for last in itertools.chain([-1], (n for n in numbers)):
            numbers.append(camera.latest(last, timeout_s=2.0).number)
    camera.close()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) >= 60


def test_a_recording_in_its_own_time_comes_at_its_own_rate():
    camera = RealSense(recording=recording(), **SIZE)
    camera.connect()
    first = camera.latest()
    frame = wait_until(lambda: (f := camera.latest()).number >= first.number + 30 and f)
    frames = frame.number - first.number
    assert frame.received_s - first.received_s > 0.8 * frames / SIZE["rate_hz"]
    camera.close()


def test_recordings_that_are_not_there_or_exist_already(tmp_path):
    with pytest.raises(CameraError, match="does not exist"):
        RealSense(recording=tmp_path / "no.db3").connect()
    with pytest.raises(ValueError, match=".db3 files only"):
        RealSense(record_to=tmp_path / "a.bag")
    with pytest.raises(ValueError, match="exists already"):
        RealSense(record_to=recording())


def test_without_the_library_it_says_what_to_type(monkeypatch):
    real_import = builtins.__import__

    def missing(name, *rest, **more):
        if name == "pyrealsense2":
            raise ImportError("libusb-1.0.so.0: cannot open shared object file")
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(CameraError, match="pip install.*libusb-1.0-0"):
        RealSense().connect()
