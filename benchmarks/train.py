"""Training tokens/s against transformers' LlamaForCausalLM in a plain PyTorch loop.

    python -m benchmarks.train [--model tiny] [--frames 16] [--steps 6] [--threads 0] [--device cpu]

Same shapes, same random tokens, same optimiser settings, taking turns in one process. Prints medians
by the clock and by the process's CPU time (which other processes disturb less), and their ratios;
appends a JSON line to benchmarks/results/train.jsonl.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as pretraining.train does

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.optimizer import make_optimizer, standard_groups
from toto_robot.backbone.causal import to_sequence
from toto_robot.backbone.decoder import SIZES, DecoderConfig
from toto_robot.backbone.models import make_model, num_parameters

RESULTS = Path(__file__).parent / "results" / "train.jsonl"


def ours(config: DecoderConfig, compile: bool, device: str) -> Callable[[torch.Tensor, bool], None]:
    model = make_model(config).train().to(device)
    if compile:
        model.compile_parts()
    optimizer = make_optimizer(standard_groups(model, 0.1))

    def step(sequence: torch.Tensor, bfloat16: bool) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = model.token_losses(sequence).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def theirs(config: DecoderConfig, device: str) -> Callable[[torch.Tensor, bool], None]:
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.rows,
            hidden_size=config.dim,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=8192,
            tie_word_embeddings=config.tied,
            use_cache=False,
        )
    ).train()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)

    def step(sequence: torch.Tensor, bfloat16: bool) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=sequence, labels=sequence).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", choices=SIZES)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled side")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = SIZES[args.model]
    codes = torch.randint(config.vocabulary, (args.batch, args.frames, 256))
    sequence = to_sequence(codes).to(args.device)
    steps = {
        "ours": ours(config, False, args.device),
        "ours, compiled": ours(config, True, args.device),
        "transformers": theirs(config, args.device),
    }
    if args.no_compile:
        del steps["ours, compiled"]
    record = {
        "model": args.model,
        "parameters": num_parameters(config),
        "context": args.frames * 256,
        "batch": args.batch,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        wall_s: dict[str, list[float]] = {key: [] for key in steps}
        cpu_s: dict[str, list[float]] = {key: [] for key in steps}
        for i in range(args.steps + 1):
            for key, step in steps.items():
                started, cpu_started = time.perf_counter(), time.process_time()
                step(sequence, bfloat16)
                if args.device == "cuda":
                    torch.cuda.synchronize()
                if i > 0:  # the first compiles and allocates
                    wall_s[key].append(time.perf_counter() - started)
                    cpu_s[key].append(time.process_time() - cpu_started)
        for unit, times in (("s", wall_s), ("CPU-s", cpu_s)):
            rates = {k: codes.numel() / statistics.median(t) for k, t in times.items()}
            for key, rate in rates.items():
                ratio = rate / rates["transformers"]
                print(f"{name} {key}: {rate:.0f} tokens/{unit}, {ratio:.2f}x")
            record[f"{name}, tokens/{unit}"] = {k: round(v) for k, v in rates.items()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
