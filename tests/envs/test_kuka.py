"""The Kuka with its Allegro hand against PixMC's published figures, and drives that behave."""

import mujoco
import numpy as np
import pytest

from envs.scenes import kuka_pick_scene
from envs.spec import KUKA

DEFAULT = np.clip(KUKA.default_pose, KUKA.lower, KUKA.upper)


@pytest.fixture(scope="module")
def model():
    return kuka_pick_scene().compile()


def at_pose(model, joints=DEFAULT) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:23] = joints
    data.ctrl[:] = joints
    mujoco.mj_forward(model, data)
    return data


def touching(model, data) -> set[tuple[str, str]]:
    def body(geom: int) -> str:
        return model.body(model.geom_bodyid[geom]).name

    return {(body(c.geom1), body(c.geom2)) for c in data.contact}


def test_forward_kinematics_at_the_default_pose(model):
    """pixmc.md 1.2: computed there from the URDF at scale 0.9."""
    data = at_pose(model)
    mount = data.body("allegro_mount")
    axes = mount.xmat.reshape(3, 3)
    np.testing.assert_allclose(mount.xpos, (0.8002, 0, 0.9307), atol=1e-4)
    np.testing.assert_allclose(axes[:, 2], (-0.9996, 0, -0.0292), atol=1e-4)
    np.testing.assert_allclose(axes[:, 0], (0.0292, 0, -0.9996), atol=1e-4)
    for finger, place in {
        "index": (0.5538, -0.0253, 0.9163),
        "middle": (0.5512, 0.0264, 0.9162),
        "ring": (0.5538, 0.0782, 0.9163),
        "thumb": (0.7643, -0.1379, 0.9014),
    }.items():
        np.testing.assert_allclose(data.site(f"{finger}_grasp").xpos, place, atol=1e-4)


def test_wrist_camera_pose(model):
    """pixmc.md 1.5: nominal world position, along the mount's z, its -x upwards."""
    data = at_pose(model)
    camera, mount = data.camera("wrist"), data.body("allegro_mount").xmat.reshape(3, 3)
    axes = camera.xmat.reshape(3, 3)
    np.testing.assert_allclose(camera.xpos, (0.7816, 0, 0.8801), atol=1e-4)
    np.testing.assert_allclose(-axes[:, 2], mount[:, 2], atol=1e-6)
    np.testing.assert_allclose(axes[:, 1], -mount[:, 0], atol=1e-6)


def test_joints_are_those_of_the_spec(model):
    names = [model.joint(i).name for i in range(23)]
    assert names == list(KUKA.joint_names) == [model.actuator(i).name for i in range(23)]
    np.testing.assert_allclose(model.jnt_range[:23], np.stack([KUKA.lower, KUKA.upper], 1))
    effort = (320, 320, 176, 176, 110, 40, 40) + (0.7,) * 16
    np.testing.assert_allclose(model.actuator_forcerange[:, 1], effort)


def test_nothing_touches_at_reset_poses(model):
    """The base stands on the floor; else an episode would end before it begins."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        noise = rng.uniform(-0.125, 0.125, 23)
        pose = np.clip(np.array(KUKA.default_pose) + noise, KUKA.lower, KUKA.upper)
        assert touching(model, at_pose(model, pose)) <= {("world", "cube")}


def test_holds_its_pose(model):
    data = at_pose(model)
    mujoco.mj_step(model, data, nstep=480)
    np.testing.assert_allclose(data.qpos[:23], DEFAULT, atol=2e-3)
    assert np.abs(data.qvel[:23]).max() < 1e-3


def test_fingers_reach_their_targets_and_stay_quiet(model):
    goal = DEFAULT.copy()
    goal[7:] = np.clip(goal[7:] + 0.3, KUKA.lower[7:], KUKA.upper[7:])
    data = at_pose(model)
    data.ctrl[:] = goal
    speeds = []
    for _ in range(480):
        mujoco.mj_step(model, data)
        speeds.append(np.abs(data.qvel[7:23]).max())
    np.testing.assert_allclose(data.qpos[7:23], goal[7:], atol=5e-3)
    assert speeds[-1] < 1e-2 and max(speeds) < 7.0  # the published top speed is 6.28 rad/s


def test_the_hand_feels_itself_and_the_arm_feels_the_table(model):
    """Self-collision is on (PixMC): fingers stop at the palm, and contact sensors see arm links."""
    fist = DEFAULT.copy()
    fist[7:19] = np.tile([0.0, 1.7, 1.7, 1.7], 3)
    data = at_pose(model)
    data.ctrl[:] = fist
    mujoco.mj_step(model, data, nstep=480)
    pairs = {pair for pair in touching(model, data) if "cube" not in pair}
    assert pairs and all("iiwa7" not in first + second for first, second in pairs)
    low = DEFAULT.copy()
    low[1] = 1.6  # the arm stretched out onto the table
    data = at_pose(model)
    data.ctrl[:] = low
    mujoco.mj_step(model, data, nstep=960)
    forces = np.linalg.norm(data.sensordata.reshape(8, 3), axis=1)
    assert forces.max() > 1.0


def test_the_hand_can_lift_the_cube_and_keep_it(model):
    """Close around the cube, lift by 0.2 m, hold for four seconds: no slip, nothing flies off."""
    above = [0.315, 0.06, -0.413, -1.395, 0.086, 1.53, 3.03]
    lifted = [-0.015, 0.385, -0.171, -0.35, 0.175, 2.094, 3.054]
    opened = [0.0, 0.708, 0.548, 0.764] * 3 + [0.914, 0.883, 0.834, 0.884]
    closed = [0.0, 1.287, 1.484, 1.699] * 3 + [0.914, 1.152, 1.549, 1.599]
    poses = [np.array([*arm, *hand]) for arm, hand in
             ((above, opened), (above, opened), (above, closed), (lifted, closed))]  # fmt: skip
    data = at_pose(model, poses[0])
    cube = data.body("cube")
    for before, after, moving, holding in zip(
        poses, poses[1:], (1, 20, 60), (10, 40, 300), strict=False
    ):
        for step in range(moving + holding):
            share = min(1.0, (step + 1) / moving)
            data.ctrl[:] = (1 - share) * before + share * after
            mujoco.mj_step(model, data, nstep=4)
            assert np.abs(cube.cvel[3:]).max() < 2.0  # m/s
    assert 0.55 < cube.xpos[2] < 0.75
    assert np.abs(cube.cvel[3:]).max() < 1e-2
