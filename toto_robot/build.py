"""From options to parts: backbone, task, vec env, and what a policy folder says about itself."""

from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import envs
from envs.spec import robot_of
from policies.dagger import DAgger
from policies.feature_vec_env import feature_vec_env, observer_of
from policies.labels import LabelledFrames
from policies.learner import Learner
from policies.networks import readout_of
from policies.policy import BackboneRecord, PolicySpec, build_net, read_spec, start_from
from policies.ppo import make_ppo
from policies.readouts import make_pool
from policies.vec_env import StateObserver, TaskVecEnv
from toto_robot import backbone as backbones
from toto_robot.conf import RLConfig
from toto_robot.experts import check_expert, make_expert

TORCHS_CHOICE = torch.get_num_threads()


def set_threads(threads: int | None) -> None:
    """Of torch; None: as many as it chose itself (a job before this one may have had another number)."""
    torch.set_num_threads(threads or TORCHS_CHOICE)


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
        timm_name=b.timm_name,
        device=pick_device(config),
    )


def make_task(config: RLConfig, seed: int, num_envs: int, training: bool = False) -> Any:
    """The batched task (`VecTask`) with observations as configured."""
    options = config.training_options() if training else config.task_options()
    return envs.make(
        task=config.env.name,
        num_envs=num_envs,
        sim_device=config.env.sim_device,
        seed=seed,
        **asdict(options),
    )


def wrap(task: Any, backbone: Any, config: RLConfig) -> TaskVecEnv:
    ppo = config.ppo
    bootstrap, repeat = ppo.time_limit_bootstrap, ppo.action_repeat
    if backbone is None:
        return TaskVecEnv(task, StateObserver(task.num_obs), bootstrap, repeat)
    return feature_vec_env(task, backbone, bootstrap, ppo.asymmetric, ppo.history, repeat)


def make_learner(
    config: RLConfig, folder: Path, task: Any, backbone: Any, policy_spec: PolicySpec
) -> Learner:
    """What `algo=` names, over the worlds of `task`; files that it needs lie in `folder`."""
    if config.algo == "dagger":
        learner: Learner = make_dagger(config, folder, task, backbone, policy_spec)
    elif config.algo == "ppo-gpu":
        learner = make_ppo_gpu(config, task, backbone, policy_spec)
    else:
        env = wrap(task, backbone, config)
        learner = make_ppo(env, config.ppo, config.seed, pick_device(config))
    if config.init and not config.resume and not start_from(config.init, learner.policy, backbone):
        print(f"{config.init} has no critic that fits here: it starts anew.")
    return learner


def make_ppo_gpu(config: RLConfig, task: Any, backbone: Any, policy_spec: PolicySpec) -> Learner:
    from policies.ppo_gpu import PPOGPU  # an extra, see `check_learner`

    torch.manual_seed(config.seed)
    net = build_net(policy_spec).to(pick_device(config))
    return PPOGPU(task, wrap(task, backbone, config).observer, net, config.ppo, config.seed)


def check_learner(config: RLConfig, backbone: Any) -> None:
    """Raises FileNotFoundError or ValueError, before anything slow, unless what `algo=` needs is
    there and the read-out and `init=` fit this run."""
    if config.algo == "ppo-gpu" and not find_spec("rsl_rl"):
        raise ValueError("algo=ppo-gpu needs rsl_rl: pip install 'toto-robot[gpu-rl]'")
    if config.algo.startswith("dagger"):
        check_expert(config.dagger.expert, config.env.name, config.env.control_rate_hz)
    if backbone is not None:
        observer = observer_of(backbone, num_states=1, history=config.ppo.history)
        readout_of(observer.space, config.ppo)
        if "features" in observer.space.spaces:
            make_pool(backbone.feature_shape, config.ppo.pool, config.ppo.num_queries)
    if config.init and not config.resume:
        check_init(config, backbone)


def check_init(config: RLConfig, backbone: Any) -> None:
    """Raises ValueError unless the policy of `init=` could be one of this run."""
    folder = Path(config.init or "")
    spec, robot = read_spec(folder), robot_of(config.env.name)
    shape = None if backbone is None else list(backbone.feature_shape)
    own = {"num_actions": robot.num_actions, "feature_shape": shape, "obs": config.obs}
    own |= {"control_rate_hz": config.env.control_rate_hz}
    if config.obs == "state":
        own["env"] = config.env.name  # what a state vector means
    differ = [
        f"{key}={getattr(spec, key)}, here {value}"
        for key, value in own.items()
        if getattr(spec, key) != value
    ]
    if differ:
        raise ValueError(f"init={folder} does not fit this run: {'; '.join(differ)}")
    start_from(folder, build_net(replace(spec, ppo=config.ppo)), backbone)


def make_dagger(
    config: RLConfig, folder: Path, task: Any, backbone: Any, policy_spec: PolicySpec
) -> DAgger:
    torch.manual_seed(config.seed)
    observer = observer_of(backbone, task.num_states, history=config.ppo.history)
    capacity = (config.total_steps or 0) + config.dagger.num_steps * task.num_envs
    labels = LabelledFrames(folder / "labels", capacity, observer.space, task.num_actions)
    if not config.resume:
        labels.truncate(0)  # of a run that was killed before its first checkpoint
    net = build_net(policy_spec).to(pick_device(config))
    expert = make_expert(config.dagger.expert, config.env.name, task)
    return DAgger(task, observer, expert, net, labels, config.dagger, config.seed)


# What a policy is tested under as well, beside camera and rate.
OF_THE_TASK = ("reward", "visuals", "dynamics", "clip_actions", "fidelity")


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
        task={key: getattr(config.env, key) for key in OF_THE_TASK},
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
        timm_name=config.backbone.timm_name,
        untrained=bool(backbone.untrained),
        trainable=bool(getattr(backbone, "trainable", False)),
    )
    return replace(
        policy_spec,
        feature_shape=list(backbone.feature_shape),
        image_size=config.image_size,
        camera=config.env.camera,
        backbone=record,
    )
