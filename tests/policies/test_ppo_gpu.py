"""rsl_rl's PPO on our worlds and networks, here on the CPU: bootstrap, parameters, resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_task import FakeBackbone, FakeTask
from test_ppo import SMALL, pixel_spec

pytest.importorskip("rsl_rl", reason="rsl_rl is not installed: pip install -e '.[gpu-rl]'")

from policies.feature_vec_env import FeatureObserver
from policies.policy import PolicySpec, build_net, load_weights, save_policy
from policies.ppo_config import PPOConfig
from policies.ppo_gpu import PPOGPU
from policies.vec_env import StateObserver

SPEC = PolicySpec("franka_pick", "state", 34, 18, 9, ppo=SMALL)


def state_ppo(config: PPOConfig = SMALL, seed: int = 0, worlds: int = 4, limit: int = 10) -> PPOGPU:
    torch.manual_seed(seed)
    task = FakeTask(worlds, seed=seed, max_episode_length=limit)
    net = build_net(replace(SPEC, ppo=config))
    return PPOGPU(task, StateObserver(34), net, config, seed)


def pixel_ppo(config: PPOConfig) -> PPOGPU:
    backbone = FakeBackbone()
    task = FakeTask(4, "pixels", oracle=config.asymmetric)
    num_oracle = 34 if config.asymmetric else 0
    observer = FeatureObserver(backbone, 18, num_oracle, config.history)
    return PPOGPU(task, observer, build_net(replace(pixel_spec(backbone), ppo=config)), config)


def run(ppo: PPOGPU, total_steps: int, until: int | None = None) -> PPOGPU:
    ppo.start(total_steps, lambda: True)
    while ppo.num_timesteps < (until or total_steps):
        assert ppo.iterate()
    return ppo


def weights(ppo: PPOGPU) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in ppo.policy.named_parameters()}


@pytest.mark.parametrize("bootstrap", [True, False])
def test_time_outs_are_worth_gamma_times_the_value_of_the_terminal_observation(
    bootstrap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo = state_ppo(replace(SMALL, time_limit_bootstrap=bootstrap), limit=8)
    step = ppo._task.step
    monkeypatch.setattr(ppo._task, "step", lambda actions: step(torch.zeros_like(actions)))
    monkeypatch.setattr(ppo, "_update", lambda: None)
    run(ppo, 32)
    task, rewards, terminal = FakeTask(4, max_episode_length=8), [], {}
    task.reset()
    for _ in range(8):
        _, reward, _, extras = task.step(torch.zeros(4, 9))
        rewards.append(reward.clone())
        terminal = extras["terminal_obs"]
    with torch.no_grad():
        values = ppo.policy.predict_values(terminal["obs"]).flatten()
    assert values.abs().min() > 1e-4
    expected = torch.stack(rewards)
    expected[-1] += 0.99 * values * bootstrap
    torch.testing.assert_close(ppo._algorithm.storage.rewards[:, :, 0], expected)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_every_parameter_is_trained_by_one_model(asymmetric: bool) -> None:
    ppo = pixel_ppo(replace(SMALL, asymmetric=asymmetric, history=2, lr_schedule="adaptive"))
    before = weights(ppo)
    after = weights(run(ppo, 96))
    assert [n for n in before if torch.equal(before[n], after[n])] == []
    trained = [p for group in ppo._algorithm.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, ppo.policy.parameters()))


def test_a_read_out_learns_to_tell_the_state() -> None:
    config = replace(SMALL, asymmetric=True, estimate_state=True, learning_rate=3e-3, num_steps=16)
    ppo = pixel_ppo(replace(config, lr_schedule="constant"))
    before, losses = weights(ppo), []
    ppo.start(10**6, lambda: True)
    for _ in range(15):
        assert ppo.iterate()
        losses.append(ppo.summary().numbers["train/state_loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert [n for n, p in weights(ppo).items() if torch.equal(before[n], p)] == []


def test_the_read_out_stands_still_while_actor_and_critic_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ppo = pixel_ppo(replace(SMALL, asymmetric=True, estimate_state=True))
    monkeypatch.setattr(ppo, "_learn_to_estimate", lambda _: 0.0)
    before = weights(ppo)
    after = weights(run(ppo, 96))
    still = {n for n in before if torch.equal(before[n], after[n])}
    assert still == {n for n in before if n.startswith("features_extractor")}


def test_it_learns_to_stay_near_the_middle() -> None:
    config = replace(SMALL, epochs=4, hidden=[32], learning_rate=3e-3, lr_schedule="constant")
    ppo = state_ppo(config, worlds=64)
    run(ppo, 64 * 8 * 40, until=64 * 16)
    early = ppo.summary().returns
    run(ppo, 64 * 8 * 40)
    late = ppo.summary().returns
    assert len(early) > 60 and len(late) == 200
    assert sum(late) / len(late) > sum(early) / len(early) + 0.5


def test_actions_may_be_held_and_rewards_scaled() -> None:
    config = replace(SMALL, action_repeat=2, reward_scale=0.5)
    ppo = run(state_ppo(config), 128, until=64)
    assert ppo.num_timesteps == 2 * 4 * config.num_steps == 64
    with pytest.raises(ValueError, match="rsl_rl has one rate for all"):
        state_ppo(replace(SMALL, critic_learning_rate=1e-3))


def test_a_critic_warm_up_leaves_actor_and_rate_alone() -> None:
    ppo = state_ppo(replace(SMALL, critic_warmup=2, lr_schedule="adaptive", desired_kl=1.0))
    before = weights(ppo)
    run(ppo, 320, until=64)
    moved = {n for n, p in weights(ppo).items() if not torch.equal(before[n], p)}
    assert moved and all("value_net" in n for n in moved)
    assert ppo._algorithm.learning_rate == 1e-3
    run(ppo, 320, until=96)
    assert ppo._algorithm.learning_rate > 1e-3


def test_resume_goes_the_same_way(tmp_path: Path) -> None:
    config = replace(SMALL, lr_schedule="adaptive", random_phase=True)
    first = run(state_ppo(config), 320, until=160)
    save_policy(tmp_path, first.policy, replace(SPEC, ppo=config))
    first.save_trainer(tmp_path / "trainer.pt")
    resumed = []
    for seed in (1, 2):
        ppo = state_ppo(config, seed)
        ppo._task = FakeTask(4, seed=5)
        load_weights(tmp_path, ppo.policy)
        ppo.load_trainer(tmp_path / "trainer.pt")
        assert ppo.num_timesteps == 160
        resumed.append(run(ppo, 320))
    assert resumed[0].summary().returns == resumed[1].summary().returns
    for name, value in weights(resumed[0]).items():
        assert torch.equal(value, weights(resumed[1])[name]), name


def test_a_resumed_run_has_the_learning_rate_of_its_config(tmp_path: Path) -> None:
    config = replace(SMALL, lr_schedule="constant", learning_rate=1e-3)
    run(state_ppo(config), 160).save_trainer(tmp_path / "trainer.pt")
    ppo = state_ppo(replace(config, learning_rate=1e-5))
    ppo.load_trainer(tmp_path / "trainer.pt")
    assert run(ppo, 320).summary().numbers["train/learning_rate"] == 1e-5


def test_stopping_returns_false_and_leaves_the_policy_as_it_was() -> None:
    ppo = state_ppo()
    before, calls = weights(ppo), iter([True, False])
    ppo.start(320, lambda: next(calls))
    assert ppo.iterate() is False
    assert all(torch.equal(before[n], p) for n, p in weights(ppo).items())
    run(ppo, 64)  # and can go on


@pytest.mark.gpu
def test_a_rollout_stays_on_the_gpu() -> None:
    import envs

    task: Any = envs.make(task="FrankaPick", num_envs=16, sim_device="cuda", obs="state")
    net = build_net(SPEC).to("cuda")
    ppo = run(PPOGPU(task, StateObserver(34), net, SMALL), 256)
    assert ppo._algorithm.storage.observations.device.type == "cuda"
    task.close()
