"""PPO: bootstrap, schedule, frozen weights, same seed, resume, policy folders."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask

from policies.feature_vec_env import feature_vec_env
from policies.policy import BackboneRecord, PolicySpec, load_policy, load_weights, save_policy
from policies.ppo import PPO, PPOConfig, make_ppo
from policies.readouts import FeatureReadout
from policies.vec_env import StateObserver, TaskVecEnv

SMALL = PPOConfig(num_steps=8, epochs=2, minibatches=2, hidden=[16], num_queries=2)


def state_ppo(seed: int = 0, config: PPOConfig = SMALL, **task: Any) -> PPO:
    env = TaskVecEnv(FakeTask(4, seed=seed, **task), StateObserver(34), config.time_limit_bootstrap)
    return make_ppo(env, config, seed)


def pixel_ppo(backbone: FakeBackbone, seed: int = 0) -> PPO:
    env = feature_vec_env(FakeTask(4, "pixels", seed=seed), backbone)
    return make_ppo(env, SMALL, seed)


def run(ppo: PPO, total_steps: int, until: int | None = None) -> PPO:
    ppo.start(total_steps, lambda: True)
    while ppo.num_timesteps < (until or total_steps):
        assert ppo.iterate()
    return ppo


def weights(ppo: PPO) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in ppo.policy.named_parameters()}


def hand_returns(ppo: PPO, bootstrap: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rewards that the buffer should hold in a rollout of 8 still steps, limit 8."""
    task = FakeTask(4, max_episode_length=8)
    obs = task.reset()
    rewards, terminal = [], {}
    for _ in range(8):
        obs, reward, _, extras = task.step(torch.zeros(4, 9))
        rewards.append(reward.numpy().copy())
        terminal = extras["terminal_obs"]
    with torch.no_grad():
        values = ppo.policy.predict_values(terminal["obs"]).flatten().numpy()
    expected = np.stack(rewards)
    if bootstrap:
        expected[-1] += 0.99 * values
    return expected, values


