"""Options of `python -m toto_robot.rl` as dataclasses, composed and checked by Hydra (no YAML).

    env=franka_pick  backbone=toto-tiny  backbone.weights=random  ppo.learning_rate=5e-4  …

A wrong option, key or type ends in one line with the nearest valid name, see `overrides.py`.
"""

import difflib
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from envs.options import TaskOptions
from envs.spec import CONTROL_RATE_HZ, TASK_NAMES
from policies.dagger import DAggerConfig
from policies.ppo_config import PRESETS, PPOConfig
from toto_robot.backbone import NAMES

ALGOS = ("ppo", "dagger", "dagger+ppo", "ppo-gpu")
OBS = ("pixels", "state")
READOUTS = ("grid", "mean", "last", "tokens", "cls")
CAMERAS = ("wrist", "third_person")
DEFAULT_NUM_ENVS = {"pixels": 64, "state": 256}
# 200,000 steps from pixels: about half an hour on a laptop. A comparison wants 2,000,000.
DEFAULT_TOTAL_STEPS = {"pixels": 200_000, "state": 2_000_000}


@dataclass
class EnvConfig:
    """Which task, and how it is made. All but `name` are those of `envs.options.TaskOptions`."""

    name: str = "franka_pick"
    camera: str = "wrist"  # the one that the policy sees
    reward: str = "dense"
    visuals: str = (
        "fixed"  # of looks and cameras: fixed, mild, strong; or a shift: light, colour, …
    )
    dynamics: str = "fixed"  # of friction, masses and drives
    control_rate_hz: int = int(CONTROL_RATE_HZ)
    clip_actions: float = 1.0  # the largest action; 0.2 is a joint target's speed of 1.5 rad/s
    fidelity: str = "corrected"  # pixmc: with PixMC's quirks
    # While training, cut episodes so many steps after their success. None: 30 for algo=dagger (the
    # rest would be holding still), else never. Evaluation never cuts.
    steps_after_success: int | None = None
    sim_device: str = "cpu"  # cuda: physics and images by MuJoCo Warp


@dataclass
class BackboneConfig:
    """Which frozen features. See `toto_robot.backbone.load_backbone`."""

    name: str = "toto-tiny"
    weights: str | None = None  # file, hub repository, or "random" for untrained features
    layer: int | None = None  # None: the middle
    readout: str = "grid"
    grid: int = 8  # grid x grid tokens, for readout=grid
    timm_name: str | None = None  # timm's name of the encoder, for backbone=timm


