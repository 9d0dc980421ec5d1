import os

import pytest

from envs import gl

# Two cores serve everybody; small tensors are faster on one thread anyway.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def needs_gl():
    """Skip, loudly, where no OpenGL library is installed."""
    if gl.BACKEND is None:
        pytest.skip(gl.INSTALL_HINT)
