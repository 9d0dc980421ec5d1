"""What this machine can do: `python -m toto_robot.doctor [--json] [--envs] [backbone=toto-tiny]`

Versions, the GL renderer (and whether it is software), frames rendered and encoded per second,
physics steps per second, and how long a run of 2,000,000 environment steps would take, judged by
one real iteration of training. `--envs` instead draws every task from every camera, with speeds,
into `out` (envs.png).
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import envs
from envs import gl
from policies.feature_vec_env import feature_vec_env
from policies.ppo import PPOConfig, make_ppo
from policies.vec_env import StateObserver, TaskVecEnv
from toto_robot._siblings import check_siblings
from toto_robot.backbone import load_backbone
from toto_robot.backbone.names import WeightsNotFoundError
from toto_robot.cli import parse
from toto_robot.envs_sheet import draw_sheet, examine_tasks
from toto_robot.runs import describe_machine

MEASURE_S = 1.5
NUM_WORLDS = 64
HORIZON = 32  # control steps of a rollout
RUN_STEPS = 2_000_000
SOFTWARE_RENDERERS = ("ray-caster", "llvmpipe", "softpipe", "swrast", "software")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check rendering, backbone and physics, and measure their speed."""

    env: str = "franka_pick"
    backbone: str = "toto-tiny"
    weights: str | None = field(default=None, metadata={"alias": "backbone.weights"})
    out: Path = Path("envs.png")  # of --envs


def per_second(work: Callable[[], int]) -> float:
    """Units of `work` (which returns how many it did) per second, after one warm-up call."""
    work()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MEASURE_S:
        done += work()
    return done / elapsed


def check_rendering(task: Any) -> dict[str, Any]:
    """Renderer name and frames/s; or what is missing."""
    from envs.rendering import renderer_name

    try:
        name = renderer_name()
    except gl.RenderingUnavailableError as error:
        return {"gl": "none", "problem": str(error)}
    report: dict[str, Any] = {
        "gl": name,
        "gl_backend": gl.BACKEND,
        "software_rendering": any(word in name.lower() for word in SOFTWARE_RENDERERS),
    }
    worlds = range(NUM_WORLDS)
    for size in (84, 128, 224):
        rate = per_second(lambda size=size: len(task.render_film(worlds, "wrist", size, size)))
        report[f"render_{size}px_per_s"] = round(rate)
    return report


def check_backbone(config: DoctorConfig, task: Any) -> dict[str, Any]:
    """Name, hash and frames/s of the frozen backbone; or why it cannot be had."""
    try:
        backbone = load_backbone(config.backbone, weights=config.weights)
    except WeightsNotFoundError as error:
        return {"backbone": config.backbone, "problem": str(error)}
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (NUM_WORLDS, 128, 128, 3), generator=generator).to(torch.uint8)
    return {
        "backbone": backbone.name,
        "weights_hash": backbone.weights_hash[:12],
        "layer": f"{backbone.layer} of {backbone.num_layers}",
        "encode_per_s": round(per_second(lambda: len(backbone(frames)))),
    }


def check_physics(task: Any) -> dict[str, Any]:
    def work() -> int:
        for _ in range(10):
            task.step(torch.rand(task.num_envs, task.num_actions) * 2 - 1)
        return 10 * task.num_envs

    return {"env_steps_per_s": round(per_second(work))}


def training_rate(env: TaskVecEnv, horizon: int, threads: int | None = None) -> float:
    """Environment steps per second of one real PPO iteration, rollout and update."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    ppo = make_ppo(env, PPOConfig(num_steps=horizon))
    ppo.start(2 * env.num_envs * horizon, lambda: True)
    started = time.perf_counter()
    ppo.iterate()
    elapsed = time.perf_counter() - started
    torch.set_num_threads(before)
    env.close()
    return env.num_envs * horizon / elapsed


def check_training(config: DoctorConfig, with_pixels: bool) -> dict[str, Any]:
    """Training steps/s from state and from pixels, and the hours that 2M steps take at that rate."""
    task = envs.make(config.env, 4 * NUM_WORLDS)
    rates = {"state": training_rate(TaskVecEnv(task, StateObserver(task.num_obs)), HORIZON, 1)}
    if with_pixels:
        backbone = load_backbone(config.backbone, weights=config.weights)
        task = envs.make(config.env, NUM_WORLDS, obs="pixels")
        rates["pixels"] = training_rate(feature_vec_env(task, backbone), HORIZON // 2)
    report: dict[str, Any] = {}
    for name, rate in rates.items():
        report[f"{name}_training_steps_per_s"] = round(rate)
        report[f"{name}_2M_steps_h"] = round(RUN_STEPS / rate / 3600, 2)
    return report


def examine(config: DoctorConfig) -> dict[str, Any]:
    report: dict[str, Any] = dict(describe_machine())
    task = envs.make(config.env, NUM_WORLDS)
    task.reset()
    report |= check_physics(task)
    problems = []
    for part in (check_rendering(task), check_backbone(config, task)):
        if "problem" in part:
            problems.append(part.pop("problem"))
        report |= part
    task.close()
    report |= check_training(config, with_pixels=not problems)
    report["problems"] = problems
    return report


def show_envs(config: DoctorConfig, as_json: bool) -> None:
    """Draw and time all tasks."""
    try:
        reports = examine_tasks(per_second)
    except gl.RenderingUnavailableError as error:
        raise SystemExit(f"error: {error}") from error
    draw_sheet(config.out, reports)
    speeds = [{k: v for k, v in report.items() if k != "views"} for report in reports]
    if as_json:
        print(json.dumps({"out": str(config.out), "tasks": speeds}, indent=1))
        return
    for row in speeds:
        print(
            f"{row['task']:15} {row['env_steps_per_s']:7,} env-steps/s, "
            f"{row['images_per_s']:6,} images/s"
        )
    print(f"Drawn in {config.out}")


def main() -> None:
    check_siblings()
    words = sys.argv[1:]
    config = parse(DoctorConfig, [word for word in words if word not in ("--json", "--envs")])
    if "--envs" in words:
        show_envs(config, as_json="--json" in words)
        return
    report = examine(config)
    if "--json" in words:
        print(json.dumps(report, indent=1))
        return
    problems = report.pop("problems")
    for name, value in report.items():
        print(f"{name:22} {value}")
    if report.get("software_rendering"):
        print("\nRendering runs in software: fine for a few hundred frames per second.")
    for problem in problems:
        print(f"\nPROBLEM: {problem}")


if __name__ == "__main__":
    main()
