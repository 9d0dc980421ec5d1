"""Meshes from the Menagerie: only looks change. Needs its files: MENAGERIE_ROOT, or a cache."""

import pytest
import torch

import envs
from envs import menagerie


def has_files() -> bool:
    """Whether the Panda is there without a download."""
    package = pytest.importorskip("mujoco_menagerie")
    cache = package.Cache()
    return bool(cache.root) or cache.is_cached(package.get("franka_emika_panda"))


def test_meshes_change_looks_but_no_physics(needs_gl):
    if not has_files():
        pytest.skip("no Menagerie files here; set MENAGERIE_ROOT to test with them")
    plain, dressed = (envs.make("FrankaPick", 2, assets=a) for a in ("primitives", "menagerie"))
    states = []
    for task in (plain, dressed):
        task.reset()
        for _ in range(50):
            task.step(torch.full((2, 9), 0.2))
        states.append(task.obs_buf)
    assert torch.equal(*states)
    pictures = [task.render_film([0]).float() for task in (plain, dressed)]
    assert 1 < (pictures[0] - pictures[1]).abs().mean() < 30
    for task in (plain, dressed):
        task.close()


def test_without_files_the_error_says_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("mujoco_menagerie")
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path))
    with pytest.raises(menagerie.MeshesUnavailableError, match="MENAGERIE_ROOT"):
        envs.make("FrankaPick", 1, assets="menagerie")


def test_robots_without_meshes_are_named():
    with pytest.raises(ValueError, match="meshes for franka, not for kuka"):
        envs.make("KukaPick", 1, assets="menagerie")
