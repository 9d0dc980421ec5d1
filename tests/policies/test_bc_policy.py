"""Behaviour cloning: cache, normalisation, chunk playback, robomimic's checkpoints."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="scripts/setup.sh installs it")

from envs.spec import FRANKA
from policies import robomimic_bc
from policies.bc_policy import (
    BCPolicy,
    action_range,
    action_step,
    actions_towards,
    denormalise,
    future_targets,
    measured,
    normalise,
)
from policies.feature_cache import FeatureCache
from policies.policy import BackboneRecord, BCRecord, PolicySpec, load_policy
from toto_robot.bc import PRESETS, chunks
from toto_robot.runs import write_json


class FakeBackbone:
    name, layer, readout, grid, resolution, precision = "fake", 1, "grid", 2, 8, "float32"
    feature_shape, untrained = (4, 6), False

    def __init__(self, weights_hash="a"):
        self.weights_hash = weights_hash

    def __call__(self, frames):
        means = frames.float().mean(dim=(1, 2, 3)) / 255
        return means[:, None, None].expand(-1, *self.feature_shape)


def make_policy(chunk=3, replan_every=2, backbone=None):
    torch.manual_seed(0)
    backbone = backbone or FakeBackbone()
    hyper = robomimic_bc.BCHyper(chunk=chunk, hidden=(8,))
    config = robomimic_bc.make_config(hyper, ["wrist"], raw=False)
    shapes = {robomimic_bc.PROPRIO: [5], "wrist": [4, 6]}
    algo = robomimic_bc.make_algo(config, shapes, chunk * 2, "cpu")
    spec = PolicySpec(
        env="franka_pick", obs="pixels", num_obs=0, num_states=5, num_actions=2,
        feature_shape=[4, 6], camera="wrist", algo="bc",
        backbone=BackboneRecord(name="fake", weights_hash="a", layer=1),
        bc=BCRecord(["wrist"], chunk, 1, replan_every, [-0.5, -1.0], [0.5, 0.2]),
    )  # fmt: skip
    return BCPolicy(algo, spec, backbone), config, shapes


def observation(worlds=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "obs": torch.randint(0, 255, (worlds, 8, 8, 3), dtype=torch.uint8, generator=draw),
        "states": torch.randn(worlds, 5, generator=draw),
    }


def test_normalisation_is_undone_and_a_constant_dimension_survives():
    actions = np.array([[-0.2, 0.7], [0.4, 0.7], [0.1, 0.7]], np.float32)
    low, high = (np.array(x) for x in action_range(actions))
    inner = normalise(actions, low, high)
    assert inner[:, 0].min() == pytest.approx(-1) and inner[:, 0].max() == pytest.approx(1)
    np.testing.assert_allclose(inner[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(denormalise(inner, low, high), actions, atol=1e-6)


def test_a_chunk_is_what_comes_next_and_the_last_action_repeats():
    actions = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(chunks(actions, 2), [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 4, 5]])


def test_future_targets_are_reached_by_the_actions_that_made_them():
    """Played back from the same state, the expert's own actions come out again."""
    draw = np.random.default_rng(0)
    step = action_step("franka_pick", 30)
    assert step == pytest.approx(2 * np.array(FRANKA.action_step))
    actions = draw.uniform(-0.2, 0.2, (5, 9))
    targets = np.cumsum(np.concatenate([np.zeros((1, 9)), step * actions]), 0)[:-1]
    joints = targets + draw.normal(0, 0.1, (5, 9))
    ahead = future_targets(targets, actions, joints, step, 3).reshape(5, 3, 9)
    wanted = torch.tensor(joints[:, None] + ahead)
    played = actions_towards(wanted, torch.tensor(targets), torch.tensor(step), 1.0)
    np.testing.assert_allclose(played[0], actions[:3], atol=1e-6)
    np.testing.assert_allclose(played[3], [actions[3], actions[4], 0 * actions[4]], atol=1e-6)
    slow = actions_towards(wanted + 10, torch.tensor(targets), torch.tensor(step), 0.26)
    np.testing.assert_allclose(slow, 0.26)


