"""The window on one world; drawn on a virtual screen where there is one (Xvfb)."""

import os
import shutil
import subprocess
import sys

import gymnasium
import pytest

import envs  # noqa: F401
from envs.viewer import NoDisplayError


def test_without_a_screen_the_error_says_what_to_do(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NoDisplayError, match="render_mode='rgb_array'"):
        gymnasium.make("toto_robot/FrankaPick-v0", render_mode="human")


@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="no virtual screen (xvfb)")
def test_the_window_follows_the_simulation():
    script = (
        "import gymnasium, numpy as np, time, envs\n"
        "env = gymnasium.make('toto_robot/FrankaPick-v0', render_mode='human').unwrapped\n"
        "env.reset(seed=0); start = time.monotonic()\n"
        "for _ in range(30): env.step(np.full(9, 0.1, np.float32))\n"
        "seconds = time.monotonic() - start\n"
        "viewer = env._vec.viewer; assert viewer.is_open\n"
        "same = np.allclose(viewer._data.qpos, env._vec.engine.read()['qpos'][0], atol=1e-5)\n"
        "env.close(); env.close()\n"
        "print('real time' if seconds > 0.45 else 'too fast', 'same' if same else 'other state')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    result = subprocess.run(
        ["xvfb-run", "-a", sys.executable, "-c", script],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert "real time same" in result.stdout, result.stdout + result.stderr
