"""Encode once, terminal observations, infos."""

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask

from policies.feature_vec_env import FeatureObserver, feature_vec_env
from policies.vec_env import PixelObserver, StateObserver, TaskVecEnv

OUTWARD = np.ones((4, 9), np.float32)
STILL = np.zeros((4, 9), np.float32)


def test_each_new_frame_is_encoded_once_terminal_frames_included() -> None:
    backbone = FakeBackbone()
    env = feature_vec_env(FakeTask(8, "pixels", max_episode_length=16), backbone)
    env.reset()
    for _ in range(64):
        env.step(np.zeros((8, 9), np.float32))
    assert backbone.frames_seen == 8 + 64 * 8 + 4 * 8  # reset, new, terminal
    assert env.encodes_per_step == backbone.frames_seen / (64 * 8)
    assert env.encodes_per_step <= 1.1


def test_terminal_features_are_those_of_the_terminal_frame() -> None:
    task, backbone = FakeTask(4, "pixels", max_episode_length=3), FakeBackbone()
    env = feature_vec_env(task, backbone)
    env.reset()
    for _ in range(2):
        env.step(STILL)
    last_positions = task.position.clone()
    obs, _, dones, infos = env.step(STILL)
    assert dones.all() and isinstance(obs, dict)
    for world, info in enumerate(infos):
        terminal = info["terminal_observation"]
        assert terminal["proprio"][:2] == pytest.approx(last_positions[world].numpy())
        assert terminal["proprio"][2] == 1.0 and obs["proprio"][world, 2] == 0.0
        assert not np.array_equal(terminal["features"], obs["features"][world])
        assert terminal["features"].dtype == np.float16
    task.progress_buf[:], task.position[:] = 3, last_positions
    expected = backbone(task._draw(torch.arange(4))).half().numpy()
    got = np.stack([info["terminal_observation"]["features"] for info in infos])
    assert np.array_equal(got, expected)


def test_infos_name_time_outs_failures_return_and_length() -> None:
    env = TaskVecEnv(FakeTask(4, max_episode_length=5), StateObserver(34))
    env.reset()
    total, dones, infos = np.zeros(4), np.zeros(4, bool), []
    for _ in range(5):
        _, rewards, dones, infos = env.step(STILL)
        total += rewards
    assert dones.all() and all(info["TimeLimit.truncated"] for info in infos)
    assert [info["episode"]["l"] for info in infos] == [5] * 4
    assert [info["episode"]["r"] for info in infos] == pytest.approx(list(total))
    assert all(isinstance(info["is_success"], bool) for info in infos)


def test_a_failure_is_not_a_time_out() -> None:
    env = TaskVecEnv(FakeTask(4, max_episode_length=100), StateObserver(34))
    env.reset()
    dones = np.zeros(4, bool)
    infos: list = []
    while not dones.any():
        _, _, dones, infos = env.step(OUTWARD)
    for world in np.flatnonzero(dones):
        assert infos[world]["TimeLimit.truncated"] is False
        assert np.abs(infos[world]["terminal_observation"][:2]).max() > 1
    assert all(infos[world] == {} for world in np.flatnonzero(~dones))


def test_time_limit_bootstrap_can_be_switched_off() -> None:
    env = TaskVecEnv(FakeTask(4, max_episode_length=1), StateObserver(34), False)
    env.reset()
    _, _, dones, infos = env.step(STILL)
    assert dones.all() and not any(info["TimeLimit.truncated"] for info in infos)


def test_observations_do_not_share_memory_with_the_task_or_each_other() -> None:
    task = FakeTask(4, "pixels", max_episode_length=50)
    env = TaskVecEnv(task, PixelObserver((3, 16, 16), 18))
    first = env.reset()
    kept = {key: value.copy() for key, value in first.items()}
    second, *_ = env.step(OUTWARD)
    assert all(np.array_equal(first[key], kept[key]) for key in kept)
    assert not any(np.shares_memory(first[key], second[key]) for key in kept)


def test_spaces_hold_what_comes_out() -> None:
    env = feature_vec_env(FakeTask(2, "pixels"), FakeBackbone())
    obs = env.reset()
    one = {key: value[0] for key, value in obs.items()}
    assert env.observation_space.contains(one)
    assert obs["features"].shape == (2, 16, 8)


def test_features_that_overflow_float16_are_an_error() -> None:
    class Loud(FakeBackbone):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return super().forward(frames) * 1e8

    with pytest.raises(ValueError, match="not finite in float16.*65504"):
        feature_vec_env(FakeTask(2, "pixels"), Loud()).reset()


def test_frames_of_another_dtype_are_an_error() -> None:
    observer = FeatureObserver(FakeBackbone(), 18)
    with pytest.raises(ValueError, match="torch.float32.*expected uint8"):
        observer({"obs": torch.zeros(2, 16, 16, 3), "states": torch.zeros(2, 18)})
