"""Pre-train the decoder by next-token prediction on token shards (paper, sections 3 and 6).

    python -m pretraining.train model=tiny data=data/shards out=data/toto-tiny steps=1000

Writes metrics.jsonl, checkpoint.pt (exact resume), and at the end backbone.safetensors and
backbone.json (what `load_backbone` reads: tokenizer encoder + decoder), and loss.png.
"""

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pretraining.cli import parse
from pretraining.pictures import plot_curve
from pretraining.progress import Checkpoint, Interrupt, MetricsLog, settings_of
from pretraining.sampling import SamplerState, draw
from pretraining.shards import Clips, Manifest
from toto_robot.backbone.causal import CausalModel, to_sequence
from toto_robot.backbone.models import family_of, make_model, model_config, num_parameters
from toto_robot.backbone.precision import fast_matmul
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.backbone.weights import save_weights, tensors_sha256


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pre-train the decoder on token shards. Options left at None follow the model's recipe."""

    model: Literal["tiny", "base", "large", "1b"]
    data: Path  # a folder written by pretraining.tokenize
    out: Path
    steps: int
    frames: int | None = None  # per sequence
    stride: int = 4  # between the frames of a sequence
    batch_size: int | None = None  # sequences per step
    lr: float | None = None
    warmup: int | None = None  # steps
    final_lr: float = 0.1  # of the peak
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    rope_base: float = 10_000.0
    seed: int = 0
    threads: int = 0  # 0: torch's choice
    eval_every: int = 250
    checkpoint_s: float = 60.0
    resume: Literal["auto", "never"] = "auto"


PAPER = {"frames": 16, "batch_size": 256, "lr": 3e-4, "warmup": 2000}
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {"frames": 4, "batch_size": 8, "lr": 2e-3, "warmup": 60},
    "base": PAPER,
    "large": PAPER,
    "1b": PAPER,
}


def lr_at(step: int, peak: float, warmup: int, steps: int, final: float) -> float:
    """Linear warm-up, then cosine down to `final` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW as in the paper; norms (the only vectors here) are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def next_batch(clips: Clips, state: SamplerState, batch_size: int) -> Tensor:
    """Sequences [B, 1 + T * tokens] of the clips that come next."""
    return to_sequence(clips.batch(draw(state, batch_size, len(clips))))


@torch.inference_mode()
def held_out_loss(model: CausalModel, clips: Clips, batch_size: int, sequences: int = 32) -> float:
    """Loss in nats per token on evenly spaced clips of held-out videos."""
    count = min(sequences, len(clips))
    indices = np.linspace(0, len(clips) - 1, count).astype(int)
    total = 0.0
    for first in range(0, count, batch_size):
        chosen = indices[first : first + batch_size]
        with fast_matmul("cpu"):
            total += model.loss(to_sequence(clips.batch(chosen))).item() * len(chosen)
    return total / count


def export(
    model: CausalModel, manifest: Manifest, config: Config, out: Path, results: dict[str, Any]
) -> str:
    """Write backbone.safetensors (tokenizer encoder and decoder) and backbone.json."""
    tokenizer, about = load_tokenizer(config.data)
    tensors = {f"encoder.{name}": t for name, t in tokenizer.encoder.state_dict().items()}
    tensors |= {f"decoder.{name}": t for name, t in model.state_dict().items()}
    if model.config.tied:
        del tensors["decoder.head.weight"]
    content = {
        "kind": "toto",
        "model": config.model,
        "family": family_of(model.config),
        "decoder": dataclasses.asdict(model.config),
        "tokenizer_kind": about["kind"],
        "tokenizer": about["config"],
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "encoder_sha256": tensors_sha256(tokenizer.encoder.state_dict()),
        "resolution": manifest.resolution,
        "parameters": num_parameters(model.config),
        **results,
    }
    return save_weights(out / "backbone.safetensors", tensors, content)


def with_recipe(config: Config) -> Config:
    """Options left at None, filled from the model's recipe."""
    recipe = {k: v for k, v in RECIPES[config.model].items() if getattr(config, k) is None}
    return replace(config, **recipe)


