"""What RealSense cameras there are and what they offer: the SDK's devices, recordings, profiles."""

import ctypes
import importlib.util
import warnings
from pathlib import Path
from typing import Any

from real_world.contracts import CameraError

INSTALL_HINT = (
    "RealSense cameras need pyrealsense2, which could not be imported ({error}). "
    'Type: pip install -e ".[real]"; where libusb-1.0.so.0 is missing also: '
    "apt-get install libusb-1.0-0 (or, without root: pip install libusb-package importlib_resources)"
)


def load_library() -> Any:
    """pyrealsense2. Raises CameraError saying what to install."""
    try:
        spec = importlib.util.find_spec("libusb_package")
        if spec and spec.origin:  # libusb from a wheel, for machines without root
            library = Path(spec.origin).with_name("libusb-1.0.so")
            if library.exists():
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        import pyrealsense2

        return pyrealsense2
    except (ImportError, OSError) as error:
        raise CameraError(INSTALL_HINT.format(error=error)) from error


def choose_device(rs: Any, context: Any, serial: str) -> Any:
    """The camera with this serial number; empty: the only one. Raises CameraError."""
    devices = list(context.query_devices())
    serials = [d.get_info(rs.camera_info.serial_number) for d in devices]
    if not devices:
        raise CameraError(
            "no RealSense camera answers. Plug it into a USB 3 port; `rs-enumerate-devices -s` "
            "or `lsusb -d 8086:` should list it; without udev rules only root may open it"
        )
    if serial and serial not in serials:
        raise CameraError(f"no camera has serial={serial}; there are {serials}")
    if not serial and len(devices) > 1:
        raise CameraError(f"several cameras answer: pick one with serial=, of {serials}")
    return devices[serials.index(serial) if serial else 0]


def load_recording(context: Any, path: str, every_frame: bool) -> Any:
    """A file as a device, in its own time or as fast as it is read. Raises CameraError."""
    if not Path(path).exists():
        raise CameraError(f"recording={path} does not exist")
    try:
        playback = context.load_device(path).as_playback()
    except RuntimeError as error:
        raise CameraError(f"recording={path} cannot be read: {error}") from error
    playback.set_real_time(not every_frame)
    return playback


def warn_of_usb2(rs: Any, device: Any) -> None:
    kind = rs.camera_info.usb_type_descriptor
    usb = device.get_info(kind) if device.supports(kind) else ""
    if usb and not usb.startswith("3"):
        warnings.warn(
            f"the camera is on USB {usb}: frames will be few or lost. Use a USB 3 cable and "
            "port, and plug it in quickly",
            RuntimeWarning,
            stacklevel=3,
        )


def choose_profiles(
    rs: Any, device: Any, streams: list[Any], width: int, height: int, rate_hz: float
) -> list[tuple[Any, list[Any]]]:
    """(sensor, profiles to open) of RGB8 colour and Z16 depth, colour's sensor first.

    Raises CameraError naming the profiles that exist if one does not.
    """
    formats = {rs.stream.color: rs.format.rgb8, rs.stream.depth: rs.format.z16}
    sensors = list(device.query_sensors())
    chosen: dict[int, list[Any]] = {}
    for stream in streams:
        there = [
            (i, p.as_video_stream_profile())
            for i, sensor in enumerate(sensors)
            for p in sensor.get_stream_profiles()
            if p.stream_type() == stream and p.format() == formats[stream]
        ]
        fits = [
            (i, p)
            for i, p in there
            if (p.width(), p.height(), p.fps()) == (width, height, round(rate_hz))
        ]
        if not fits:
            exist = sorted({(p.width(), p.height(), p.fps()) for _, p in there})
            listed = ", ".join(f"{w}x{h} at {fps} Hz" for w, h, fps in exist) or "none"
            raise CameraError(
                f"no {formats[stream].name} {stream.name} stream of {width}x{height} at {rate_hz:g} Hz; "
                f"the camera has: {listed}"
            )
        chosen.setdefault(fits[0][0], []).append(fits[0][1])
    return [(sensors[i], profiles) for i, profiles in chosen.items()]
