"""Switches of PPOConfig: learning-rate schedules, random phase; our update against SB3's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from fake_task import FakeBackbone, FakeTask
from test_ppo import SMALL, run, state_ppo, weights

from policies.networks import ActorCritic, of_critic
from policies.policy import (
    BackboneRecord,
    Policy,
    PolicySpec,
    build_net,
    load_policy,
    save_policy,
    start_from,
)
from policies.ppo import PPO, PPOConfig, adapted_learning_rate
from policies.ppo_config import POOLS, PRESETS
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


@pytest.mark.parametrize("schedule", ["adaptive", "cosine", "cosine_epoch", "constant"])
def test_the_critic_may_have_a_rate_of_its_own(schedule: str, tmp_path: Path) -> None:
    config = replace(SMALL, critic_learning_rate=0.25, lr_schedule=schedule, learning_rate=1e-3)
    ppo = run(state_ppo(config=config), 320, until=96)
    actor, critic = ppo.policy.optimizer.param_groups
    assert critic["lr"] == 0.25 and actor["lr"] < 0.1
    names = {id(p): n for n, p in ppo.policy.named_parameters()}
    assert all(of_critic(names[id(p)]) for p in critic["params"])
    assert len(actor["params"]) + len(critic["params"]) == len(names)
    assert not any(of_critic(names[id(p)]) for p in actor["params"])
    ppo.save_trainer(tmp_path / "trainer.pt")
    again = state_ppo(config=config)
    again.load_trainer(tmp_path / "trainer.pt")
    assert [g["lr"] for g in again.policy.optimizer.param_groups] == [actor["lr"], 0.25]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_critic_that_cannot_learn_is_an_error(rate: float) -> None:
    with pytest.raises(ValueError, match="ppo.critic_learning_rate=.*: expected more than 0"):
        PPOConfig(critic_learning_rate=rate)


def test_scaled_rewards_are_learned_from_and_returns_reported_unscaled() -> None:
    plain = run(state_ppo(), 32)
    scaled = run(state_ppo(config=replace(SMALL, reward_scale=0.5)), 32)
    assert [e["r"] for e in scaled.ep_info_buffer or []] == [
        e["r"] for e in plain.ep_info_buffer or []
    ]
    running = ~plain.rollout_buffer.episode_starts[1:].astype(bool)  # the rest: bootstrapped values
    theirs, ours = plain.rollout_buffer.rewards[:-1], scaled.rollout_buffer.rewards[:-1]
    np.testing.assert_allclose(ours[running], 0.5 * theirs[running], rtol=1e-6)
    assert running.any() and np.abs(theirs[running]).min() > 0


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
    with pytest.raises(
        ValueError, match="ppo.lr_schedule=cosin: expected one of cosine, cosine_epoch"
    ):
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


@pytest.mark.parametrize("shape", [[1], [16]], ids=["CLS", "grid"])
@pytest.mark.parametrize(
    ("width", "robot", "count"),
    [
        (384, "franka", 267_027),
        (384, "kuka", 271_535),
        (768, "franka", 316_947),
        (768, "kuka", 321_455),
    ],
)
def test_the_mvp_preset_trains_as_many_parameters_as_mvp(
    width: int, robot: str, count: int, shape: list[int]
) -> None:
    """Read-out, proprioception, actor and critic on ViT-S and ViT-B features (pixmc.md, 3)."""
    joints = {"franka": 9, "kuka": 23}[robot]
    features = [width] if shape == [1] else [*shape, width]
    config = PPOConfig(**PRESETS["mvp"])
    spec = PolicySpec("x", "pixels", 34, 2 * joints, joints, features, ppo=config)
    net = build_net(spec)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count


def test_mvp_takes_minibatches_as_they_come_and_a_rate_per_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(SMALL, shuffle=False, lr_schedule="cosine_epoch")
    ppo, rows, rates = state_ppo(config=config), [], []
    update = ppo._update

    def watched(rollout: dict, chosen: torch.Tensor, clip: float) -> torch.Tensor:
        rows.append(chosen.tolist())
        rates.append(learning_rate(ppo))
        return update(rollout, chosen, clip)

    monkeypatch.setattr(ppo, "_update", watched)
    run(ppo, 320, until=64)
    assert rows == [list(range(16)), list(range(16, 32))] * 4
    # Two iterations of ten, two epochs each: MVP counts 0, 1/2, 1, 3/2 tenths of the run.
    expected = [5e-4 * (1 + np.cos(np.pi * (it + e / 2) / 10)) for it in (0, 1) for e in (0, 1)]
    assert rates[::2] == rates[1::2] == pytest.approx(expected)


def test_a_std_power_of_two_squares_the_standard_deviation() -> None:
    spec = PolicySpec("x", "state", 34, 18, 9, ppo=PPOConfig(log_std_init=-0.5, std_power=2))
    net = build_net(spec)
    assert isinstance(net, ActorCritic)
    distribution: Any = net.get_distribution(torch.zeros(1, 34)).distribution
    assert distribution.stddev[0].tolist() == pytest.approx([np.exp(-1)] * 9)
    assert net.std.tolist() == pytest.approx([np.exp(-1)] * 9)


@pytest.mark.parametrize("pool", POOLS)
def test_every_read_out_learns_where_a_marked_token_is(pool: str) -> None:
    """All but the mean, which cannot know."""
    torch.manual_seed(0)
    tokens = torch.randn(8).expand(32, 16, 8).clone()
    where = torch.arange(32) % 16
    tokens[torch.arange(32), where, 0] += 6
    wanted = torch.nn.functional.one_hot(where % 4, 9).float()
    spec = PolicySpec("x", "pixels", 34, 18, 9, [16, 8], ppo=PPOConfig(pool=pool, hidden=[32]))
    net = build_net(spec)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    loss = torch.tensor(0.0)
    for _ in range(150):
        seen = {"features": tokens, "proprio": torch.zeros(32, 18)}
        loss = (net.get_distribution(seen).mode() - wanted).square().mean() / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (loss.item() < 0.3) == (pool != "mean"), loss


def test_a_convolution_wants_a_square_grid() -> None:
    spec = PolicySpec("x", "pixels", 34, 18, 9, [15, 8], ppo=PPOConfig(pool="conv"))
    with pytest.raises(ValueError, match="square grid of tokens, the features have 15"):
        build_net(spec)


def saved_policy(folder: Path, config: PPOConfig = SMALL, steps: int = 64) -> PPO:
    ppo = run(state_ppo(config=config), steps)
    save_policy(folder, ppo.policy, PolicySpec("x", "state", 34, 18, 9, ppo=config))
    return ppo


def test_a_critic_warm_up_leaves_the_actor_alone(tmp_path: Path) -> None:
    saved_policy(tmp_path)
    ppo = state_ppo(seed=5, config=replace(SMALL, critic_warmup=2, log_std_init=-1.0))
    assert start_from(tmp_path, ppo.policy)
    before, began = weights(ppo), load_policy(tmp_path)
    obs = FakeTask(4).reset()
    run(ppo, 320, until=64)  # two iterations
    after = weights(ppo)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {n for n in before if of_critic(n)} and len(moved) >= 4
    assert ppo.policy.log_std.tolist() == [-1.0] * 9
    assert torch.equal(Policy(ppo.policy, began.spec, began.observer).act(obs), began.act(obs))
    run(ppo, 320, until=96)
    assert all(not torch.equal(after[n], value) for n, value in weights(ppo).items())


def test_an_adaptive_rate_stands_still_while_the_critic_warms_up() -> None:
    """The KL of an actor that stands still is rounding, which would drive the rate to its bound."""
    config = replace(SMALL, lr_schedule="adaptive", desired_kl=10.0, critic_warmup=2)
    ppo = state_ppo(config=config)
    assert learning_rate(run(ppo, 320, until=64)) == 1e-3
    assert learning_rate(run(ppo, 320, until=96)) > 1e-3


def test_init_takes_actor_and_critic_but_not_the_noise(tmp_path: Path) -> None:
    source = saved_policy(tmp_path, replace(SMALL, log_std_init=-2.0))
    other = state_ppo(seed=7)
    assert start_from(tmp_path, other.policy)
    for name, value in weights(other).items():
        assert torch.equal(value, weights(source)[name]) == (name != "log_std"), name


def test_init_without_a_critic_that_fits_says_so(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    plain = PolicySpec("x", "pixels", 34, 18, 9, [16, 8], ppo=SMALL, backbone=record_of(backbone))
    save_policy(tmp_path, build_net(plain), plain)
    net = build_net(replace(plain, ppo=replace(SMALL, asymmetric=True)))
    assert start_from(tmp_path, net, backbone) is False
    source = load_policy(tmp_path, backbone).net
    torch.testing.assert_close(net.state_dict()["action_net.weight"], source.action_net.weight)
    with pytest.raises(
        ValueError, match="does not fit this run in .*ppo.pool=attention ppo.history=1"
    ):
        start_from(tmp_path, build_net(replace(plain, ppo=replace(SMALL, pool="mean"))), backbone)
    with pytest.raises(ValueError, match="was trained on toto-tiny with weights"):
        start_from(tmp_path, net, FakeBackbone(1))
    with pytest.raises(ValueError, match="reads pixels, this run does not"):
        start_from(tmp_path, net, None)


def record_of(backbone: FakeBackbone) -> BackboneRecord:
    return BackboneRecord(backbone.name, backbone.weights_hash, layer=1)


def test_folders_from_before_the_switches_still_load(tmp_path: Path) -> None:
    source = saved_policy(tmp_path)
    path = tmp_path / "policy.json"
    spec = json.loads(path.read_text())
    first = "num_steps epochs minibatches gamma gae_lambda clip_range value_coef entropy_coef"
    kept = f"{first} max_grad_norm learning_rate log_std_init hidden num_queries".split()
    spec["ppo"] = {k: spec["ppo"][k] for k in kept} | {"log_std_init": 0.0}
    path.write_text(json.dumps(spec))
    policy, obs = load_policy(tmp_path), FakeTask(4).reset()
    expected = Policy(source.policy, policy.spec, policy.observer).act(obs)
    assert torch.equal(policy.act(obs), expected)
