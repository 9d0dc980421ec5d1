"""Record demonstrations in the simulator: `python -m toto_robot.demos env=franka_pick n=240`.

Episodes of an expert, in robomimic's HDF5 layout (`policies.demonstrations`), with a short film of
the first ones beside. Episode k is the one named (seed, k), whatever else runs, and every finished
one is kept in `<out>.episodes/`: the same command goes on after a kill, and with a larger n= adds
to a file that is complete.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import envs
from envs import spec
from envs.options import Level
from policies.demonstrations import Demonstration, DemonstrationFile, assemble, write_episode
from policies.film import film_demonstrations
from policies.policy import load_policy, read_spec
from toto_robot._siblings import check_siblings
from toto_robot.backbone.weights import nearest
from toto_robot.cli import parse
from toto_robot.experts import check_expert, make_expert
from toto_robot.runs import success_report, write_json

HOPELESS = 100  # attempts without a demonstration to keep, after which it is given up


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Record demonstrations of an expert in the simulator."""

    env: str = "franka_pick"
    expert: str = "scripted"  # scripted, teacher (the packaged one), or a policy folder
    n: int = 240  # demonstrations in the file when done
    out: Path | None = None  # None: data/demos/<env>.hdf5
    cameras: tuple[str, ...] = ("wrist",)
    image_size: int = 128  # px
    control_rate_hz: int = 60
    visuals: Level = "fixed"  # colours, lights and camera pose drawn anew for each episode
    noise: float = 0.0  # deviation of what is added to the expert's actions before they are sent
    clip_actions: float = 1.0  # the largest action; 0.26 keeps joint targets at 1.95 rad/s
    tail: int = 20  # control steps that an episode goes on after its success
    keep_failures: bool = False
    film: int = 4  # demonstrations in the film
    worlds: int = 16  # episodes at a time
    seed: int = 0
    sim_device: str = "cpu"

    def __post_init__(self) -> None:
        if self.env not in spec.TASK_NAMES:
            raise SystemExit(f"env={self.env} does not exist.{nearest(self.env, spec.TASK_NAMES)}")
        try:
            check_expert(self.expert, self.env, self.control_rate_hz)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from None
        for name in ("n", "worlds", "image_size"):
            if getattr(self, name) < 1:
                raise SystemExit(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 < self.clip_actions <= 1:
            raise SystemExit(f"clip_actions={self.clip_actions}: expected above 0, at most 1")
        if self.noise < 0 or self.tail < 0 or not self.cameras:
            raise SystemExit("noise= and tail= must not be negative, cameras= not empty")

    @property
    def file(self) -> Path:
        return self.out or Path(f"data/demos/{self.env}.hdf5")

    def kept(self) -> dict[str, Any]:
        """The options that all demonstrations of a file share."""
        free = ("n", "out", "film", "worlds", "sim_device")
        return json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in free}))


class Actor(Protocol):
    def act(self, obs: Any, /) -> Tensor: ...


class PixelExpert:
    """A policy that sees images, given those of its own cameras out of all that are recorded."""

    def __init__(self, folder: Path, cameras: tuple[str, ...], image_size: int):
        own = read_spec(folder)
        seen = [str(own.camera)] if own.bc is None else own.bc.cameras
        if not set(seen) <= set(cameras) or own.image_size != image_size:
            names = ",".join(seen)
            raise ValueError(
                f"the policy in {folder} sees camera {names} at {own.image_size} px; record "
                f"with cameras={names},... image_size={own.image_size}"
            )
        self._policy = load_policy(folder)
        self._cameras = [cameras.index(name) for name in seen]

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        frames = obs[spec.OBS][:, self._cameras]
        seen = frames if len(self._cameras) > 1 else frames.squeeze(1)
        return self._policy.act({**obs, spec.OBS: seen})

    def reset(self) -> None:
        self._policy.reset()


def expert_of(config: DemosConfig, task: Any) -> Actor:
    """The expert by name, or from a policy folder. Raises ValueError, FileNotFoundError."""
    spec = check_expert(config.expert, config.env, config.control_rate_hz)
    if spec is not None and spec.obs == "pixels":
        return PixelExpert(Path(config.expert), config.cameras, config.image_size)
    return make_expert(config.expert, config.env, task)


