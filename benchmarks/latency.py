"""From camera frame to features: how long one takes, and how many a second.

    python -m benchmarks.latency [--backbone toto-base] [--weights random] [--device cpu|cuda]

Tokenizer included, frames in main memory (at 128 px nothing is resized), half the model's depth. The
ways take turns in one process; medians by the clock and by the process's CPU time (which other
processes disturb less; it says nothing about a GPU), ratios against "eager" in the same run.
"stream" has a window of 16 frames and reads one new frame a call: "cached" with 15 remembered,
"recomputed" all 16 again. "trunk" starts from codes. Appends a JSON line to results/latency.jsonl.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toto_robot.backbone import BACKBONES, FrozenBackbone, load_backbone
from toto_robot.backbone.precision import has_fast_bfloat16
from toto_robot.runs import describe_machine

RESULTS = Path(__file__).parent / "results" / "latency.jsonl"
CONTEXT = 16
Way = Callable[[Tensor], Any]


def load_all(args: argparse.Namespace) -> dict[str, FrozenBackbone]:
    """Name -> a backbone of its own."""
    options: dict[str, dict[str, Any]] = {"eager": {}, "float32": {"precision": "float32"}}
    if not args.no_compile:
        options["compiled"] = {"compile": True}
    if args.device == "cpu":
        options["int8"] = {"precision": "int8"}
        if not args.no_compile:
            options["int8 compiled"] = {"precision": "int8", "compile": True}
    return {
        name: load_backbone(args.backbone, weights=args.weights, device=args.device, **more)
        for name, more in options.items()
    }


def stream_ways(backbone: FrozenBackbone) -> dict[str, Way]:
    """Streams of one camera whose window is full after the first `CONTEXT` calls."""
    return {
        name: backbone.stream(context=CONTEXT, cached=cached).push
        for name, cached in (("stream, cached", True), ("stream, recomputed", False))
    }


def measure(
    ways: dict[str, Way], inputs: Tensor, repeats: int, warm_up: int
) -> dict[str, tuple[float, float]]:
    """Median seconds of each, by the clock and of CPU; they take turns, so load meets all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(warm_up):
            way(inputs)
    for _ in range(repeats):
        for name, way in ways.items():
            clock, cpu = time.perf_counter(), time.process_time()
            way(inputs).sum().item()  # waits for the device
            times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    medians = {k: [statistics.median(t) for t in zip(*v, strict=True)] for k, v in times.items()}
    return {name: (clock, cpu) for name, (clock, cpu) in medians.items()}


def report(
    title: str, seconds: dict[str, tuple[float, float]], frames: int
) -> dict[str, dict[str, float]]:
    """Print and return milliseconds, frames/s, and how many times as fast as eager."""
    print(title)
    rows, eager = {}, seconds["eager"]
    for name, (clock, cpu) in seconds.items():
        rows[name] = {
            "ms": round(1e3 * clock, 3),
            "cpu_ms": round(1e3 * cpu, 3),
            "frames_per_s": round(frames / clock, 2),
            "times_eager": round(eager[0] / clock, 3),
            "times_eager_cpu": round(eager[1] / cpu, 3),
        }
        print(f"  {name:20} {1e3 * clock:10.2f} ms {frames / clock:8.1f} frames/s "
              f"{eager[0] / clock:6.2f}x  CPU {1e3 * cpu:10.2f} ms {eager[1] / cpu:6.2f}x",
              flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="toto-base", choices=BACKBONES)
    parser.add_argument("--weights", default=None, help="file, folder, hub repository, or random")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=128, help="side of the frames in px")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20, help="at batch 1; a fifth at --batch")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-stream", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    backbones = load_all(args)
    eager = backbones["eager"]
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, args.size, args.size, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    ways: dict[str, Way] = {**backbones, "tokenizer": eager.tokenize}
    trunks = {name: b.from_codes for name, b in backbones.items() if "compiled" not in name}
    fewer = max(2, args.repeats // 5)
    one = measure(ways, frames[:1], args.repeats, warm_up=3)
    if not args.no_stream:
        one |= measure(stream_ways(eager), frames[:1], fewer, warm_up=CONTEXT)
    trunk = measure(trunks, eager.encode(frames[:1]), args.repeats, warm_up=3)
    many = measure(ways, frames, fewer, warm_up=1)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backbone": args.backbone,
        "weights": args.weights or "found",
        "device": args.device,
        "size": args.size,
        "bfloat16_in_hardware": has_fast_bfloat16(args.device),
        "batch_1": report("one frame", one, 1),
        "trunk_1": report("one frame, from its codes", trunk, 1),
        f"batch_{args.batch}": report(f"{args.batch} frames", many, args.batch),
        "repeats": args.repeats,
        "load_average": round(os.getloadavg()[0], 2),
        "machine": describe_machine(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
