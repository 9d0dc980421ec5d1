"""Train the dVAE tokenizer on a folder of videos.

    python -m pretraining.train_tokenizer data=data/films out=data/tokenizer steps=6000

Writes metrics.jsonl, checkpoint.pt (exact resume), and at the end tokenizer.safetensors,
tokenizer.json, reconstructions.png and codebook.png.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pretraining.cli import parse
from pretraining.colours import colour_weights, colour_whitening, pixel_weights
from pretraining.pictures import plot_codebook, plot_reconstructions
from pretraining.progress import (
    Interrupt,
    MetricsLog,
    load_checkpoint,
    save_checkpoint,
    settings_of,
)
from pretraining.video import find_videos, sample_frames, split_videos
from toto_robot.backbone.dvae import DVAE, dvae_size, map_pixels, save_tokenizer, unmap_pixels
from toto_robot.backbone.precision import has_fast_bfloat16


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train the dVAE tokenizer on a folder of videos."""

    data: Path
    out: Path
    size: str = "tiny"
    resolution: int = 128
    max_frames: int = 20_000
    held_out: float = 0.05  # share of videos
    steps: int = 6000
    batch_size: int = 32
    lr: float = 1.5e-3
    weight_decay: float = 1e-4
    warmup: int = 200
    loss: Literal["l1", "l2"] = "l2"
    temperature: float = 1.0  # at the start; annealed to final_temperature over anneal * steps
    final_temperature: float = 0.0625
    anneal: float = 0.7
    usage: float = 0.02  # weight of (ln V - entropy of the mean posterior) / ln V
    kl: float = 0.0  # weight of KL(posterior || uniform) per token, in nats
    colour_temper: float = 0.8  # of the weights by rarity; 0: all pixels alike
    whitening: float = 0.5  # of the error's colour space; 0: RGB, 1: fully whitened
    seed: int = 0
    threads: int = 0  # 0: torch's choice
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    report_every: int = 100
    checkpoint_s: float = 60.0
    resume: Literal["auto", "never"] = "auto"


def temperature_at(step: int, config: Config) -> float:
    """Exponential annealing, then constant."""
    share = min(1.0, step / (config.anneal * config.steps))
    return config.temperature * (config.final_temperature / config.temperature) ** share


def lr_at(step: int, config: Config) -> float:
    """Linear warm-up, cosine to 2 %."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def loss_of(
    model: DVAE,
    frames: Tensor,
    weights: Tensor,
    whitening: Tensor,
    temperature: float,
    config: Config,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Weighted reconstruction + codebook usage + KL; the reconstruction term is returned too."""
    pixels = map_pixels(frames)
    output, logits = model(pixels, temperature, generator)
    error = torch.einsum("ij,bjhw->bihw", whitening, output - pixels)
    distance = error.abs() if config.loss == "l1" else error.square()
    pixel_weight = pixel_weights(frames, weights)
    reconstruction = (distance * pixel_weight).mean()
    log_vocabulary = math.log(model.config.vocabulary)
    # Weighted like the pixels: else codes are spread over the noise of the commonest patches.
    patch_weight = F.avg_pool2d(pixel_weight, model.config.stride)
    posterior = logits.softmax(dim=1) * (patch_weight / patch_weight.sum())
    mean_posterior = posterior.sum(dim=(0, 2, 3))
    entropy = -(mean_posterior * (mean_posterior + 1e-10).log()).sum()
    loss = reconstruction + config.usage * (1 - entropy / log_vocabulary)
    if config.kl > 0:
        log_posterior = logits.log_softmax(dim=1)
        kl = (log_posterior.exp() * (log_posterior + log_vocabulary)).sum(dim=1).mean()
        loss = loss + config.kl * kl
    return loss, reconstruction.detach()


@torch.inference_mode()
def evaluate(model: DVAE, frames: Tensor, weights: Tensor) -> dict[str, Any]:
    """With hard codes: PSNR in dB (also colour-weighted), codes used, perplexity, counts."""
    model.eval()
    vocabulary = model.config.vocabulary
    counts, square, weighted = torch.zeros(vocabulary), 0.0, 0.0
    for batch in frames.split(64):
        codes = model.encoder.encode(batch)
        one_hot = F.one_hot(codes, vocabulary).permute(0, 3, 1, 2).float()
        error = (unmap_float(model.decoder(one_hot)) - batch.permute(0, 3, 1, 2) / 255).square()
        square += error.mean().item() * len(batch)
        weighted += (error * pixel_weights(batch, weights)).mean().item() * len(batch)
        counts += torch.bincount(codes.flatten(), minlength=vocabulary)
    model.train()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return {
        "psnr": -10 * math.log10(square / len(frames)),
        "psnr_weighted": -10 * math.log10(weighted / len(frames)),
        "codes_used": int((counts > 0).sum()),
        "perplexity": math.exp(entropy.item()),
        "counts": counts,
    }