def open_clips(config: Config) -> tuple[Clips, Clips]:
    """Training and held-out clips; ValueError when tokenizer and shards do not belong together."""
    assert config.frames
    clips = Clips(config.data, frames=config.frames, stride=config.stride)
    test = Clips(
        config.data, frames=config.frames, stride=config.stride, held_out=True, verify=False
    )
    _, tokenizer = load_tokenizer(config.data)
    if tokenizer["sha256"] != clips.manifest.tokenizer_sha256:
        raise ValueError(
            f"the tokenizer in {config.data} has SHA-256 {tokenizer['sha256'][:12]}…, the shards "
            f"were made with {clips.manifest.tokenizer_sha256[:12]}…; run pretraining.tokenize again"
        )
    return clips, test


def write_results(
    model: CausalModel, clips: Clips, config: Config, settings: dict[str, str], tokens_seen: int
) -> None:
    """backbone.safetensors, backbone.json and loss.png."""
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    held_out = [(x["step"], x["held_out_loss"]) for x in lines if "held_out_loss" in x]
    results = {
        "tokens_seen": tokens_seen,
        "held_out_loss": held_out[-1][1],
        "trained": settings,
    }
    digest = export(model, clips.manifest, config, config.out, results)
    title = f"toto-{config.model}, {tokens_seen / 1e6:.1f}M tokens"
    steps, losses = [x["step"] for x in lines], [x["loss"] for x in lines]
    plot_curve(steps, losses, held_out, config.out / "loss.png", title)
    path = config.out / "backbone.safetensors"
    print(f"{path} sha256 {digest[:12]}, held-out {held_out[-1][1]:.3f} nats per token")


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    interrupt = Interrupt()
    config = with_recipe(config)
    assert config.frames and config.batch_size and config.lr and config.warmup is not None
    config.out.mkdir(parents=True, exist_ok=True)
    clips, test = open_clips(config)
    manifest = clips.manifest
    tokens_per_step = config.batch_size * config.frames * manifest.tokens_per_frame

    # Model and optimiser, new or from where an earlier run stopped.
    size = model_config(config.model)
    size = replace(size, vocabulary=manifest.vocabulary, rope_base=config.rope_base)
    torch.manual_seed(config.seed)
    model = make_model(size).train()
    optimizer = make_optimizer(model, config.weight_decay)
    settings = settings_of(config, free={"data", "out", "threads", "checkpoint_s", "resume"})
    settings["manifest_sha256"] = clips.manifest_sha256
    checkpoint = Checkpoint(config.out / "checkpoint.pt", model, optimizer, settings)
    first_step = checkpoint.load() if config.resume == "auto" else 0
    log = MetricsLog(config.out / "metrics.jsonl", first_step)
    print(
        f"{config.model}: {num_parameters(size) / 1e6:.1f}M parameters, {len(clips)} clips of "
        f"{config.frames} frames, {tokens_per_step} tokens per step, from step {first_step}"
    )

    # Training. A step's samples follow from its number, so that is all there is to resume.
    started = time.monotonic()
    validation = float("nan")
    bar = tqdm(total=config.steps, initial=first_step, unit="step", desc=config.model)
    for step in range(first_step, config.steps):
        state = SamplerState(config.seed, step * config.batch_size, clips.manifest_sha256)
        with fast_matmul("cpu"):
            loss = model.loss(next_batch(clips, state, config.batch_size))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.lr, config.warmup, config.steps, config.final_lr)
        optimizer.step()

        report: dict[str, Any] = {"step": step, "loss": loss.item(), "norm": norm.item()}
        if step % config.eval_every == 0 or step == config.steps - 1:
            validation = report["held_out_loss"] = held_out_loss(model, test, config.batch_size)
        rate = (step + 1 - first_step) * tokens_per_step / (time.monotonic() - started)
        log.write(**report, tokens_per_s=round(rate))
        bar.update()
        bar.set_postfix(
            loss=f"{report['loss']:.3f}", held_out=f"{validation:.3f}", tokens_s=f"{rate:.0f}"
        )
        checkpoint.save_when_due(step + 1, config.checkpoint_s)
        if interrupt.requested:
            checkpoint.save(step + 1)
            raise SystemExit(f"\nstopped after step {step + 1}; the same command continues there")
    bar.close()
    checkpoint.save(config.steps)
    write_results(model, clips, config, settings, config.steps * tokens_per_step)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
