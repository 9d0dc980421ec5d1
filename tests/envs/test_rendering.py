"""Images: what the cameras see, one frame per world, clear errors."""

import multiprocessing
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import envs
from envs.randomisation import Randomiser
from envs.scripted import ScriptedMotions


@pytest.fixture(scope="module")
def task():
    task = envs.make("FrankaPick", 5, seed=2, obs="pixels", image_size=64)
    task.reset()
    motions = ScriptedMotions(task, {"pick": 1.0}, seed=1)
    for _ in range(110):
        task.step(motions.act())
    yield task
    task.close()


@pytest.mark.usefixtures("needs_gl")
class TestImages:
    def test_rgb_of_the_chosen_worlds(self, task):
        frames = task.obs_buf
        assert frames.shape == (5, 64, 64, 3) and frames.dtype == torch.uint8
        assert torch.equal(task.render_film([3, 1], "wrist", 64, 64), frames[[3, 1]])

    def test_wrist_camera_sees_cube_table_and_fingers(self, task):
        model = task.engine.model
        ids = task.engine.render_geom_ids("wrist", 128, 128)
        names = {model.geom(i).name or model.body(model.geom_bodyid[i]).name
                 for i in ids.unique().tolist() if i >= 0}  # fmt: skip
        assert {"cube", "table", "panda_leftfinger", "panda_rightfinger"} <= names

    def test_third_person_camera_sees_the_arm(self, task):
        model = task.engine.model
        ids = task.engine.render_geom_ids("third_person", 128, 128)[0]
        bodies = {model.body(model.geom_bodyid[i]).name for i in ids.unique().tolist() if i >= 0}
        assert {"cube", "panda_link1", "panda_link5", "panda_hand"} <= bodies

    def test_varied_looks_change_only_their_world(self, task):
        plain = task.render_film(range(5), "wrist", 64, 64)
        one = torch.tensor([2])
        Randomiser(task.engine, "strong", "fixed", seed=0).apply(one, torch.tensor([0]))
        varied = task.render_film(range(5), "wrist", 64, 64)
        task.engine.visual_fields.clear()
        assert torch.equal(plain[[0, 1, 3, 4]], varied[[0, 1, 3, 4]])
        assert not torch.equal(plain[2], varied[2])

    def test_unknown_camera(self, task):
        with pytest.raises(ValueError, match=r"unknown camera 'overhead'.*wrist"):
            task.render_film([0], "overhead")


def _use_after_fork(task, answers) -> None:
    for use in (lambda: task.step(task.zero_actions()), lambda: task.render_film([0])):
        try:
            use()
            answers.put("went on")
        except RuntimeError as error:
            answers.put(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's habit")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_instead_of_hanging(needs_gl):
    task = envs.make("FrankaPick", 2)
    task.reset()
    task.render_film([0])
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=_use_after_fork, args=(task, answers))
    child.start()
    child.join(timeout=30)
    assert child.exitcode == 0
    assert all("get_context('spawn')" in answers.get() for _ in range(2))
    task.close()


def test_closing_twice_is_harmless_and_frees_the_contexts(needs_gl):
    task = envs.make("FrankaPick", 2)
    task.reset()
    task.render_film([0, 1])
    engine: Any = task.engine
    pool = engine._renderer
    assert len(pool._lanes) == 2
    task.close()
    task.close()
    assert pool._lanes == []


def test_without_gl_the_error_says_what_to_install():
    """MUJOCO_GL=disable stands for a machine without GL, None for a module that is not installed:
    state works, images explain."""
    script = (
        "import sys; sys.modules['mujoco_warp'] = None\n"
        "import envs, torch\n"
        "task = envs.make('FrankaPick', 2); task.reset(); task.step(torch.zeros(2, 9))\n"
        "print('state works')\n"
        "task.render_film([0])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env=os.environ | {"MUJOCO_GL": "disable"},
    )  # fmt: skip
    assert "state works" in result.stdout
    assert "RenderingUnavailableError" in result.stderr and "apt-get install" in result.stderr
