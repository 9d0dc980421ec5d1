"""Whether what a camera shows can be believed."""

import numpy as np
from jaxtyping import Float

from real_world.contracts import Frame
from real_world.thinking import Fault

SAME_RAD = 0.3  # the arm cannot have moved so far and look the same: real pictures have noise
EARLY_S = 0.05  # a frame may be so much from the future: two clocks


class Sight:
    """Checks the frames of one camera, one after another."""

    def __init__(self, name: str, max_age_s: float):
        self._name, self._max_age_s = name, max_age_s
        self._shape: tuple[int, ...] | None = None
        self.begin()

    def begin(self) -> None:
        """An episode begins."""
        self._last: Frame | None = None
        self._since_rad = np.zeros(0)  # joints when the picture began to look as it does

    def check(self, frame: Frame | None, now_s: float, q_rad: Float[np.ndarray, " J"]) -> float:
        """Age of `frame`, s. Raises Fault for none, an old one, one that jumps in time, of another size
        or type, or a new one that shows the same picture although the arm moved."""
        if frame is None:
            raise Fault(f"camera {self._name} has no frame")
        age_s = now_s - frame.received_s
        if age_s > self._max_age_s:
            raise Fault(
                f"camera {self._name}: frame {frame.number} is {1000 * age_s:.0f} ms old, the limit is "
                f"{1000 * self._max_age_s:.0f} ms"
            )
        before = self._last
        if age_s < -EARLY_S or (before is not None and frame.number < before.number):
            raise Fault(
                f"camera {self._name} jumped in time: frame {frame.number}, {age_s:.3f} s old"
            )
        self._shape = self._shape or frame.colour.shape
        if frame.colour.shape != self._shape or frame.colour.dtype != np.uint8:
            raise Fault(
                f"camera {self._name}: frame {frame.number} is {frame.colour.dtype} "
                f"{frame.colour.shape}, those before it uint8 {self._shape}"
            )
        if before is None or frame.number > before.number:
            self._compare(before, frame, q_rad)
            self._last = frame
        return age_s

    def _compare(self, before: Frame | None, frame: Frame, q_rad: np.ndarray) -> None:
        if before is None or not np.array_equal(before.colour, frame.colour):
            self._since_rad = q_rad.copy()
        elif (moved := np.abs(q_rad - self._since_rad).max()) > SAME_RAD:
            raise Fault(
                f"camera {self._name} hangs: up to frame {frame.number} it shows the same picture, "
                f"while a joint moved by {moved:.2f} rad"
            )
