"""IsaacGymEnvs' surface: a training loop in its manner, its buffers, its configuration."""

import logging

import pytest
import torch
from torch import nn

import envs
from envs.isaacgym import isaacgym_task_map
from envs.pixmc import VecTaskPython

CFG = {
    "name": "FrankaPick",
    "physics_engine": "physx",
    "env": {
        "numEnvs": 6,
        "envSpacing": 1.5,
        "episodeLength": 12,
        "clipObservations": 5.0,
        "clipActions": 1.0,
        "enableCameraSensors": False,
    },
    "sim": {
        "dt": 0.0166,
        "substeps": 1,
        "up_axis": "z",
        "use_gpu_pipeline": False,
        "gravity": [0.0, 0.0, -9.81],
        "physx": {"num_threads": 4, "solver_type": 1, "contact_offset": 0.005},
    },
    "task": {"randomize": False},
}


@pytest.fixture
def make():
    built = []

    def build(**kwargs):
        built.append(envs.make(**kwargs))
        return built[-1]

    yield build
    for task in built:
        task.close()


def actor_critic_loop(env, steps: int) -> dict:
    """One-step actor-critic as one writes it for an IsaacGymEnvs task; knows nothing of ours."""
    torch.manual_seed(0)
    actor = nn.Linear(env.num_obs, env.num_actions).to(env.rl_device)
    critic = nn.Linear(env.num_obs, 1).to(env.rl_device)
    optimiser = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    seen = {"episodes": 0, "time_outs": 0, "reward": 0.0}
    obs = env.reset()["obs"]
    for _ in range(steps):
        policy = torch.distributions.Normal(actor(obs), 0.3)
        actions = policy.sample()
        next_obs, rew, done, info = env.step(actions)
        next_obs = next_obs["obs"]
        with torch.no_grad():
            # a time limit is no failure: the value goes on
            alive = 1.0 - done.float() * (~info["time_outs"]).float()
            target = rew + 0.99 * alive * critic(next_obs).squeeze(-1)
        advantage = target - critic(obs).squeeze(-1)
        log_prob = policy.log_prob(actions).sum(-1)
        loss = advantage.square().mean() - (advantage.detach() * log_prob).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen["episodes"] += int(done.sum())
        seen["time_outs"] += int(info["time_outs"].sum())
        seen["reward"] += rew.mean().item()
        obs = next_obs
    return seen


@pytest.mark.parametrize("fidelity", ["corrected", "pixmc"])
def test_a_training_loop_for_isaacgymenvs_runs_unchanged(make, fidelity):
    env = make(
        seed=0, task="FrankaPick", num_envs=6, sim_device="cpu", rl_device="cpu",
        graphics_device_id=-1, headless=True, multi_gpu=False, virtual_screen_capture=False,
        force_render=False, cfg=CFG, fidelity=fidelity,
    )  # fmt: skip
    seen = actor_critic_loop(env, 30)
    assert seen["episodes"] >= 6 and seen["reward"] > 0
    assert (seen["time_outs"] > 0) == (fidelity == "corrected")  # PixMC has no time-out flag


def test_the_first_step_without_reset_starts_every_world(make):
    env = make(task="FrankaPick", num_envs=3)
    assert env.reset_buf.tolist() == [1, 1, 1]
    obs, _, done, _ = env.step(env.zero_actions())
    assert obs["obs"].shape == (3, 34) and done.tolist() == [0, 0, 0]
    assert env.progress_buf.tolist() == [1, 1, 1]


def test_attributes_and_buffers(make):
    env = make(task="KukaPick", num_envs=2)
    env.reset()
    assert (env.num_obs, env.num_states, env.num_acts, env.num_agents) == (77, 46, 23, 1)
    assert (env.num_observations, env.num_environments, env.num_actions) == (77, 2, 23)
    assert env.obs_space.shape == (77,) == env.observation_space.shape
    assert env.act_space.shape == (23,) and env.state_space.shape == (46,)
    assert env.obs_buf.shape == (2, 77) and env.states_buf.shape == (2, 46)
    assert env.rew_buf.shape == (2,) and env.timeout_buf.dtype == torch.long
    assert (env.clip_obs, env.clip_actions, env.control_freq_inv) == (5.0, 1.0, 1)
    assert env.max_episode_length == 500 and env.dt == pytest.approx(1 / 60)
    assert env.get_state().shape == (2, 46) and env.get_number_of_agents() == 1
    env.set_train_info(4096)
    assert env.total_train_env_frames == 4096
    env.set_env_state(env.get_env_state())


