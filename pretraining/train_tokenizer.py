"""Train a tokenizer, dVAE or VQGAN, on videos or pictures.

    python -m pretraining.train_tokenizer data=data/films out=data/tokenizer

Writes metrics.jsonl, checkpoint.pt (exact resume), and at the end tokenizer.safetensors,
tokenizer.json, reconstructions.png and codebook.png. With decoder_for= only a decoder is trained,
for the codes of a dVAE encoder that stays as it is; decoder.safetensors then holds it alone.
"""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from pretraining.colours import colour_weights, colour_whitening, pixel_weights
from pretraining.dvae_loss import DecoderTraining, DVAELossOptions, DVAETraining
from pretraining.optimizer import descend, lr_at, set_lr
from pretraining.parallel import choose_device
from pretraining.pictures import plot_codebook, plot_reconstructions
from pretraining.progress import Checkpoint, Interrupt, MetricsLog, settings_of
from pretraining.tokenize_plan import decide_held_out, list_sources
from pretraining.video import sample_frames
from pretraining.vqgan_loss import VQGANTraining
from toto_robot.backbone.dvae import DVAE, DVAE_SIZES, Encoder
from toto_robot.backbone.names import BACKBONES, find_weights
from toto_robot.backbone.precision import has_fast_bfloat16
from toto_robot.backbone.tokenizers import Tokenizer, read_encoder, save_decoder, save_tokenizer
from toto_robot.backbone.vqgan import VQGAN, VQGAN_SIZES
from toto_robot.backbone.weights import nearest
from toto_robot.cli import parse

