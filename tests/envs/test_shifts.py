"""Visual shifts: one kind of change each, physics untouched, composed by `+`."""

from typing import Any

import numpy as np
import pytest
import torch

import envs
from envs import distractors, spec
from envs.gl import BACKEND
from envs.levels import ALL, SHIFTS, visual_level
from envs.randomisation import Randomiser, add_textures
from envs.scenes import SCENES

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no OpenGL library here")
PARTS = {
    "light": {"light_diffuse", "light_ambient", "light_dir"},
    "colour": {"geom_rgba", "geom_matid"},
    "camera": {"cam_pos", "cam_quat", "cam_fovy"},
    "distractors": {"geom_pos", "geom_rgba"},
}


class Recorder:
    """An engine that only remembers the fields it is given."""

    device = "cpu"

    def __init__(self, model: Any):
        self.model, self.fields = model, {}

    def set_field(self, name: str, ids: torch.Tensor, values: torch.Tensor) -> None:
        self.fields[name] = values.numpy()


def shifted_scene(task: str) -> Any:
    scene = SCENES[task]()
    add_textures(scene)
    distractors.add_distractors(scene, 6)
    return scene.compile()


@pytest.fixture(scope="module")
def model() -> Any:
    return shifted_scene("franka_pick")


def changed(model: Any, shift: str) -> set[str]:
    """Fields that differ among eight worlds."""
    recorder: Any = Recorder(model)
    ids = torch.arange(8)
    Randomiser(recorder, shift, "fixed", seed=0).apply(ids, torch.zeros_like(ids))
    return {n for n, v in recorder.fields.items() if not np.allclose(v, v[:1], atol=1e-12)}


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_changes_its_part_and_nothing_else(model, shift):
    assert changed(model, shift) == PARTS[shift]


def test_shifts_compose():
    both, everything = visual_level("light+camera"), visual_level(ALL)
    assert both is not None and everything is not None
    assert both.light == SHIFTS["light"].light and both.camera_rad == SHIFTS["camera"].camera_rad
    assert both.new_colours == 0 and both.distractors == 0
    for name, row in SHIFTS.items():
        alone = visual_level(name)
        assert alone == row
    assert everything == visual_level("+".join(SHIFTS))
    with pytest.raises(ValueError, match="visuals='ligth'; did you mean 'light'"):
        visual_level("camera+ligth")


def test_a_suite_is_fixed_by_its_seed(model):
    def draw(seed: int) -> dict[str, np.ndarray]:
        recorder: Any = Recorder(model)
        Randomiser(recorder, ALL, "fixed", seed).apply(torch.tensor([2]), torch.tensor([0]))
        return recorder.fields

    first, again, other = draw(0), draw(0), draw(1)
    assert all((first[n] == again[n]).all() for n in first)
    assert not (first["geom_pos"] == other["geom_pos"]).all()


@pytest.mark.parametrize("task", SCENES)
def test_distractors_stand_apart_and_away_from_the_cube(task):
    model = shifted_scene(task)
    recorder: Any = Recorder(model)
    ids = torch.arange(50)
    Randomiser(recorder, "distractors", "fixed", seed=3).apply(ids, torch.zeros_like(ids))
    own = distractors.geoms(model)
    assert len(own) == 6
    place = recorder.fields["geom_pos"][:, own]
    gaps = np.linalg.norm(place[:, :, None, :2] - place[:, None, :, :2], axis=-1)
    assert gaps[:, ~np.eye(6, dtype=bool)].min() > 0.05
    others = np.setdiff1d(np.arange(model.ngeom), own)
    assert (recorder.fields["geom_pos"][:, others] == model.geom_pos[others]).all()
    if task.endswith("pick"):
        assert (np.abs(place[..., 1]) >= 0.27).all()  # the cube: within 0.2
        assert (place[..., 2] > 0.4).all()


@pytest.mark.parametrize("task", spec.TASK_NAMES.values())
def test_distractors_touch_nothing(task):
    def run(visuals: str) -> torch.Tensor:
        env = envs.make(task, 2, seed=4, visuals=visuals)
        rng = np.random.default_rng(0)
        obs = [env.reset()["obs"]]
        for _ in range(40):
            action = torch.from_numpy(rng.uniform(-1, 1, (2, env.num_actions))).float()
            obs.append(env.step(action)[0]["obs"])
        env.close()
        return torch.stack(obs)

    assert torch.equal(run("fixed"), run("distractors"))


@needs_gl
def test_distractors_are_seen():
    env = envs.make("FrankaPick", 2, seed=4, visuals="distractors")
    env.reset()
    own = set(distractors.geoms(env.engine.model).tolist())
    for world in (0, 1):
        seen = env.engine.render_geom_ids("third_person", 96, 96, torch.tensor([world]))
        assert len(own & set(seen.unique().tolist())) >= 4
    env.close()


def test_what_can_be_touched_is_not_moved_by_looks():
    env = envs.make("FrankaPick", 1, visuals="distractors")
    moved = torch.from_numpy(env.engine.model.geom_pos.copy())[None]
    moved[0, env.engine.model.geom("table").id, 0] += 0.1
    with pytest.raises(ValueError, match="not .'table'."):
        env.engine.set_field("geom_pos", torch.tensor([0]), moved)
    env.close()
