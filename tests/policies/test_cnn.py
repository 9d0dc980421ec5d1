"""`backbone=cnn`: frames in place of features, an image network in place of the read-out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_task import FakeBackbone, FakeTask

from policies.dagger import DAgger, DAggerConfig
from policies.evaluation import evaluate
from policies.feature_vec_env import feature_vec_env, observer_of
from policies.image_readout import ImageReadout
from policies.labels import LabelledFrames
from policies.policy import (
    BackboneRecord,
    Policy,
    PolicySpec,
    build_net,
    load_policy,
    save_policy,
)
from policies.ppo import make_ppo
from policies.ppo_config import PPOConfig
from toto_robot import load_backbone
from toto_robot.backbone.pixels import Pixels

SIDE = 36  # px, the least that its three convolutions can read
SMALL = PPOConfig(num_steps=8, epochs=2, minibatches=2, hidden=[16])


class ToTheOrigin:
    def act(self, obs):
        actions = torch.zeros(len(obs["oracle"]), 9)
        actions[:, :2] = (-5 * obs["oracle"][:, :2]).clamp(-1, 1)
        return actions


def spec_of(backbone: Pixels) -> PolicySpec:
    record = BackboneRecord(backbone.name, backbone.weights_hash, trainable=True)
    return PolicySpec("franka_pick", "pixels", 34, 18, 9, list(backbone.feature_shape),
                      backbone=record, ppo=SMALL)  # fmt: skip


def test_ppo_trains_the_whole_network_from_frames() -> None:
    env = feature_vec_env(FakeTask(4, "pixels", image_size=24), Pixels(SIDE))
    ppo = make_ppo(env, SMALL)
    before = {n: p.detach().clone() for n, p in ppo.policy.named_parameters()}
    assert isinstance(ppo.policy.features_extractor, ImageReadout)
    ppo.start(64, lambda: True)
    assert ppo.iterate() and ppo.iterate()
    stored = ppo.rollout_buffer.observations
    assert isinstance(stored, dict)
    assert stored["image"].dtype == np.uint8 and stored["image"].shape[2:] == (3, SIDE, SIDE)
    same = [n for n, p in ppo.policy.named_parameters() if torch.equal(p, before[n])]
    assert same == [] and any("cnn.cnn.0.weight" in n for n in before)
    assert env.encodes_per_step == 0 and ppo.summary().encodes_per_step == 0


def test_the_network_sees_the_frame_and_not_its_transpose() -> None:
    backbone = Pixels(SIDE)
    frames = torch.randint(256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    seen = observer_of(backbone, 18)({"obs": frames, "states": torch.zeros(2, 18)})
    assert np.array_equal(seen["image"].transpose(0, 2, 3, 1), frames.numpy())


def test_dagger_learns_from_frames_and_the_policy_comes_back_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone, task = Pixels(SIDE), FakeTask(8, "pixels", image_size=SIDE, oracle=True)
    observer, spec = observer_of(backbone, task.num_states), spec_of(backbone)
    labels = LabelledFrames(tmp_path / "labels", 2048, observer.space, task.num_actions)
    config = DAggerConfig(num_steps=4, action_repeat=1, batch_size=64, learning_rate=2e-3)
    dagger = DAgger(task, observer, ToTheOrigin(), build_net(spec), labels, config)
    dagger.start(1600, lambda: True)
    while dagger.num_timesteps < 1600:
        assert dagger.iterate()
    assert dagger.summary().numbers["train/imitation_loss"] < 0.03
    save_policy(tmp_path / "policy", dagger.policy, spec)

    episodes = [(5, world) for world in range(24)]
    learnt = Policy(dagger.policy, spec, observer)
    again = load_policy(tmp_path / "policy", backbone)
    fresh = FakeTask(8, "pixels", image_size=SIDE)
    results = [evaluate(p, fresh, episodes) for p in (learnt, again)]
    assert np.mean([e.success for e in results[0]]) > 0.9
    assert results[0] == results[1]


def test_a_policy_of_features_does_not_take_it(tmp_path: Path) -> None:
    frozen = FakeBackbone()
    record = BackboneRecord(frozen.name, frozen.weights_hash)
    spec = PolicySpec("franka_pick", "pixels", 34, 18, 9, [16, 8], backbone=record, ppo=SMALL)
    save_policy(tmp_path, build_net(spec), spec)
    with pytest.raises(ValueError, match="the backbone given is cnn"):
        load_policy(tmp_path, Pixels(SIDE))


def test_a_history_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="ppo.history=2"):
        observer_of(Pixels(SIDE), 18, history=2)


def test_by_name() -> None:
    backbone = load_backbone("cnn")
    assert backbone.trainable and backbone.feature_shape == (3, 128, 128)
    assert list(backbone.parameters()) == []
    frames = torch.randint(256, (2, 96, 160, 3), dtype=torch.uint8)
    assert backbone(frames).shape == (2, 128, 128, 3) and backbone(frames).dtype == torch.uint8
    with pytest.raises(ValueError, match="channels go last"):
        backbone(frames.permute(0, 3, 1, 2))
