"""Demonstrations -> robomimic's loader -> training -> a policy folder; resumed as uninterrupted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="scripts/setup.sh installs it")

from policies.demonstrations import Demonstration, assemble, write_episode
from policies.policy import load_policy
from toto_robot.backbone import load_backbone
from toto_robot.bc import BCConfig, Run, train
from toto_robot.runs import StopSignal, read_metrics


class FakeBackbone:
    name, weights_hash, layer, readout = "fake", "a", None, "grid"
    feature_shape, untrained = (4, 6), False

    def __call__(self, frames):
        means = frames.float().mean(dim=(1, 2, 3)) / 255
        return means[:, None, None].expand(-1, *self.feature_shape)


def make_demos(folder, count=3, steps=6, targets=True):
    draw = np.random.default_rng(0)
    paths = []
    for number in range(count):
        demo = Demonstration(
            images={"wrist": draw.integers(0, 255, (steps, 8, 8, 3), np.uint8)},
            vectors={"proprioception": draw.standard_normal((steps, 18)).astype(np.float32)},
            actions=draw.uniform(-0.3, 0.3, (steps, 9)).astype(np.float32),
            rewards=np.zeros(steps, np.float32),
            success=True,
            columns={"targets": draw.uniform(0, 0.04, (steps, 9)).astype(np.float32)}
            if targets
            else {},
        )
        paths.append(folder / f"{number}.hdf5")
        write_episode(paths[-1], demo)
    options = {"env": "franka_pick", "image_size": 8, "control_rate_hz": 30}
    assemble(folder / "demos.hdf5", paths, {"env_name": "x", "type": 2}, {"options": options})
    return folder / "demos.hdf5"


@pytest.mark.parametrize("predicts", ["targets", "actions"])
def test_a_resumed_run_is_the_uninterrupted_one_and_its_policy_plays(tmp_path, predicts):
    config = BCConfig(
        data=make_demos(tmp_path), out=tmp_path / "whole", epochs=2, steps_per_epoch=2,
        eval_every=0, predicts=predicts,
    )  # fmt: skip
    whole = Run(config, FakeBackbone())
    train(whole, StopSignal())
    parts = replace(config, out=tmp_path / "parts")
    first = Run(parts, FakeBackbone())
    first.train_epoch()
    first.save_training()
    second = Run(parts, FakeBackbone())
    assert second.epoch == 1
    train(second, StopSignal())
    for name, weight in whole.algo.nets.state_dict().items():
        assert torch.equal(weight, second.algo.nets.state_dict()[name]), name
    assert [row["steps"] for row in read_metrics(tmp_path / "whole/metrics.jsonl")] == [2, 4]
    assert (tmp_path / "whole/success.png").exists()

    policy = load_policy(tmp_path / "whole/checkpoints/best", FakeBackbone())
    obs = {"obs": torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "states": torch.zeros(2, 18),
           "targets": torch.zeros(2, 9)}  # fmt: skip
    assert policy.plan(obs).shape == (2, 16, 9)
    assert policy.act(obs).abs().max() <= 0.3001  # the range of the demonstrations


def test_a_stop_during_the_try_out_loses_neither_it_nor_the_best(tmp_path, monkeypatch):
    played = SimpleNamespace(success=True, at_end=True, episode_return=1.0)
    config = BCConfig(
        data=make_demos(tmp_path), out=tmp_path / "run", epochs=2, steps_per_epoch=2, eval_every=2,
        eval_episodes=3,
    )  # fmt: skip
    run = Run(config, FakeBackbone())
    monkeypatch.setattr(Run, "try_out", lambda self, keep_going: [played])  # one of three
    train(run, StopSignal())
    assert run.epoch == 1 and not (tmp_path / "run/checkpoints/best").exists()
    monkeypatch.setattr(Run, "try_out", lambda self, keep_going: [played] * 3)
    again = Run(config, FakeBackbone())
    train(again, StopSignal())
    assert again.epoch == 2 and (tmp_path / "run/checkpoints/best/policy.json").exists()
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["steps"] for row in rows] == [2, 4] and rows[-1]["success_rate"] == 1


def test_demonstrations_without_joint_targets_are_refused(tmp_path):
    config = BCConfig(data=make_demos(tmp_path, targets=False), out=tmp_path / "run")
    with pytest.raises(ValueError, match="predicts=actions"):
        Run(config, FakeBackbone())


def test_another_option_does_not_go_on_in_the_same_folder(tmp_path):
    config = BCConfig(data=make_demos(tmp_path), out=tmp_path / "run", epochs=1, steps_per_epoch=1)
    Run(config, FakeBackbone())
    with pytest.raises(SystemExit, match="other options"):
        Run(replace(config, seed=1), FakeBackbone())


def test_a_network_on_the_frames_themselves_is_trained_end_to_end(tmp_path):
    backbone = load_backbone("cnn")
    config = BCConfig(
        data=make_demos(tmp_path, count=2), out=tmp_path / "run", backbone="cnn", epochs=1,
        steps_per_epoch=1, eval_every=0,
    )  # fmt: skip
    run = Run(config, backbone)
    before = {k: v.clone() for k, v in run.algo.nets.state_dict().items() if "obs_nets.wrist" in k}
    train(run, StopSignal())
    after = run.algo.nets.state_dict()
    assert before and all(not torch.equal(v, after[k]) for k, v in before.items())
    policy = load_policy(tmp_path / "run/checkpoints/best", backbone)
    obs = {"obs": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "states": torch.zeros(1, 18),
           "targets": torch.zeros(1, 9)}  # fmt: skip
    assert policy.plan(obs).isfinite().all()
