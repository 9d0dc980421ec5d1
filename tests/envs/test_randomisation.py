"""Randomisation: only what is asked, within its ranges, the same for the same episode."""

from typing import Any

import numpy as np
import pytest
import torch

import envs
from envs import spec
from envs.mujoco_engine import MujocoEngine
from envs.randomisation import DYNAMICS_LEVELS, Randomiser
from envs.scenes import SCENES


class Recorder:
    """An engine that only remembers the fields it is given."""

    device = "cpu"

    def __init__(self, model):
        self.model, self.fields = model, {}

    def set_field(self, name: str, ids: torch.Tensor, values: torch.Tensor) -> None:
        for world, value in zip(ids.tolist(), values, strict=True):
            self.fields[name, world] = value.clone()


@pytest.fixture(scope="module")
def model():
    return SCENES["franka_pick"]().compile()


def drawn(model, ids, episodes, visuals="strong", dynamics="strong", seed=0) -> dict:
    recorder: Any = Recorder(model)
    randomiser = Randomiser(recorder, visuals, dynamics, seed)
    randomiser.apply(torch.tensor(ids), torch.tensor(episodes))
    return recorder.fields


def test_draws_depend_on_seed_world_and_episode_alone(model):
    alone, among = drawn(model, [3], [7]), drawn(model, [0, 3, 9], [1, 7, 0])
    for (name, world), value in alone.items():
        assert torch.equal(value, among[name, world])
    for other in (drawn(model, [3], [8]), drawn(model, [4], [7]), drawn(model, [3], [7], seed=1)):
        assert not torch.equal(alone["cam_pos", 3], next(iter(other.values())))
        world = next(iter(other))[1]
        assert not torch.equal(alone["body_mass", 3], other["body_mass", world])


def test_dynamics_stay_within_their_ranges(model):
    worlds = list(range(50))
    fields = drawn(model, worlds, [0] * 50, visuals="fixed")
    level, cube = DYNAMICS_LEVELS["strong"], model.body("cube").id
    masses = np.array([fields["body_mass", w][cube] for w in worlds]) / model.body_mass[cube]
    assert masses.min() >= 0.5 and masses.max() <= 2.0 and masses.std() > 0.2
    inertia = fields["body_inertia", 0][cube] / torch.from_numpy(model.body_inertia[cube])
    torch.testing.assert_close(inertia, torch.full((3,), masses[0]).double(), rtol=1e-6, atol=0)
    pad = np.array([fields["geom_friction", w][-1, 0] for w in worlds]) / model.geom_friction[-1, 0]
    assert level.friction[0] <= pad.min() and pad.max() <= level.friction[1]
    for world in worlds:  # a servo's gain and bias belong together, or it would pull to elsewhere
        gain, bias = fields["actuator_gainprm", world][:, 0], fields["actuator_biasprm", world]
        torch.testing.assert_close(gain, -bias[:, 1])
    hand = model.body("panda_hand").id
    assert all(fields["body_mass", w][hand] == model.body_mass[hand] for w in worlds)


def test_fixed_touches_nothing(model):
    assert drawn(model, [0, 1], [0, 0], "fixed", "fixed") == {}
    assert all("geom_friction" != name for name, _ in drawn(model, [0], [0], dynamics="fixed"))


def test_unknown_level_names_the_nearest(model):
    engine: Any = Recorder(model)
    with pytest.raises(ValueError, match="dynamics='stong'; did you mean 'strong'"):
        Randomiser(engine, "fixed", "stong", 0)
    with pytest.raises(ValueError, match="visuals must be one of.*'fixed', 'mild', 'strong'"):
        envs.make("FrankaPick", 1, visuals="wild")


@pytest.mark.parametrize("task", spec.TASK_NAMES.values())
def test_an_episode_of_every_task_under_strong_randomisation(task):
    env = envs.make(task, 8, dynamics="strong", visuals="strong")
    env.reset()
    for _ in range(30):
        obs, _, _, _ = env.step(2 * torch.rand(8, env.num_actions) - 1)
        assert obs["obs"].isfinite().all()
    assert env.bad_worlds == 0
    env.close()


def test_one_worlds_draw_leaves_the_others_bits_alone():
    def cube(randomised: bool) -> torch.Tensor:
        task = envs.make("FrankaPick", 3, seed=1)
        task.reset()
        if randomised:
            one = torch.tensor([1])
            Randomiser(task.engine, "fixed", "strong", 0).apply(one, torch.tensor([4]))
        for _ in range(20):
            task.step(torch.full((3, 9), 0.3))
        qpos = task.engine.read()["qpos"]
        task.close()
        return qpos

    plain, varied = cube(False), cube(True)
    assert torch.equal(plain[[0, 2]], varied[[0, 2]]) and not torch.equal(plain[1], varied[1])


def test_mass_and_friction_are_felt():
    """Twice the mass, half the acceleration; a slippery cube slides on."""
    engine = MujocoEngine(SCENES["franka_pick"](), 3, threads=1)
    qpos = torch.from_numpy(engine.model.qpos0).float().repeat(3, 1)
    cube = engine.model.body("cube").id
    for name in ("body_mass", "body_inertia"):
        heavier = torch.from_numpy(getattr(engine.model, name).copy())
        heavier[cube] *= 2
        engine.set_field(name, torch.tensor([1]), heavier[None])
    slippery = torch.from_numpy(0.01 * engine.model.geom_friction)
    engine.set_field("geom_friction", torch.tensor([2]), slippery[None])
    engine.reset(torch.arange(3), qpos)
    engine._qvel[:, 9] = 0.3
    for _ in range(20):
        engine.step(qpos[:, :9], 4)
    slid = engine.read()["qpos"][:, 9] - qpos[:, 9]
    assert slid[2] > 3 * slid[0] > 0
    qpos[:, 11] = 1.5  # in the air
    engine.reset(torch.arange(3), qpos)
    force = engine._batch.bind("xfrc_applied")
    force[:, cube, 0] = 1.0
    engine.step(qpos[:, :9], 4)
    speed = engine.read()["qvel"][:, 9]
    assert (speed[0] / speed[1]).item() == pytest.approx(2.0, rel=1e-6)
    engine.close()


def test_fields_that_cannot_vary_are_refused():
    engine = MujocoEngine(SCENES["franka_pick"](), 1)
    with pytest.raises(ValueError, match="'nonsense' is not a model field"):
        engine.set_field("nonsense", torch.tensor([0]), torch.zeros(1, 1))
    engine.close()


def test_textures_leave_the_scenes_own_looks_alone(needs_gl):
    """`strong` compiles more materials into the scene; a world that draws none looks as ever."""
    plain, textured = (envs.make("FrankaPick", 1, visuals=v) for v in ("fixed", "strong"))
    for task in (plain, textured):
        task.engine.reset(torch.tensor([0]), torch.from_numpy(task.engine.model.qpos0)[None])
    assert torch.equal(*(task.render_film([0]) for task in (plain, textured)))
    for task in (plain, textured):
        task.close()
