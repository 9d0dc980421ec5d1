"""`HeldActions` against the same steps taken one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask

import envs
from policies.feature_vec_env import feature_vec_env
from policies.held_actions import OF_EACH_WORLD, HeldActions, hold_actions
from policies.ppo import make_ppo
from policies.ppo_config import PPOConfig
from policies.vec_env import StateObserver, TaskVecEnv

LIMIT = 7  # control steps of an episode: the third action of three steps ends on the way


def one_by_one(task: Any, actions: torch.Tensor, repeat: int) -> tuple[Any, ...]:
    """What `HeldActions.step` should return: total reward, ids that ended, told and seen then."""
    obs, total, told, last = {}, torch.zeros(len(actions)), {}, {}
    for _ in range(repeat):
        still = actions.clone()
        still[list(told)] = 0
        obs, rewards, resets, extras = task.step(still)
        for world in range(len(actions)):
            total[world] += 0 if world in told else rewards[world]
        for row, world in enumerate(extras["terminal_ids"].tolist()):
            told[world] = {key: extras[key][world].item() for key in OF_EACH_WORLD}
            last[world] = {key: value[row] for key, value in extras["terminal_obs"].items()}
    return obs, total, told, last


def both(make: Any) -> tuple[Any, Any]:
    """Two equal tasks, just reset, whose worlds are at different times of their episodes."""
    tasks = make(), make()
    for task in tasks:
        task.reset()
        task.progress_buf += torch.arange(4)
    return tasks


@pytest.mark.parametrize("real", [False, True], ids=["fake", "franka_pick"])
def test_holding_an_action_is_taking_it_again_and_again(real: bool) -> None:
    def make() -> Any:
        if real:
            return envs.make("franka_pick", num_envs=4, obs="state", episode_length=LIMIT)
        return FakeTask(4, max_episode_length=LIMIT)

    task, reference = both(make)
    held = HeldActions(task, 3)
    generator = torch.Generator().manual_seed(0)
    ended = 0
    for _ in range(8):
        actions = torch.rand(4, 9, generator=generator) * 2 - 1
        obs, rewards, resets, extras = held.step(actions)
        expected, total, told, last = one_by_one(reference, actions, 3)
        torch.testing.assert_close(obs, expected)
        torch.testing.assert_close(rewards, total)
        assert resets.nonzero().flatten().tolist() == sorted(told)
        for row, world in enumerate(extras["terminal_ids"].tolist()):
            assert {key: extras[key][world].item() for key in OF_EACH_WORLD} == told[world]
            for key, value in extras["terminal_obs"].items():
                torch.testing.assert_close(value[row], last[world][key])
        ended += len(told)
    assert ended > 8


def test_only_the_last_frame_is_drawn_and_terminal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    task = envs.make("franka_pick", num_envs=2, obs="pixels", image_size=32, episode_length=5)
    drawn = []
    render = task.engine.render
    counted = lambda *a: drawn.append(len(a[-1])) or render(*a)  # noqa: E731
    monkeypatch.setattr(task.engine, "render", counted)
    held = HeldActions(task, 3)
    held.reset()
    task.progress_buf[0] = 1
    still = torch.zeros(2, 9)
    assert held.step(still)[0]["obs"].shape == (2, 32, 32, 3)
    assert drawn == [2, 2]  # of the reset, and of the last step
    obs, _, resets, extras = held.step(still)  # world 0 ends in its first, world 1 in its second
    assert drawn == [2, 2, 1, 1, 2] and resets.tolist() == [1, 1]
    assert extras["terminal_obs"]["obs"].shape == (2, 32, 32, 3)
    task.close()


def test_ppo_counts_control_steps_and_encodes_a_fraction_of_the_frames() -> None:
    backbone = FakeBackbone()
    task = FakeTask(4, "pixels", max_episode_length=LIMIT)
    env = feature_vec_env(task, backbone, action_repeat=2)
    ppo = make_ppo(env, PPOConfig(num_steps=8, minibatches=2, hidden=[16], action_repeat=2))
    ppo.start(128, lambda: True)
    assert ppo.iterate() and ppo.num_timesteps == 64
    assert ppo.iterate() and ppo.num_timesteps == 128
    episodes = 4 * (32 // LIMIT)
    assert backbone.frames_seen == 4 + 64 + episodes  # first, later and terminal ones
    assert ppo.summary().encodes_per_step == pytest.approx(backbone.frames_seen / 128)
    assert [e["l"] for e in ppo.ep_info_buffer or []] == [LIMIT] * len(ppo.summary().returns)


def test_a_return_is_of_the_whole_episode() -> None:
    held = TaskVecEnv(FakeTask(2, max_episode_length=LIMIT), StateObserver(34), action_repeat=3)
    held.reset()
    steps = [held.step(np.zeros((2, 9), np.float32)) for _ in range(3)]
    assert [dones.all() for _, _, dones, _ in steps] == [False, False, True]
    told = [info["episode"]["r"] for info in steps[-1][3]]
    np.testing.assert_allclose(sum(rewards for _, rewards, _, _ in steps), told, rtol=1e-6)


def test_an_action_held_for_one_step_is_the_task_itself() -> None:
    task = FakeTask(2)
    assert hold_actions(task, 1) is task
