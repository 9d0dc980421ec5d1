"""What can be chosen about a batched task, with its defaults."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from envs import spec
from envs.levels import visual_level

ObsKind = Literal["state", "pixels", "proprioception"]
RewardKind = Literal["dense", "sparse"]
Level = Literal["fixed", "mild", "strong"]
Engine = Literal["mujoco", "warp"]
Fidelity = Literal["corrected", "pixmc"]

PHYSICS_RATE_HZ = 240  # every control rate divides it


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Options of `envs.make`, all of them checked here.

    Attributes:
        obs: `state` is PixMC's oracle vector, `proprioception` the joints alone, `pixels` images.
        image_size: side of a square image, or (height, width); pixels.
        camera: what `pixels` shows: `wrist` (PixMC), `third_person`, or several names, which gives
            images [N, number of cameras, H, W, 3] in that order.
        reward: `dense` is PixMC's shaped reward, `sparse` 1 wherever the goal condition holds.
        visuals: randomisation level (`fixed`, `mild`, `strong`) or visual shifts (`light`, `colour`,
            `camera`, `distractors`, several joined by `+`, `all`), drawn anew for each episode.
        dynamics: randomisation level, likewise (`envs.levels`).
        control_rate_hz: joint speeds, episode seconds and the success time stay those of 60 Hz.
        episode_length: control steps; 8.33 s by default.
        steps_after_success: end an episode so many control steps after its success, as by the time
            limit; None (PixMC): it goes on, and may still fail.
        oracle: hand out PixMC's oracle vector beside the images, as `oracle` (for an expert that
            labels, or a critic that may know more than the actor).
        clip_obs, clip_actions: bounds of state vectors and actions.
        fidelity: `pixmc` keeps PixMC's quirks, see `envs.vec_task`.
        engine: `mujoco` (C, CPU threads) or `warp` (MuJoCo Warp); by the device if None.
        threads: of the C engine; all cores if None.
        assets: `primitives`, or `menagerie` for the makers' meshes (pip package mujoco-menagerie).
    """

    obs: ObsKind = "state"
    image_size: int | Sequence[int] = 128
    camera: str | Sequence[str] = "wrist"
    reward: RewardKind = "dense"
    visuals: str = "fixed"
    dynamics: Level = "fixed"
    control_rate_hz: int = int(spec.CONTROL_RATE_HZ)
    episode_length: int | None = None
    steps_after_success: int | None = None
    oracle: bool = False
    clip_obs: float = 5.0
    clip_actions: float = 1.0
    fidelity: Fidelity = "corrected"
    engine: Engine | None = None
    threads: int | None = None
    assets: Literal["primitives", "menagerie"] = "primitives"

    def __post_init__(self) -> None:
        _check("obs", self.obs, get_args(ObsKind))
        _check("reward", self.reward, get_args(RewardKind))
        visual_level(self.visuals)  # raises ValueError
        _check("dynamics", self.dynamics, get_args(Level))
        _check("fidelity", self.fidelity, get_args(Fidelity))
        _check("engine", self.engine, (None, *get_args(Engine)))
        _check("assets", self.assets, ("primitives", "menagerie"))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"image_size={self.image_size!r}: expected a side or (height, width)")
        rate = self.control_rate_hz
        if rate < 1 or PHYSICS_RATE_HZ % rate:
            rates = [r for r in range(1, PHYSICS_RATE_HZ + 1) if PHYSICS_RATE_HZ % r == 0]
            near = min(rates, key=lambda r: abs(r - rate))
            raise ValueError(
                f"control_rate_hz={rate}: must divide the physics rate of {PHYSICS_RATE_HZ} Hz; "
                f"the nearest is {near}"
            )
        if self.episode_length is not None and self.episode_length < 1:
            raise ValueError(f"episode_length={self.episode_length}: expected at least 1 step")
        if self.steps_after_success is not None and self.steps_after_success < 0:
            raise ValueError(f"steps_after_success={self.steps_after_success}: expected 0 or more")
        if not 0 < self.clip_actions or not 0 < self.clip_obs:
            raise ValueError(
                f"clip_obs={self.clip_obs}, clip_actions={self.clip_actions}: must be positive"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Image height and width, pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return tuple(self.image_size)  # type: ignore[return-value] # length checked above

    @property
    def cameras(self) -> tuple[str, ...]:
        return (self.camera,) if isinstance(self.camera, str) else tuple(self.camera)

    @property
    def pace(self) -> float:
        """Control steps of 60 Hz in one of ours."""
        return spec.CONTROL_RATE_HZ / self.control_rate_hz

    @classmethod
    def of(cls, given: dict[str, Any]) -> "TaskOptions":
        """From keyword arguments; ValueError names the nearest option to one that does not exist."""
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown option {name!r}{hint} Options: {names}")
        return cls(**given)


def _check(name: str, value: Any, valid: Sequence[Any]) -> None:
    if value not in valid:
        near = difflib.get_close_matches(str(value), [str(v) for v in valid], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {list(valid)}, got {value!r}{hint}")
