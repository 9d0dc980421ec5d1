"""Speed and memory of the batched tasks, against the plain way to run MuJoCo under Gymnasium.

    python -m benchmarks.envs                                 # CPU: all ratios
    python -m benchmarks.envs --device cuda --worlds 1024 8192 # GPU: our rates alone

Peers, in the same run on the same scene: Gymnasium's `AsyncVectorEnv` and stable-baselines3's
`SubprocVecEnv` of `plain_env.PlainEnv` for physics (one process per world: that is what they do,
and one per core, their best case); `AsyncVectorEnv` with `mujoco.Renderer` at MuJoCo's default
visual settings, one process per core, for images. Appends a line to results/envs.jsonl.
"""

import argparse
import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "envs":  # a script of this folder was run by its path, and found us for the package
    raise ImportError("run benchmarks from the repository's root: python -m benchmarks.<name>")
sys.path[0] = str(Path(__file__).parents[1])  # so that `python benchmarks/envs.py` works as well

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from gymnasium.vector import AsyncVectorEnv  # noqa: E402
from stable_baselines3.common.vec_env import SubprocVecEnv  # noqa: E402

import envs  # noqa: E402
from benchmarks.plain_env import make_plain  # noqa: E402
from envs import gl, spec  # noqa: E402
from toto_robot.runs import describe_machine  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "envs.jsonl"
TASKS = list(spec.TASK_NAMES.values())
SIZES = (84, 128, 224)


def per_second(work: Callable[[], Any], units: int, seconds: float) -> float:
    """`units` per call of `work`, per second; a few calls first to warm up."""
    for _ in range(3):
        work()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or calls < 3:
        work()
        calls += 1
    return units * calls / elapsed


def ours(task: str, args: argparse.Namespace, worlds: int, image_size: int | None = None) -> float:
    """Environment steps per second under random actions, resets included."""
    options: dict[str, Any] = {"obs": "pixels", "image_size": image_size} if image_size else {}
    env = envs.make(task, worlds, sim_device=args.device, engine=args.engine, **options)
    env.reset()
    device = env.rl_device

    def step() -> None:
        env.step(2 * torch.rand(worlds, env.num_actions, device=device) - 1)
        if "cuda" in str(device):
            torch.cuda.synchronize()

    rate = per_second(step, worlds, args.seconds)
    env.close()
    return rate


def plain(task: str, kind: str, processes: int, seconds: float, image_size: int | None) -> float:
    """The same for a peer; `kind` is `async` (Gymnasium) or `subproc` (stable-baselines3)."""
    makers: list[Callable[[], gymnasium.Env]] = [
        functools.partial(make_plain, task, image_size) for _ in range(processes)
    ]
    if kind == "async":
        env = AsyncVectorEnv(makers, context="spawn")
    else:
        env = SubprocVecEnv(makers, start_method="spawn")
    env.reset()
    num_actions = num_actions_of(task)
    rng = np.random.default_rng(0)

    def step() -> None:
        env.step(rng.uniform(-1, 1, (processes, num_actions)).astype(np.float32))

    rate = per_second(step, processes, seconds)
    env.close()
    return rate


def num_actions_of(task: str) -> int:
    return (spec.FRANKA if task.startswith("Franka") else spec.KUKA).num_actions


def megabytes_per_world(task: str, few: int = 16, many: int = 2064) -> float:
    """Growth of a fresh process's peak memory from `few` to `many` worlds, per world."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        small, large = (fresh.submit(_peak_megabytes, task, n).result() for n in (few, many))
    return (large - small) / (many - few)


def _peak_megabytes(task: str, worlds: int) -> float:
    env = envs.make(task, worlds, threads=2)
    env.reset()
    for _ in range(20):
        env.step(torch.rand(worlds, env.num_actions) * 2 - 1)
    env.close()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_physics(args: argparse.Namespace, line: dict[str, Any]) -> None:
    worlds = args.worlds[0]
    for task in args.tasks:
        rate = ours(task, args, worlds)
        line[f"{task}_state"] = round(rate)
        print(f"{task:14} {worlds} worlds, state: {rate:9,.0f} env-steps/s")
    task, cores = args.tasks[0], len(os.sched_getaffinity(0))
    best = 0.0
    for kind, processes in (("async", worlds), ("async", cores), ("subproc", worlds),
                            ("subproc", cores)):  # fmt: skip
        rate = plain(task, kind, processes, args.seconds, None)
        line[f"peer_{kind}_{processes}_state"] = round(rate)
        print(f"  peer {kind} of {processes} plain worlds: {rate:9,.0f} env-steps/s")
        best = max(best, rate)
    line["physics_ratio"] = round(line[f"{task}_state"] / best, 2)
    print(f"  {task}: {line['physics_ratio']}x the best peer")


def compare_images(args: argparse.Namespace, line: dict[str, Any]) -> None:
    worlds, cores = args.worlds[0], len(os.sched_getaffinity(0))
    for task in args.tasks:
        for size in SIZES if task == args.tasks[0] else SIZES[:1]:
            rate = ours(task, args, worlds, size)
            line[f"{task}_{size}px"] = round(rate)
            print(f"{task:14} {worlds} worlds, one {size} px image per step: {rate:7,.0f} steps/s")
    task = args.tasks[0]
    for size in SIZES:
        rate = plain(task, "async", cores, args.seconds, size)
        line[f"peer_{size}px"] = round(rate, 1)
        line[f"image_ratio_{size}px"] = round(line[f"{task}_{size}px"] / rate, 1)
        print(
            f"  peer (mujoco.Renderer, default looks, {cores} processes) at {size} px: "
            f"{rate:7,.1f} steps/s: {line[f'image_ratio_{size}px']}x"
        )


def measure_alone(args: argparse.Namespace, line: dict[str, Any]) -> None:
    """Our rates at several numbers of worlds, without peers: what a GPU run asks for."""
    for task in args.tasks:
        for worlds in args.worlds:
            for size in (None, *args.sizes):
                rate = ours(task, args, worlds, size)
                kind = f"{size}px" if size else "state"
                line[f"{task}_{worlds}_{kind}"] = round(rate)
                print(
                    f"{task:14} {worlds:6} worlds, {kind:6}: {rate:11,.0f} env-steps/s", flush=True
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default=None, choices=["mujoco", "warp"])
    parser.add_argument("--worlds", type=int, nargs="+", default=[64])
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--sizes", type=int, nargs="*", default=[84, 128], help="without peers")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--alone", action="store_true", help="no peers (always on a GPU)")
    parser.add_argument("--no-append", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)

    line: dict[str, Any] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if args.alone or args.device != "cpu":
        measure_alone(args, line)
    else:
        line["megabytes_per_world"] = {task: round(megabytes_per_world(task), 3)
                                       for task in args.tasks}  # fmt: skip
        print("MB per world beyond the first few:", line["megabytes_per_world"])
        compare_physics(args, line)
        if gl.BACKEND is not None:
            compare_images(args, line)
    line |= {key: value for key, value in vars(args).items() if key != "no_append"}
    line |= {"load_average": round(os.getloadavg()[0], 2), "machine": describe_machine()}
    if not args.no_append:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