class Recording:
    """One episode while it runs: lists that grow by a step at a time."""

    def __init__(self, config: DemosConfig, attempt: int):
        self.attempt, self._config = attempt, config
        self._noise = np.random.default_rng([config.seed, attempt])
        self._rows: dict[str, list[np.ndarray]] = {}
        self.success_step = 0

    def add(self, **step: np.ndarray) -> None:
        for key, value in step.items():
            self._rows.setdefault(key, []).append(value)

    def disturb(self, action: np.ndarray) -> np.ndarray:
        noise = self._config.noise * self._noise.standard_normal(action.shape)
        largest = self._config.clip_actions
        return (action + noise).clip(-largest, largest).astype(np.float32)

    def finished(self, ended: bool, success: bool) -> bool:
        """Count a step; True after the episode's end, or `tail` steps after its success."""
        steps = len(self._rows["actions"])
        if success and not self.success_step:
            self.success_step = steps
        return ended or (success and steps >= self.success_step + self._config.tail)

    def demonstration(self) -> Demonstration:
        columns = {key: np.stack(rows) for key, rows in self._rows.items()}
        images = columns.pop(spec.OBS)
        return Demonstration(
            images={name: images[:, i] for i, name in enumerate(self._config.cameras)},
            vectors={"proprioception": columns.pop(spec.STATES), "oracle": columns.pop(spec.ORACLE)},
            actions=columns.pop("actions"),
            rewards=columns.pop("rewards"),
            success=self.success_step > 0,
            columns=columns,
            facts={
                "seed": self._config.seed, "attempt": self.attempt,
                "success_step": self.success_step,
            },
        )  # fmt: skip


def play(config: DemosConfig, task: Any, expert: Actor, attempts: range) -> Iterator[Recording]:
    """Yield the episodes (seed, attempt) of `attempts` as `Recording`s, each when it is finished."""
    task.line_up([(config.seed, attempt) for attempt in attempts])
    obs = task.reset()
    getattr(expert, "reset", lambda: None)()
    running = {world: Recording(config, attempt) for world, attempt in enumerate(attempts)}
    while running:
        wanted = expert.act(obs).clamp(-config.clip_actions, config.clip_actions).cpu().numpy()
        sent, seen = wanted.copy(), {key: value.cpu().numpy() for key, value in obs.items()}
        for world, recording in running.items():
            sent[world] = recording.disturb(wanted[world])
            recording.add(actions=wanted[world], actions_sent=sent[world],
                          **{key: value[world] for key, value in seen.items()})  # fmt: skip
        obs, rewards, resets, extras = task.step(torch.from_numpy(sent).to(task.rl_device))
        for world, recording in list(running.items()):
            recording.add(rewards=np.array(rewards[world].item(), np.float32))
            if recording.finished(bool(resets[world]), bool(extras["successes"][world] > 0)):
                yield running.pop(world)


class Episodes:
    """The folder of finished episodes that are not in the file yet; `<attempt>.hdf5` each."""

    def __init__(self, config: DemosConfig, first: int):
        self.folder, self._first = config.file.with_name(config.file.name + ".episodes"), first
        self._progress = self.folder / "progress.json"
        self.next_attempt, self._options = first, config.kept()
        if self._progress.exists():
            saved = json.loads(self._progress.read_text())
            check_same(saved["options"], self._options, self.folder)
            self.next_attempt = max(first, saved["next_attempt"])

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._progress, {"next_attempt": self.next_attempt, "options": self._options})

    def kept(self) -> list[int]:
        """Attempts on the disk. Those that the file holds already, from before a kill, go."""
        attempts = sorted(int(path.stem) for path in self.folder.glob("*.hdf5"))
        for attempt in attempts:
            if attempt < self._first:
                self.path(attempt).unlink()
        return [attempt for attempt in attempts if attempt >= self._first]

    def path(self, attempt: int) -> Path:
        return self.folder / f"{attempt:06d}.hdf5"


def check_same(saved: Mapping[str, Any], options: Mapping[str, Any], where: Path) -> None:
    """SystemExit if what is there was recorded with other options."""
    differ = [f"{key}={saved.get(key)}" for key in options if saved.get(key) != options[key]]
    if differ:
        raise SystemExit(f"{where} was recorded with {', '.join(differ)}; choose another out=")


