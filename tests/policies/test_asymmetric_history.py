"""Feature history and asymmetric critic: who sees which frames, and who never sees the state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask
from test_ppo import SMALL, pixel_spec, run

from policies.estimator import Replay
from policies.evaluation import evaluate
from policies.feature_vec_env import FeatureHistory, FeatureObserver, feature_vec_env
from policies.policy import load_policy, save_policy
from policies.ppo import PPO, PPOConfig, make_ppo


def actions_of(step: int) -> np.ndarray:
    """World 0 soon leaves the square, the others live to the time limit."""
    actions = np.zeros((4, 9), np.float32)
    actions[:, 0] = [1, 0.1, -0.1, 0]
    actions[:, 1] = 0.3 * np.sin(step)
    return actions


def played(history: int) -> tuple[list[Any], list[Any], list[list[dict[str, Any]]], Any]:
    """Observations, dones and infos of 25 steps."""
    env = feature_vec_env(
        FakeTask(4, "pixels", max_episode_length=12), FakeBackbone(), history=history
    )
    seen, ends, infos = [env.reset()["features"]], [], []
    for step in range(25):
        env.step_async(actions_of(step))
        obs, _, dones, info = env.step_wait()
        seen.append(obs["features"])
        ends.append(dones)
        infos.append(info)
    return seen, ends, infos, env


def test_a_history_holds_the_last_frames_of_the_same_episode_each_encoded_once() -> None:
    frames, ends, last, plain = played(1)
    stacks, same_ends, last_stacks, env = played(3)
    assert env.encodes_per_step == plain.encodes_per_step < 1.3
    assert env.observation_space["features"].shape == (3, 16, 8)
    early = 0
    for world in range(4):
        episode = [frames[0][world]]
        for t, (done, info) in enumerate(zip(ends, last, strict=True)):
            assert done[world] == same_ends[t][world]
            if done[world]:
                final = info[world]["terminal_observation"]["features"]
                shown = last_stacks[t][world]["terminal_observation"]["features"]
                padded = [episode[0]] * 2 + [*episode, final]
                assert np.array_equal(shown, np.stack(padded[-3:]))
                early += len(episode) < 12
                episode = [frames[t + 1][world]]
            else:
                episode.append(frames[t + 1][world])
            padded = [episode[0]] * 2 + episode
            assert np.array_equal(stacks[t + 1][world], np.stack(padded[-3:])), (world, t)
    assert early  # an episode that ended alone, beside worlds that went on


def test_stacks_that_were_handed_out_stay_as_they_are() -> None:
    history = FeatureHistory(2)
    first = history.push(torch.zeros(2, 3))
    second = history.push(torch.ones(2, 3))
    before = second.clone()
    history.push(torch.full((2, 3), 2.0), None)
    history.reset(torch.tensor([0]))
    assert history.push(torch.full((2, 3), 3.0))[:, 0, 0].tolist() == [3, 2]
    assert torch.equal(second, before) and first.unique().tolist() == [0]


def test_frames_of_some_worlds_leave_the_others_as_they_were() -> None:
    history = FeatureHistory(2)
    history.push(torch.tensor([[0.0], [1.0], [2.0]]))
    history.reset(torch.tensor([1, 2]))
    some = history.push(torch.tensor([[12.0], [10.0]]), worlds=torch.tensor([2, 0]))
    assert some[..., 0].tolist() == [[12, 12], [0, 10]]
    rest = history.push(torch.tensor([[20.0], [21.0], [22.0]]))
    assert rest[..., 0].tolist() == [[10, 20], [21, 21], [12, 22]]
    with pytest.raises(ValueError, match="features of 1 worlds after those of 2"):
        history.push(torch.zeros(1, 1), worlds=torch.tensor([0, 1]))


def test_another_number_of_worlds_without_a_reset_is_an_error() -> None:
    history = FeatureHistory(2)
    history.push(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="features of 3 worlds after those of 2"):
        history.push(torch.zeros(3, 3))
    history.reset()
    assert history.push(torch.zeros(3, 3)).shape == (3, 2, 3)


def pixel_ppo(config: PPOConfig, backbone: FakeBackbone, limit: int = 10) -> PPO:
    task = FakeTask(4, "pixels", max_episode_length=limit, oracle=config.asymmetric)
    env = feature_vec_env(task, backbone, asymmetric=config.asymmetric, history=config.history)
    return make_ppo(env, config)


def test_evaluation_begins_each_episode_with_a_fresh_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, backbone = replace(SMALL, history=2), FakeBackbone()
    ppo = pixel_ppo(config, backbone)
    save_policy(tmp_path, ppo.policy, replace(pixel_spec(backbone), ppo=config))
    policy, seen = load_policy(tmp_path, backbone), []
    call = FeatureObserver.__call__
    monkeypatch.setattr(
        FeatureObserver,
        "__call__",
        lambda self, obs, **which: seen.append(call(self, obs, **which)) or seen[-1],
    )
    task = FakeTask(3, "pixels", max_episode_length=6)
    task.progress_buf = torch.tensor([0, 0, 0])
    step, begins = task.step, [[True] * 3]

    def watched(actions: torch.Tensor) -> Any:
        out = step(actions)
        begins.append(out[2].bool().tolist())
        return out

    monkeypatch.setattr(task, "step", watched)
    evaluate(policy, task, [(0, world) for world in range(9)])
    assert sum(map(sum, begins)) > 6
    for stacks, fresh in zip(seen, begins, strict=False):
        features = stacks["features"]
        for world in range(3):
            assert np.array_equal(features[world, 0], features[world, 1]) == fresh[world]


def obs_of(oracle: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "features": torch.randn(5, 16, 8, generator=generator),
        "proprio": torch.randn(5, 18, generator=generator),
        "oracle": torch.full((5, 34), oracle),
    }


def test_the_actor_never_sees_the_state_and_the_critic_nothing_else() -> None:
    ppo = run(pixel_ppo(replace(SMALL, asymmetric=True), FakeBackbone()), 64)
    net, actions = ppo.policy, torch.zeros(5, 9)
    with torch.no_grad():
        (v0, p0, _), (v1, p1, _) = (net.evaluate_actions(obs_of(o), actions) for o in (0.0, 1.0))
    assert torch.equal(p0, p1) and (v0 - v1).abs().min() > 1e-4
    other = {**obs_of(0.0), "features": torch.randn(5, 16, 8), "proprio": torch.randn(5, 18)}
    with torch.no_grad():
        assert torch.equal(net.predict_values(other), v0)  # type: ignore[arg-type]
    net.zero_grad()
    net.predict_values(obs_of(1.0)).sum().backward()  # type: ignore[arg-type]
    taught = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught and all("value_net" in name for name in taught)


def test_an_asymmetric_policy_acts_without_the_state(tmp_path: Path) -> None:
    config, backbone = replace(SMALL, asymmetric=True, history=2, pool="conv"), FakeBackbone()
    ppo = run(pixel_ppo(config, backbone), 64)
    save_policy(tmp_path, ppo.policy, replace(pixel_spec(backbone), ppo=config))
    policy = load_policy(tmp_path, backbone)
    obs = FakeTask(3, "pixels", seed=1).reset()
    assert "oracle" not in obs
    seen = FeatureObserver(backbone, 18, history=2)(obs)
    with torch.no_grad():
        batch: Any = {k: torch.from_numpy(v) for k, v in seen.items()}
        expected = ppo.policy.get_distribution(batch).mode().clamp(-1, 1)
    assert torch.equal(policy.act(obs), expected)


def test_the_critic_learns_what_features_do_not_show() -> None:
    """The value of a hidden number: known to the asymmetric critic alone."""
    errors = {}
    for asymmetric in (False, True):
        torch.manual_seed(0)
        net = pixel_ppo(replace(SMALL, asymmetric=asymmetric), FakeBackbone()).policy
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        hidden = torch.randn(64, 1)
        loss = torch.tensor(0.0)
        for _ in range(60):
            obs = {"features": torch.zeros(64, 16, 8), "proprio": torch.zeros(64, 18)}
            if asymmetric:
                obs["oracle"] = hidden.expand(-1, 34)
            loss = (net.predict_values(obs) - hidden).square().mean()  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[asymmetric] = loss.item()
    assert errors[True] < 0.1 < 0.5 < errors[False]


def estimating(**more: Any) -> PPO:
    config = replace(SMALL, asymmetric=True, estimate_state=True, **more)
    task = FakeTask(8, "pixels", oracle=True)
    env = feature_vec_env(task, FakeBackbone(), asymmetric=True, history=config.history)
    return make_ppo(env, config)


@pytest.mark.parametrize("history", [1, 2])
def test_a_read_out_that_estimates_the_state_learns_it_and_nothing_else(
    history: int, tmp_path: Path
) -> None:
    ppo = estimating(learning_rate=3e-3, num_steps=16, history=history)
    ppo.start(10**6, lambda: True)
    readout: Any = ppo.policy.pi_features_extractor
    losses = []
    for _ in range(15):
        assert ppo.iterate()
        losses.append(ppo.summary().numbers["train/state_loss"])
    assert losses[-1] < 0.5 * losses[0]
    frames = ppo._flat_rollout()["obs"]
    read = readout(frames)
    assert read.shape == frames["oracle"].shape
    assert read[:, :18].equal(frames["proprio"])
    ppo.policy.zero_grad()
    values, log_prob, _ = ppo.policy.evaluate_actions(frames, torch.zeros(len(read), 9))
    (values.sum() + log_prob.sum()).backward()
    assert all(p.grad is None for p in readout.parameters())

    spec = replace(pixel_spec(FakeBackbone()), ppo=ppo.config)
    save_policy(tmp_path, ppo.policy, spec)
    policy = load_policy(tmp_path, FakeBackbone())
    obs = FakeTask(3, "pixels").reset()  # without the oracle vector
    assert policy.act(obs).shape == (3, 9)


def test_an_estimate_needs_the_state() -> None:
    with pytest.raises(ValueError, match="expected asymmetric=true"):
        PPOConfig(estimate_state=True)


def test_actor_and_critic_learn_from_what_was_read_when_acting() -> None:
    ppo = estimating()
    ppo.start(10**6, lambda: True)
    assert ppo.collect_rollouts(ppo.env, ppo._callback, ppo.rollout_buffer, ppo.n_steps)  # type: ignore[arg-type]
    rollout = ppo._flat_rollout()
    net: Any = ppo.policy
    seen = net.evaluate_actions(rollout["obs"], rollout["actions"])
    assert ppo.estimator is not None
    rollout["read"] = ppo.estimator.read(rollout["obs"], batch=8)
    read = net.evaluate_read(rollout["read"], rollout["obs"]["oracle"], rollout["actions"])
    for one, other in zip(seen, read, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(read[1], rollout["log_probs"], atol=1e-5)


def test_while_the_critic_warms_up_the_estimate_learns_and_the_actor_stands_still() -> None:
    ppo = estimating(critic_warmup=1)
    before = {k: v.clone() for k, v in ppo.policy.state_dict().items()}
    ppo.start(10**6, lambda: True)
    assert ppo.iterate()
    moved = {k for k, v in ppo.policy.state_dict().items() if not v.equal(before[k])}
    assert any(k.startswith("pi_features_extractor.") for k in moved)
    assert not any(k.startswith(("action_net", "mlp_extractor.policy_net")) for k in moved)


def test_a_replay_keeps_some_frames_of_all_ages() -> None:
    replay = Replay(100)
    for age in range(5):
        replay.add({"a": torch.full((40, 2), float(age)), "b": torch.full((40,), age)})
    assert len(replay) == 100
    drawn = replay.sample(2000)
    assert drawn["a"].shape == (2000, 2) and drawn["a"][:, 0].equal(drawn["b"].float())
    counts = drawn["b"].bincount(minlength=5)
    assert counts[4] == counts.max() and (counts > 0).sum() >= 4
    with pytest.raises(ValueError, match="101 frames do not fit"):
        replay.add({"a": torch.zeros(101, 2), "b": torch.zeros(101)})


def test_a_rollout_must_fit_into_the_replay() -> None:
    with pytest.raises(ValueError, match="64 frames do not fit into ppo.estimate_replay=63"):
        estimating(estimate_replay=63)
