"""Pre-train a causal model by next-token prediction on token shards (paper, sections 3 and 6).

    python -m pretraining.train model=tiny data=data/shards out=data/toto-tiny steps=1000
    torchrun --nproc-per-node 8 -m pretraining.train model=base data=... out=... steps=1_000_000

Writes metrics.jsonl, tensorboard/, checkpoints/ (exact resume, with any number of ranks), and at the
end backbone.safetensors and backbone.json (what `load_backbone` reads), and loss.png.
"""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from pretraining.checkpoints import Checkpoints
from pretraining.export import export, start_from
from pretraining.flops import flops_per_token, peak_flops
from pretraining.held_out import held_out_losses
from pretraining.index import INDEX
from pretraining.mixture import Mixture, data_folders, open_mixture
from pretraining.mup import mup_groups, scale_weights, with_multipliers
from pretraining.objectives import UNITS, Objective, tokens_per_frame, with_objective
from pretraining.optimizer import SpikeGuard, lr_at, make_optimizer, set_lr, standard_groups
from pretraining.parallel import World, distribute, fast_math, join_world, sync_gradients, whole
from pretraining.pictures import plot_curve
from pretraining.pixels import Ahead, Augment, PixelSamples, open_pixels
from pretraining.progress import Interrupt, Requeue, requeue, settings_of
from pretraining.samples import Samples, open_shards
from pretraining.shards import Manifest
from pretraining.tracker import Tracker
from toto_robot.backbone.causal import CausalConfig, CausalModel
from toto_robot.backbone.models import make_model, model_config, num_parameters, resized
from toto_robot.backbone.precision import has_fast_bfloat16
from toto_robot.cli import parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pre-train a causal model on token shards. Options left at None follow the model's recipe."""

    model: str  # tiny, base, large, 1b, gpt2-280m, mamba-290m, ...
    data: Path  # written by pretraining.tokenize or index; a folder of shards' folders; or "a,b,c"
    out: Path
    steps: int
    mixture: str | None = None  # "paper" or "name:weight,..."; none: in proportion to their tokens
    objective: Objective = "code"  # patch, patch-code: read pixels, predict patches or codes
    patch: int | None = None  # pixels a side; None: the tokenizer's stride, without one 16
    layers: int | None = None  # instead of the model's; so the next two
    width: int | None = None  # the MLP's keeps its ratio
    heads: int | None = None
    frames: int | None = None  # per sequence
    stride: int = 4  # between the frames of a sequence
    augment: Augment = "none"  # random crops, by chance mirrored; of an index only
    readers: int = 0  # threads that decode the videos of an index; 0: one per core
    batch_size: int | None = None  # sequences per step, all ranks together
    micro_batch: int = 0  # sequences at a time on a rank; 0: all of its share
    lr: float | None = None
    warmup: int | None = None  # steps
    final_lr: float = 0.1  # of the peak
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    spike: float = 8.0  # standard deviations above the recent losses: not learnt from
    spike_patience: int = 5  # such batches in a row: stop
    mup: bool = False  # lr holds at every width: it is that of base_width
    base_width: int = 256
    base_depth: int = 0  # under muP lr is that of so many layers; 0: it is not adapted to depth
    rope_base: float = 10_000.0
    init_from: Path | None = None  # an exported backbone to start from
    seed: int = 0
    device: str = "auto"
    replicas: int = 0  # groups of ranks that each hold a whole model; 0: one per node
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "true", "false"] = "auto"  # auto: on CUDA
    threads: int = 0  # 0: torch's choice
    eval_every: int = 250
    checkpoint_s: float = 60.0
    resume: Literal["auto", "never"] = "auto"
    requeue: Requeue = "auto"  # in SLURM's queue: at the time limit, also after SIGTERM, or not
    wandb: str | None = None  # a Weights & Biases project


FREE = {"data", "out", "threads", "checkpoint_s", "resume", "micro_batch", "device", "replicas",
        "compile", "readers", "requeue", "wandb"}  # may change between a run and its continuation  # fmt: skip
PAPER = {"frames": 16, "batch_size": 256, "lr": 3e-4, "warmup": 2000}
SMALL = {"frames": 4, "batch_size": 8, "lr": 2e-3, "warmup": 60}


def with_recipe(config: Config) -> Config:
    """Options left at None, filled from the model's recipe."""
    recipe = SMALL if config.model.endswith("tiny") else PAPER
    return replace(config, **{k: v for k, v in recipe.items() if getattr(config, k) is None})