@pytest.mark.parametrize("bootstrap", [True, False])
def test_time_outs_are_worth_gamma_times_the_value_of_the_terminal_observation(
    bootstrap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PPOConfig(num_steps=8, minibatches=2, hidden=[16], time_limit_bootstrap=bootstrap)
    ppo = state_ppo(config=config, max_episode_length=8)
    step = ppo.env.step  # type: ignore[union-attr]
    monkeypatch.setattr(ppo.env, "step", lambda actions: step(np.zeros_like(actions)))
    ppo.start(32, lambda: True)
    assert ppo.collect_rollouts(ppo.env, ppo._callback, ppo.rollout_buffer, 8)  # type: ignore[arg-type]
    expected, values = hand_returns(ppo, bootstrap)
    assert np.abs(values).min() > 1e-4  # else the test could not fail
    np.testing.assert_allclose(ppo.rollout_buffer.rewards, expected, atol=1e-5)


def test_advantages_are_normalised_over_the_whole_rollout() -> None:
    ppo = state_ppo()
    ppo.start(32, lambda: True)
    ppo.collect_rollouts(ppo.env, ppo._callback, ppo.rollout_buffer, 8)  # type: ignore[arg-type]
    advantages = ppo.rollout_buffer.advantages
    assert abs(advantages.mean()) < 1e-6 and abs(advantages.std() - 1) < 1e-5


def test_the_backbone_is_byte_identical_after_training_and_no_part_of_the_policy() -> None:
    backbone = FakeBackbone()
    before = {n: p.numpy().tobytes() for n, p in backbone.named_parameters()}
    ppo = run(pixel_ppo(backbone), 96)
    assert {n: p.numpy().tobytes() for n, p in backbone.named_parameters()} == before
    own = {p.data_ptr() for p in ppo.policy.parameters()}
    assert not own & {p.data_ptr() for p in backbone.parameters()}


def test_training_changes_every_parameter() -> None:
    ppo = pixel_ppo(FakeBackbone())
    before = weights(ppo)
    after = weights(run(ppo, 96))
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_orthogonal_initialisation_spares_bare_parameters_of_the_read_out() -> None:
    readout = pixel_ppo(FakeBackbone()).policy.features_extractor
    assert isinstance(readout, FeatureReadout)
    pool = readout.pool
    linear = {f"{n}.{p}" for n, m in pool.named_modules() if isinstance(m, torch.nn.Linear)
              for p, _ in m.named_parameters()}  # fmt: skip
    bare = [p for n, p in pool.named_parameters() if n not in linear and "norm" not in n]
    assert bare  # queries, positions
    for p in bare:
        assert 0 < p.std() < 1.5 and p.abs().max() < 5


def test_the_rollout_buffer_holds_float16_features() -> None:
    ppo = pixel_ppo(FakeBackbone())
    features = ppo.rollout_buffer.observations["features"]  # type: ignore[index]
    assert features.dtype == np.float16 and features.nbytes == 8 * 4 * 16 * 8 * 2


def test_learning_rate_is_a_cosine_of_steps_over_total_steps() -> None:
    ppo = run(state_ppo(), total_steps=320, until=160)
    expected = 1e-3 * 0.5 * (1 + math.cos(math.pi * 160 / 320))
    assert ppo.policy.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    run_to_end = run(state_ppo(), 320)
    assert run_to_end.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_same_seed_gives_the_same_first_thousand_steps() -> None:
    def trajectory(seed: int) -> tuple[list[np.ndarray], dict[str, torch.Tensor]]:
        ppo, seen = pixel_ppo(FakeBackbone(), seed), []
        ppo.start(1000, lambda: True)
        while ppo.num_timesteps < 1000:
            ppo.iterate()
            seen.append(ppo.rollout_buffer.actions.copy())
        return seen, weights(ppo)

    (actions, parameters), (again, parameters_again) = trajectory(3), trajectory(3)
    assert all(np.array_equal(a, b) for a, b in zip(actions, again, strict=True))
    assert all(torch.equal(parameters[n], parameters_again[n]) for n in parameters)
    assert not np.array_equal(actions[0], trajectory(4)[0][0])


def test_resume_restores_weights_optimiser_counters_and_schedule(tmp_path: Path) -> None:
    first = run(state_ppo(), total_steps=320, until=160)
    spec = PolicySpec("franka_pick", "state", 34, 18, 9, ppo=SMALL)
    save_policy(tmp_path, first.policy, spec)
    first.save_trainer(tmp_path / "trainer.pt")

    second = state_ppo(seed=9)
    load_weights(tmp_path, second.policy)
    second.load_trainer(tmp_path / "trainer.pt")
    assert second.num_timesteps == 160 and second._n_updates == first._n_updates
    mine, theirs = first.policy.optimizer.state_dict(), second.policy.optimizer.state_dict()
    for index, state in mine["state"].items():
        assert all(torch.equal(state[k], theirs["state"][index][k]) for k in state)
    # From the same start both go the same way: same worlds, same random numbers, same rate.
    for ppo in (first, second):
        ppo.env = TaskVecEnv(FakeTask(4, seed=5), StateObserver(34))
        ppo._last_obs = None
        ppo.load_trainer(tmp_path / "trainer.pt")
        run(ppo, 320)
    assert second.num_timesteps == 320
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


def test_stopping_returns_false_and_leaves_the_policy_as_it_was() -> None:
    ppo = state_ppo()
    before = weights(ppo)
    ppo.start(320, lambda: False)
    assert ppo.iterate() is False
    assert all(torch.equal(before[n], p) for n, p in weights(ppo).items())


def test_minibatches_must_divide_the_rollout() -> None:
    with pytest.raises(ValueError, match="do not divide into ppo.minibatches=5"):
        state_ppo(config=PPOConfig(num_steps=8, minibatches=5))


def pixel_spec(backbone: FakeBackbone) -> PolicySpec:
    record = BackboneRecord(backbone.name, backbone.weights_hash, layer=1, untrained=True)
    return PolicySpec("franka_pick", "pixels", 34, 18, 9, [16, 8], 16, "wrist", record, ppo=SMALL)


def test_a_policy_folder_acts_as_the_policy_that_was_saved(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    ppo = run(pixel_ppo(backbone), 64)
    save_policy(tmp_path, ppo.policy, pixel_spec(backbone))
    policy = load_policy(tmp_path, backbone)
    obs = FakeTask(3, "pixels", seed=1).reset()
    expected, _ = ppo.policy.predict(policy.observer(obs), deterministic=True)  # type: ignore[arg-type]
    actions = policy.act(obs)
    assert actions.shape == (3, 9) and actions.dtype == torch.float32
    np.testing.assert_allclose(actions.numpy(), expected, atol=1e-6)
    assert policy.spec == pixel_spec(backbone)


def test_another_backbone_is_an_error_that_names_both_hashes(tmp_path: Path) -> None:
    trained, other = FakeBackbone(0), FakeBackbone(1)
    save_policy(tmp_path, pixel_ppo(trained).policy, pixel_spec(trained))
    with pytest.raises(ValueError, match=f"{trained.weights_hash}.*{other.weights_hash}"):
        load_policy(tmp_path, other)


def test_another_layer_is_an_error(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    save_policy(tmp_path, pixel_ppo(backbone).policy, pixel_spec(backbone))
    backbone.layer = 2
    with pytest.raises(ValueError, match="reads layer=1, the backbone given layer=2"):
        load_policy(tmp_path, backbone)


def test_a_folder_without_policy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no policy in"):
        load_policy(tmp_path)
