"""A RealSense camera without the camera: the SDK's software device, fed with pictures of our own.

`RealSense(find_device=twin.find_device)` reads it through the same code as hardware. Faults are set
as attributes while it runs.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from real_world.contracts import CameraError, Intrinsics
from real_world.realsense import RealSense
from real_world.realsense_sdk import load_library

Picture = Callable[[], UInt8[np.ndarray, "H W 3"]]
DepthPicture = Callable[[], UInt16[np.ndarray, "H W"]]


class SoftwareRealSense:
    """Feeds `source()` to a software device `rate_hz` times a second from a thread of its own.

    Faults: `frozen` (no frames), `drop` (so many frames are lost next), `clock_shift_s` (added to
    the device's clock), `shrink` (pictures of half the size), `unplugged` (no frames, and looking
    for the device fails), `silent_depth` (colour alone). `resets` counts calls of `reset`, which
    plugs it in again if `reset_helps`.
    """

    def __init__(
        self,
        source: Picture,
        rate_hz: float = 30.0,
        intrinsics: Intrinsics | None = None,
        depth_source: DepthPicture | None = None,
        usb: str = "3.2",
    ):
        self.source, self.depth_source, self.rate_hz, self.usb = source, depth_source, rate_hz, usb
        height, width = source().shape[:2]
        self.lens = intrinsics or Intrinsics(
            width, height, width * 0.9, width * 0.9, width / 2, height / 2
        )
        self.frozen = self.shrink = self.unplugged = self.silent_depth = False
        self.drop, self.clock_shift_s, self.number = 0, 0.0, 0
        self.resets, self.reset_helps = 0, True
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "SoftwareRealSense":
        self._rs = load_library()
        self._build()
        self._thread = threading.Thread(target=self._feed, name="realsense-twin", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread:
            self._thread.join()

    def find_device(self) -> Any:
        """The SDK's device. Raises CameraError while it is unplugged."""
        if self.unplugged:
            raise CameraError("the software camera is unplugged")
        return self._device

    def reset(self, device: Any) -> None:
        """In place of `hardware_reset`, which software devices lack."""
        self.resets += 1
        if self.reset_helps:
            self.frozen = self.shrink = self.unplugged = False

    def _build(self) -> None:
        rs, size = self._rs, (self.lens.width, self.lens.height)
        self._device = rs.software_device()
        for name, text in (("name", "software"), ("serial_number", "SW0001")):
            self._device.register_info(getattr(rs.camera_info, name), text)
        self._device.register_info(rs.camera_info.usb_type_descriptor, self.usb)
        self._device.create_matcher(rs.matchers.default)
        self._colour = self._device.add_sensor("RGB Camera")
        self._colour_profile = self._add(self._colour, "color", "rgb8", 3, 1, *size)
        half = (max(1, size[0] // 2), max(1, size[1] // 2))
        self._small_profile = self._add(self._colour, "color", "rgb8", 3, 3, *half)
        if self.depth_source:
            self._depth = self._device.add_sensor("Stereo Module")
            self._depth_profile = self._add(self._depth, "depth", "z16", 2, 2, *size)
            self._depth.add_read_only_option(rs.option.depth_units, 0.001)
            same = rs.extrinsics()
            same.rotation, same.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0]
            self._depth_profile.register_extrinsics_to(self._colour_profile, same)

    def _add(
        self, sensor: Any, stream: str, kind: str, bytes_: int, uid: int, width: int, height: int
    ) -> Any:
        rs, video = self._rs, self._rs.video_stream()
        lens, share = rs.intrinsics(), width / self.lens.width
        lens.width, lens.height, lens.model, lens.coeffs = (
            width,
            height,
            rs.distortion.none,
            [0] * 5,
        )
        lens.fx, lens.fy = self.lens.fx * share, self.lens.fy * share
        lens.ppx, lens.ppy = self.lens.cx * share, self.lens.cy * share
        video.type, video.index, video.uid = getattr(rs.stream, stream), 0, uid
        video.width, video.height, video.fps = width, height, round(self.rate_hz)
        video.bpp, video.fmt, video.intrinsics = bytes_, getattr(rs.format, kind), lens
        return rs.video_stream_profile(sensor.add_video_stream(video, uid != 3))

    def _feed(self) -> None:
        start, tick = time.monotonic(), 0
        while not self._closing.wait(max(0.0, start + tick / self.rate_hz - time.monotonic())):
            tick += 1
            if self.frozen or self.unplugged:
                continue
            self.number += 1
            if self.drop > 0:
                self.drop -= 1
                continue
            self._send()

    def _send(self) -> None:
        """One frame of each stream, with one time and number."""
        now_ms = (time.time() + self.clock_shift_s) * 1e3
        picture, profile = self.source(), self._colour_profile
        if self.shrink:
            picture, profile = picture[::2, ::2], self._small_profile
        if self.depth_source and not self.silent_depth:
            self._push(self._depth, self._depth_profile, self.depth_source(), now_ms)
        self._push(self._colour, profile, picture, now_ms)

    def _push(self, sensor: Any, profile: Any, picture: np.ndarray, now_ms: float) -> None:
        frame = self._rs.software_video_frame()  # a new one each time: the SDK frees it
        frame.pixels = np.ascontiguousarray(picture)
        frame.bpp = picture.itemsize * (picture.shape[2] if picture.ndim == 3 else 1)
        frame.stride, frame.profile = picture.shape[1] * frame.bpp, profile
        frame.timestamp, frame.frame_number = now_ms, self.number
        frame.domain = self._rs.timestamp_domain.system_time
        sensor.on_video_frame(frame)


def write_recording(path: str | Path, source: Picture, frames: int, rate_hz: float = 30.0) -> Path:
    """A recording (.db3) of at least `frames` frames of `source()`, made by the SDK itself."""
    with SoftwareRealSense(source, rate_hz) as twin:
        camera = RealSense(
            find_device=twin.find_device,
            width=twin.lens.width,
            height=twin.lens.height,
            rate_hz=rate_hz,
            record_to=path,
        )
        camera.connect()
        try:
            number = -1
            while camera.counters.frames < frames:
                frame = camera.latest(number, timeout_s=1.0)
                number = frame.number if frame else number
        finally:
            camera.close()
    return Path(path)
