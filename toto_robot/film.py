"""Film the simulator for pre-training: `python -m toto_robot.film out=data/films clips=192`.

Every clip is one episode of scripted or random motion (where that ends early, a shorter clip), seen
by the wrist camera or a third-person one, with nominal or varied colours, lights and camera poses.
MP4 at 30 frames/s (every second control step), H.264 with full colour resolution: at 128 px a cube
is a few pixels wide, and the usual 4:2:0 sub-sampling would smear its colour. A batch of clips that
is all there is not filmed again; a folder holds clips of one set of options.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import torch
from tqdm import tqdm

import envs
from envs import spec
from envs.randomisation import Randomiser
from envs.scripted import Motion, ScriptedMotions
from toto_robot._siblings import check_siblings
from toto_robot.cli import parse
from toto_robot.runs import write_text

CONTROL_STEPS_PER_FRAME = 2
SHARES: dict[str, dict[Motion, float]] = {  # of each task's clips
    "franka_pick": {"wander": 0.2, "look": 0.45, "pick": 0.35},
    "kuka_pick": {"wander": 1.0},
    "franka_cabinet": {"wander": 0.3, "open": 0.7},
    "kuka_cabinet": {"wander": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class FilmConfig:
    """Film scripted and random motions in the simulator."""

    out: Path = Path("data/films")
    env: str = "franka_pick"
    clips: int = 192
    frames: int = 240  # per clip, at most
    image_size: int = 128  # px
    wrist: float = 0.75  # share of clips seen by the wrist camera
    varied: float = 0.6  # share of clips with varied colours, lights and camera poses
    worlds: int = 32  # clips filmed at a time
    seed: int = 0

    def __post_init__(self) -> None:
        if self.env not in SHARES:
            raise SystemExit(f"env={self.env} does not exist; valid: {', '.join(SHARES)}")
        longest = spec.EPISODE_LENGTH // CONTROL_STEPS_PER_FRAME
        if not 1 <= self.frames <= longest:
            raise SystemExit(f"frames={self.frames}: expected 1 to {longest} (one episode)")
        for name in ("wrist", "varied"):
            if not 0 <= getattr(self, name) <= 1:
                raise SystemExit(f"{name}={getattr(self, name)}: expected a share from 0 to 1")


class Clip:
    """One MP4 in the making; it gets its name only when it is complete."""

    def __init__(self, path: Path, size: int):
        self.path, self._partial, self.frames = path, path.with_suffix(".part"), 0
        self._container = av.open(str(self._partial), "w", format="mp4")
        rate = int(spec.CONTROL_RATE_HZ) // CONTROL_STEPS_PER_FRAME
        self._stream = self._container.add_stream(
            "libx264", rate=rate, options={"crf": "14", "preset": "veryfast", "threads": "1"}
        )
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = "yuv444p"

    def add(self, image: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._partial.rename(self.path)


def film_batch(config: FilmConfig, first: int, progress: tqdm) -> list[dict]:
    """Film clips `first` .. `first + worlds`; one row about each."""
    count = min(config.worlds, config.clips - first)
    paths = [config.out / config.env / f"clip_{first + i:05d}.mp4" for i in range(count)]
    rng = np.random.default_rng([config.seed, first])
    from_wrist = rng.uniform(size=count) < config.wrist
    varied = rng.uniform(size=count) < config.varied
    task = envs.make(config.env, count, seed=config.seed * 1_000_003 + first)
    looks = torch.from_numpy(np.flatnonzero(varied))
    Randomiser(task.engine, "film", "fixed", config.seed).apply(looks, looks + first)
    task.reset()
    motions = ScriptedMotions(task, SHARES[config.env], seed=config.seed * 1_000_003 + first)
    clips = [Clip(path, config.image_size) for path in paths]
    cameras = {"wrist": np.flatnonzero(from_wrist), "third_person": np.flatnonzero(~from_wrist)}
    actions, live = motions.act(), np.ones(count, bool)
    motion = list(motions.motion)  # of each first episode
    for step in range(config.frames * CONTROL_STEPS_PER_FRAME):
        _, _, resets, _ = task.step(actions)
        live &= ~resets.bool().numpy()
        actions = motions.act()
        if step % CONTROL_STEPS_PER_FRAME:
            continue
        for camera, seen in cameras.items():
            worlds = seen[live[seen]]
            images = task.render_film(worlds, camera, config.image_size, config.image_size)
            for world, image in zip(worlds, images.numpy(), strict=True):
                clips[world].add(image)
        progress.update(count)
    for clip in clips:
        clip.finish()
    task.close()
    return [
        {"file": clip.path.name, "camera": "wrist" if wrist else "third_person",
         "varied": bool(vary), "motion": name, "frames": clip.frames, "seed": config.seed}
        for clip, wrist, vary, name in zip(clips, from_wrist, varied, motion, strict=True)
    ]  # fmt: skip


def check_options(config: FilmConfig, folder: Path) -> None:
    """Record what the clips of this folder are filmed with; SystemExit if they are of another kind."""
    options = {k: v for k, v in asdict(config).items() if k not in ("out", "clips")}
    path = folder / "options.json"
    if path.exists() and (before := json.loads(path.read_text())) != options:
        changed = ", ".join(f"{k}={before.get(k)}" for k in options if before.get(k) != options[k])
        raise SystemExit(f"{folder} holds clips filmed with {changed}; choose another out=")
    path.write_text(json.dumps(options, indent=1) + "\n")


def main() -> None:
    check_siblings()
    config = parse(FilmConfig, sys.argv[1:])
    folder = config.out / config.env
    folder.mkdir(parents=True, exist_ok=True)
    check_options(config, folder)
    about = folder / "clips.jsonl"
    rows = {}
    if about.exists():
        rows = {row["file"]: row for row in map(json.loads, about.read_text().splitlines())}
    with tqdm(total=config.clips * config.frames, unit="frame", desc="filming") as progress:
        for first in range(0, config.clips, config.worlds):
            batch = range(first, min(first + config.worlds, config.clips))
            if all((folder / f"clip_{i:05d}.mp4").exists() for i in batch):
                progress.update(len(batch) * config.frames)
                continue
            rows |= {row["file"]: row for row in film_batch(config, first, progress)}
            write_text(about, "".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)))
    print(f"{config.clips} clips in {folder}")


if __name__ == "__main__":
    main()
