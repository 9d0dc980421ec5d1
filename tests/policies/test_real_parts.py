"""PPO with the real task and the real backbone (untrained), small."""

import numpy as np
import torch
from fake_task import FakeTask

import envs
from policies.feature_vec_env import feature_vec_env
from policies.ppo import PPOConfig, make_ppo
from policies.vec_env import StateObserver, TaskVecEnv
from toto_robot.backbone import load_backbone

SMALL = PPOConfig(num_steps=16, epochs=2, minibatches=2, hidden=[16], num_queries=2)


def test_same_seed_gives_the_same_first_thousand_steps_of_franka_pick() -> None:
    def trajectory(seed: int) -> np.ndarray:
        task = envs.make(task="FrankaPick", num_envs=8, seed=seed, obs="state")
        ppo = make_ppo(TaskVecEnv(task, StateObserver(task.num_obs)), SMALL, seed)
        ppo.start(1024, lambda: True)
        seen = []
        while ppo.num_timesteps < 1024:
            ppo.iterate()
            buffer = ppo.rollout_buffer
            parts = (np.asarray(buffer.observations), buffer.actions, buffer.returns)
            seen.append(np.concatenate([part.reshape(8 * 16, -1) for part in parts], axis=1))
        task.close()
        return np.concatenate(seen)

    first = trajectory(1)
    assert len(first) == 1024 and np.isfinite(first).all()
    assert np.array_equal(first, trajectory(1))
    assert not np.array_equal(first, trajectory(2))


def test_the_real_backbone_is_byte_identical_after_ppo() -> None:
    backbone = load_backbone("toto-tiny", weights="random")
    before = backbone.digest()
    tensors = {name: x.clone() for name, x in backbone.state_dict().items()}
    env = feature_vec_env(FakeTask(2, "pixels", image_size=32, max_episode_length=8), backbone)
    ppo = make_ppo(env, SMALL)
    ppo.start(64, lambda: True)
    while ppo.num_timesteps < 64:
        ppo.iterate()
    assert backbone.digest() == before == backbone.weights_hash
    assert all(torch.equal(x, tensors[name]) for name, x in backbone.state_dict().items())
    assert env.encodes_per_step == (2 + 64 + 8) / 64  # reset, new, terminal frames
