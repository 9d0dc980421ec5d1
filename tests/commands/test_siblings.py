"""The guard against a foreign `envs`, `policies`, … on the path."""

import subprocess
import sys
from pathlib import Path

import pytest

from toto_robot._siblings import SIBLINGS, check_siblings


def test_our_own_packages_pass() -> None:
    check_siblings()


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_foreign_package_in_the_working_folder_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    code = "from toto_robot._siblings import check_siblings; check_siblings()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    ours = Path(__file__).parents[2] / name
    assert f"`import {name}` finds {tmp_path / name}" in done.stderr and str(ours) in done.stderr
