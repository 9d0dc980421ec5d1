"""Model FLOPs utilisation (MFU) of training: base, large and 1b at a context of 4,096 tokens.

    python -m benchmarks.mfu [--models base large 1b] [--micro-batches 4 8 16 32] [--steps 10]
    torchrun --nproc-per-node 8 -m benchmarks.mfu            # per GPU, gradients reduced
    python -m benchmarks.mfu --models tiny --frames 1 --micro-batches 1 2 --steps 2    # on a CPU

Goals on one H200, attention counted in full as PaLM does: 50 % for base, 55 % for large, 60 % for 1b
(of 989 TFLOP/s dense bfloat16). No GPU was at hand when this was written: it has run on CPUs only,
and no utilisation has been measured.

Model, distribution, compiled blocks, mathematics and optimiser are those of pretraining.train; the
tokens are random, drawn beforehand. Each kind of attention gets the whole sweep of micro-batches:

    trainer   what pretraining.train does: on Hopper cuDNN first
    cudnn, flash, default   that kernel alone; what PyTorch chooses by itself

One warm-up step (it compiles), then `steps` timed together. A micro-batch that does not fit ends its
sweep and is recorded. Appends a JSON line per point to benchmarks/results/mfu.jsonl.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretraining.flops import flops_per_token, peak_flops
from pretraining.parallel import World, fast_math, join_world
from pretraining.shards import Manifest
from pretraining.train import Config, build, optimizer_for
from toto_robot.backbone.causal import CausalModel, to_sequence
from toto_robot.backbone.models import num_parameters
from toto_robot.runs import describe_machine

RESULTS = Path(__file__).parent / "results" / "mfu.jsonl"
GOALS = {"base": 0.50, "large": 0.55, "1b": 0.60}  # of a H200, attention in full
KERNELS = {"cudnn": [SDPBackend.CUDNN_ATTENTION], "flash": [SDPBackend.FLASH_ATTENTION],
           "default": None, "trainer": None}  # fmt: skip
SIDE = 16  # tokens of a frame's side


@contextlib.contextmanager
def mathematics(attention: str, world: World, bfloat16: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if attention == "trainer":
            stack.enter_context(fast_math(world, bfloat16))
        else:
            stack.enter_context(torch.autocast(world.device.type, torch.bfloat16, enabled=bfloat16))
            kernels = KERNELS[attention]
            if kernels is not None:
                stack.enter_context(sdpa_kernel(kernels))
        yield


def train_step(
    model: CausalModel, optimizer: Any, sequence: Tensor, attention: str, world: World, bf16: bool
) -> None:
    with mathematics(attention, world, bf16):
        loss = model.token_losses(sequence).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_step(
    model: CausalModel, optimizer: Any, rows: int, args: argparse.Namespace, attention: str,
    world: World, bfloat16: bool,
) -> float | None:  # fmt: skip
    """None where memory does not suffice."""
    codes = torch.randint(model.config.vocabulary, (rows, args.frames, SIDE**2))
    sequence = to_sequence(codes.to(world.device))
    try:
        train_step(model, optimizer, sequence, attention, world, bfloat16)
        finish(world.device)
        world.barrier()
        started = time.perf_counter()
        for _ in range(args.steps):
            train_step(model, optimizer, sequence, attention, world, bfloat16)
        finish(world.device)
        return (time.perf_counter() - started) / args.steps
    except torch.OutOfMemoryError:
        return None


def measure(name: str, attention: str, args: argparse.Namespace, world: World) -> Iterator[dict]:
    """One record per micro-batch."""
    torch.compiler.reset()  # the choice of a kernel is compiled in
    config = Config(model=name, data=Path(), out=Path(), steps=1, compile=args.compile)
    manifest = Manifest("random", "", vocabulary=args.vocabulary, resolution=8 * SIDE,
                        tokens_per_side=SIDE)  # fmt: skip
    model, bfloat16 = build(config, manifest, world)
    optimizer = optimizer_for(model, config)
    length = args.frames * SIDE**2
    flops = flops_per_token(model.config, length)
    peak = peak_flops(world.device, bfloat16=bfloat16)
    for rows in args.micro_batches:
        seconds = seconds_per_step(model, optimizer, rows, args, attention, world, bfloat16)
        record: dict = {
            "model": name,
            "parameters": num_parameters(model.config),
            "attention": attention,
            "micro_batch": rows,
            "context": length,
            "bfloat16": bfloat16,
            "compile": args.compile,
            "gpus": world.size,
            "fits": seconds is not None,
        }
        if seconds is not None:
            record["tokens_per_s"] = rate = rows * length / seconds
            for convention, per_token in flops.items():
                record[f"tflops_{convention}"] = rate * per_token / 1e12
                record[f"mfu_{convention}"] = rate * per_token / peak if peak else None
        if world.device.type == "cuda":
            record["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        yield record
        if seconds is None:
            torch.cuda.empty_cache()
            return


def describe(record: dict) -> str:
    head = "{model}, {attention}, {micro_batch} x {context}: ".format(**record)
    if not record["fits"]:
        return head + "does not fit"
    text = head + "{tokens_per_s:.0f} tokens/s per device, {tflops_full:.3g} TFLOP/s".format(
        **record
    )
    if record["mfu_full"] is None:
        return text + ", no peak known: no utilisation"
    goal = GOALS.get(record["model"])
    text += ", MFU {mfu_full:.1%} (attention in full), {mfu_causal:.1%} (causal)".format(**record)
    return text + (f", goal {goal:.0%}" if goal else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(GOALS))
    parser.add_argument("--attention", nargs="+", choices=KERNELS, default=["trainer", "cudnn",
                        "flash", "default"])  # fmt: skip
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", choices=["auto", "true", "false"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-append", action="store_true")
    args = parser.parse_args()
    with join_world(args.device) as world:
        about = {"date": time.strftime("%Y-%m-%d"), "machine": describe_machine()}
        choices = args.attention if world.device.type == "cuda" else ["trainer"]
        for name in args.models:
            for attention in choices:
                for record in measure(name, attention, args, world):
                    if world.is_main:
                        print(describe(record), flush=True)
                    if world.is_main and not args.no_append:
                        RESULTS.parent.mkdir(parents=True, exist_ok=True)
                        with open(RESULTS, "a") as file:
                            file.write(json.dumps(record | about) + "\n")


if __name__ == "__main__":
    main()
