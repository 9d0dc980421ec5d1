import os

import pytest

from envs import gl
from toto_robot.backbone.torchvision_ops import declare_missing

# Two cores serve everybody; small tensors are faster on one thread anyway.
os.environ.setdefault("OMP_NUM_THREADS", "1")

declare_missing()  # transformers and timm import torchvision if there is one, whichever torch it is for


@pytest.fixture
def needs_gl():
    """Skip, loudly, where no OpenGL library is installed."""
    if gl.BACKEND is None:
        pytest.skip(gl.INSTALL_HINT)