def size_of(config: Config, manifest: Manifest) -> CausalConfig:
    """The model's row with this run's overrides."""
    size = replace(model_config(config.model), vocabulary=manifest.vocabulary)
    size = with_objective(size, config.objective, config.patch, manifest)
    size = resized(size, dim=config.width, heads=config.heads, layers=config.layers)
    if hasattr(size, "rope_base"):
        size = replace(size, rope_base=config.rope_base)  # pyright: ignore[reportCallIssue]
    return with_multipliers(size, config.base_width, config.base_depth) if config.mup else size


def build(config: Config, manifest: Manifest, world: World) -> tuple[CausalModel, bool]:
    """The model on its device(s), and whether it computes in bfloat16."""
    torch.manual_seed(config.seed)
    model = make_model(size_of(config, manifest)).train()
    if config.mup:
        scale_weights(model, model.config.dim / config.base_width)
    if config.init_from is not None:
        start_from(model, config.init_from, manifest)
    kind, wanted = world.device.type, config.precision
    bfloat16 = has_fast_bfloat16(kind) if wanted == "auto" else wanted == "bfloat16"
    compiled = kind == "cuda" if config.compile == "auto" else config.compile == "true"
    distribute(model, world, bfloat16=bfloat16 and kind == "cuda", compile=compiled)
    return model, bfloat16


def optimizer_for(model: CausalModel, config: Config) -> torch.optim.AdamW:
    if config.mup:
        m, r = model.config.dim / config.base_width, model.config.residual_scale
        return make_optimizer(mup_groups(model, config.weight_decay, m, r))
    return make_optimizer(standard_groups(model, config.weight_decay))


