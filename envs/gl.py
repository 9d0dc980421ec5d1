"""Choose an OpenGL back end before MuJoCo is imported, and say what to do when there is none.

MuJoCo reads MUJOCO_GL once, at import. `MUJOCO_GL=egl` without libEGL breaks `import mujoco`
itself, so the variable is set only when the library is there. A value set by the user is kept.
"""

import ctypes.util
import os
import sys
import warnings

INSTALL_HINT = (
    "Off-screen rendering needs OpenGL. On Debian or Ubuntu run `sudo scripts/install_system.sh`\n"
    "(it installs libegl1 libopengl0 libgl1-mesa-dri, 215 MB), or `apt-get install libosmesa6`.\n"
    "Without it, images need MuJoCo Warp's slower ray-caster: pip install 'mujoco-warp==4.0.*'.\n"
    "Training from state needs no images: obs=state film_episodes=0."
)


class RenderingUnavailableError(RuntimeError):
    """No usable OpenGL library: images cannot be rendered on this machine."""


def _find_backend() -> str | None:
    if ctypes.util.find_library("EGL") and ctypes.util.find_library("OpenGL"):
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    return None


def configure() -> str | None:
    """Set MUJOCO_GL unless the user did; return the back end, or None where there is none."""
    chosen = os.environ.get("MUJOCO_GL")
    if chosen is None and sys.platform == "linux":
        if "mujoco" in sys.modules:
            warnings.warn(
                "mujoco was imported before envs and has already chosen its OpenGL back end; "
                "import envs first, or set MUJOCO_GL=egl (or osmesa) in the environment.",
                stacklevel=2,
            )
        chosen = _find_backend()
        # "disable" lets `import mujoco` work without any GL library; rendering then fails clearly.
        os.environ["MUJOCO_GL"] = chosen or "disable"
    if chosen == "egl":
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    # llvmpipe's own threads fight with our one-context-per-thread rendering.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return None if chosen in (None, "disable", "disabled", "off") else chosen


BACKEND = configure()
