"""Randomisation: only what is asked, within its ranges, the same for the same episode."""

import copy
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

import envs
from envs import spec
from envs.mujoco_engine import MujocoEngine
from envs.randomisation import MIN_CONTRAST, Randomiser
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


def differ(some: dict, world: int, others: dict, other_world: int) -> bool:
    """Whether every field differs, but for those that need not: Franka pick has no damping."""
    names = {name for name, _ in some} - {"geom_matid", "dof_damping"}
    return not any(torch.equal(some[n, world], others[n, other_world]) for n in names)


def test_draws_depend_on_seed_world_and_episode_alone(model):
    alone, among = drawn(model, [3], [7]), drawn(model, [0, 3, 9], [1, 7, 0])
    for (name, world), value in alone.items():
        assert torch.equal(value, among[name, world])
    assert differ(alone, 3, drawn(model, [3], [8]), 3)
    assert differ(alone, 3, drawn(model, [4], [7]), 4)
    assert differ(alone, 3, drawn(model, [3], [7], seed=1), 3)


def test_reseeding_is_a_fresh_start(model):
    recorder: Any = Recorder(model)
    randomiser = Randomiser(recorder, "strong", "strong", seed=5)
    randomiser.reseed(1)
    randomiser.apply(torch.tensor([3]), torch.tensor([7]))
    for key, value in drawn(model, [3], [7], seed=1).items():
        assert torch.equal(value, recorder.fields[key])


def test_dynamics_stay_within_their_ranges(model):
    """Bounds by hand: a cube of 45 mm and 1000 kg/m^3 has 91.1 g, a finger's pad friction 1."""
    worlds = list(range(50))
    fields = drawn(model, worlds, [0] * 50, visuals="fixed")
    cube = model.body("cube").id
    mass_kg = np.array([fields["body_mass", w][cube] for w in worlds])
    assert 0.04556 < mass_kg.min() < 0.06 and 0.15 < mass_kg.max() < 0.18226
    inertia = np.array([fields["body_inertia", w][cube, 0] for w in worlds])
    np.testing.assert_allclose(inertia, mass_kg * 0.045**2 / 6)
    pad = np.array([fields["geom_friction", w][-1, 0] for w in worlds])
    assert 0.5 <= pad.min() < 0.6 and 1.6 < pad.max() <= 2.0
    for world in worlds:
        gain, bias = fields["actuator_gainprm", world][:, 0], fields["actuator_biasprm", world]
        # a servo's gain and bias belong together, or it would pull to elsewhere
        torch.testing.assert_close(gain, -bias[:, 1])
        assert ((300 <= gain[:7]) & (gain[:7] <= 532)).all()  # 400 N m/rad
        assert ((60 <= -bias[:7, 2]) & (-bias[:7, 2] <= 106.4)).all()  # 80 N m s/rad
    hand = model.body("panda_hand").id
    assert all(fields["body_mass", w][hand] == model.body_mass[hand] for w in worlds)


def test_the_cabinets_damping_and_props_vary():
    """Bounds by hand: 10 N m s/rad; a prop of 80 mm and 400 kg/m^3 has 204.8 g."""
    cabinet, worlds = SCENES["franka_cabinet"]().compile(), list(range(50))
    fields = drawn(cabinet, worlds, [0] * 50, visuals="fixed")
    hinge = cabinet.joint("drawer_top_joint").dofadr[0]
    damping = np.array([fields["dof_damping", w][hinge] for w in worlds])
    assert 5.0 <= damping.min() < 6.0 and 17.0 < damping.max() <= 20.0
    props = [cabinet.body(f"prop_{i}").id for i in range(4)]
    mass_kg = np.array([fields["body_mass", w][props].numpy() for w in worlds])
    assert 0.1024 <= mass_kg.min() < 0.12 and 0.35 < mass_kg.max() <= 0.4096
    assert np.abs(np.corrcoef(mass_kg.T) - np.eye(4)).max() < 0.5  # each its own
    drawer = cabinet.body("drawer_top").id
    assert all(fields["body_mass", w][drawer] == cabinet.body_mass[drawer] for w in worlds)


def test_looks_stay_within_their_ranges(model):
    """Bounds by hand: the light's brightness is 0.4; deviations are cut at twice their value."""
    worlds = list(range(100))
    fields = drawn(model, worlds, [0] * 100, dynamics="fixed")
    wrist = model.camera("wrist").id
    for world in worlds:
        assert (fields["light_diffuse", world] >= 0.12 - 1e-6).all()
        assert (fields["light_diffuse", world] <= 0.48 + 1e-6).all()
        moved_m = fields["cam_pos", world][wrist] - torch.from_numpy(model.cam_pos[wrist])
        assert moved_m.abs().max() <= 0.008 + 1e-9
        turned = (fields["cam_quat", world][wrist] * torch.from_numpy(model.cam_quat[wrist])).sum()
        assert 2 * torch.acos(turned.clip(-1, 1)) <= 0.08 * 3**0.5
        assert (fields["cam_fovy", world][wrist] - model.cam_fovy[wrist]).abs() <= 4 + 1e-4
        assert (fields["geom_rgba", world] >= 0).all()


