"""The cabinet against PixMC's published figures, and a drawer that opens as it should."""

import mujoco
import numpy as np
import pytest

import envs
from envs.furniture import PROP_OFFSETS_M
from envs.scenes import CABINET_POS_M, franka_cabinet_scene
from envs.scripted import ScriptedMotions
from envs.spec import FRANKA

JOINTS = ["door_left_joint", "door_right_joint", "drawer_bottom_joint", "drawer_top_joint"]


@pytest.fixture(scope="module")
def model():
    return franka_cabinet_scene().compile()


def at_rest(model) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:9] = FRANKA.default_pose
    data.ctrl[:] = FRANKA.default_pose
    mujoco.mj_forward(model, data)
    return data


def props(data) -> np.ndarray:
    return np.stack([data.body(f"prop_{i}").xpos for i in range(4)])


def test_handle_and_its_travel(model):
    """pixmc.md 1.7: nominal handle point, and 0.4 m along x."""
    data = at_rest(model)
    np.testing.assert_allclose(data.site("handle").xpos, (0.4065, 0, 0.7772), atol=1e-4)
    data.joint("drawer_top_joint").qpos = 0.4
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.site("handle").xpos, (0.8065, 0, 0.7772), atol=1e-4)


def test_joints_follow_the_robots(model):
    assert [model.joint(i).name for i in range(9, 13)] == JOINTS
    for name in JOINTS:
        joint = model.joint(name)
        assert joint.damping[0] == 10.0 and joint.armature[0] == 0.005
    np.testing.assert_allclose(model.joint("drawer_top_joint").range, (0.0, 0.4))


def test_the_cabinet_moves_as_a_whole(model):
    """It is a mocap body: each world can have it elsewhere, without another model."""
    data = at_rest(model)
    data.mocap_pos[0] += (0.03, -0.05, 0.04)
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.site("handle").xpos, (0.4365, -0.05, 0.8172), atol=1e-4)


def test_props_rest_in_the_drawer(model):
    data = at_rest(model)
    start = props(data)
    np.testing.assert_allclose(start, np.array(CABINET_POS_M) + np.array(PROP_OFFSETS_M))
    mujoco.mj_step(model, data, nstep=480)
    assert np.abs(props(data) - start).max() < 2e-3
    assert model.body("prop_0").mass[0] == pytest.approx(0.08**3 * 400)


def test_a_constant_pull_opens_the_drawer_as_newton_says(model):
    """Opening under 20 N: v(t) = F/d (1 - exp(-d t / m)), with what rides in it as its mass."""
    data = at_rest(model)
    data.qpos[0] = data.ctrl[0] = -1.0  # the arm turned out of the way
    drawer = model.joint("drawer_top_joint")
    data.qfrc_applied[drawer.dofadr[0]] = 20.0
    steps = 60
    mujoco.mj_step(model, data, nstep=steps)
    seconds, damping = steps * model.opt.timestep, 10.0
    mass = model.body("drawer_top").mass[0] + 0.005

    def opening(m: float) -> float:
        speed, decay = 20.0 / damping, damping / m
        return speed * (seconds + (np.exp(-decay * seconds) - 1) / decay)

    q = data.joint("drawer_top_joint").qpos[0]
    load = 4 * model.body("prop_0").mass[0]  # the props may slide a little
    assert opening(mass + load) * 0.98 < q < opening(mass) * 1.02
    mujoco.mj_step(model, data, nstep=240)
    assert 0.39 < data.joint("drawer_top_joint").qpos[0] < 0.402, (
        "it stops at the end of its travel"
    )
    inside = props(data) - data.body("drawer_top").xpos
    assert (np.abs(inside[:, :2]) < (0.25, 0.34)).all() and np.abs(inside[:, 2]).max() < 0.05


def test_doors_open_outwards(model):
    data = at_rest(model)
    for name, angle in (("door_left_joint", -1.5), ("door_right_joint", 1.5)):
        data.joint(name).qpos = angle
    mujoco.mj_forward(model, data)
    for name in ("door_left", "door_right"):
        front = data.body(name).xipos[0]
        assert front > data.body("cabinet").xpos[0] + 0.45


def test_a_scripted_hand_opens_the_drawer():
    """Fingers above and below the handle, close, pull: PixMC's success, and no arm link hits."""
    env = envs.make("FrankaCabinet", 8, seed=0)
    env.reset()
    motions = ScriptedMotions(env, {"open": 1.0}, seed=0)
    hits, extras = 0, {}
    for _ in range(499):
        _, _, reset, extras = env.step(motions.act())
        hits += int(reset.sum())
    assert hits == 0 and extras["successes"].sum() >= 6
    env.close()
