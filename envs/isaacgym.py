"""IsaacGymEnvs' configuration: the dict of a task's YAML file (`name`, `env`, `sim`, `task`).

Keys that mean something here become options; solver settings of PhysX, which MuJoCo has no use for,
are accepted and named once in the log; anything else is an error, so that no setting is lost
silently. `isaacgym_task_map[name](cfg, rl_device, sim_device, ...)` is IsaacGymEnvs' constructor.
"""

import difflib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import envs
from envs import spec
from envs.options import TaskOptions
from envs.tasks import TASKS, build
from envs.vec_task import VecTask

logger = logging.getLogger(__name__)

_UNUSED = {
    "": {"physics_engine"},
    "env": {"envSpacing", "asset", "aggregateMode", "numObservations", "numStates", "numActions",
            "enableDebugVis", "numProps"},
    "sim": {"substeps", "use_gpu_pipeline", "physx", "up_axis", "gravity"},
    "task": set(),
}  # fmt: skip
_OBS_TYPES = {"oracle": "state", "pixels": "pixels", "robot": "proprioception"}
_DT_TOLERANCE_S = 1e-3  # the field writes 1/60 s as 0.0166 and 0.01667
_GRAVITY = (0.0, 0.0, -9.81)


def from_config(cfg: Mapping[str, Any]) -> tuple[str | None, int | None, dict[str, Any]]:
    """(task name, number of worlds, keyword options) of an IsaacGymEnvs task configuration.

    Raises:
        ValueError: a key or value that has no meaning here, with the nearest that has.
    """
    rest = {key: value for key, value in cfg.items() if key not in ("env", "sim", "task")}
    env, sim, task = (dict(cfg.get(part) or {}) for part in ("env", "sim", "task"))
    name, num_envs = rest.pop("name", None), env.pop("numEnvs", None)
    options: dict[str, Any] = {}
    for key, option in (("clipObservations", "clip_obs"), ("clipActions", "clip_actions"),
                        ("episodeLength", "episode_length"), ("fidelity", "fidelity"),
                        ("camera", "camera"), ("reward", "reward")):  # fmt: skip
        if key in env:
            options[option] = env.pop(key)
    if "controlFrequencyInv" in env:
        every = env.pop("controlFrequencyInv")
        rate_hz = spec.CONTROL_RATE_HZ / every
        if rate_hz % 1:
            raise ValueError(
                f"env.controlFrequencyInv={every} makes {rate_hz:.4g} decisions a second; expected a "
                f"divisor of {spec.CONTROL_RATE_HZ:g}"
            )
        options["control_rate_hz"] = int(rate_hz)
    options |= _images(env) | _randomisation(task)
    _check_sim(sim)
    for part, left in (("", rest), ("env", env), ("sim", sim), ("task", task)):
        _refuse_unknown(part, left)
    return name, num_envs, options


def _images(env: dict[str, Any]) -> dict[str, Any]:
    """PixMC's `obs_type` and `im_size`, IsaacGymEnvs' `enableCameraSensors`."""
    found: dict[str, Any] = {}
    env.pop("enableCameraSensors", None)  # cameras are always there; obs_type asks for images
    if "obs_type" in env:
        kind = env.pop("obs_type")
        if kind not in _OBS_TYPES:
            raise ValueError(f"env.obs_type={kind!r}: expected one of {sorted(_OBS_TYPES)}")
        found["obs"] = _OBS_TYPES[kind]
    if "im_size" in env:
        found["image_size"] = env.pop("im_size")
    return found


def _randomisation(task: dict[str, Any]) -> dict[str, Any]:
    """`task.randomize: True` is the mild level; ours are `visuals` and `dynamics`."""
    randomize = task.pop("randomize", False)
    found = {key: task.pop(key) for key in ("visuals", "dynamics") if key in task}
    return ({"visuals": "mild", "dynamics": "mild"} if randomize else {}) | found


