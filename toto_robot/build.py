"""From options to parts: backbone, task, vec env, and what a policy folder says about itself."""

from dataclasses import asdict, replace
from typing import Any

import torch

import envs
from policies.feature_vec_env import feature_vec_env
from policies.learner import Learner
from policies.policy import BackboneRecord, PolicySpec
from policies.ppo import make_ppo
from policies.vec_env import StateObserver, TaskVecEnv
from toto_robot import backbone as backbones
from toto_robot.conf import RLConfig


def pick_device(config: RLConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_frozen(config: RLConfig) -> Any:
    """The FrozenBackbone, before anything slow is built. None for obs=state.

    Raises WeightsNotFoundError (a FileNotFoundError) that names the ways to get weights."""
    if config.obs == "state":
        return None
    b = config.backbone
    return backbones.load_backbone(
        b.name,
        weights=b.weights,
        layer=b.layer,
        readout=b.readout,
        grid=b.grid,
        device=pick_device(config),
    )


def make_task(config: RLConfig, seed: int, num_envs: int) -> Any:
    """The batched task (`VecTask`) with observations as configured."""
    return envs.make(
        task=config.env.name,
        num_envs=num_envs,
        sim_device=config.env.sim_device,
        seed=seed,
        **asdict(config.task_options()),
    )


def wrap(task: Any, backbone: Any, config: RLConfig) -> TaskVecEnv:
    bootstrap = config.ppo.time_limit_bootstrap
    if backbone is None:
        return TaskVecEnv(task, StateObserver(task.num_obs), bootstrap)
    return feature_vec_env(task, backbone, bootstrap)


def make_learner(config: RLConfig, task: Any, backbone: Any) -> Learner:
    """What `algo=` names, over the worlds of `task`."""
    return make_ppo(wrap(task, backbone, config), config.ppo, config.seed, pick_device(config))


def describe_policy(config: RLConfig, task: Any, backbone: Any) -> PolicySpec:
    """What a policy folder says about itself."""
    policy_spec = PolicySpec(
        env=config.env.name,
        obs=config.obs,
        num_obs=task.num_obs,
        num_states=task.num_states,
        num_actions=task.num_actions,
        control_rate_hz=config.env.control_rate_hz,
        ppo=config.ppo,
        algo=config.algo,
    )
    if backbone is None:
        return policy_spec
    record = BackboneRecord(
        name=backbone.name,
        weights_hash=backbone.weights_hash,
        weights=config.backbone.weights,
        layer=backbone.layer,
        readout=config.backbone.readout,
        grid=config.backbone.grid,
        untrained=bool(backbone.untrained),
    )
    return replace(
        policy_spec,
        feature_shape=list(backbone.feature_shape),
        image_size=config.image_size,
        camera=config.env.camera,
        backbone=record,
    )
