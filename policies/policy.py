"""A trained policy as a folder: `policy.safetensors` (weights) and `policy.json` (everything else).

The folder names the backbone it was trained on, with the hash of its weights; the simulator
evaluation and the robot runner both load it, and a different backbone is an error.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from policies.feature_vec_env import feature_space, observer_of
from policies.networks import ActorCritic, of_critic, policy_kwargs
from policies.plans import Plans
from policies.ppo_config import PPOConfig
from policies.vec_env import Observer, PixelObserver, StateObserver, TaskObs

FORMAT = 1


@dataclass
class BackboneRecord:
    """Which frozen features a policy reads. `weights` is what the user gave, `weights_hash` what
    was really loaded."""

    name: str
    weights_hash: str
    weights: str | None = None
    layer: int | None = None
    readout: str = "grid"
    grid: int = 8
    timm_name: str | None = None
    untrained: bool = False
    trainable: bool = False  # no features: the policy's own network reads the frames


@dataclass
class BCRecord:
    """What a behaviour-cloning policy is, beside its network.

    The network's outputs in [-1, 1] mean `low` to `high`: of the task's actions (`predicts`
    "actions", A numbers), or of joint targets relative to the joints that were seen ("targets", rad
    and m, K * A numbers), which the policy turns into actions of at most `largest_action`.
    """

    cameras: list[str]
    chunk: int  # actions of one plan
    context: int  # observations that are read
    replan_every: int  # control steps, at most `chunk`
    low: list[float]
    high: list[float]
    predicts: Literal["actions", "targets"] = "actions"
    largest_action: float = 1.0


@dataclass
class PolicySpec:
    """All that is needed to rebuild the network and its observation, as plain JSON values."""

    env: str  # "franka_pick"
    obs: str  # "pixels" or "state"
    num_obs: int  # length of the state vector
    num_states: int  # length of proprioception
    num_actions: int
    feature_shape: list[int] | None = None  # pixels: [T, D] or [D]; [3, R, R] without features
    image_size: int | None = None  # pixels: frames are image_size x image_size
    camera: str | None = None
    backbone: BackboneRecord | None = None
    ppo: PPOConfig = field(default_factory=PPOConfig)
    algo: str = "ppo"
    env_steps: int = 0
    control_rate_hz: int = 60
    # Other options (`envs.options.TaskOptions`) of the task it learned: visuals, dynamics, … Older
    # folders lack them.
    task: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    bc: BCRecord | None = None

    def observation_space(self) -> spaces.Space:
        if self.feature_shape is None:
            return StateObserver(self.num_obs).space
        num_oracle = self.num_obs if self.ppo.asymmetric else 0
        if self.backbone is not None and self.backbone.trainable:
            return PixelObserver(self.feature_shape, self.num_states, num_oracle).space
        return feature_space(self.feature_shape, self.num_states, num_oracle, self.ppo.history)


class Policy:
    """Deterministic policy: `act` maps a batched task observation to actions in [-1, 1].

    As in its training, each action is held for `ppo.action_repeat` steps."""

    def __init__(self, net: ActorCriticPolicy, spec: PolicySpec, observer: Observer):
        self.net = net
        self.spec = spec
        self.observer = observer
        self._plans = Plans(spec.ppo.action_repeat)

    def reset(self, worlds: Tensor | None = None) -> None:
        """Call when episodes begin, in these worlds (ids) or in all: what is remembered of those
        before (held actions, a history of features) is forgotten."""
        self._plans.reset(worlds)
        self.observer.reset(worlds)

    def act(self, obs: TaskObs) -> Tensor:
        """`obs["obs"]` (uint8 [N, H, W, 3] or float32 [N, num_obs]) and `obs["states"]`
        (float32 [N, num_states]) -> actions float32 [N, num_actions] on the CPU."""
        return self._plans.act(obs, self.plan)

    def plan(self, obs: TaskObs, worlds: Tensor | None = None) -> Tensor:
        """The next K = `ppo.action_repeat` actions, float32 [N, K, num_actions]: K times the mean.
        `worlds`: the ids of those seen, if not all are."""
        self.net.set_training_mode(False)
        with torch.no_grad():
            seen = obs_as_tensor(self.observer(obs, worlds=worlds), self.net.device)  # type: ignore[arg-type]
            actions = self.net.get_distribution(seen).get_actions(deterministic=True)
        return actions.clamp(-1.0, 1.0).cpu()[:, None].expand(-1, self.spec.ppo.action_repeat, -1)


def save_policy(folder: Path, net: ActorCriticPolicy, spec: PolicySpec) -> None:
    """Write `policy.safetensors` and `policy.json` into `folder` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    # named_parameters() lists shared modules once; SB3's state_dict repeats the read-out thrice.
    weights = {n: p.detach().cpu().contiguous() for n, p in net.named_parameters()}
    save_file(weights, folder / "policy.safetensors")
    (folder / "policy.json").write_text(json.dumps(asdict(spec), indent=2) + "\n")


