"""A recorded step, as the loop gives it."""

from typing import Any

import numpy as np

from real_world.live import JOINTS
from real_world.measures import STAGES


def row(k: int) -> dict[str, Any]:
    return {
        "obs/wrist_image": np.full((8, 8, 3), k, np.uint8),
        "actions": np.full(9, 0.1 * k, np.float32),
        **{key: np.arange(8.0) + k for key in JOINTS},
        "t_sent_s": 100 + k / 30,
        "latency_ms": np.full(len(STAGES), float(k), np.float32),
        "limit_events": np.array([0, k % 2, 0, 0, 0], np.uint16),
        "missed": np.uint16(k == 3),
    }
