"""DAgger on the fake task: it learns the expert, keeps its frames, and goes on after a kill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask
from gymnasium import spaces

from policies.dagger import DAgger, DAggerConfig
from policies.evaluation import evaluate
from policies.feature_vec_env import FeatureObserver
from policies.labels import LabelledFrames
from policies.policy import BackboneRecord, Policy, PolicySpec, build_net, save_policy
from policies.ppo import PPOConfig
from policies.teacher import Teacher, load_teacher

FRESH = [(5, world) for world in range(40)]
CONFIG = DAggerConfig(num_steps=4, action_repeat=1, batch_size=64, learning_rate=3e-3)


class ToTheOrigin:
    """The fake task's expert: straight to the origin."""

    asked = 0

    def act(self, obs: Any) -> torch.Tensor:
        self.asked += len(obs["oracle"])
        actions = torch.zeros(len(obs["oracle"]), 9)
        actions[:, :2] = (-5 * obs["oracle"][:, :2]).clamp(-1, 1)
        return actions


def spec_of(backbone: FakeBackbone) -> PolicySpec:
    record = BackboneRecord(backbone.name, backbone.weights_hash)
    return PolicySpec("franka_pick", "pixels", 34, 18, 9, list(backbone.feature_shape),
                      backbone=record, ppo=PPOConfig(hidden=[32]), algo="dagger")  # fmt: skip


def make(folder: Path, config: DAggerConfig = CONFIG, frames: int = 4096) -> DAgger:
    torch.manual_seed(0)
    backbone = FakeBackbone()
    task = FakeTask(8, "pixels", oracle=True)
    observer = FeatureObserver(backbone, task.num_states)
    labels = LabelledFrames(folder, frames, observer.space, task.num_actions)
    net = build_net(spec_of(backbone))
    return DAgger(task, observer, ToTheOrigin(), net, labels, config)


def learn(dagger: DAgger, total: int) -> DAgger:
    dagger.start(total, lambda: True)
    while dagger.num_timesteps < total:
        assert dagger.iterate()
    return dagger


def test_the_student_does_what_the_expert_does(tmp_path: Path) -> None:
    dagger = make(tmp_path)
    untrained = evaluate(policy_of(dagger), FakeTask(8, "pixels"), FRESH)
    learn(dagger, 3000)
    episodes = evaluate(policy_of(dagger), FakeTask(8, "pixels"), FRESH)
    assert np.mean([e.success for e in untrained]) < 0.8
    assert np.mean([e.success for e in episodes]) > 0.95
    assert dagger.summary().numbers["train/imitation_loss"] < 0.02


def policy_of(dagger: DAgger) -> Policy:
    return Policy(dagger.policy, spec_of(FakeBackbone()), dagger._observer)


def test_each_frame_is_encoded_and_labelled_once(tmp_path: Path) -> None:
    dagger = learn(make(tmp_path), 320)
    assert dagger._observer.encodes == dagger._expert.asked == len(dagger._labels) == 320  # type: ignore[attr-defined]
    assert dagger.summary().encodes_per_step == 1.0


def test_an_action_can_be_held_for_several_steps(tmp_path: Path) -> None:
    dagger = learn(make(tmp_path, replace(CONFIG, action_repeat=2)), 320)
    assert dagger.num_timesteps == 320 and len(dagger._labels) == 160
    assert dagger.summary().encodes_per_step == 0.5


def test_only_the_students_own_episodes_count(tmp_path: Path) -> None:
    always = replace(CONFIG, expert_share=1.0)
    dagger = make(tmp_path, always)
    dagger.start(10**9, lambda: True)
    for _ in range(10):
        dagger.iterate()
    assert dagger.summary().successes == []
    alone = learn(make(tmp_path / "alone", replace(CONFIG, expert_share=0.0)), 320)
    assert len(alone.summary().successes) >= 8


def test_a_killed_run_goes_on_with_its_frames(tmp_path: Path) -> None:
    first = learn(make(tmp_path / "labels"), 160)
    first.save_trainer(tmp_path / "trainer.pt")
    kept = first._labels.sample(8, np.random.default_rng(0))
    first.iterate()  # frames beyond the checkpoint, never flushed

    second = make(tmp_path / "labels")
    second.load_trainer(tmp_path / "trainer.pt")
    assert second.num_timesteps == len(second._labels) == 160
    again = second._labels.sample(8, np.random.default_rng(0))
    np.testing.assert_array_equal(kept[1], again[1])
    np.testing.assert_array_equal(kept[0]["features"], again[0]["features"])
    learn(second, 320)
    assert len(second._labels) == 320


def test_a_stop_ends_the_iteration_without_an_update(tmp_path: Path) -> None:
    dagger = make(tmp_path)
    dagger.start(1000, lambda: False)
    before = [p.clone() for p in dagger.policy.parameters()]
    assert not dagger.iterate()
    assert all(torch.equal(a, b) for a, b in zip(before, dagger.policy.parameters(), strict=True))


SPACE = spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32)})


def test_labelled_frames_refuse_what_does_not_fit(tmp_path: Path) -> None:
    frames = LabelledFrames(tmp_path, 4, SPACE, 3)
    frames.append({"x": np.ones((3, 2))}, np.ones((3, 3)))
    with pytest.raises(ValueError, match="holds 3 of 4 frames; 3 more"):
        frames.append({"x": np.ones((3, 2))}, np.ones((3, 3)))
    with pytest.raises(ValueError, match="not finite"):
        frames.append({"x": np.ones((1, 2))}, np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="checkpoint counts 4"):
        frames.truncate(4)
    frames.flush()
    assert len(LabelledFrames(tmp_path, 9, SPACE, 3)) == 3
    with pytest.raises(ValueError, match="start it in another run folder"):
        LabelledFrames(tmp_path, 4, SPACE, 5)


def test_a_teacher_reads_the_oracle(tmp_path: Path) -> None:
    state = PolicySpec("franka_pick", "state", 34, 18, 9, ppo=PPOConfig(hidden=[8]))
    save_policy(tmp_path / "state", build_net(state), state)
    teacher = load_teacher(tmp_path / "state")
    oracle = torch.randn(5, 34)
    assert teacher.act({"oracle": oracle}).shape == (5, 9)
    with pytest.raises(ValueError, match="oracle=True"):
        teacher.act({"obs": oracle})
    with pytest.raises(FileNotFoundError, match="packaged teachers"):
        load_teacher(tmp_path / "nothing")
    held = replace(state, ppo=replace(state.ppo, action_repeat=4))
    save_policy(tmp_path / "held", build_net(held), held)
    with pytest.raises(ValueError, match="holds its actions for 4"):
        load_teacher(tmp_path / "held")
    with pytest.raises(ValueError, match="reads pixels"):
        Teacher(Policy(build_net(state), spec_of(FakeBackbone()), None))  # type: ignore[arg-type]