def test_reset_done_under_pixmc_resets_the_flagged_worlds(make):
    env = make(task="FrankaPick", num_envs=3, fidelity="pixmc")
    env.reset()
    env.progress_buf[1] = 498
    terminal = env.step(env.zero_actions())[0]["obs"][1].clone()
    assert env.reset_buf.tolist() == [0, 1, 0]  # PixMC: the 499th step is the last
    obs, done = env.reset_done()
    assert done.tolist() == [1] and env.reset_buf.tolist() == [0, 0, 0]
    assert env.progress_buf.tolist() == [1, 0, 1]
    assert not torch.equal(obs["obs"][1], terminal)


def test_reset_done_by_default_only_tells_which_worlds_began_anew(make):
    env = make(task="FrankaPick", num_envs=3)
    env.reset()
    env.progress_buf[1] = 499
    first = env.step(env.zero_actions())[0]["obs"]
    obs, done = env.reset_done()
    assert done.tolist() == [1] and torch.equal(obs["obs"], first)
    assert env.progress_buf.tolist() == [1, 0, 1]


def test_pixmc_ignores_the_action_of_the_step_that_resets(make):
    """The terminal observation comes with the flag; the next one is the first of the new episode."""
    env = make(task="FrankaPick", num_envs=2, fidelity="pixmc", seed=3)
    env.reset()
    env.progress_buf[0] = 498
    env.step(env.zero_actions())
    first = env.step(torch.ones(2, 9))[0]["obs"][0]
    other = make(task="FrankaPick", num_envs=2, seed=3)
    other.reset()
    other.progress_buf[0] = 499
    expected = other.step(other.zero_actions())[0]["obs"][0]
    torch.testing.assert_close(first, expected)


def test_the_constructor_of_the_task_map():
    env = isaacgym_task_map["FrankaPick"](
        CFG, rl_device="cpu", sim_device="cpu", graphics_device_id=-1, headless=True,
        virtual_screen_capture=False, force_render=False,
    )  # fmt: skip
    assert env.num_envs == 6 and env.max_episode_length == 12
    assert env.cfg["env"]["numActions"] == 9 and env.cfg["name"] == "FrankaPick"
    env.close()


def test_configuration_becomes_options(make, caplog):
    cfg = {
        "name": "FrankaCabinet",
        "env": {"numEnvs": 2, "controlFrequencyInv": 2, "obs_type": "robot", "clipActions": 0.5},
        "sim": {"physx": {}},
        "task": {"randomize": True},
    }
    with caplog.at_level(logging.INFO):
        env = make(cfg=cfg)
    assert "sim.physx has no meaning with MuJoCo" in caplog.text
    assert env.options.control_rate_hz == 30 and env.options.visuals == "mild"
    assert env.num_obs == 18 and env.clip_actions == 0.5 and env.max_episode_length == 250
    again = make(cfg=env.cfg)  # what a task says of itself builds the same task
    assert again.cfg == env.cfg


def test_arguments_win_over_the_configuration(make):
    env = make(task="KukaPick", num_envs=1, cfg=CFG, clip_obs=3.0)
    assert env.task.name == "KukaPick" and env.num_envs == 1 and env.clip_obs == 3.0


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"env": {"numEnv": 2}}, "unknown setting env.numEnv; did you mean env.numEnvs"),
        ({"env": {"numEnvs": 2, "liftRewardScale": 4.0}}, "unknown setting env.liftRewardScale"),
        ({"env": {"obs_type": "pixel"}}, "expected one of"),
        ({"sim": {"dt": 0.005}}, "controlFrequencyInv"),
        ({"env": {"numEnvs": 2, "controlFrequencyInv": 8}}, "=8 makes 7.5 decisions a second"),
        ({"sim": {"gravity": [0, 0, 0]}}, "gravity"),
        ({"sim": {"up_axis": "y"}}, "z is up"),
        ({"env": {"numEnvs": 2}}, "give task= and num_envs="),
    ],
)
def test_settings_without_meaning_are_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        envs.make(cfg=cfg)


def test_the_task_map_opens_a_window_where_one_is_asked_for(monkeypatch):
    opened = []
    monkeypatch.setattr("envs.viewer.Viewer", opened.append)
    cfg = {"env": {"numEnvs": 1}}
    assert isaacgym_task_map["FrankaPick"](cfg, "cpu", "cpu").viewer is None and not opened
    env = isaacgym_task_map["FrankaPick"](cfg, "cpu", "cpu", headless=False)
    assert opened == [env.engine]


def test_pixmcs_wrapper_gives_normalised_images(needs_gl):
    env = VecTaskPython(envs.make("FrankaPick", 2, obs="pixels", image_size=32, fidelity="pixmc"))
    obs = env.reset()
    assert env.num_obs == (3, 32, 32)
    assert obs.shape == (2, 3, 32, 32) and obs.dtype == torch.float
    frame = env.task.obs_buf[1, 5, 7].float() / 255
    expected = (frame - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(obs[1, :, 5, 7], expected)
    assert env.get_state().shape == (2, 18)
    assert env.step(torch.zeros(2, 9))[1].shape == (2,)
    env.close()
