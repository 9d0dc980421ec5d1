"""An arm, a camera and policies that do what they are told, and break when they are told to."""

import numpy as np
import torch

from envs.spec import FRANKA
from real_world.contracts import CameraError, Frame, Intrinsics, Mode, RobotError, RobotState

HOME = np.array(FRANKA.default_pose[:7])


class Arm:
    """Is at once where it is sent."""

    name, rate_hz = "fake", 30.0

    def __init__(self, clock):
        self.clock, self.sent, self.stops = clock, [], []
        self.q = HOME.copy()
        self.frozen_s: float | None = None  # the robot's clock stands there
        self.mode: Mode = "ready"
        self.fail: Exception | None = None  # an exception for `send`
        self.error_rad = 0.0  # of what `read` says

    def connect(self):
        self.stops.clear()

    def read(self):
        now_s = self.clock.now()
        robot_s = now_s if self.frozen_s is None else self.frozen_s
        return RobotState(
            self.q + self.error_rad, np.zeros(7), 0.07, robot_s, now_s, mode=self.mode
        )

    def send(self, command):
        if self.fail is not None:
            raise self.fail
        if self.stops:
            raise RobotError("stopped")
        self.sent.append(command)
        self.q = command.q_rad
        return command

    def stop(self, reason):
        self.stops.append(reason)

    def close(self):
        self.stop("closed")


class Eye:
    """A frame whenever one is asked for; `change(frame)` may spoil it."""

    name, rate_hz = "wrist", 30.0

    def __init__(self, clock):
        self.clock, self.number, self.gone, self.change = clock, 0, False, lambda frame: frame

    def connect(self): ...

    def latest(self, newer_than=-1, timeout_s=0.0):
        if self.gone:
            raise CameraError("camera wrist was unplugged; plug it in and start again")
        self.number += 1
        now_s = self.clock.now()
        picture = np.full((8, 8, 3), self.number % 256, np.uint8)
        return self.change(Frame(picture, self.number, now_s, now_s))

    def intrinsics(self):
        return Intrinsics(8, 8, 4, 4, 4, 4)

    def close(self): ...


class Steady:
    """Always the same action, in plans of `horizon`; `at[step]` gives another."""

    def __init__(self, action=0.0, horizon=1, at=None, before=lambda step: None):
        self.action, self.horizon, self.at, self.before = action, horizon, at or {}, before
        self.calls = 0

    def reset(self, worlds=None):
        self.calls = 0

    def plan(self, obs):
        step, self.calls = self.calls, self.calls + 1
        self.before(step)
        if step in self.at:
            return self.at[step]
        return torch.full((1, self.horizon, FRANKA.num_actions), float(self.action))


class Typist:
    """Keys as a script has them: `held(step)` and `typed(step)` of the control step, which is counted
    by how often a device looks at the key "up". Enter is typed all the time."""

    def __init__(self, held=lambda step: (), typed=lambda step: ()):
        self._held, self._typed, self.step, self.stop = held, typed, 0, ""

    def pressed(self):
        return ["enter", *self._typed(self.step)]

    def held(self, key):
        self.step += key == "up"
        return key in self._held(self.step)

    def stop_asked(self):
        return self.stop

    def close(self): ...
