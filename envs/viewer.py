"""A window on one world: MuJoCo's interactive viewer, in step with the simulation."""

import os
import sys
import time

import mujoco

from envs.physics import Physics


class NoDisplayError(RuntimeError):
    """There is no screen to open a window on."""


class Viewer:
    """Shows world 0 of an engine. Closing the window ends the display, not the simulation.

    Raises:
        NoDisplayError: no display server; says what to do instead.
    """

    def __init__(self, engine: Physics):
        if sys.platform == "linux" and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise NoDisplayError(
                "render_mode='human' opens a window, and neither DISPLAY nor WAYLAND_DISPLAY is set. "
                "Use render_mode='rgb_array' and record films, or log in with a screen (ssh -X)."
            )
        import mujoco.viewer  # loads GLFW

        self._engine, self._model = engine, engine.model
        self._data = mujoco.MjData(self._model)
        self._handle = mujoco.viewer.launch_passive(
            self._model, self._data, show_left_ui=False, show_right_ui=False
        )
        self._shown_s = time.monotonic()

    @property
    def is_open(self) -> bool:
        return self._handle.is_running()

    def show(self, period_s: float) -> None:
        """Draw the present state, no sooner than `period_s` after the last one (real time)."""
        if not self.is_open:
            return
        state = self._engine.read()
        with self._handle.lock():
            self._data.qpos[:] = state["qpos"][0].cpu().numpy()
            self._data.mocap_pos[:] = state["mocap_pos"][0].cpu().numpy()
            mujoco.mj_forward(self._model, self._data)
        self._handle.sync()
        time.sleep(max(0.0, self._shown_s + period_s - time.monotonic()))
        self._shown_s = time.monotonic()

    def close(self) -> None:
        """Close the window; may be called again."""
        self._handle.close()
