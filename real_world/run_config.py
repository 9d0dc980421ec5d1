"""What `run_bc` is asked for, whether the policy fits it, and what the loop makes of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from envs.spec import FRANKA, TASK_NAMES
from real_world.cell_config import CellConfig
from real_world.keys import STOP_KEY
from real_world.loop import LoopOptions

SHIPPED = Path(__file__).parent / "pretrained/franka_pick"
SLACK = 1.5  # the policy is given so many times the longest that it took before the start
LATEST = 0.6  # share of a tick after which its command leaves, however slow the policy is


@dataclass(kw_only=True)
class RunConfig(CellConfig):
    """Run a policy on an arm. Without options: the shipped policy on the simulated arm."""

    policy: Path = SHIPPED  # a policy folder: behaviour cloning, DAgger or PPO
    episodes: int = 3
    seconds: float = 8.0  # of an episode, at most
    hold_seconds: float = 1.0  # how long the policy goes on after success
    rate_hz: float | None = None  # of the policy; must be what it was trained at
    threaded: bool | None = None  # the policy thinks beside the loop, which plays the older plan on
    # while it does; None: in real time, where plans reach further and no frame has to be seen
    send_after_ms: float | None = None  # of a tick, when its command leaves; None: see send_after_s
    blend: float = 0.0  # share of the older plan where plans overlap
    max_age_ms: float = 250.0  # of a frame; an older one ends the run
    missed_in_a_row: int = 5  # deadlines that end the run
    start: Literal["key", "auto"] | None = None  # of an episode; None: key for a real arm
    keys: Literal["auto", "terminal", "evdev", "none"] = "auto"
    stop_key: str = STOP_KEY
    deadman_key: str = ""  # must be held all the time, or the arm stops (keys=evdev hears it best)
    device: str = "cpu"
    log: Literal["none", "rrd"] = "none"  # rrd: everything into run.rrd, for rerun (extra `live`)
    headless: bool = True  # false: a live view, in rerun's window or a web page
    out: Path | None = None  # None: runs/real/<date and time>

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("episodes", "seconds", "max_age_ms", "missed_in_a_row"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")

    @property
    def by_key(self) -> bool:
        """Whether an episode waits for a key."""
        return self.start == "key" or (self.start is None and not self.simulated)


def check_policy(spec: Any, config: RunConfig) -> None:
    """Raises ValueError unless the policy is one for this arm and this rate."""
    problems = []
    if spec.env not in TASK_NAMES:
        problems.append(f"it is of env={spec.env}; known: {list(TASK_NAMES)}")
    if spec.obs != "pixels":
        problems.append(f"it reads {spec.obs}, which no camera gives")
    if spec.num_actions != FRANKA.num_actions or spec.num_states != FRANKA.num_states:
        problems.append(
            f"its actions and joints are {spec.num_actions} and {spec.num_states} numbers, this "
            f"arm's {FRANKA.num_actions} and {FRANKA.num_states}"
        )
    if config.rate_hz is not None and config.rate_hz != spec.control_rate_hz:
        problems.append(
            f"it acts at {spec.control_rate_hz} Hz, rate_hz={config.rate_hz:g} (its actions are "
            "steps of that length)"
        )
    if problems:
        raise ValueError(f"policy={config.policy} does not fit: " + "; ".join(problems))


def cameras_of(spec: Any) -> list[str]:
    return [spec.camera] if isinstance(spec.camera, str) else list(spec.camera or [])


def replan_every(spec: Any) -> int:
    """As in its evaluation; a cloned policy with a context is shown every frame."""
    if spec.bc is None:
        return spec.ppo.action_repeat
    return spec.bc.replan_every if spec.bc.context == 1 else 1


def thinks_beside(config: RunConfig, spec: Any) -> bool:
    """A plan may come too late for its tick where the one before reaches further. A policy with a
    context would miss the frames that come while it thinks."""
    if config.threaded is not None:
        return config.threaded
    bc = spec.bc
    return config.paced and bc is not None and bc.context == 1 and bc.chunk > bc.replan_every


def send_after_s(config: RunConfig, slowest_ms: float, command_hz: float) -> float:
    """When in a tick its command leaves. Sent when the policy is done, commands would come as unevenly as
    it computes. On the virtual clock computing takes no time."""
    if config.send_after_ms is not None:
        return config.send_after_ms / 1000
    if not config.paced:
        return 0.0
    return min(SLACK * slowest_ms / 1000, LATEST / command_hz)


def loop_options(config: RunConfig, spec: Any, slowest_ms: float) -> LoopOptions:
    """How the loop plays this policy, whose slowest call in the warm-up took so long."""
    command_hz = config.command_hz or spec.control_rate_hz
    return LoopOptions(
        policy_hz=spec.control_rate_hz,
        command_hz=command_hz,
        max_seconds=config.seconds,
        hold_seconds=config.hold_seconds,
        max_frame_age_s=config.max_age_ms / 1000,
        missed_in_a_row=config.missed_in_a_row,
        replan_every=replan_every(spec),
        threaded=thinks_beside(config, spec),
        send_after_s=send_after_s(config, slowest_ms, command_hz),
        blend=config.blend,
    )
