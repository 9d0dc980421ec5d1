"""Intel/RealSense cameras. Hardware, recordings and the SDK's software device run the same code.

The SDK's low-level way (sensors into a syncer) and not its pipeline: a pipeline does not see software
devices, and without a camera it blocks 15 s before it says so.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from real_world.contracts import CameraError, Frame, Intrinsics
from real_world.realsense_sdk import (
    choose_device,
    choose_profiles,
    load_library,
    load_recording,
    warn_of_usb2,
)

POLL_S = 0.1  # how soon the thread notices `close` when no frames come
STOP_S = 2.0  # the SDK can hang in stop() after a loss: never wait longer
RESET_S = 10.0  # a camera is away for seconds after a hardware reset
CLOCK_JUMP_S = 0.5


@dataclass
class Counters:
    """What the capture thread saw since `connect`."""

    frames: int = 0
    singles: int = 0  # colour without depth or depth without colour
    gaps: int = 0  # frames that never came, by their numbers
    timeouts: int = 0  # times no frame came for `stall_s`
    wrong_size: int = 0
    clock_jumps: int = 0  # the device's clock went back, or off the time of receipt by 0.5 s
    restarts: int = 0
    resets: int = 0


class RealSense:
    """A colour camera, optionally with depth aligned to colour: a real_world.contracts.Camera.

    serial: which camera; empty: the only one. recording: a file (.db3, or .bag of older SDKs) in
    place of a camera, in its own time or, with `every_frame=True`, each frame kept until it was
    asked for. find_device: gives an SDK device (of a twin). record_to: a .db3 file that gets all
    frames as they come. exposure_us: 0 is automatic, at a constant frame rate.

    Without a good frame for `stall_s` the streams are started anew twice, then the camera is reset;
    after that `latest` raises CameraError.
    """

    name = "realsense"

    def __init__(
        self,
        *,
        serial: str = "",
        recording: str | Path = "",
        every_frame: bool = False,
        find_device: Callable[[], Any] | None = None,
        width: int = 640,
        height: int = 480,
        rate_hz: float = 30.0,
        depth: bool = False,
        exposure_us: float = 0.0,
        record_to: str | Path = "",
        stall_s: float = 1.0,
        first_frame_s: float = 5.0,
        reset: Callable[[Any], None] | None = None,
    ):
        if sum(map(bool, (serial, recording, find_device))) > 1:
            raise ValueError("serial, recording and find_device exclude each other")
        if record_to and Path(record_to).suffix != ".db3":
            raise ValueError(f"record_to={record_to}: the SDK writes .db3 files only")
        if record_to and Path(record_to).exists():
            raise ValueError(f"record_to={record_to} exists already")
        self.rate_hz, self.counters = rate_hz, Counters()
        self._serial, self._recording, self._every_frame = serial, str(recording), every_frame
        self._find_given, self._record_to = find_device, str(record_to)
        self._size, self._depth, self._exposure_us = (width, height), depth, exposure_us
        self._stall_s, self._first_frame_s = stall_s, first_frame_s
        self._reset = reset or (lambda device: device.hardware_reset())
        self._news = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._sensors: list[Any] = []
        self._device: Any = None
        self._intrinsics: Intrinsics | None = None
        self._forget()

    def _forget(self) -> None:
        self._frame: Frame | None = None
        self._taken = True
        self._failure: CameraError | None = None
        self._number_shift, self._device_number = 0, -1

    def connect(self) -> None:
        self.close()
        self._rs = load_library()
        self._forget()
        self.counters = Counters()
        self._closing.clear()
        self._open(self._find())
        self._thread = threading.Thread(target=self._capture, name="realsense", daemon=True)
        self._thread.start()
        with self._news:
            came = self._news.wait_for(lambda: self._frame or self._failure, self._first_frame_s)
        if not came or self._frame is None:
            failure = self._failure
            self.close()
            raise failure or CameraError(
                f"the camera was opened but no colour frame came in {self._first_frame_s:.0f} s "
                f"({self.counters}). Unplug it, wait 5 s, plug it into a USB 3 port of the computer"
            )

    def latest(self, newer_than: int = -1, timeout_s: float = 0.0) -> Frame | None:
        if self._thread is None:
            raise CameraError("the camera is not connected: call connect()")

        def news() -> bool:
            return bool(self._frame and self._frame.number > newer_than) or bool(self._failure)

        with self._news:
            self._news.wait_for(news, timeout_s)
            if self._frame is not None and self._frame.number > newer_than:
                self._taken = True
                self._news.notify_all()
                return self._frame
            if self._failure:
                raise CameraError(str(self._failure))
            return None

    def intrinsics(self) -> Intrinsics:
        if self._intrinsics is None:
            raise CameraError("intrinsics are known after connect()")
        return self._intrinsics

    def close(self) -> None:
        self._closing.set()
        with self._news:
            self._news.notify_all()
        if self._thread:
            self._thread.join(timeout=STOP_S + 1.0)
            self._thread = None
        self._stop_streams()
        self._device = None  # a recorder finishes its file when the last reference goes

    # Finding and opening

    def _find(self) -> Any:
        if self._find_given:
            return self._find_given()
        self._context = self._rs.context()
        if self._recording:
            return load_recording(self._context, self._recording, self._every_frame)
        return choose_device(self._rs, self._context, self._serial)

    def _open(self, device: Any) -> None:
        """Start the streams of a device. Raises CameraError."""
        warn_of_usb2(self._rs, device)
        wanted = [self._rs.stream.color] + [self._rs.stream.depth] * self._depth
        if self._record_to:
            if self._device is None or self.counters.resets:
                self._device = self._rs.recorder(self._record_path(), device)
        else:
            self._device = device
        chosen = choose_profiles(self._rs, self._device, wanted, *self._size, self.rate_hz)
        self._syncer, self._align = self._rs.syncer(), self._rs.align(self._rs.stream.color)
        try:
            for sensor, profiles in chosen:
                self._set_options(sensor)
                sensor.open(profiles)
                self._sensors.append(sensor)
                sensor.start(self._syncer)
        except RuntimeError as error:
            self._stop_streams()
            raise CameraError(
                f"the camera's streams do not start: {error}. Does another program use it?"
            ) from error
        lens = chosen[0][1][0].as_video_stream_profile().get_intrinsics()
        self._intrinsics = Intrinsics(lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy)
        self._unit_m = next(
            (s.as_depth_sensor().get_depth_scale() for s, _ in chosen if s.is_depth_sensor()), 0.001
        )

    def _record_path(self) -> str:
        path = Path(self._record_to)
        after_reset = f"-{self.counters.resets}" if self.counters.resets else ""
        return str(path.with_stem(path.stem + after_reset))

    def _set_options(self, sensor: Any) -> None:
        """Host-comparable time stamps; exposure that does not halve the frame rate in the dark."""
        option = self._rs.option
        wanted = [(option.global_time_enabled, 1.0)]
        if sensor.is_color_sensor() and self._exposure_us:
            wanted += [(option.enable_auto_exposure, 0.0), (option.exposure, self._exposure_us)]
        elif sensor.is_color_sensor():
            wanted += [(option.enable_auto_exposure, 1.0), (option.auto_exposure_priority, 0.0)]
        for name, value in wanted:
            if sensor.supports(name) and not sensor.is_option_read_only(name):
                sensor.set_option(name, value)

    # The capture thread

    def _capture(self) -> None:
        last_good = time.monotonic()
        while not self._closing.is_set():
            came, frames = self._syncer.try_wait_for_frames(int(POLL_S * 1000))
            if came and self._take(frames):
                last_good = time.monotonic()
            elif self._recording_ended():
                return self._fail(f"the recording {self._recording} is at its end")
            elif time.monotonic() - last_good > self._stall_s:
                self.counters.timeouts += 1
                if not self._revive():
                    return
                last_good = time.monotonic()

    def _take(self, frames: Any) -> bool:
        """Publish a frameset; whether it was a good one."""
        received_s = time.monotonic()
        colour, depth = frames.get_color_frame(), frames.get_depth_frame()
        if not colour or (self._depth and not depth):
            self.counters.singles += 1
            return False
        if (colour.get_width(), colour.get_height()) != self._size:
            self.counters.wrong_size += 1
            return False
        number = self._count(colour.get_frame_number())
        if number is None:
            return False
        aligned = self._align.process(frames).get_depth_frame() if self._depth else None
        hardware = colour.get_frame_timestamp_domain() == self._rs.timestamp_domain.hardware_clock
        frame = Frame(
            # Copies: the SDK has few buffers and drops frames while one is held.
            np.asanyarray(colour.get_data()).copy(),
            number,
            received_s,
            colour.get_timestamp() / 1e3,
            "hardware" if hardware else "host",
            np.asanyarray(aligned.get_data()).copy() if aligned else None,
            self._unit_m,
        )
        self._note_clock(frame)
        with self._news:
            if self._every_frame:
                self._news.wait_for(lambda: self._taken or self._closing.is_set())
            self._frame, self._taken = frame, False
            self.counters.frames += 1
            self._news.notify_all()
        return True

    def _count(self, device_number: int) -> int | None:
        """The frame's number, growing for good although the device's restarts; None: not new."""
        if device_number == self._device_number:
            return None
        last = self._device_number + self._number_shift
        if device_number < self._device_number:
            self._number_shift = last + 1 - device_number
        elif self._device_number >= 0:
            self.counters.gaps += device_number - self._device_number - 1
        self._device_number = device_number
        return device_number + self._number_shift

    def _note_clock(self, frame: Frame) -> None:
        before = self._frame
        if before is not None and not self._every_frame:
            passed_s = frame.device_time_s - before.device_time_s
            off_s = abs(passed_s - (frame.received_s - before.received_s))
            self.counters.clock_jumps += passed_s < 0 or off_s > CLOCK_JUMP_S

    def _recording_ended(self) -> bool:
        if not self._recording:
            return False
        return self._device.current_status() == self._rs.playback_status.stopped

    def _fail(self, message: str) -> None:
        with self._news:
            self._failure = CameraError(message)
            self._news.notify_all()

    # Coming back

    def _revive(self) -> bool:
        """Start the streams anew, twice; then reset the camera. False: given up, or closing."""
        error: Exception | None = None
        for attempt in ("restart", "restart", "reset"):
            if self._closing.is_set():
                return False
            self._stop_streams()
            try:
                if attempt == "reset":
                    self.counters.resets += 1
                    self._reset(self._device)
                    self._open(self._find_again())
                else:
                    self.counters.restarts += 1
                    self._open(self._find())
                if self._frames_come():
                    return True
            except (CameraError, RuntimeError) as problem:  # the SDK raises RuntimeError only
                error = problem
        self._fail(
            f"the camera gives no frames, and two restarts and a reset did not help ({error or 'silent'}). "
            "Unplug it, wait 5 s, plug it into a USB 3 port, and start again"
        )
        return False

    def _frames_come(self) -> bool:
        deadline = time.monotonic() + self._stall_s
        while time.monotonic() < deadline and not self._closing.is_set():
            came, frames = self._syncer.try_wait_for_frames(int(POLL_S * 1000))
            if came and self._take(frames):
                return True
        return False

    def _find_again(self) -> Any:
        """The device once it is back from its reset. Raises CameraError."""
        deadline = time.monotonic() + RESET_S
        while not self._closing.wait(POLL_S):
            try:
                return self._find()
            except CameraError:
                if self._find_given or time.monotonic() > deadline:
                    raise
        raise CameraError("closed while it was reset")

    def _stop_streams(self) -> None:
        sensors, self._sensors = self._sensors, []
        if not sensors:
            return

        def stop() -> None:
            for sensor in sensors:
                try:
                    sensor.stop()
                    sensor.close()
                except RuntimeError:
                    continue  # it is gone already, which is what a restart is for

        thread = threading.Thread(target=stop, name="realsense-stop", daemon=True)
        thread.start()
        deadline = time.monotonic() + STOP_S
        while thread.is_alive() and time.monotonic() < deadline:
            # A recording that waits for its reader stops only while somebody reads.
            self._syncer.try_wait_for_frames(1)