def make_tracker(
    config: Config,
    size: CausalConfig,
    tokens_per_step: int,
    first_step: int,
    world: World,
    bfloat16: bool,
) -> Tracker:
    assert config.batch_size
    peak = peak_flops(world.device, bfloat16=bfloat16)
    if world.is_main:
        print(
            f"{config.model}: {num_parameters(size) / 1e6:.1f}M parameters, {tokens_per_step} tokens "
            f"per step, {world.size} process(es), from step {first_step}"
        )
    return Tracker(
        config.out,
        enabled=world.is_main,
        first_step=first_step,
        steps=config.steps,
        tokens_per_step=tokens_per_step,
        flops_per_token=flops_per_token(size, tokens_per_step // config.batch_size),
        peak_flops=None if peak is None else peak * world.size,
        wandb=config.wandb,
        description=config.model,
    )


def identity_of(config: Config, data: Samples) -> dict[str, str]:
    """What makes a training this one: its settings, and its data, wherever they lie."""
    return settings_of(config, FREE) | {"manifest_sha256": data.manifest_sha256}


def open_samples(config: Config, device: torch.device) -> tuple[Samples, Samples]:
    """Training and held-out samples of shards, of sources tokenized now, or of a mixture of them."""
    return open_mixture(config.data, config.mixture, partial(open_part, config, device))


def open_part(config: Config, device: torch.device, folder: Path) -> tuple[Samples, Samples]:
    """One folder's training and held-out samples."""
    assert config.frames
    if (folder / INDEX).is_file():
        return open_pixels(
            folder,
            frames=config.frames,
            stride=config.stride,
            augment=config.augment,
            device=device,
            threads=config.readers,
            codes=config.objective != "patch",
        )
    if config.objective != "code":
        raise SystemExit(
            f"objective={config.objective} reads pixels, and {folder} holds tokens; index the "
            "videos instead: python -m pretraining.index"
        )
    if config.augment != "none":
        raise SystemExit(
            f"augment={config.augment} needs pixels, and {folder} holds tokens of one crop; "
            "index the videos instead: python -m pretraining.index"
        )
    return open_shards(folder, frames=config.frames, stride=config.stride)


def micro_batches(config: Config, step: int, world: World) -> list[np.ndarray]:
    """Numbers of the samples that this rank learns from in a step, micro-batch by micro-batch.

    They follow from the step alone and ranks take consecutive shares, so that any number of ranks
    and any micro-batch sees the same global batch.
    """
    assert config.batch_size
    share = config.batch_size // world.size
    first = step * config.batch_size + world.rank * share
    numbers = np.arange(first, first + share)
    return np.split(numbers, range(config.micro_batch or share, share, config.micro_batch or share))


def drawn_ahead(data: Samples, config: Config, first_step: int, world: World) -> Samples:
    """Where drawing takes long, it is done in the background; tokens are there at once."""
    parts = data.parts.values() if isinstance(data, Mixture) else [data]
    if not any(isinstance(part, PixelSamples) for part in parts):
        return data
    steps = range(first_step, config.steps)
    numbers = (part for step in steps for part in micro_batches(config, step, world))
    return Ahead(data, config.seed, numbers)


def accumulate(
    model: CausalModel, data: Samples, config: Config, step: int, world: World, bfloat16: bool
) -> Tensor:
    """Gradients of a step's mean loss; returns this rank's part of that loss."""
    assert config.batch_size
    total = torch.zeros((), device=world.device)
    parts = micro_batches(config, step, world)
    for numbers in parts:
        b = data.draw(config.seed, numbers).to(world.device)
        sync_gradients(model, last=numbers is parts[-1])
        with fast_math(world, bfloat16):
            loss = model.clip_losses(b.codes, b.starts, b.frames).mean()
            loss = loss * (len(numbers) / config.batch_size)
        (loss * world.size).backward()  # FSDP averages over the ranks
        total += loss.detach()
    return total


def write_results(
    state: dict[str, Tensor], size: CausalConfig, data: Samples, config: Config, results: dict
) -> None:
    """backbone.safetensors, backbone.json and loss.png."""
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    held_out = [(x["step"], x["held_out_loss"]) for x in lines if "held_out_loss" in x]
    results = {**results, "held_out_loss": held_out[-1][1]}
    tokenizer = next(iter(data_folders(config.data).values()))  # all of a mixture have the same
    digest = export(state, size, config.model, tokenizer, data.manifest, config.out, results)
    title = f"{config.model}, {results['tokens_seen'] / 1e6:.1f}M tokens"
    steps, losses = [x["step"] for x in lines], [x["loss"] for x in lines]
    unit = UNITS[size.predicts]
    plot_curve(steps, losses, held_out, config.out / "loss.png", title, unit)
    path = config.out / "backbone.safetensors"
    print(f"{path} sha256 {digest[:12]}, held-out {held_out[-1][1]:.3f} {unit}")


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    with join_world(config.device, config.replicas) as world:
        run(with_recipe(config), world)


def run(config: Config, world: World, interrupt: Interrupt | None = None) -> None:
    """One rank's training; `interrupt` where several of them share one."""
    assert config.frames and config.batch_size and config.lr and config.warmup is not None
    if config.batch_size % world.size:
        raise SystemExit(
            f"batch_size={config.batch_size} does not divide over {world.size} processes; use "
            f"{config.batch_size // world.size * world.size or world.size}"
        )
    interrupt = interrupt or Interrupt()
    data, test = open_samples(config, world.device)

    # Model and optimiser, new or from where an earlier run stopped.
    model, bfloat16 = build(config, data.manifest, world)
    size = model.config
    tokens_per_step = config.batch_size * config.frames * tokens_per_frame(size, data.manifest)
    optimizer = optimizer_for(model, config)
    settings = identity_of(config, data)
    if config.resume == "never" and world.is_main:
        shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
    checkpoints = Checkpoints(config.out / "checkpoints", model, optimizer, settings, world)
    first_step, history = checkpoints.load()
    guard = SpikeGuard(config.spike, config.spike_patience, history)
    tracker = make_tracker(config, size, tokens_per_step, first_step, world, bfloat16)
    data = drawn_ahead(data, config, first_step, world)

    # Training. A step's samples follow from its number, so that is all there is to resume.
    for step in range(first_step, config.steps):
        part = accumulate(model, data, config, step, world, bfloat16)
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)).item()
        loss, stop, due = world.sum(
            part, interrupt.requested, checkpoints.late(config.checkpoint_s)
        )
        complaint = guard.complaint(loss, norm)
        if complaint is None:
            set_lr(optimizer, lr_at(step, config.lr, config.warmup, config.steps, config.final_lr))
            optimizer.step()
        else:
            tracker.bad_batch(step, step * config.batch_size, config.batch_size, complaint)
        optimizer.zero_grad(set_to_none=True)

        report = {"loss": loss, "norm": norm}
        if step % config.eval_every == 0 or step == config.steps - 1:
            with fast_math(world, bfloat16):
                report |= held_out_losses(model, test, micro_of(config), world, 32)
        tracker.report(step, **report)
        if stop:
            checkpoints.save(step + 1, guard.history)
            checkpoints.wait()
            news = requeue(config.requeue, interrupt.time_is_up) if world.is_main else ""
            raise SystemExit(f"\nstopped after step {step + 1}; {news}")
        elif due and step + 1 < config.steps:
            checkpoints.save(step + 1, guard.history)
    tracker.close()
    checkpoints.save(config.steps, guard.history)
    checkpoints.wait()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if world.is_main:
        results = {"tokens_seen": config.steps * tokens_per_step, "trained": settings}
        write_results(state, size, data, config, results)  # pyright: ignore[reportArgumentType]
    world.barrier()


def micro_of(config: Config) -> int:
    return config.micro_batch or config.batch_size or 1


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