@dataclass
class RLConfig:
    """Everything `python -m toto_robot.rl` takes. None means: derived, see `__post_init__`."""

    defaults: list[Any] = field(
        default_factory=lambda: [
            "_self_",
            {"env": "franka_pick"},
            {"backbone": "toto-tiny"},
            {"preset": None},
        ]
    )
    env: EnvConfig = MISSING
    backbone: BackboneConfig = MISSING
    algo: str = "ppo"
    preset: str | None = None  # a row of `policies.ppo_config.PRESETS`, under what `ppo.x=` says
    ppo: PPOConfig = field(default_factory=PPOConfig)
    dagger: DAggerConfig = field(default_factory=DAggerConfig)
    obs: str = "pixels"
    image_size: int = 128  # pixels: frames are image_size x image_size
    total_steps: int | None = None  # environment steps, summed over worlds
    num_envs: int | None = None
    seed: int = 0
    device: str = "auto"  # of backbone and policy; auto: a GPU if there is one
    resume: str | None = None  # a run folder
    init: str | None = None  # a policy folder, for example <run>/checkpoints/best: start from it
    # At the end, on fresh seeds. None: 64 after less than 1,000,000 steps from pixels, 200 else. One
    # episode from pixels is up to 500 frames: 200 would take as long as the training, unless they
    # end at success (None: so after algo=dagger), which leaves "success at the end" unknown.
    eval_episodes: int | None = None
    eval_stop_at_success: bool | None = None
    film_episodes: int = 4  # 0: no film
    # Of torch. None: from pixels as torch chooses; from state 1, since the networks are small and
    # physics has threads of its own (measured on 2 busy cores: 6,000 steps/s with 1, 650 with 2).
    threads: int | None = None

    def __post_init__(self) -> None:
        check_choice("algo", self.algo, ALGOS)
        check_choice("obs", self.obs, OBS)
        check_choice("env.camera", self.env.camera, CAMERAS)
        self.task_options()  # checks them
        check_choice("backbone.readout", self.backbone.readout, READOUTS)
        if self.num_envs is None:
            self.num_envs = DEFAULT_NUM_ENVS[self.obs]
        if self.total_steps is None:
            dagger = self.algo == "dagger"
            self.total_steps = self.dagger.first_steps if dagger else DEFAULT_TOTAL_STEPS[self.obs]
        if self.eval_stop_at_success is None:
            self.eval_stop_at_success = self.algo == "dagger"
        if self.eval_episodes is None:
            short = self.obs == "pixels" and self.total_steps < 1_000_000
            self.eval_episodes = 64 if short and not self.eval_stop_at_success else 200
        if self.threads is None and self.obs == "state":
            self.threads = 1
        self._derive_start()
        self._check_ppo()
        if self.algo == "ppo-gpu":
            self.ppo.check_gpu()
        if self.algo.startswith("dagger"):
            self._derive_dagger()
        for name in ("num_envs", "total_steps", "eval_episodes", "image_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("film_episodes", "seed"):
            _at_least(name, getattr(self, name), 0)
        _at_least("backbone.grid", self.backbone.grid, 1)
        if self.threads is not None:
            _at_least("threads", self.threads, 1)
        self.ppo.check_rollout(self.num_envs)

    def _derive_start(self) -> None:
        """Noise and warm-up, by whether PPO starts from a trained policy."""
        trained = self.init or self.algo == "dagger+ppo"
        if self.ppo.log_std_init is None:
            self.ppo.log_std_init = -1.0 if trained else 0.0
        if self.ppo.critic_warmup is None:
            self.ppo.critic_warmup = 10 if trained else 0

    def _check_ppo(self) -> None:
        plain = self.algo in ("ppo", "ppo-gpu")
        if self.ppo.estimate_state and (self.obs != "pixels" or not plain):
            raise ValueError(
                f"ppo.estimate_state=true with obs={self.obs} algo={self.algo}: expected obs=pixels "
                "algo=ppo or ppo-gpu (preset=held is preset=best without it)"
            )

    def _check_dagger_history(self) -> None:
        """A student's actions are held as `ppo.action_repeat` says, in its training by `dagger`'s."""
        apart, later = self.dagger.action_repeat, self.ppo.action_repeat
        if self.ppo.history > 1 and apart != later:
            raise ValueError(
                f"ppo.history={self.ppo.history} with dagger.action_repeat={apart}: the frames of a "
                "history would lie further apart in training than in evaluation; "
                f"expected dagger.action_repeat={later}, as ppo.action_repeat"
            )

    def _derive_dagger(self) -> None:
        if self.obs != "pixels":
            raise ValueError(f"algo={self.algo} learns from pixels, got obs={self.obs}")
        self._check_dagger_history()
        if self.env.steps_after_success is None and self.algo == "dagger":
            self.env.steps_after_success = 30

    def task_options(self) -> TaskOptions:
        """Those of evaluation. Raises ValueError for what does not exist."""
        elsewhere = ("name", "sim_device", "steps_after_success")
        own = {k: v for k, v in vars(self.env).items() if k not in elsewhere}
        return TaskOptions(obs=self.obs, image_size=self.image_size, **own)  # type: ignore[arg-type]

    def training_options(self) -> TaskOptions:
        """Those of training: what an expert may see, episodes cut short."""
        cut = self.env.steps_after_success
        oracle = self.algo == "dagger" or (self.ppo.asymmetric and self.obs == "pixels")
        return replace(self.task_options(), oracle=oracle, steps_after_success=cut)


# Options that make no other experiment: how it is run, and how often it is looked at.
INCIDENTAL = (
    "resume", "threads", "device", "eval_episodes", "eval_stop_at_success", "film_episodes",
)  # fmt: skip
# Episodes that were cut are part of these recipes.
PRESET_ENVS = {name: {"steps_after_success": 30} for name in ("held", "best")}
GROUPS = {"env": tuple(TASK_NAMES), "backbone": NAMES, "preset": tuple(PRESETS)}


def register() -> None:
    """Put the config and its option groups into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="rl", node=RLConfig)
    for name in GROUPS["env"]:
        store.store(group="env", name=name, node=EnvConfig(name=name))
    for name in GROUPS["backbone"]:
        store.store(group="backbone", name=name, node=BackboneConfig(name=name))
    for name, values in PRESETS.items():
        node = {"preset": name, "ppo": values, "env": PRESET_ENVS.get(name, {})}
        store.store(group="preset", name=name, node=node, package="_global_")


def hint(given: str, valid: tuple[str, ...] | list[str]) -> str:
    """ "; did you mean 'x'? Valid: x, y, z" for error messages."""
    close = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} Valid: {', '.join(valid)}"


def check_choice(key: str, given: str, valid: tuple[str, ...]) -> None:
    """Raises ValueError with the nearest valid value unless `given` is in `valid`."""
    if given not in valid:
        raise ValueError(f"{key}={given} does not exist{hint(given, valid)}")


def _at_least(key: str, given: int, least: int) -> None:
    if given < least:
        raise ValueError(f"{key}={given}: expected at least {least}")


def as_plain(config: RLConfig) -> dict[str, Any]:
    """The config as plain values: what the run is, not how it was started."""
    return {k: v for k, v in asdict(config).items() if k not in ("defaults", "resume")}


def fail(message: object) -> NoReturn:
    """One line on stderr and exit code 2, for what the user can mend."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
