"""Train the dVAE tokenizer on a folder of videos.

    python -m pretraining.train_tokenizer data=data/films out=data/tokenizer

Writes metrics.jsonl, checkpoint.pt (exact resume), and at the end tokenizer.safetensors,
tokenizer.json, reconstructions.png and codebook.png.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from pretraining.cli import parse
from pretraining.colours import colour_weights, colour_whitening, pixel_weights
from pretraining.pictures import plot_codebook, plot_reconstructions
from pretraining.progress import Checkpoint, Interrupt, MetricsLog, settings_of
from pretraining.video import find_videos, sample_frames, split_videos
from toto_robot.backbone.dvae import DVAE, dvae_size, map_pixels, unmap_pixels
from toto_robot.backbone.precision import has_fast_bfloat16
from toto_robot.backbone.tokenizers import save_tokenizer


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train the dVAE tokenizer on a folder of videos."""

    data: Path
    out: Path
    size: str = "tiny"
    resolution: int = 128
    max_frames: int = 16_000
    held_out: float = 0.05  # share of videos
    steps: int = 4000
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 200
    loss: Literal["l1", "l2"] = "l2"
    temperature: float = 0.8  # at the start; annealed to final_temperature over anneal * steps
    final_temperature: float = 0.0625
    anneal: float = 0.7
    usage: float = 0.04  # weight of the codebook-usage term
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
    frames: UInt8[Tensor, "B R R 3"],
    data: "Data",
    step: int,
    config: Config,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted reconstruction, codebook usage and KL; returns the loss and its terms.

    The usage term is the mutual information of patch and code, as a share of ln V: high when a
    patch's code is certain and the codes are used evenly. (The entropy of the mean posterior alone
    is as high when every patch's posterior is uniform, and that is what it then trains.)
    """
    pixels = map_pixels(frames)
    output, logits = model(pixels, temperature_at(step, config), generator)
    error = torch.einsum("ij,bjhw->bihw", data.whitening, output - pixels)
    pixel_weight = pixel_weights(frames, data.weights)
    distance = error.abs() if config.loss == "l1" else error.square()
    reconstruction = (distance * pixel_weight).mean()

    log_vocabulary = math.log(model.config.vocabulary)
    # Weighted like the pixels: else codes are spread over the noise of the commonest patches.
    patch_weight = F.avg_pool2d(pixel_weight, model.config.stride)
    patch_weight = patch_weight / patch_weight.sum()
    information, divergence = pixels.new_zeros(()), pixels.new_zeros(())
    for part in logits.split(model.config.choices, dim=1):
        log_posterior = part.log_softmax(dim=1)
        posterior = log_posterior.exp()
        mean_posterior = (posterior * patch_weight).sum(dim=(0, 2, 3))
        mean_entropy = -(mean_posterior * (mean_posterior + 1e-10).log()).sum()
        negative_entropy = (posterior * log_posterior).sum(dim=1, keepdim=True)
        information = information + mean_entropy + (negative_entropy * patch_weight).sum()
        divergence = divergence + (negative_entropy + math.log(part.shape[1])).mean()
    loss = reconstruction + config.usage * (1 - information / log_vocabulary)
    if config.kl > 0:
        loss = loss + config.kl * divergence
    terms = {"reconstruction": reconstruction.item(), "information": information.item()}
    return loss, terms


@torch.inference_mode()
def evaluate(model: DVAE, frames: Tensor, weights: Tensor) -> dict[str, Any]:
    """With hard codes: PSNR in dB (also colour-weighted), codes used, perplexity, counts."""
    model.eval()
    vocabulary = model.config.vocabulary
    counts, square, weighted = torch.zeros(vocabulary), 0.0, 0.0
    for batch in frames.split(64):
        codes = model.encoder.encode(batch)
        decoded = model.decoder(model.decoder.one_hot(codes))
        error = (unmap_float(decoded) - batch.permute(0, 3, 1, 2) / 255).square()
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


@dataclass(frozen=True)
class Data:
    """Frames in memory and what the loss needs to know about their colours."""

    frames: UInt8[Tensor, "N R R 3"]
    test: UInt8[Tensor, "M R R 3"]  # of other videos
    weights: Float[Tensor, " colours"]
    whitening: Float[Tensor, "3 3"]


def read_data(config: Config) -> Data:
    videos, held_out = split_videos(find_videos(config.data), config.data, config.held_out)
    frames = sample_frames(videos, config.resolution, config.max_frames, "reading films")
    test = sample_frames(held_out, config.resolution, 512, "reading held-out")
    some = frames[:: max(1, len(frames) // 4000)]
    weights = colour_weights(some, temper=config.colour_temper)
    return Data(frames, test, weights, colour_whitening(some, temper=config.whitening))


def write_results(model: DVAE, data: Data, config: Config, settings: dict[str, str]) -> None:
    """tokenizer.safetensors and .json, reconstructions.png, codebook.png."""
    report = evaluate(model, data.test, data.weights)
    counts = report.pop("counts")
    about = {"resolution": config.resolution, "trained": settings, "held_out": report}
    digest = save_tokenizer(model.eval(), config.out, **about)
    count = min(12, len(data.test))
    picture = data.test[torch.linspace(0, len(data.test) - 1, count).long()]
    with torch.inference_mode():
        decoded = model.decoder.decode(model.encoder.encode(picture))
    plot_reconstructions(picture, decoded, config.out / "reconstructions.png")
    plot_codebook(counts, config.out / "codebook.png")
    print(f"{config.out / 'tokenizer.safetensors'} sha256 {digest[:12]}")
    print(", ".join(f"{name} {value:.2f}" for name, value in report.items()), "(held-out films)")


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    interrupt = Interrupt()
    config.out.mkdir(parents=True, exist_ok=True)
    data = read_data(config)

    # Model and optimiser, new or from where an earlier run stopped.
    torch.manual_seed(config.seed)
    model = DVAE(dvae_size(config.size)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    free = {"data", "out", "threads", "report_every", "checkpoint_s", "resume"}
    settings = {**settings_of(config, free), "frames": str(len(data.frames))}
    checkpoint = Checkpoint(config.out / "checkpoint.pt", model, optimizer, settings)
    first_step = checkpoint.load() if config.resume == "auto" else 0
    log = MetricsLog(config.out / "metrics.jsonl", first_step)
    print(f"dVAE {config.size}: {len(data.frames)} frames, from step {first_step}")

    # Training. All randomness of a step comes from (seed, step), so that is all there is to resume.
    bfloat16 = use_bfloat16(config.precision)
    bar = tqdm(total=config.steps, initial=first_step, unit="step", desc="dVAE", mininterval=1.0)
    for step in range(first_step, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        chosen = torch.randint(len(data.frames), (config.batch_size,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, terms = loss_of(model, data.frames[chosen], data, step, config, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config)
        optimizer.step()
        bar.update()

        if step % config.report_every == 0 or step == config.steps - 1:
            few = data.test[:: max(1, len(data.test) // 128)]
            report = evaluate(model, few, data.weights)
            del report["counts"]
            temperature = temperature_at(step, config)
            log.write(step=step, loss=loss.item(), temperature=temperature, **terms, **report)
            rate = (bar.format_dict["rate"] or 0) * config.batch_size
            bar.set_postfix(
                loss=f"{loss.item():.4f}",
                psnr=f"{report['psnr']:.1f}/{report['psnr_weighted']:.1f}dB",
                codes=report["codes_used"],
                frames_s=f"{rate:.0f}",
            )
        checkpoint.save_when_due(step + 1, config.checkpoint_s)
        if interrupt.requested:
            checkpoint.save(step + 1)
            raise SystemExit(f"\nstopped after step {step + 1}; the same command continues there")
    bar.close()
    checkpoint.save(config.steps)
    write_results(model, data, config, settings)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
