"""Plans that are played step by step, and policies whose actions are held."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask

from policies.evaluation import evaluate
from policies.feature_vec_env import feature_vec_env, observer_of
from policies.plans import Plans
from policies.policy import Policy, PolicySpec, build_net
from policies.ppo_config import PPOConfig

ASKED: list[list[float]] = []
OF: list[list[int] | None] = []


def count_up(obs: Any, worlds: torch.Tensor | None) -> torch.Tensor:
    """Three actions of one number: what was seen, and a tenth more each step."""
    ASKED.append(obs["seen"].tolist())
    OF.append(None if worlds is None else worlds.tolist())
    return obs["seen"][:, None, None] + torch.tensor([0.0, 0.1, 0.2])[None, :, None]


@pytest.fixture(autouse=True)
def nobody_asked() -> None:
    ASKED.clear()
    OF.clear()


def play(plans: Plans, *seen: float) -> list[float]:
    actions = plans.act({"seen": torch.tensor(seen)}, count_up)
    return [round(x, 3) for x in actions.flatten().tolist()]


def test_each_world_plays_its_own_plan() -> None:
    plans = Plans(replan_every=2)
    assert play(plans, 1, 2) == [1, 2]
    plans.reset(torch.tensor([1]))
    assert play(plans, 3, 4) == [1.1, 4]
    assert play(plans, 5, 6) == [5, 4.1]
    assert ASKED == [[1, 2], [4], [5]] and OF == [None, [1], [0]]


def test_a_planner_that_remembers_sees_every_frame() -> None:
    plans = Plans(replan_every=2, every_frame=True)
    assert play(plans, 1, 2) + play(plans, 3, 4) + play(plans, 5, 6) == [1, 2, 1.1, 2.1, 5, 6]
    assert ASKED == [[1, 2], [3, 4], [5, 6]]


def test_a_reset_of_all_may_change_the_number_of_worlds() -> None:
    plans = Plans(replan_every=2)
    plans.reset(torch.tensor([1]))  # nothing is planned yet
    play(plans, 1, 2)
    with pytest.raises(ValueError, match=r"observations of 3 worlds after those of 2: call reset"):
        play(plans, 1, 2, 3)
    plans.reset()
    assert play(plans, 1, 2, 3) == [1, 2, 3]


def test_a_plan_for_every_step_is_for_any_number_of_worlds() -> None:
    plans = Plans(replan_every=1)
    assert play(plans, 1, 2) == [1, 2]
    plans.reset(torch.tensor([1]))
    assert play(plans, 3) == [3]


def policy(repeat: int, backbone: FakeBackbone, history: int = 1) -> Policy:
    torch.manual_seed(0)
    spec = PolicySpec(
        "franka_pick", "pixels", 34, 18, 9, list(backbone.feature_shape), 16,
        ppo=PPOConfig(hidden=[16], action_repeat=repeat, history=history),
    )  # fmt: skip
    net = build_net(spec)
    with torch.no_grad():
        dict(net.named_parameters())["action_net.weight"].mul_(
            100
        )  # or all actions would be nearly 0
    return Policy(net, spec, observer_of(backbone, 18, history=history))


def test_a_policy_holds_its_actions_as_in_its_training_and_encodes_no_frame_between() -> None:
    backbone = FakeBackbone()
    held, free = policy(3, backbone), policy(1, backbone)
    task, reference = FakeTask(2, "pixels"), FakeTask(2, "pixels")
    obs, expected = task.reset(), reference.reset()
    held.reset()
    for _ in range(3):
        backbone.frames_seen = 0
        wanted = free.act(expected)
        assert backbone.frames_seen == 2
        for _ in range(3):
            torch.testing.assert_close(held.act(obs), wanted)
            obs, *_ = task.step(wanted)
            expected, *_ = reference.step(wanted)
        assert backbone.frames_seen == 4
    assert held.plan(obs).shape == (2, 3, 9)


def test_a_history_holds_the_frames_that_actions_were_chosen_from_as_in_its_training() -> None:
    backbone = FakeBackbone()
    held = policy(3, backbone, history=2)
    task, same = (FakeTask(6, "pixels", max_episode_length=20) for _ in range(2))
    env = feature_vec_env(same, backbone, history=2, action_repeat=3)
    obs, trained_on = task.reset(), env.reset()["features"]
    seen: list[np.ndarray] = []
    look = held.observer.__call__
    with torch.no_grad():  # or all would soon leave the square
        dict(held.net.named_parameters())["action_net.weight"].mul_(0.02)

    def watched(*args: Any, **which: Any) -> Any:
        out: Any = look(*args, **which)
        seen.append(out["features"])
        return out

    held.observer = watched  # type: ignore[assignment]
    first_episode = np.ones(6, bool)
    for decision in range(4):
        assert len(seen) == decision
        actions = held.act(obs)
        obs, *_ = task.step(actions)
        for _ in range(2):
            assert held.act(obs).equal(actions)
            obs, *_ = task.step(actions)
        assert np.array_equal(seen[decision][first_episode], trained_on[first_episode])
        env.step_async(actions.numpy())
        after, _, dones, _ = env.step_wait()
        first_episode &= ~dones
        trained_on = after["features"]
    assert first_episode.any() and not np.array_equal(seen[3][:, 0], seen[3][:, 1])


@pytest.mark.parametrize("history", [1, 3])
def test_an_episode_alone_is_as_among_others(history: int) -> None:
    backbone = FakeBackbone()
    names = [(5, world) for world in range(6)]
    together = evaluate(policy(3, backbone, history), FakeTask(4, "pixels"), names)
    alone = evaluate(policy(3, backbone, history), FakeTask(1, "pixels"), names)
    lengths = {e.name: replace(e, episode_return=0.0) for e in together}
    assert {e.name: replace(e, episode_return=0.0) for e in alone} == lengths
    returns = {e.name: e.episode_return for e in together}
    assert {e.name: e.episode_return for e in alone} == pytest.approx(returns, rel=1e-4)
