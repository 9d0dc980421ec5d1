"""Who is held to the contracts: name -> a context manager that makes one. A new one is one line."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from real_world.contracts import Camera, Robot
from real_world.franka import Franka
from real_world.franka_twin import FrankaTwin
from real_world.realsense import RealSense
from real_world.realsense_twin import SoftwareRealSense, write_recording

SIZE = {"width": 64, "height": 48, "rate_hz": 60.0}


def picture() -> np.ndarray:
    rows = np.arange(48, dtype=np.uint8)[:, None, None]
    return np.broadcast_to(rows, (48, 64, 3)) + np.array([0, 100, 200], np.uint8)


def need(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f'{module} is not installed: pip install -e ".[real]"')


@contextmanager
def software_camera() -> Iterator[Camera]:
    need("pyrealsense2")
    with SoftwareRealSense(picture, SIZE["rate_hz"]) as twin:
        yield RealSense(find_device=twin.find_device, **SIZE)


@cache
def recording() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="recording-"))
    return write_recording(folder / "short.db3", picture, 60, SIZE["rate_hz"])


@contextmanager
def recorded_camera() -> Iterator[Camera]:
    need("pyrealsense2")
    yield RealSense(recording=recording(), every_frame=True, **SIZE)


@contextmanager
def hardware_camera() -> Iterator[Camera]:
    """RS_SERIAL=<number> pytest -m hardware"""
    if "RS_SERIAL" not in os.environ:
        pytest.skip("set RS_SERIAL to a camera's serial number")
    yield RealSense(serial=os.environ["RS_SERIAL"])


CAMERAS: dict[str, Callable[[], AbstractContextManager[Camera]]] = {
    "realsense-software": software_camera,
    "realsense-recording": recorded_camera,
    "realsense": hardware_camera,
}


@contextmanager
def franky_sim_robot() -> Iterator[Robot]:
    need("franky")
    need("franky_sim")
    with FrankaTwin() as twin:
        yield Franka(twin.host, realtime="ignore")


@contextmanager
def hardware_robot() -> Iterator[Robot]:
    """FRANKA_HOST=<address> pytest -m hardware: it holds still but for 0.03 rad of the last joint."""
    if "FRANKA_HOST" not in os.environ:
        pytest.skip("set FRANKA_HOST to the arm's address")
    yield Franka(os.environ["FRANKA_HOST"])


ROBOTS: dict[str, Callable[[], AbstractContextManager[Robot]]] = {
    "franky-sim": franky_sim_robot,
    "franka": hardware_robot,
}
HARDWARE = {"realsense", "franka"}


def params(makers: dict) -> list:
    return [
        pytest.param(make, id=name, marks=pytest.mark.hardware if name in HARDWARE else ())
        for name, make in makers.items()
    ]