FINAL_LR = 0.02  # of the peak, at the end of the cosine


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a tokenizer, dVAE or VQGAN, on videos or pictures."""

    data: Path
    out: Path
    layout: str = "auto"  # of the data: videos, images, webdataset, or a data set's name
    size: str = "tiny"  # dVAE: tiny, light, dalle; VQGAN: vqgan-tiny, f16-1024, f16-16384
    decoder_for: str | None = (
        None  # a backbone (name, file, folder): learn its dVAE's decoder alone
    )
    resolution: int = 128
    max_frames: int = 16_000
    held_out: float = 0.05  # share of the sources, where the data set has no split of its own
    steps: int = 4000
    batch_size: int = 32
    lr: float | None = None  # peak, after `warmup` steps; None: 2e-3, VQGAN 2e-4
    weight_decay: float = 1e-4
    warmup: int = 200
    # dVAE
    loss: Literal["l1", "l2"] = "l2"
    temperature: float = 0.8  # at the start; annealed to final_temperature over anneal * steps
    final_temperature: float = 0.0625
    anneal: float = 0.7
    usage: float = 0.04  # weight of the codebook-usage term
    kl: float = 0.0  # weight of KL(posterior || uniform) per token, in nats
    colour_temper: float = 0.8  # of the weights by rarity; 0: all pixels alike
    whitening: float = 0.5  # of the error's colour space; 0: RGB, 1: fully whitened
    # VQGAN
    critic_start: int = 0  # step from which a discriminator of patches takes part
    critic_weight: float = 0.8  # 0: without one
    revive_every: int = 100  # steps after which unused codes move to where data is; 0: never
    perceptual: Path | None = None  # weights of VGG-16 and LPIPS as safetensors
    seed: int = 0
    device: str = "auto"
    threads: int = 0  # 0: torch's choice
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    report_every: int = 100
    checkpoint_s: float = 60.0
    resume: Literal["auto", "never"] = "auto"


@torch.inference_mode()
def evaluate(
    model: Tokenizer, frames: Tensor, weights: Tensor, device: torch.device
) -> dict[str, Any]:
    """With hard codes: PSNR in dB (also colour-weighted), codes used, perplexity, counts."""
    vocabulary = model.config.vocabulary
    counts, square, weighted = torch.zeros(vocabulary), 0.0, 0.0
    for batch in frames.split(64):
        codes = model.encoder.encode(batch.to(device))
        decoded = model.decoder.decode(codes).cpu()
        error = (decoded / 255 - batch / 255).square().permute(0, 3, 1, 2)
        square += error.mean().item() * len(batch)
        weighted += (error * pixel_weights(batch, weights)).mean().item() * len(batch)
        counts += torch.bincount(codes.flatten().cpu(), minlength=vocabulary)
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return {
        "psnr": -10 * math.log10(square / len(frames)),
        "psnr_weighted": -10 * math.log10(weighted / len(frames)),
        "codes_used": int((counts > 0).sum()),
        "perplexity": math.exp(entropy.item()),
        "counts": counts,
    }


def use_bfloat16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return has_fast_bfloat16(device.type)
    return precision == "bfloat16"


@dataclass(frozen=True)
class Data:
    """Frames in memory and what the loss needs to know about their colours."""

    frames: UInt8[Tensor, "N R R 3"]
    test: UInt8[Tensor, "M R R 3"]  # of other videos or pictures
    weights: Float[Tensor, " colours"]
    whitening: Float[Tensor, "3 3"]


def read_data(config: Config) -> Data:
    sources = decide_held_out(list_sources(config.data, config.layout)[1], config.held_out)
    training, held_out = ([s for s in sources if s.held_out == part] for part in (False, True))
    frames = sample_frames(training, config.resolution, config.max_frames, "reading")
    test = sample_frames(held_out, config.resolution, 512, "reading held-out")
    some = frames[:: max(1, len(frames) // 4000)]
    weights = colour_weights(some, temper=config.colour_temper)
    return Data(frames, test, weights, colour_whitening(some, temper=config.whitening))


def make_decoder_training(source: str, config: Config, data: Data) -> DecoderTraining:
    """A new decoder beside the encoder of a backbone or tokenizer."""
    if source in BACKBONES:
        path = find_weights(source, None)
    else:
        path = Path(source)
        if path.is_dir():
            found = [path / f"{name}.safetensors" for name in ("backbone", "tokenizer")]
            path = found[0] if found[0].is_file() else found[1]
    encoder = read_encoder(path)
    if not isinstance(encoder, Encoder):
        raise SystemExit(
            f"decoder_for={source}: its tokenizer is no dVAE, only these are trained so"
        )
    model = DVAE(encoder.config)
    model.encoder = encoder
    return DecoderTraining(model, config.loss, data.weights, data.whitening)


def make_training(config: Config, data: Data) -> DVAETraining | VQGANTraining | DecoderTraining:
    """The model of this size with its loss."""
    if config.decoder_for:
        return make_decoder_training(config.decoder_for, config, data)
    if config.size in VQGAN_SIZES:
        return VQGANTraining(
            VQGAN(VQGAN_SIZES[config.size]),
            critic_start=config.critic_start,
            critic_weight=config.critic_weight,
            revive_every=config.revive_every,
            perceptual=config.perceptual,
        )
    if config.size not in DVAE_SIZES:
        valid = [*DVAE_SIZES, *VQGAN_SIZES]
        raise SystemExit(
            f"size={config.size}: expected one of {', '.join(valid)}.{nearest(config.size, valid)}"
        )
    options = DVAELossOptions(
        loss=config.loss,
        temperature=config.temperature,
        final_temperature=config.final_temperature,
        annealing_steps=config.anneal * config.steps,
        usage=config.usage,
        kl=config.kl,
    )
    return DVAETraining(DVAE(DVAE_SIZES[config.size]), options, data.weights, data.whitening)


def write_results(
    model: Tokenizer, data: Data, config: Config, settings: dict[str, str], device: torch.device
) -> None:
    """tokenizer.safetensors and .json, reconstructions.png, codebook.png."""
    report = evaluate(model, data.test, data.weights, device)
    counts = report.pop("counts")
    about = {"resolution": config.resolution, "trained": settings, "held_out": report}
    digest = save_tokenizer(model, config.out, **about)
    if config.decoder_for:
        save_decoder(model, config.out / "decoder.safetensors", **about)
    count = min(12, len(data.test))
    picture = data.test[torch.linspace(0, len(data.test) - 1, count).long()]
    with torch.inference_mode():
        decoded = model.decoder.decode(model.encoder.encode(picture.to(device))).cpu()
    plot_reconstructions(picture, decoded, config.out / "reconstructions.png")
    plot_codebook(counts, config.out / "codebook.png")
    print(f"{config.out / 'tokenizer.safetensors'} sha256 {digest[:12]}")
    print(", ".join(f"{name} {value:.2f}" for name, value in report.items()), "(held-out)")


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    usual_lr = 2e-4 if config.size in VQGAN_SIZES else 2e-3
    lr = usual_lr if config.lr is None else config.lr
    config = replace(config, lr=lr)
    interrupt = Interrupt()
    config.out.mkdir(parents=True, exist_ok=True)
    data, device = read_data(config), choose_device(config.device)

    # Model and optimiser, new or from where an earlier run stopped.
    torch.manual_seed(config.seed)
    training = make_training(config, data).to(device)
    optimizer = torch.optim.AdamW(
        [p for p in training.parameters() if p.requires_grad],
        lr=lr,
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
    )
    free = {"data", "out", "layout", "device", "threads", "report_every", "checkpoint_s", "resume"}
    settings = {**settings_of(config, free), "frames": str(len(data.frames))}
    checkpoint = Checkpoint(config.out / "checkpoint.pt", training, optimizer, settings)
    first_step = checkpoint.load() if config.resume == "auto" else 0
    log = MetricsLog(config.out / "metrics.jsonl", first_step)
    print(f"tokenizer {config.size}: {len(data.frames)} frames, from step {first_step}")

    # Training. All randomness of a step comes from (seed, step), so that is all there is to resume.
    bfloat16 = use_bfloat16(config.precision, device)
    bar = tqdm(
        total=config.steps, initial=first_step, unit="step", desc=config.size, mininterval=1.0
    )
    for step in range(first_step, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        chosen = torch.randint(len(data.frames), (config.batch_size,), generator=generator)
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss, terms = training.loss(data.frames[chosen].to(device), step, generator)
        set_lr(optimizer, lr_at(step, lr, config.warmup, config.steps, FINAL_LR))
        descend(training, optimizer, loss)
        bar.update()

        if step % config.report_every == 0 or step == config.steps - 1:
            few = data.test[:: max(1, len(data.test) // 128)]
            report = evaluate(training.model, few, data.weights, device)
            del report["counts"]
            log.write(step=step, loss=loss.item(), **terms, **report)
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
    write_results(training.model, data, config, settings, device)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
