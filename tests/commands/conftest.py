"""The test doubles of tests/policies, for the commands."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def doubles() -> ModuleType:
    """The module tests/policies/fake_task.py (tests are no package: `policies` is ours)."""
    path = Path(__file__).parents[1] / "policies" / "fake_task.py"
    spec = importlib.util.spec_from_file_location("fake_task_for_commands", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def absl_leaves_captured_streams_open() -> Iterator[None]:
    """absl, which rliable brings along, logs to the stream that it met first, pytest's, and closes
    it when Hydra sets up logging anew: pytest itself would fail. The real stream it leaves open."""
    yield
    if "absl.logging" in sys.modules:
        handler = sys.modules["absl.logging"].get_absl_handler()
        handler.python_handler.stream = sys.__stderr__