def record(config: DemosConfig, episodes: Episodes, have: int) -> None:
    """Play until there are n demonstrations, `have` of them in the file already.

    Raises SystemExit when the expert never succeeds.
    """
    task = envs.make(
        config.env, min(config.worlds, config.n), config.sim_device, seed=config.seed,
        obs="pixels", oracle=True, image_size=config.image_size, camera=config.cameras,
        visuals=config.visuals, control_rate_hz=config.control_rate_hz,
    )  # fmt: skip
    try:
        fill(config, episodes, have, task, expert_of(config, task))
    finally:
        task.close()


def fill(config: DemosConfig, episodes: Episodes, have: int, task: Any, expert: Actor) -> None:
    """The loop of `record`: batches of one episode for each world."""
    kept = set(episodes.kept())
    episodes.save()
    with tqdm(total=config.n, initial=have + len(kept), unit="demo", desc="recording") as bar:
        while have + len(kept) < config.n:
            attempts = range(episodes.next_attempt, episodes.next_attempt + task.num_envs)
            for recording in play(config, task, expert, attempts):
                keep = recording.success_step or config.keep_failures
                if keep and recording.attempt not in kept:
                    write_episode(episodes.path(recording.attempt), recording.demonstration())
                    kept.add(recording.attempt)
                    bar.update()
            episodes.next_attempt = attempts.stop
            episodes.save()
            if not kept and not have and attempts.stop >= HOPELESS:
                raise SystemExit(
                    f"expert={config.expert} succeeded in none of {attempts.stop} episodes; "
                    "keep_failures=true records them all the same"
                )


def describe(config: DemosConfig, attempts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`env_args` as robomimic reads them, and `about`."""
    options = config.kept()
    env_args = {
        "env_name": f"toto_robot/{spec.TASK_NAMES[config.env]}-v0",
        "type": 2,  # robomimic's number for Gymnasium environments
        "env_kwargs": {key: options[key] for key in ("cameras", "image_size", "control_rate_hz")},
    }
    return env_args, {"options": options, "attempts": attempts}


def main() -> None:
    check_siblings()
    config = parse(DemosConfig, sys.argv[1:])
    have, first = 0, 0
    if config.file.exists():
        with DemonstrationFile(config.file) as file:
            have, first = len(file), int(file.about.get("attempts", 0))
            check_same(file.about.get("options", {}), config.kept(), config.file)
    if have < config.n:
        episodes = Episodes(config, first)
        try:
            record(config, episodes, have)
        except KeyboardInterrupt:
            raise SystemExit(f"stopped; the same command goes on from {episodes.folder}") from None
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from None
        chosen = episodes.kept()[: config.n - have]
        paths = [episodes.path(attempt) for attempt in chosen]
        assemble(config.file, paths, *describe(config, chosen[-1] + 1))
        shutil.rmtree(episodes.folder)
    report(config)


def report(config: DemosConfig) -> None:
    """Say what the file holds, and film the first of it."""
    with DemonstrationFile(config.file) as file:
        names, attempts = file.names(), file.about["attempts"]
        facts = [file.facts(name) for name in names]
        if config.film:
            film = config.file.with_suffix(".mp4")
            demos = [file.read(name) for name in names[: config.film]]
            film_demonstrations(film, demos, config.control_rate_hz)
            print(f"film of the first {len(demos)}: {film}")
        split = ", ".join(f"{len(file.names(mask))} {mask}" for mask in ("train", "valid"))
    wins = [float(fact["success"]) for fact in facts]
    rate = success_report(wins + [0.0] * (attempts - len(wins)))
    steps = [int(fact["success_step"]) for fact in facts if fact["success"]]
    print(
        f"{config.file}: {len(names)} demonstrations ({split}), "
        f"{sum(int(fact['num_samples']) for fact in facts)} steps, "
        f"{config.file.stat().st_size / 1e6:.0f} MB; {sum(wins):.0f} of {attempts} episodes "
        f"succeeded [{rate['success_low']:.1%}, {rate['success_high']:.1%}]"
        + (f" after {np.mean(steps):.0f} steps on average" if steps else "")
    )


if __name__ == "__main__":
    main()
