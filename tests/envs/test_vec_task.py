"""What holds for a batched task: resets, seeds, independence, bad input."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs import spec
from envs.gymnasium_env import BatchedTaskEnv
from envs.physics import Physics


@pytest.fixture
def make():
    tasks = []

    def build(num_envs, task="FrankaPick", **kwargs):
        tasks.append(envs.make(task, num_envs, **kwargs))
        return tasks[-1]

    yield build
    for task in tasks:
        task.close()


def rollout(task, steps: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and rewards under random actions that are the same for every world count."""
    rng = np.random.default_rng(seed)
    actions = torch.from_numpy(rng.uniform(-1, 1, (steps, 8, task.num_actions))).float()
    observations = [task.reset()["obs"]]
    rewards = []
    for action in actions[:, : task.num_envs]:
        obs, reward, _, _ = task.step(action)
        observations.append(obs["obs"])
        rewards.append(reward)
    return torch.stack(observations), torch.stack(rewards)


ALL_TASKS = list(spec.TASK_NAMES.values())


@pytest.mark.parametrize("task", ALL_TASKS)
def test_same_seed_same_bits_and_another_seed_differs(make, task):
    first, again, other = (rollout(make(4, task, seed=s), 60) for s in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("task", ALL_TASKS)
@pytest.mark.parametrize("level", ["fixed", "mild"])
def test_worlds_do_not_depend_on_their_neighbours(make, task, level):
    few, many = (rollout(make(n, task, seed=1, dynamics=level), 60) for n in (2, 8))
    assert torch.equal(few[0], many[0][:, :2])


@pytest.mark.parametrize("task", ALL_TASKS)
def test_random_actions_keep_every_world_sane(make, task):
    """No NaN, no explosion, joints within their limits; and the arm hits things now and then."""
    env = make(16, task, seed=2)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    lower, upper = torch.tensor(env.task.robot.lower), torch.tensor(env.task.robot.upper)
    episodes = 0
    for _ in range(200):
        actions = 2 * torch.rand(16, env.num_actions, generator=generator) - 1
        obs, reward, reset, _ = env.step(actions)
        joints = env.engine.read()["qpos"][:, : env.num_actions]
        assert obs["obs"].isfinite().all() and reward.isfinite().all()
        assert (joints > lower - 0.1).all() and (joints < upper + 0.1).all()
        episodes += int(reset.sum())
    assert env.bad_worlds == 0 and episodes > 0


def test_reset_touches_only_the_named_worlds(make):
    task = make(4)
    task.reset()
    for _ in range(5):
        task.step(torch.full((4, 9), 0.3))
    before = {key: value.clone() for key, value in task.engine.read().items()}
    task.reset_idx(torch.tensor([2]))
    after = task.engine.read()
    others = [0, 1, 3]
    assert torch.equal(before["qpos"][others], after["qpos"][others])
    assert torch.equal(before["qvel"][others], after["qvel"][others])
    assert not torch.equal(before["qpos"][2], after["qpos"][2])
    assert task.progress_buf.tolist() == [5, 5, 0, 5]


def test_targets_integrate_and_are_clamped(make):
    task = make(1)
    task.reset()
    start = task.targets.clone()
    task.step(torch.full((1, 9), 2.0))  # clamped to 1: one full step
    moved = task.targets - start
    torch.testing.assert_close(moved[0, 0], torch.tensor(0.125))
    for _ in range(60):
        task.step(torch.ones(1, 9))
    assert (task.targets <= torch.tensor(task.task.robot.upper)).all()


def test_a_first_step_needs_no_reset(make):
    first, second = make(2, seed=9), make(2, seed=9)
    second.reset()
    obs = [task.step(torch.zeros(2, 9))[0]["obs"] for task in (first, second)]
    assert torch.equal(*obs)


def test_the_oracle_beside_images_is_the_state_observation(make):
    few = {"num_envs": 2, "seed": 3, "episode_length": 3}
    pixels, state = make(obs="pixels", image_size=16, oracle=True, **few), make(**few)
    seen, known = pixels.reset(), state.reset()
    both = {"obs", "states", "targets"}
    assert set(seen) == both | {"oracle"} and set(known) == both
    extras, same = {}, {}
    for step in range(3):
        torch.testing.assert_close(seen["oracle"], known["obs"], rtol=0, atol=0)
        actions = torch.full((2, 9), 0.3 * step)
        (seen, *_, extras), (known, *_, same) = pixels.step(actions), state.step(actions)
    torch.testing.assert_close(extras["terminal_obs"]["oracle"], same["terminal_obs"]["obs"])
    assert len(extras["terminal_ids"]) == 2


def test_time_limit_keeps_the_terminal_observation(make):
    task = make(2)
    task.reset()
    task.progress_buf[1] = task.max_episode_length - 1
    obs, _, reset, extras = task.step(torch.zeros(2, 9))
    assert reset.tolist() == [0, 1] and extras["time_outs"].tolist() == [False, True]
    assert extras["terminal_ids"].tolist() == [1]
    assert extras["terminal_obs"]["obs"].shape == (1, 34)
    assert not torch.equal(extras["terminal_obs"]["obs"][0], obs["obs"][1])
    assert task.progress_buf.tolist() == [1, 0]


def test_an_episode_can_be_cut_soon_after_success(make):
    task = make(2, steps_after_success=3)
    task.reset()
    cube, ends = task.engine._qpos, []
    for step in range(15):
        cube[0, 9:12] = (0.2, 0.0, 0.8)
        task.engine._qvel[0, 9:] = 0
        _, _, reset, extras = task.step(torch.zeros(2, 9))
        if reset.any():
            ends.append((step, reset.tolist(), extras["time_outs"].tolist()))
            assert extras["successes"].tolist() == [1, 0]
    assert ends == [(12, [1, 0], [True, False])]  # success at the tenth step, then three more


def test_success_is_ten_steps_in_a_row_and_latched(make):
    task = make(1)
    task.reset()
    cube = task.engine._qpos  # the engine's own state: hold the cube at the goal by hand
    seen = []
    for step in range(14):
        cube[0, 9:12] = (0.2, 0.0, 0.8 if step < 11 else 0.6)
        task.engine._qvel[0, 9:] = 0
        _, _, _, extras = task.step(torch.zeros(1, 9))
        seen.append(int(extras["successes"][0]))
    assert seen == [0] * 9 + [1] * 5


def test_world_that_diverges_is_reset_and_counted_and_the_others_go_on(make):
    task = make(3)
    task.reset()
    task.engine._qvel[1] = 1e12
    obs, reward, reset, extras = task.step(torch.zeros(3, 9))
    assert extras["bad_worlds"] == 1 and reset.tolist() == [0, 1, 0] and reward[1] == 0
    assert obs["obs"].isfinite().all() and task.progress_buf.tolist() == [1, 0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_are_refused_before_stepping(make, bad):
    task = make(3)
    task.reset()
    actions = torch.zeros(3, 9)
    actions[2, 4] = bad
    with pytest.raises(ValueError, match=r"worlds \[2\]"):
        task.step(actions)
    assert task.progress_buf.tolist() == [0, 0, 0]


def test_the_engine_is_a_physics(make):
    """The annotation is the test, for the type checker: `MujocoEngine` fits the protocol."""
    engine: Physics = make(2).engine
    assert engine.num_worlds == 2
    assert set(engine.read()) == {"qpos", "qvel", "site_pos", "sensors", "mocap_pos"}


def test_wrong_action_shape(make):
    task = make(3)
    with pytest.raises(ValueError, match=r"\(3, 9\), got \(3, 7\)"):
        task.step(torch.zeros(3, 7))


def test_sparse_reward_pays_for_the_goal_alone(make):
    task = make(1, reward="sparse")
    task.reset()
    rewards = []
    for height in (0.6, 0.8):
        task.engine._qpos[0, 9:12] = (0.2, 0.0, height)
        task.engine._qvel[0, 9:] = 0
        rewards.append(task.step(torch.zeros(1, 9))[1].item())
    assert rewards == [0.0, 1.0]


def test_control_rate_keeps_speeds_seconds_and_the_success_time(make):
    fast, slow = make(1, seed=4), make(1, seed=4, control_rate_hz=20)
    assert slow.max_episode_length == 167 and slow.dt == pytest.approx(0.05)
    for task, steps in ((fast, 6), (slow, 2)):
        task.reset()
        for _ in range(steps):
            task.step(torch.full((1, 9), 0.2))
    torch.testing.assert_close(fast.targets, slow.targets)
    joints = [task.engine.read()["qpos"][:, :9] for task in (fast, slow)]
    torch.testing.assert_close(*joints, atol=0.02, rtol=0)


@pytest.mark.usefixtures("needs_gl")
def test_several_cameras_and_a_size_that_is_not_square(make):
    task = make(2, obs="pixels", camera=["wrist", "third_person"], image_size=(48, 64))
    frames = task.reset()["obs"]
    assert frames.shape == (2, 2, 48, 64, 3) and task.obs_space.shape == (2, 48, 64, 3)
    torch.testing.assert_close(frames[:, 1], task.render_film([0, 1], "third_person", 48, 64))


@pytest.mark.usefixtures("needs_gl")
def test_pixmc_images_are_one_step_old_and_supersampled(make):
    task = make(1, obs="pixels", image_size=32, fidelity="pixmc")
    task.reset()
    before = task.render_film([0], "wrist", 64, 64).float()
    late = task.step(torch.ones(1, 9))[0]["obs"].float()
    pooled = before.reshape(1, 32, 2, 32, 2, 3).mean((2, 4))
    assert (late - pooled).abs().max() <= 0.5
    assert not torch.equal(before, task.render_film([0], "wrist", 64, 64).float())


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'FrankaPick'"):
        envs.make("FrankaPik", 1)
    with pytest.raises(ValueError, match="obs must be.*did you mean 'pixels'"):
        envs.make("FrankaPick", 1, obs="pixel")
    with pytest.raises(ValueError, match="sim_device='gpu': expected 'cpu', 'cuda'"):
        envs.make("FrankaPick", 1, sim_device="gpu")
    with pytest.raises(ValueError, match="unknown option 'image_sise'; did you mean 'image_size'"):
        envs.make("FrankaPick", 1, image_sise=64)
    with pytest.raises(
        ValueError, match="must divide the physics rate of 240 Hz; the nearest is 24"
    ):
        envs.make("FrankaPick", 1, control_rate_hz=25)
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        envs.make("FrankaPick", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="sees no CUDA device"):
        envs.make("FrankaPick", 1, sim_device="cuda:0")


@pytest.mark.parametrize("obs", ["state", "pixels"])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_gymnasium_and_sb3_checkers(task, obs, needs_gl):
    env = gymnasium.make(f"toto_robot/{task}-v0", obs=obs, image_size=64, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)  # "human" wants a screen
    sb3_check_env(env.unwrapped)
    env.reset()
    picture = env.render()
    assert isinstance(picture, np.ndarray) and picture.shape == (240, 320, 3)
    env.close()


def test_gymnasium_films_at_the_rate_of_control_and_takes_threads():
    batched = gymnasium.make_vec("toto_robot/FrankaPick-v0", num_envs=2, control_rate_hz=30)
    single = gymnasium.make("toto_robot/FrankaPick-v0", threads=2, control_rate_hz=30)
    assert batched.metadata["render_fps"] == single.metadata["render_fps"] == 30
    batched.close()
    single.close()


@pytest.mark.parametrize("task", ALL_TASKS)
def test_gymnasium_vector_env_reports_the_final_observation(task):
    env = gymnasium.make_vec(f"toto_robot/{task}-v0", num_envs=3)
    first, _ = env.reset(seed=7)
    again, _ = env.reset(seed=7)
    np.testing.assert_array_equal(first, again)
    assert isinstance(env, BatchedTaskEnv)
    vec = env._vec
    vec.progress_buf[0] = vec.max_episode_length - 1
    obs, _, terminated, truncated, info = env.step(np.zeros((3, vec.num_actions), np.float32))
    assert truncated.tolist() == [True, False, False] and not terminated.any()
    assert info["_final_obs"].tolist() == [True, False, False]
    assert not np.array_equal(info["final_obs"][0], obs[0])
    env.close()


def test_a_lined_up_episode_is_the_one_of_that_seed_and_world(make):
    """Whichever world plays it, and whatever its neighbours are."""
    first = make(5, seed=7).reset()["obs"][3]
    task = make(2, seed=0, dynamics="fixed", episode_length=2)
    task.line_up([(9, 1), (7, 3), (7, 3)])
    obs = task.reset()["obs"]
    assert task.names.tolist() == [[9, 1, 0], [7, 3, 0]]
    assert torch.equal(obs[1], first) and not torch.equal(obs[0], first)
    task.step(task.zero_actions())
    obs = task.step(task.zero_actions())[0]["obs"]
    assert task.names.tolist() == [[7, 3, 0], [7, 3, 1]]  # the last in the line, then its own next
    assert torch.equal(obs[0], first) and not torch.equal(obs[1], first)


def test_looks_and_dynamics_follow_the_name_of_an_episode(make):
    def friction(task) -> torch.Tensor:
        task.reset()
        return torch.from_numpy(task.engine._batch.expand("geom_friction").copy())

    among = friction(make(4, seed=7, dynamics="strong"))
    alone = make(1, seed=0, dynamics="strong")
    alone.line_up([(7, 3)])
    assert torch.equal(friction(alone)[0], among[3])
    assert not torch.equal(among[3], among[2])


def test_extras_say_when_success_came_and_whether_it_holds(make):
    task = make(1, episode_length=40)
    task.reset()
    holds = torch.zeros(1, dtype=torch.bool)
    task.task = type(task.task)(**{**vars(task.task)})
    goals = [5 <= step < 25 for step in range(1, 41)]
    object.__setattr__(task.task, "at_goal", lambda s: holds)
    seen = []
    for goal in goals:
        holds[0] = goal
        extras = task.step(task.zero_actions())[3]
        seen.append((int(extras["success_step"]), float(extras["successes_at_end"])))
    assert seen[12] == (0, 0.0)  # nine steps at the goal
    assert seen[13] == (14, 1.0) and seen[23] == (14, 1.0)
    assert seen[24] == (14, 0.0) and seen[39] == (14, 0.0)  # latched, but lost
