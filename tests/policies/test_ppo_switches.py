"""Switches of PPOConfig: learning-rate schedules, random phase; our update against SB3's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stable_baselines3
import torch
from fake_task import FakeTask
from test_ppo import SMALL, run, state_ppo, weights

from policies.ppo import PPO, PPOConfig, adapted_learning_rate
from policies.vec_env import StateObserver, TaskVecEnv


def test_the_update_is_that_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, entropy_coef=0.1, clip_range=0.01)
    ours, theirs = state_ppo(config=config), state_ppo(config=config)
    orders = [np.random.RandomState(i).permutation(32) for i in range(config.epochs)]
    with torch.random.fork_rng():
        for ppo in (ours, theirs):
            torch.manual_seed(3)
            ppo.start(320, lambda: True)
            ppo.collect_rollouts(ppo.env, ppo._callback, ppo.rollout_buffer, 8)  # type: ignore[arg-type]
    # Their flat index runs world by world, ours step by step: the same samples in other places.
    drawn = iter([(o % 8) * 4 + o // 8 for o in orders] + orders)
    monkeypatch.setattr(np.random, "permutation", lambda n: next(drawn))
    ours.train()
    stable_baselines3.PPO.train(theirs)
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, rtol=1e-4, atol=1e-6)
    logged, expected = ours.logger.name_to_value, theirs.logger.name_to_value
    assert logged["train/clip_fraction"] > 0.1  # else clipping was not tested
    for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "std"):
        assert logged[f"train/{name}"] == pytest.approx(expected[f"train/{name}"], rel=1e-4), name


def learning_rate(ppo: PPO) -> float:
    return ppo.policy.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.021, 1e-3 / 1.5), (0.019, 1e-3), (0.006, 1e-3), (0.004, 1.5e-3), (0.0, 1e-3)],
)
def test_the_learning_rate_follows_the_kl_as_in_rsl_rl(kl: float, expected: float) -> None:
    assert adapted_learning_rate(1e-3, kl, 0.01) == pytest.approx(expected)
    assert 1e-5 <= adapted_learning_rate(1.2e-5, kl, 0.01) <= 1e-2
    assert adapted_learning_rate(9e-3, 1e-9, 0.01) == 1e-2


def test_an_adaptive_rate_moves_towards_the_desired_kl() -> None:
    slow = run(state_ppo(config=replace(SMALL, lr_schedule="adaptive", desired_kl=1e-7)), 320)
    fast = run(state_ppo(config=replace(SMALL, lr_schedule="adaptive", desired_kl=10.0)), 320)
    assert learning_rate(slow) < 1e-3 / 4 and learning_rate(fast) > 4e-3


def test_an_adaptive_rate_survives_a_resume(tmp_path: Path) -> None:
    config = replace(SMALL, lr_schedule="adaptive", desired_kl=10.0)
    first = run(state_ppo(config=config), 320, until=64)
    first.save_trainer(tmp_path / "trainer.pt")
    second = state_ppo(config=config)
    second.load_trainer(tmp_path / "trainer.pt")
    second.start(320, lambda: True)
    assert learning_rate(second) == learning_rate(first) > 1e-3


def test_a_constant_rate_stays() -> None:
    assert learning_rate(run(state_ppo(config=replace(SMALL, lr_schedule="constant")), 160)) == 1e-3


def test_wrong_schedules_are_named() -> None:
    with pytest.raises(ValueError, match="ppo.lr_schedule=cosin: expected one of cosine, adaptive"):
        PPOConfig(lr_schedule="cosin")


def test_random_phase_spreads_the_ends_and_counts_whole_episodes_only() -> None:
    config = replace(SMALL, random_phase=True)
    env = TaskVecEnv(FakeTask(64, max_episode_length=16), StateObserver(34))
    torch.manual_seed(0)
    env.reset()
    env.scatter_phases()
    ends, counted = np.zeros(32, int), []
    for t in range(32):
        env.step_async(np.zeros((64, 9), np.float32))
        _, _, dones, infos = env.step_wait()
        ends[t] = dones.sum()
        counted += [info["episode"]["l"] for info in infos if "episode" in info]
        cut = [i for i in infos if "terminal_observation" in i and "episode" not in i]
        assert all(i["TimeLimit.truncated"] and "is_success" not in i for i in cut)
        assert bool(cut) <= (t < 16)
    assert ends[:16].sum() == 64 and ends[:16].max() < 16 and (ends[:16] > 0).sum() > 8
    assert set(counted) == {16}  # no part of an episode is reported

    together, spread = state_ppo(), state_ppo(config=config)
    for ppo in (together, spread):
        run(ppo, 32)
    assert together.env.task.progress_buf.unique().numel() == 1  # type: ignore[union-attr]
    assert spread.env.task.progress_buf.unique().numel() > 1  # type: ignore[union-attr]


def test_fast_products_are_switched_on_for_an_iteration_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(PPO, "train", lambda _: seen.append(torch.get_float32_matmul_precision()))
    for fast in (False, True):
        ppo = state_ppo(config=replace(SMALL, fast_matmul=fast))
        ppo.start(320, lambda: True)
        ppo.iterate()
    assert seen == ["highest", "medium"] and torch.get_float32_matmul_precision() == "highest"