def read_spec(folder: Path) -> PolicySpec:
    """`policy.json`. Raises FileNotFoundError if there is none, ValueError for another format."""
    path = Path(folder) / "policy.json"
    if not path.is_file():
        raise FileNotFoundError(f"no policy in {folder}: {path} is missing")
    data: dict[str, Any] = json.loads(path.read_text())
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} has format {data.get('format')}, this code reads {FORMAT}")
    backbone = data.pop("backbone")
    ppo, bc = data.pop("ppo"), data.pop("bc", None)  # folders older than bc lack it
    record = None if backbone is None else BackboneRecord(**backbone)
    cloned = None if bc is None else BCRecord(**bc)
    return PolicySpec(**data, backbone=record, ppo=PPOConfig(**ppo), bc=cloned)


def weights_file(folder: Path) -> Path:
    """Where a policy's weights are: ours, or robomimic's checkpoint."""
    ours = folder / "policy.safetensors"
    return ours if ours.is_file() else folder / "model.pth"


def load_weights(folder: Path, net: ActorCriticPolicy) -> None:
    """Copy `policy.safetensors` into `net`. Raises ValueError if names or shapes differ."""
    saved = load_file(Path(folder) / "policy.safetensors")
    own = dict(net.named_parameters())
    differ = sorted(saved.keys() ^ own.keys()) + sorted(
        n for n in saved.keys() & own.keys() if saved[n].shape != own[n].shape
    )
    if differ:
        raise ValueError(f"policy in {folder} does not fit this network; it differs in {differ}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def start_from(folder: Path | str, net: ActorCriticPolicy, backbone: Any = None) -> bool:
    """Copy the policy in `folder` into `net`: read-out and actor, and the critic if it has one of
    the same kind, which is returned. The noise (`log_std`) stays that of `net`.

    Raises ValueError unless read-out and actor fit and the backbone is the one they were trained on.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if (spec.backbone is None) != (backbone is None):
        raise ValueError(f"policy in {folder} reads {spec.obs}, this run does not")
    if spec.backbone is not None:
        check_backbone(spec.backbone, backbone, folder)
    saved = load_file(folder / "policy.safetensors")
    own = dict(net.named_parameters())
    shapes = {n: (_shape(saved, n), _shape(own, n)) for n in saved.keys() | own.keys()}
    differ = {n for n, (theirs, ours) in shapes.items() if theirs != ours}
    if wrong := sorted(n for n in differ if not of_critic(n)):
        n = wrong[0]
        raise ValueError(
            f"policy in {folder} does not fit this run in {wrong}: {n} is {shapes[n][0]}, expected "
            f"{shapes[n][1]}. It was made with ppo.hidden={spec.ppo.hidden} "
            f"ppo.pool={spec.ppo.pool} ppo.history={spec.ppo.history}"
        )
    with torch.no_grad():
        for name in saved.keys() - {"log_std"}:
            if not (differ and of_critic(name)):
                own[name].copy_(saved[name])
    return not differ


def _shape(weights: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def check_backbone(record: BackboneRecord, backbone: Any, folder: Path | str) -> None:
    """Raises ValueError unless `backbone` is the one that the policy in `folder` was trained on."""
    if backbone.weights_hash != record.weights_hash:
        raise ValueError(
            f"policy in {folder} was trained on {record.name} with weights "
            f"{record.weights_hash}, but the backbone given is {backbone.name} with weights "
            f"{backbone.weights_hash}"
        )
    for key in ("layer", "readout"):
        given, recorded = getattr(backbone, key), getattr(record, key)
        if recorded is not None and given != recorded:
            raise ValueError(
                f"policy in {folder} reads {key}={recorded}, the backbone given {key}={given}"
            )


def load_policy(folder: Path | str, backbone: Any = None, device: str = "cpu") -> Any:
    """Rebuild a saved policy: a `Policy`, or a `BCPolicy`, which has the same methods.

    `backbone`: the loaded FrozenBackbone, to share one; by default it is loaded by the name and
    weights in `policy.json`. Raises FileNotFoundError without a policy (or weights), ValueError if
    the backbone's weights are not those that the policy was trained on.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    observer: Observer = StateObserver(spec.num_obs)
    if spec.backbone is not None:
        if backbone is None:
            backbone = _load_recorded(spec.backbone, device)
        check_backbone(spec.backbone, backbone, folder)
        if spec.bc is not None:
            from policies.bc_policy import load_bc  # robomimic, an extra

            return load_bc(folder, spec, backbone, device)
        observer = observer_of(backbone, spec.num_states, history=spec.ppo.history)
        if list(backbone.feature_shape) != spec.feature_shape:
            raise ValueError(
                f"policy in {folder} reads features {spec.feature_shape}, the backbone given "
                f"makes {list(backbone.feature_shape)}"
            )
    net = build_net(spec).to(device)
    load_weights(folder, net)
    return Policy(net, spec, observer)


def build_net(spec: PolicySpec) -> ActorCritic:
    """A fresh network of the kind that `spec` describes."""
    space = spec.observation_space()
    actions = spaces.Box(-1.0, 1.0, (spec.num_actions,), np.float32)
    return ActorCritic(space, actions, lambda _: 0.0, **policy_kwargs(space, spec.ppo))


def _load_recorded(record: BackboneRecord, device: str) -> Any:
    from toto_robot.backbone import load_backbone

    return load_backbone(
        record.name,
        weights=record.weights,
        layer=record.layer,
        readout=record.readout,
        grid=record.grid,
        timm_name=record.timm_name,
        device=device,
    )