def _check_sim(sim: dict[str, Any]) -> None:
    dt = sim.pop("dt", 1 / spec.CONTROL_RATE_HZ)
    if abs(dt - 1 / spec.CONTROL_RATE_HZ) > _DT_TOLERANCE_S:
        raise ValueError(
            f"sim.dt={dt}: these tasks run at 1/60 s; set env.controlFrequencyInv for slower control"
        )
    if sim.get("up_axis", "z") != "z":
        raise ValueError(f"sim.up_axis={sim['up_axis']!r}: z is up here")
    if tuple(sim.get("gravity", _GRAVITY)) != _GRAVITY:
        raise ValueError(f"sim.gravity={sim['gravity']}: it is {list(_GRAVITY)} here")


def _refuse_unknown(part: str, left: dict[str, Any]) -> None:
    known = {"env": {"numEnvs", "episodeLength", "clipObservations", "clipActions", "obs_type",
                     "controlFrequencyInv", "enableCameraSensors", "im_size", "camera", "reward",
                     "fidelity"},
             "sim": {"dt"}, "task": {"randomize", "visuals", "dynamics"},
             "": {"name", "env", "sim", "task"}}[part]  # fmt: skip
    prefix = f"{part}." if part else ""
    for key in left:
        if key in _UNUSED[part]:
            logger.info("%s%s has no meaning with MuJoCo and is not used", prefix, key)
            continue
        near = difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"; did you mean {prefix}{near[0]}?" if near else ""
        raise ValueError(f"unknown setting {prefix}{key}{hint} Known: {sorted(known)}")


def to_config(task: VecTask) -> dict[str, Any]:
    """The configuration that describes a built task, in IsaacGymEnvs' layout."""
    o = task.options
    kinds = {ours: theirs for theirs, ours in _OBS_TYPES.items()}
    return {
        "name": task.task.name,
        "physics_engine": "mujoco",
        "env": {
            "numEnvs": task.num_envs,
            "episodeLength": task.max_episode_length,
            "clipObservations": o.clip_obs,
            "clipActions": o.clip_actions,
            "controlFrequencyInv": o.pace,
            "obs_type": kinds[o.obs],
            "im_size": o.image_size,
            "camera": o.camera,
            "reward": o.reward,
            "fidelity": o.fidelity,
            "numObservations": task.num_obs,
            "numStates": task.num_states,
            "numActions": task.num_actions,
        },
        "sim": {"dt": 1 / spec.CONTROL_RATE_HZ, "up_axis": "z", "gravity": list(_GRAVITY)},
        "task": {"visuals": o.visuals, "dynamics": o.dynamics},
    }


def make(
    name: str | None,
    num_envs: int | None,
    sim_device: str,
    rl_device: str,
    seed: int,
    cfg: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> VecTask:
    """A task from arguments and configuration; an argument wins over the configuration."""
    cfg_name, cfg_num_envs, from_cfg = from_config(cfg or {})
    name = name or cfg_name
    num_envs = cfg_num_envs if num_envs is None else num_envs
    if name is None or num_envs is None:
        raise ValueError("give task= and num_envs=, or a cfg with name and env.numEnvs")
    built = build(name, num_envs, sim_device, rl_device, seed, TaskOptions.of(from_cfg | options))
    built.cfg = to_config(built)
    return built


def _construct(
    name: str,
    cfg: Mapping[str, Any],
    rl_device: str,
    sim_device: str,
    graphics_device_id: int = -1,
    headless: bool = True,
    virtual_screen_capture: bool = False,
    force_render: bool = False,
) -> VecTask:
    seed = cfg.get("seed", 0)
    rest = {key: value for key, value in cfg.items() if key != "seed"}
    return envs.make(name, None, sim_device, rl_device, seed, headless=headless, cfg=rest)


isaacgym_task_map: dict[str, Callable[..., VecTask]] = {
    name: functools.partial(_construct, name) for name in TASKS
}