def unmap_float(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    return unmap_pixels(pixels).permute(0, 3, 1, 2) / 255


def use_bfloat16(precision: str) -> bool:
    if precision == "auto":
        return has_fast_bfloat16("cpu")
    return precision == "bfloat16"


def main(config: Config) -> None:
    # Reading ------------------------------------------------------------------------------------
    if config.threads:
        torch.set_num_threads(config.threads)
    interrupt = Interrupt()
    config.out.mkdir(parents=True, exist_ok=True)
    videos, held_out = split_videos(find_videos(config.data), config.data, config.held_out)
    frames = sample_frames(videos, config.resolution, config.max_frames, "reading films")
    test = sample_frames(held_out, config.resolution, 512, "reading held-out")
    picture = test[torch.linspace(0, len(test) - 1, min(12, len(test))).long()]
    some = frames[:: max(1, len(frames) // 4000)]
    weights = colour_weights(some, temper=config.colour_temper)
    whitening = colour_whitening(some, temper=config.whitening)

    # Model, optimiser, and where an earlier run stopped -------------------------------------------
    torch.manual_seed(config.seed)
    model = DVAE(dvae_size(config.size))
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    free = {"out", "threads", "report_every", "checkpoint_s", "resume"}
    settings = {**settings_of(config, free), "frames": str(len(frames))}
    checkpoint, first_step = config.out / "checkpoint.pt", 0
    if config.resume == "auto" and checkpoint.exists():
        state = load_checkpoint(checkpoint, settings)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
        print(f"continuing at step {first_step} of {config.steps}")
    log = MetricsLog(config.out / "metrics.jsonl", first_step)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(checkpoint, {**state, "step": step, "settings": settings})

    # Training ---------------------------------------------------------------------------------
    bfloat16 = use_bfloat16(config.precision)
    saved_at = time.monotonic()
    bar = tqdm(total=config.steps, initial=first_step, unit="step", desc="dVAE", mininterval=1.0)
    for step in range(first_step, config.steps):
        # All randomness of a step comes from (seed, step): the step number is the whole state.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        batch = frames[torch.randint(len(frames), (config.batch_size,), generator=generator)]
        temperature = temperature_at(step, config)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, reconstruction = loss_of(
                model, batch, weights, whitening, temperature, config, generator
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr_at(step, config)
        optimizer.step()
        bar.update()

        if step % config.report_every == 0 or step == config.steps - 1:
            report = evaluate(model, test[:: max(1, len(test) // 128)], weights)
            del report["counts"]
            numbers = {"loss": loss.item(), "reconstruction": reconstruction.item(), **report}
            log.write(step=step, temperature=temperature, **numbers)
            rate = (bar.format_dict["rate"] or 0) * config.batch_size
            bar.set_postfix(
                loss=f"{numbers['loss']:.4f}",
                psnr=f"{report['psnr']:.1f}/{report['psnr_weighted']:.1f}dB",
                codes=report["codes_used"],
                frames_s=f"{rate:.0f}",
            )
        if interrupt.requested or time.monotonic() - saved_at > config.checkpoint_s:
            save(step + 1)
            saved_at = time.monotonic()
        if interrupt.requested:
            bar.close()
            raise SystemExit(
                f"stopped after step {step + 1}; the same command continues from there"
            )
    bar.close()
    save(config.steps)

    # Result ------------------------------------------------------------------------------------
    report = evaluate(model, test, weights)
    counts = report.pop("counts")
    digest = save_tokenizer(
        model.eval(),
        config.out,
        resolution=config.resolution,
        trained={**settings, "videos": len(videos), "held_out_videos": len(held_out)},
        held_out=report,
    )
    with torch.inference_mode():
        decoded = model.decoder.decode(model.encoder.encode(picture))
    plot_reconstructions(picture, decoded, config.out / "reconstructions.png")
    plot_codebook(counts, config.out / "codebook.png")
    print(f"{config.out / 'tokenizer.safetensors'} sha256 {digest[:12]}")
    print(
        ", ".join(f"{name} {value:.2f}" for name, value in report.items()), "(held-out, hard codes)"
    )


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
