"""What real_world/contracts.py promises, asked of every implementer in makers.py."""

# pyright: reportOptionalMemberAccess=false

import time

import numpy as np
import pytest

from real_world.contracts import CameraError, Command, RobotError
from tests.real_world import makers


@pytest.fixture(params=makers.params(makers.CAMERAS))
def camera(request):
    with request.param() as camera:
        yield camera
        camera.close()


def test_a_camera_gives_its_newest_frame(camera):
    camera.connect()
    first = camera.latest()
    assert first is not None, "connect returns once a frame is there"
    intrinsics = camera.intrinsics()
    assert first.colour.dtype == np.uint8
    assert first.colour.shape == (intrinsics.height, intrinsics.width, 3)
    assert 0 <= time.monotonic() - first.received_s < 5
    assert first.device_clock in ("host", "hardware")
    numbers, times = [first.number], [first.received_s]
    while len(numbers) < 10:
        frame = camera.latest(newer_than=numbers[-1], timeout_s=2.0)
        assert frame is not None, "a running camera gives frames"
        numbers.append(frame.number)
        times.append(frame.received_s)
    assert (np.diff(numbers) > 0).all() and (np.diff(times) > 0).all()


def test_a_frame_that_is_kept_does_not_change(camera):
    camera.connect()
    frame = camera.latest()
    pixels = frame.colour.copy()
    while (newer := camera.latest(frame.number, 2.0)) is None or newer.number < frame.number + 5:
        assert newer is not None
    assert not np.shares_memory(newer.colour, frame.colour)
    np.testing.assert_array_equal(frame.colour, pixels)


def test_no_newer_frame_is_none_after_the_timeout(camera):
    camera.connect()
    start = time.monotonic()
    assert camera.latest(newer_than=10**9, timeout_s=0.0) is None
    assert time.monotonic() - start < 0.1
    start = time.monotonic()
    assert camera.latest(newer_than=10**9, timeout_s=0.1) is None
    assert 0.09 < time.monotonic() - start < 1.0


def test_a_camera_can_be_closed_twice_and_connected_again(camera):
    camera.close()
    camera.connect()
    camera.close()
    camera.close()
    with pytest.raises(CameraError):
        camera.latest()
    camera.connect()
    assert camera.latest() is not None


@pytest.fixture(params=makers.params(makers.ROBOTS))
def robot(request):
    with request.param() as robot:
        yield robot
        robot.close()


def test_a_robot_keeps_its_contract(robot):
    """One connection for all: connecting is what takes long."""
    robot.connect()
    state = robot.read()
    assert state.mode == "ready" and state.q_rad.shape == state.dq_rad_s.shape == (7,)
    assert 0 <= time.monotonic() - state.received_s < 0.1

    for bad in (np.full(7, np.nan), np.zeros(6)):
        with pytest.raises(ValueError, match="nothing was sent"):
            robot.send(Command(bad, state.gripper_m))
    np.testing.assert_allclose(robot.read().q_rad, state.q_rad, atol=0.01)

    goal = state.q_rad + np.array([0, 0, 0, 0, 0, 0, 0.03])
    sent = robot.send(Command(goal, state.gripper_m))
    np.testing.assert_allclose(sent.q_rad, goal)
    deadline = time.monotonic() + 10
    while robot.read().q_rad[6] < state.q_rad[6] + 0.01:
        assert time.monotonic() < deadline, "the arm follows its target"
        time.sleep(0.005)
    assert robot.read().robot_time_s > state.robot_time_s

    robot.stop("test")
    robot.stop("test, again")
    with pytest.raises(RobotError):
        robot.send(Command(goal, state.gripper_m))
    robot.connect()
    assert robot.read().mode == "ready"
    robot.close()
    robot.close()