@pytest.mark.parametrize("level", ["mild", "strong", "film"])
def test_the_cube_stands_out_from_the_table(model, level):
    worlds = list(range(300))
    fields = drawn(model, worlds, [0] * 300, visuals=level, dynamics="fixed")
    rgba = torch.stack([fields["geom_rgba", w] for w in worlds])
    cube, table = rgba[:, model.geom("cube").id, :3], rgba[:, model.geom("table").id, :3]
    for shade in (1.0, 0.7):
        assert (cube - shade * table).norm(dim=1).min() >= MIN_CONTRAST - 1e-6


def test_fixed_touches_nothing(model):
    assert drawn(model, [0, 1], [0, 0], "fixed", "fixed") == {}
    assert all("geom_friction" != name for name, _ in drawn(model, [0], [0], dynamics="fixed"))


def test_unknown_level_names_the_nearest(model):
    engine: Any = Recorder(model)
    with pytest.raises(ValueError, match="dynamics='stong'; did you mean 'strong'"):
        Randomiser(engine, "fixed", "stong", 0)
    with pytest.raises(
        ValueError, match="visuals='wild'; did you mean 'mild'. Levels: .'fixed', 'mild', 'strong'"
    ):
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
    """A draw in the middle of an episode: what the others read then and later."""
    reads = {}
    for randomised in (False, True):
        task = envs.make("KukaCabinet", 3, seed=1)
        task.reset()
        reads[randomised] = []
        for step in range(20):
            task.step(torch.full((3, task.num_actions), 0.3))
            if randomised and step == 5:
                one = torch.tensor([1])
                Randomiser(task.engine, "strong", "strong", 0).apply(one, torch.tensor([4]))
                task.reset_idx(one)
            reads[randomised].append(task.engine.read())
        task.close()
    others = [0, 2]
    for plain, varied in zip(reads[False], reads[True], strict=True):
        for name, value in plain.items():
            assert torch.equal(value[others], varied[name][others]), name
    assert not torch.equal(reads[False][-1]["qpos"][1], reads[True][-1]["qpos"][1])


def test_constants_that_derive_from_masses_follow_in_that_world():
    """Against MuJoCo's own `mj_setConst` on a model with those masses."""
    engine = MujocoEngine(SCENES["franka_pick"](), 3, threads=1)
    Randomiser(engine, "fixed", "strong", 0).apply(torch.tensor([1]), torch.tensor([0]))
    engine.reset(torch.tensor([1]), torch.from_numpy(engine.model.qpos0)[None])
    expected = copy.copy(engine.model)
    for name in ("body_mass", "body_inertia"):
        getattr(expected, name)[:] = engine._batch.expand(name)[1]
    mujoco.mj_setConst(expected, mujoco.MjData(expected))
    for name in ("body_invweight0", "dof_invweight0", "body_subtreemass"):
        derived = engine._batch.expanded(name)
        assert derived is not None
        np.testing.assert_allclose(derived[1], getattr(expected, name), rtol=1e-12)
        np.testing.assert_array_equal(derived[0], getattr(engine.model, name))
    assert not np.allclose(expected.body_invweight0, engine.model.body_invweight0)
    engine.close()


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
    for camera in ("wrist", "third_person"):
        assert torch.equal(*(task.render_film([0], camera) for task in (plain, textured)))
    for task in (plain, textured):
        task.close()


def test_strong_looks_are_neither_black_nor_blown_out(needs_gl):
    task = envs.make("FrankaPick", 16, seed=3, visuals="strong")
    task.reset()
    model = task.engine.model
    frames = task.render_film(range(16), "third_person", 96, 96).float()
    ids = task.engine.render_geom_ids("third_person", 96, 96)
    for frame, seen in zip(frames, ids, strict=True):
        assert 40 < frame[seen >= 0].mean() < 200
        assert (frame.amin(-1) >= 254).float().mean() < 0.2
        cube, table = (frame[seen == model.geom(name).id].mean(0) for name in ("cube", "table"))
        assert (cube - table).norm() > 40
    assert len({tuple(frame[-1, -1].tolist()) for frame in frames}) == 16  # sixteen floors
    task.close()
