"""The scene against PixMC's published figures, and physics that a person would believe."""

import mujoco
import numpy as np
import pytest
import torch

import envs
from envs.kinematics import ArmKinematics, looking_along
from envs.mujoco_engine import MujocoEngine
from envs.scenes import SUBSTEPS, franka_pick_scene
from envs.scripted import ScriptedMotions
from envs.spec import FRANKA


@pytest.fixture(scope="module")
def model():
    return franka_pick_scene().compile()


def at_default_pose(model) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:9] = FRANKA.default_pose
    mujoco.mj_forward(model, data)
    return data


def test_forward_kinematics_at_the_default_pose(model):
    """pixmc.md 1.2: computed there from the manufacturer's URDF."""
    data = at_default_pose(model)
    hand = data.body("panda_hand")
    axes = hand.xmat.reshape(3, 3)
    np.testing.assert_allclose(hand.xpos, (0.7838, 0.0142, 0.8003), atol=1e-4)
    np.testing.assert_allclose(axes[:, 2], (-0.4369, 0.8930, -0.1077), atol=1e-4)
    np.testing.assert_allclose(axes[:, 0], (-0.8992, -0.4307, 0.0764), atol=1e-4)
    np.testing.assert_allclose(data.site("left_grasp").xpos, (0.7394, 0.1111, 0.8239), atol=1e-4)
    np.testing.assert_allclose(data.site("right_grasp").xpos, (0.7379, 0.1020, 0.7545), atol=1e-4)


def test_wrist_camera_pose(model):
    """pixmc.md 1.5: nominal world position, looking along the hand's z with its x upwards."""
    camera = at_default_pose(model).camera("wrist")
    axes = camera.xmat.reshape(3, 3)
    np.testing.assert_allclose(camera.xpos, (0.7282, 0.0372, 0.7985), atol=1e-4)
    np.testing.assert_allclose(-axes[:, 2], (-0.4369, 0.8930, -0.1077), atol=1e-4)
    np.testing.assert_allclose(axes[:, 1], (-0.8992, -0.4307, 0.0764), atol=1e-4)


def test_cube_mass_is_that_of_water(model):
    assert model.body("cube").mass[0] == pytest.approx(0.045**3 * 1000)


def test_arm_holds_its_pose_against_gravity(model):
    data = at_default_pose(model)
    data.ctrl[:] = FRANKA.default_pose
    for _ in range(500):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos[:9], FRANKA.default_pose, atol=1e-3)


def test_inverse_kinematics_reaches_what_forward_kinematics_says(model):
    arm = ArmKinematics(model)
    rotation = looking_along(np.array([0.1, 0.05, -1.0]), 0.3)
    joints, left = arm.solve(
        np.array([0.5, 0.1, 0.55]), rotation, np.array(FRANKA.default_pose[:7])
    )
    point, reached = arm.pose(joints)
    assert left < 2e-3
    np.testing.assert_allclose(point, (0.5, 0.1, 0.55), atol=2e-3)
    np.testing.assert_allclose(reached, rotation, atol=5e-3)


def test_hand_rotation_is_a_rotation():
    rotation = looking_along(np.array([1.0, 0.0, 0.0]), 0.7)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_contact_sensor_feels_the_weight_it_should(model):
    """A cube laid on link 5 presses on it with its weight once it has come to rest, or slides off
    after having touched it: the sensor must have read more than nothing and less than a crash."""
    engine = MujocoEngine(franka_pick_scene(), 1, threads=1)
    qpos = torch.zeros(1, 16)
    qpos[0, :9] = torch.tensor(FRANKA.default_pose)
    data = at_default_pose(model)
    top = data.body("panda_link5").xpos + [0, 0, 0.11]
    qpos[0, 9:12], qpos[0, 12] = torch.tensor(top), 1.0
    engine.reset(torch.tensor([0]), qpos)
    felt = []
    for _ in range(30):
        engine.step(qpos[:, :9], SUBSTEPS)
        felt.append(engine.read()["sensors"].reshape(8, 3).norm(dim=1).max().item())
    engine.close()
    assert 0.2 < max(felt) < 100


def test_scripted_hand_picks_the_cube_up():
    """The cube can be grasped and lifted: most episodes of the script are PixMC successes."""
    task = envs.make("FrankaPick", 8, seed=3)
    task.reset()
    motions = ScriptedMotions(task, {"pick": 1.0}, seed=0)
    for _ in range(499):
        task.step(motions.act())
    _, _, reset, extras = task.step(motions.act())
    task.close()
    assert reset.all() and extras["successes"].sum() >= 4
