"""The test doubles of tests/policies, for the commands."""

import importlib.util
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