def test_joints_come_back_from_proprioception():
    states = torch.tensor([[-1.0] * 9 + [0.3] * 9, [1.0] * 9 + [0.0] * 9])
    np.testing.assert_allclose(measured(states, FRANKA), [FRANKA.lower, FRANKA.upper], atol=1e-6)


def test_a_plan_is_played_back_and_a_reset_world_plans_anew():
    policy, *_ = make_policy()
    first, second = observation(seed=1), observation(seed=2)
    plan = policy.plan(first)
    assert plan.shape == (3, 3, 2)
    torch.testing.assert_close(policy.act(first), plan[:, 0])
    policy.reset(torch.tensor([1]))
    played = policy.act(second)
    torch.testing.assert_close(played[[0, 2]], plan[[0, 2], 1])
    torch.testing.assert_close(played[1], policy.plan(second)[1, 0])


def test_the_cache_is_read_when_nothing_changed_and_never_when_something_did(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    cache = FeatureCache(tmp_path, FakeBackbone())
    path = cache.file(frames)
    assert cache.file(frames) == path and cache.encodes == 5
    other = frames.copy()
    other[4, 0, 0, 0] += 1
    assert cache.file(other) != path and cache.encodes == 10
    assert FeatureCache(tmp_path, FakeBackbone("b")).file(frames) != path
    half_written = path.with_name("killed.part")
    half_written.write_bytes(b"half")
    path.unlink()
    assert cache.file(frames) == path and cache.encodes == 15


def saved(tmp_path, policy, config, shapes):
    robomimic_bc.save_algo(tmp_path / "model.pth", policy.algo, config, {"env_name": "x"}, shapes)
    write_json(tmp_path / "policy.json", asdict(policy.spec))
    return tmp_path


def test_robomimic_loads_what_we_load(tmp_path):
    policy, config, shapes = make_policy()
    folder, obs = saved(tmp_path, policy, config, shapes), observation(1)
    ours = load_policy(folder, FakeBackbone())
    torch.testing.assert_close(ours.plan(obs), policy.plan(obs))
    theirs, _ = robomimic_bc.policy_from_checkpoint(
        ckpt_path=str(folder / "model.pth"), device=torch.device("cpu")
    )
    theirs.start_episode()
    seen = {key: value[0].numpy() for key, value in ours.observe(obs).items()}
    flat = denormalise(
        torch.from_numpy(theirs(seen)).reshape(3, 2), torch.tensor([-0.5, -1.0]),
        torch.tensor([0.5, 0.2]),
    )  # fmt: skip
    torch.testing.assert_close(ours.plan(obs)[0], flat)


def test_another_backbone_is_refused(tmp_path):
    folder = saved(tmp_path, *make_policy())
    with pytest.raises(ValueError, match="with weights b"):
        load_policy(folder, FakeBackbone("b"))


def test_without_robomimic_the_message_says_what_to_type():
    code = "import sys; sys.modules['robomimic'] = None; import policies.robomimic_bc"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "pip install --no-deps robomimic==0.3.0" in done.stderr


@pytest.mark.parametrize(("preset", "millions"), [("mvp-real", 0.12), ("rpt", 2.0)])
def test_presets_have_the_size_that_they_say(preset, millions):
    hyper = PRESETS[preset]
    config = robomimic_bc.make_config(hyper, ["wrist"], raw=False)
    shapes = {robomimic_bc.PROPRIO: [18], "wrist": [64, 128]}
    algo = robomimic_bc.make_algo(config, shapes, hyper.chunk * 9, "cpu")
    count = sum(p.numel() for p in algo.nets.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.1), count
    window = {k: torch.zeros(2, *([hyper.context] if hyper.context > 1 else []), *s)
              for k, s in shapes.items()}  # fmt: skip
    assert robomimic_bc.predict(algo, window, hyper.context).shape == (2, hyper.chunk * 9)
