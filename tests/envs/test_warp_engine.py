"""MuJoCo Warp on the CPU against MuJoCo's C engine: the same tasks, the same numbers.

The first run on a machine compiles Warp's kernels, about a minute and a half in all.
"""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import envs
from envs import distractors, spec
from envs.mujoco_engine import MujocoEngine
from envs.physics import Physics
from envs.scenes import SCENES
from envs.tasks import TASKS

pytest.importorskip("mujoco_warp")
from envs.warp_engine import WarpEngine

SUBSTEPS = 4
# Warp and torch announce what this machine lacks or will drop; neither is ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*[Ww]arp.*")


@pytest.fixture(scope="module")
def engines():
    """Four worlds of Franka pick in both engines, at the same reset states."""
    pair = (MujocoEngine(SCENES["franka_pick"](), 4), WarpEngine(SCENES["franka_pick"](), 4))
    yield pair
    for engine in pair:
        engine.close()


def put_at_reset(engines, task="FrankaPick", seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(4, TASKS[task].num_reset_draws, generator=generator)
    qpos, mocap_pos = TASKS[task].sample_reset(draws)
    for engine in engines:
        engine.reset(torch.arange(4), qpos, mocap_pos)
    return qpos


def test_it_is_a_physics(engines):
    """The annotation is the test, for the type checker."""
    engine: Physics = engines[1]
    assert engine.num_worlds == 4 and set(engine.read()) == set(engines[0].read())


def worst_differences(pair, steps: int = 100) -> dict[str, float]:
    """Of two builds of a task under the same actions. Gentle motions: what is thrown about by hard
    contacts is chaotic in any engine."""
    first, second = (env.reset()["obs"].cpu() for env in pair)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    rng = np.random.default_rng(0)
    worst = {"obs": 0.0, "reward": 0.0}
    for _ in range(steps):
        actions = torch.from_numpy(rng.uniform(-0.3, 0.3, (4, pair[0].num_actions))).float()
        c, w = (env.step(actions.to(env.device)) for env in pair)
        worst["obs"] = max(worst["obs"], (c[0]["obs"] - w[0]["obs"].cpu()).abs().max().item())
        worst["reward"] = max(worst["reward"], (c[1] - w[1].cpu()).abs().max().item())
        assert c[2].tolist() == w[2].tolist()
    return worst


@pytest.mark.parametrize("task", spec.TASK_NAMES.values())
def test_observations_and_rewards_agree_over_100_steps(task):
    pair = [envs.make(task, 4, seed=3, engine=engine) for engine in ("mujoco", "warp")]
    worst = worst_differences(pair)
    for env in pair:
        env.close()
    assert worst["obs"] < 1e-4 and worst["reward"] < 1e-3, worst  # rewards are of order 1 to 40


@pytest.mark.gpu
@pytest.mark.parametrize("task", spec.TASK_NAMES.values())
def test_the_gpu_gives_the_same_numbers_and_pictures(task):
    """Graphs are recorded at the second call, so both ways of running are compared."""
    pair = [envs.make(task, 4, seed=3, sim_device=device) for device in ("cpu", "cuda")]
    worst = worst_differences(pair)
    assert pair[1].obs_buf.is_cuda
    pictures = [env.engine.render("wrist", 84, 84).cpu().float() for env in pair for _ in range(3)]
    for env in pair:
        env.close()
    assert worst["obs"] < 1e-3 and worst["reward"] < 1e-2, worst
    assert (pictures[0] - pictures[5]).abs().mean() < 2.0


def test_contact_forces_agree_when_a_cube_lands_on_the_arm(engines):
    qpos = put_at_reset(engines)
    engines[0].reset(torch.arange(4), qpos)
    links = engines[0]._batch.bind("xpos")
    engines[0]._batch.forward()
    above = torch.from_numpy(links[:, engines[0].model.body("panda_link5").id].copy()).float()
    qpos[:, 9:12] = above + torch.tensor([0.0, 0.0, 0.13])
    felt = []
    for engine in engines:
        engine.reset(torch.arange(4), qpos)
        felt.append([])
        for _ in range(12):
            engine.step(qpos[:, :9], SUBSTEPS)
            felt[-1].append(engine.read()["sensors"])
    c, w = (torch.stack(forces) for forces in felt)  # [step, world, 24]
    for world in range(4):  # up to the first touch: what comes after it bounces off differently
        touched = (c[:, world].abs().amax(1) > 0.2).nonzero()
        assert len(touched), "the cube has touched the arm"
        first = slice(0, int(touched[0]) + 1)
        torch.testing.assert_close(c[first, world], w[first, world], atol=0.05, rtol=0.01)


def test_reset_touches_only_the_named_worlds(engines):
    warp = engines[1]
    qpos = put_at_reset(engines)
    for _ in range(3):
        warp.step(qpos[:, :9] + 0.05, SUBSTEPS)
    before = warp.read()
    warp.reset(torch.tensor([2]), qpos[:1])
    after = warp.read()
    others = [0, 1, 3]
    for name in before:
        assert torch.equal(before[name][others], after[name][others]), name
    torch.testing.assert_close(after["qpos"][2], qpos[0])
    assert (after["qvel"][2] == 0).all() and (after["sensors"][2] == 0).all()
    expected = engines[0].read()["site_pos"][0]  # the C engine still stands at the reset states
    torch.testing.assert_close(after["site_pos"][2], expected, atol=1e-5, rtol=0)


def test_a_world_that_diverges_is_reported_and_the_others_go_on():
    task = envs.make("FrankaPick", 3, engine="warp")
    task.reset()
    engine: Any = task.engine
    engine._qvel[1] = float("nan")
    obs, reward, reset, extras = task.step(torch.zeros(3, 9))
    assert extras["bad_worlds"] == 1 and reset.tolist() == [0, 1, 0] and reward[1] == 0
    assert obs["obs"].isfinite().all() and extras["terminal_obs"]["obs"].isfinite().all()
    assert task.progress_buf.tolist() == [1, 0, 1]


def test_friction_of_one_world():
    """A cube on a slippery table is left behind by a push; on a rough one it stops."""
    engine = WarpEngine(SCENES["franka_pick"](), 2)
    qpos = TASKS["FrankaPick"].sample_reset(torch.full((2, 11), 0.5))[0]
    friction = torch.from_numpy(engine.model.geom_friction).float()
    engine.set_field("geom_friction", torch.tensor([1]), 0.01 * friction[None])
    engine.reset(torch.arange(2), qpos)
    engine._qvel[:, 9] = 0.3
    for _ in range(20):
        engine.step(qpos[:, :9], SUBSTEPS)
    slid = engine.read()["qpos"][:, 9] - qpos[:, 9]
    assert slid[1] > 3 * slid[0] > 0


def test_mass_of_one_world_is_felt():
    """Twice the mass under the same force: half the acceleration."""
    engine = WarpEngine(SCENES["franka_pick"](), 2)
    cube = engine.model.body("cube").id
    for name in ("body_mass", "body_inertia"):
        nominal = torch.from_numpy(getattr(engine.model, name)).float()
        heavier = nominal.clone()
        heavier[cube] *= 2
        engine.set_field(name, torch.tensor([1]), heavier[None])
    qpos = TASKS["FrankaPick"].sample_reset(torch.full((2, 11), 0.5))[0]
    qpos[:, 11] = 1.5  # in the air
    engine.reset(torch.arange(2), qpos)
    import warp as wp

    force = wp.to_torch(engine._data.xfrc_applied)
    force[:, cube, 0] = 1.0
    engine.step(qpos[:, :9], SUBSTEPS)
    speed = engine.read()["qvel"][:, 9]
    assert (speed[0] / speed[1]).item() == pytest.approx(2.0, rel=1e-3)


def test_fields_that_cannot_vary_are_refused(engines):
    with pytest.raises(ValueError, match="'jnt_type'|'nonsense'"):
        engines[1].set_field("nonsense", torch.tensor([0]), torch.zeros(1))


class TestImages:
    @pytest.mark.parametrize("task", spec.TASK_NAMES.values())
    @pytest.mark.parametrize("camera", ["wrist", "third_person"])
    def test_pictures_agree_with_opengl(self, task, camera, needs_gl):
        scene = TASKS[task].scene
        pair = (MujocoEngine(scene(), 4), WarpEngine(scene(), 4))
        put_at_reset(pair, task)
        c, w = (engine.render(camera, 84, 84).float() for engine in pair)
        assert (c - w).abs().mean() < 2.0  # of 255
        ids = [engine.render_geom_ids(camera, 84, 84) for engine in pair]
        assert (ids[0] == ids[1]).float().mean() > 0.99
        pair[0].close()

    def test_colour_and_camera_of_one_world(self, engines):
        warp = engines[1]
        put_at_reset(engines)
        plain = warp.render("third_person", 32, 32)
        colours = torch.from_numpy(warp.model.geom_rgba.copy())
        colours[warp.model.geom("table").id] = torch.tensor([1.0, 0.0, 0.0, 1.0])
        warp.set_field("geom_rgba", torch.tensor([1]), colours[None])
        wider = torch.from_numpy(warp.model.cam_fovy).float() + 20
        warp.set_field("cam_fovy", torch.tensor([3]), wider[None])
        changed = warp.render("third_person", 32, 32)
        assert torch.equal(plain[[0, 2]], changed[[0, 2]])
        assert (changed[1, ..., 0].float() - changed[1, ..., 2].float()).max() > 100  # red
        assert not torch.equal(plain[3], changed[3])
        few = warp.render("third_person", 32, 32, torch.tensor([3]))  # another batch size inside
        assert torch.equal(few[0], changed[3])

    def test_distractors_stand_where_opengl_sees_them(self, needs_gl):
        """Warp places the world body's shapes once: it must hear of those that are moved."""
        pictures = []
        for engine in ("mujoco", "warp"):
            task = envs.make("FrankaPick", 2, seed=5, visuals="distractors", engine=engine)
            task.reset()
            ids = task.engine.render_geom_ids("third_person", 84, 84)
            own = torch.from_numpy(distractors.geoms(task.engine.model))
            assert torch.isin(ids, own).sum(dim=(1, 2)).min() > 30
            pictures.append(ids)
            task.close()
        assert (pictures[0] == pictures[1]).float().mean() > 0.99

    def test_pixels_as_observations(self):
        task = envs.make("KukaCabinet", 2, engine="warp", obs="pixels", image_size=32)
        frames = task.reset()["obs"]
        assert frames.shape == (2, 32, 32, 3) and frames.dtype == torch.uint8
        assert frames.float().std() > 10
        task.close()


def test_without_opengl_the_ray_caster_draws():
    """MUJOCO_GL=disable stands for a machine without GL; the message says what is faster."""
    script = (
        "import envs, torch\n"
        "task = envs.make('FrankaPick', 6, obs='pixels', image_size=32)\n"
        "frames = task.reset()['obs']\n"
        "print(tuple(frames.shape), frames.float().std() > 10)\n"
        "print(int((task.engine.render_geom_ids('third_person', 32, 32) >= 0).sum()) > 100)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300,
        env=os.environ | {"MUJOCO_GL": "disable"},
    )  # fmt: skip
    assert "(6, 32, 32, 3) tensor(True)\nTrue" in result.stdout, result.stderr
    assert "ray-caster" in result.stderr and "install_system.sh" in result.stderr
