"""From camera frame to features: how long one takes, and how many a second.

    python -m benchmarks.latency [--backbone toto-base] [--weights random] [--device cpu|cuda]

Tokenizer included, frames in main memory (at 128 px nothing is resized), half the model's depth. The
ways take turns in one process; medians by the clock, ratios against "eager" in the same run. "stream"
has a window of 16 frames and reads one new frame a call: "cached" with 15 remembered, "recomputed"
all 16 again. Appends a JSON line to results/latency.jsonl.
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

from toto_robot.backbone import BACKBONES, load_backbone
from toto_robot.backbone.precision import has_fast_bfloat16
from toto_robot.runs import describe_machine

RESULTS = Path(__file__).parent / "results" / "latency.jsonl"
CONTEXT = 16
Way = Callable[[Tensor], Any]


def single_frame_ways(args: argparse.Namespace) -> dict[str, Way]:
    """Name -> frames to features, each with a backbone of its own."""
    options: dict[str, dict[str, Any]] = {"eager": {}, "eager float32": {"precision": "float32"}}
    if not args.no_compile:
        options["compiled"] = {"compile": True}
    if args.device == "cpu":
        options["int8"] = {"precision": "int8"}
        if not args.no_compile:
            options["int8 compiled"] = {"precision": "int8", "compile": True}
    backbones = {
        name: load_backbone(args.backbone, weights=args.weights, device=args.device, **more)
        for name, more in options.items()
    }
    return {**backbones, "tokenizer alone": backbones["eager"].tokenize}


def stream_ways(args: argparse.Namespace) -> dict[str, Way]:
    """Streams of one camera whose window is full after the first `CONTEXT` calls."""
    backbone = load_backbone(args.backbone, weights=args.weights, device=args.device)
    return {
        name: backbone.stream(context=CONTEXT, cached=cached).push
        for name, cached in (("stream, cached", True), ("stream, recomputed", False))
    }


def measure(ways: dict[str, Way], frames: Tensor, repeats: int, warm_up: int) -> dict[str, float]:
    """Median seconds of each; they take turns, so that other load meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        started = time.perf_counter()
        for _ in range(warm_up):
            way(frames)
        print(f"  {name}: warm after {time.perf_counter() - started:.1f} s", flush=True)
    for _ in range(repeats):
        for name, way in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            features = way(frames)
            features.sum().item()  # waits for the device
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, seconds: dict[str, float], frames: int) -> dict[str, dict[str, float]]:
    """Print and return milliseconds, frames/s and the speed as a multiple of eager's."""
    print(title)
    rows = {}
    for name, value in seconds.items():
        rows[name] = {
            "ms": round(1e3 * value, 3),
            "frames_per_s": round(frames / value, 2),
            "times_eager": round(seconds["eager"] / value, 3),
        }
        print(f"  {name:20} {1e3 * value:10.2f} ms {frames / value:10.1f} frames/s "
              f"{rows[name]['times_eager']:6.2f}x")  # fmt: skip
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

    ways = single_frame_ways(args)
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, args.size, args.size, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    one = measure(ways, frames[:1], args.repeats, warm_up=3)
    if not args.no_stream:
        streams = stream_ways(args)
        one |= measure(streams, frames[:1], max(2, args.repeats // 5), warm_up=CONTEXT)
    many = measure(ways, frames, max(1, args.repeats // 5), warm_up=1)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backbone": args.backbone,
        "weights": args.weights or "found",
        "device": args.device,
        "size": args.size,
        "bfloat16_in_hardware": has_fast_bfloat16(args.device),
        "batch_1": report("one frame", one, 1),
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
