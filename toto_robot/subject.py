"""What is evaluated: a policy, from a run folder or alone, with the task that it is tested in."""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import envs
from envs.options import TaskOptions
from envs.physics import check_device
from policies.policy import Policy, load_policy, read_spec, weights_file
from toto_robot.build import load_frozen, pick_device, set_threads
from toto_robot.episodes import Suite
from toto_robot.overrides import check_config, saved_overrides

NONE = "none"  # no shift: the looks that the policy was trained under
UNTRAINED = "untrained backbone"


@dataclass
class Subject:
    """A policy, the task that it is tested in, and where results go."""

    folder: Path
    checkpoint: Path
    policy: Policy
    env: str
    options: TaskOptions
    sim_device: str = "cpu"
    seed: int = 0  # of the training; evaluation seeds derive from it
    rows: list[dict[str, Any]] = field(default_factory=list)
    policy_hash: str = ""

    def __post_init__(self) -> None:
        # Now, since a training that goes on may replace the checkpoint.
        weights = weights_file(self.checkpoint).read_bytes()
        self.policy_hash = hashlib.sha256(weights).hexdigest()[:16]

    @property
    def stamp(self) -> str:
        record = self.policy.spec.backbone
        return UNTRAINED if record is not None and record.untrained else ""

    @property
    def num_envs(self) -> int:
        """Worlds at a time. From pixels few: drawing costs the same, and the last ones wait less."""
        if self.sim_device != "cpu":
            return 256
        return 16 if self.policy.spec.obs == "pixels" else 64

    def suite(self, shift: str, stop_at_success: bool) -> Suite:
        return Suite(self.policy_hash, shift, stop_at_success)

    def make_task(self, shift: str, num_envs: int, stop_at_success: bool = False) -> Any:
        """`none`: the looks that the run is configured with."""
        options = replace(self.options, steps_after_success=0 if stop_at_success else None)
        if shift != NONE:
            options = replace(options, visuals=shift)
        return envs.make(
            task=self.env,
            num_envs=num_envs,
            sim_device=self.sim_device,
            seed=self.seed,
            **asdict(options),
        )


def chosen_checkpoint(folder: Path, algo: str, wanted: str = "auto") -> Path:
    """Which checkpoint of a run is tested: `best` for PPO. DAgger's rate falls to 0 and its window
    of episodes lags behind: the last is the best. Raises FileNotFoundError if it is not there."""
    best, last = folder / "checkpoints/best", folder / "checkpoints/last"
    if wanted == "auto":
        wanted = "best" if algo in ("ppo", "ppo-gpu") and best.exists() else "last"
    chosen = best if wanted == "best" else last
    if not (chosen / "policy.json").exists():
        raise FileNotFoundError(f"nothing to test in {folder}: {chosen} is missing")
    return chosen


def first_part(folder: Path, algo: str) -> Path:
    """Where a run begins: algo=dagger+ppo makes two runs in one folder."""
    return folder / "dagger" if algo == "dagger+ppo" else folder


def last_part(folder: Path) -> Path:
    """Where a run's final policy and results are (see `first_part`)."""
    return folder / "ppo" if (folder / "dagger").exists() else folder


def subject_of_run(
    folder: Path, device: str, checkpoint: str = "auto", sim_device: str | None = None
) -> Subject:
    """`sim_device` None: as in the training. Raises FileNotFoundError or ValueError for what is not a
    run folder of ours, and for devices that are not here."""
    folder = last_part(folder)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"run={folder} is not a run folder: config.yaml is missing there")
    if (chosen := _bc_checkpoint(folder, checkpoint)) is not None:
        alone = subject_of_policy(chosen, device, sim_device)
        return replace(alone, folder=folder)
    config = check_config([*saved_overrides(folder), f"device={device}"])
    sim_device = sim_device or config.env.sim_device
    check_device("sim_device", sim_device)
    chosen = chosen_checkpoint(folder, config.algo, checkpoint)
    set_threads(config.threads)
    policy = load_policy(chosen, load_frozen(config), pick_device(config))
    options = config.task_options()
    return Subject(folder, chosen, policy, config.env.name, options, sim_device, config.seed)


def _cameras(spec: Any) -> Any:
    """One name, or several in a tuple."""
    if spec.bc is not None and len(spec.bc.cameras) > 1:
        return tuple(spec.bc.cameras)
    return spec.camera or "wrist"


def _bc_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint of a run of `toto_robot.bc`; None for other runs."""
    last = folder / "checkpoints/last"
    if not (last / "policy.json").is_file() or read_spec(last).bc is None:
        return None
    return chosen_checkpoint(folder, "bc", "best" if wanted == "auto" else wanted)


def subject_of_policy(folder: Path, device: str, sim_device: str | None = None) -> Subject:
    """A policy folder alone: its task with the looks, camera and rate that it was trained for (looks
    as far as the folder says)."""
    check_device("sim_device", sim_device or "cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(folder, device=device)
    spec = policy.spec
    set_threads(1 if spec.obs == "state" else None)
    options = TaskOptions(
        obs=spec.obs,  # type: ignore[arg-type] # it was one of them when the policy was trained
        image_size=spec.image_size or 128,
        camera=_cameras(spec),
        control_rate_hz=spec.control_rate_hz,
        **spec.task,
    )
    return Subject(folder, folder, policy, spec.env, options, sim_device or "cpu")
