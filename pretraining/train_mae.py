"""Pre-train a small masked autoencoder (He et al. 2021) on films, to compare with: `mae-tiny`.

    python -m pretraining.train_mae data=data/films out=data/mae-tiny

The model is transformers' ViTMAE (pip install "toto-robot[compare]"). Writes metrics.jsonl,
checkpoint.pt (exact resume), and at the end backbone.safetensors and backbone.json, the encoder
alone, which `backbone=mae-tiny backbone.weights=<out>` reads.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from pretraining.optimizer import descend, set_lr
from pretraining.parallel import choose_device
from pretraining.progress import Checkpoint, Interrupt, MetricsLog, settings_of
from pretraining.tokenize_plan import decide_held_out, list_sources
from pretraining.video import sample_frames
from toto_robot.backbone.patches import normalised
from toto_robot.backbone.precision import fast_matmul
from toto_robot.backbone.torchvision_ops import declare_missing
from toto_robot.backbone.vit import EPS, VIT_SIZES, ViT, ViTConfig, from_transformers
from toto_robot.backbone.weights import nearest, save_weights
from toto_robot.cli import parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pre-train a masked autoencoder on videos or pictures."""

    data: Path
    out: Path
    layout: str = "auto"  # of the data: videos, images, webdataset, or a data set's name
    model: str = "mae-tiny"
    decoder_width: int = 64
    decoder_layers: int = 2
    mask: float = 0.75  # share of the patches that the encoder does not see
    max_frames: int = 16_000
    held_out: float = 0.05  # share of the sources, where the data set has no split of its own
    steps: int = 8400
    batch_size: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 200
    decay: float = 0.25  # last share of the steps, over which the learning rate falls to zero
    seed: int = 0
    device: str = "auto"
    threads: int = 0  # 0: torch's choice
    report_every: int = 50
    checkpoint_s: float = 60.0
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        if self.model not in VIT_SIZES:
            raise SystemExit(
                f"model={self.model}: expected one of {', '.join(VIT_SIZES)}."
                f"{nearest(self.model, VIT_SIZES)}"
            )
        if not 0 < self.mask < 1:
            raise SystemExit(f"mask={self.mask}: expected a share between 0 and 1")


def lr_at(step: int, config: Config) -> float:
    """Linear warm-up, constant, linear to zero: `steps` may still change while it is constant."""
    left = (config.steps - step) / max(1, config.decay * config.steps)
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup), left)


def make_mae(vit: ViTConfig, config: Config) -> Any:
    """transformers' ViTMAEForPreTraining with an encoder of this size."""
    declare_missing()  # it imports torchvision if there is one
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        raise SystemExit(f'no transformers ({error}); pip install "toto-robot[compare]"') from error
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=vit.dim,
            num_hidden_layers=vit.layers,
            num_attention_heads=vit.heads,
            intermediate_size=vit.mlp,
            image_size=vit.resolution,
            patch_size=vit.patch,
            layer_norm_eps=EPS,
            mask_ratio=config.mask,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_layers,
            decoder_num_attention_heads=max(1, config.decoder_width // 32),  # MAE's width of a head
            decoder_intermediate_size=4 * config.decoder_width,
            # On one CPU thread 15 % faster than torch's fused attention, at these widths.
            attn_implementation="eager",  # pyright: ignore[reportCallIssue]
        )
    )


def mae_loss(mae: Any, pixels: Float[Tensor, "B 3 R R"], noise: Float[Tensor, "B N"]) -> Tensor:
    """Squared error against normalised pixels (MAE's `norm_pix_loss`), over hidden patches alone.

    `noise` says which: the encoder sees the patches with the smallest. transformers' own loss
    computes it for all patches and then masks; this one is a tenth of a step faster.
    """
    seen = mae.vit(pixels, noise=noise)
    hidden = seen.mask.bool()
    predicted = mae.decoder(seen.last_hidden_state, seen.ids_restore).logits[hidden].float()
    return (predicted - normalised(mae.patchify(pixels)[hidden])).square().mean()


@torch.inference_mode()
def held_out_loss(mae: Any, pixels: ViT, frames: UInt8[Tensor, "N R R 3"], batch: int) -> float:
    """Mean loss on frames of other films, hidden patches the same each time."""
    device = next(mae.parameters()).device
    total = 0.0
    for i, some in enumerate(frames.split(batch)):
        noise = noise_of(pixels.config, len(some), seed=i)
        with fast_matmul(device.type):
            loss = mae_loss(mae, pixels.pixels(some.to(device)), noise.to(device))
        total += loss.item() * len(some)
    return total / len(frames)


def noise_of(vit: ViTConfig, frames: int, seed: int) -> Float[Tensor, "B N"]:
    return torch.rand(frames, vit.side**2, generator=torch.Generator().manual_seed(seed))


def read_data(config: Config, resolution: int) -> tuple[Tensor, Tensor]:
    """Training and held-out frames, uint8 [N, R, R, 3]; the split is `train_tokenizer`'s."""
    sources = decide_held_out(list_sources(config.data, config.layout)[1], config.held_out)
    training, held_out = ([s for s in sources if s.held_out == part] for part in (False, True))
    frames = sample_frames(training, resolution, config.max_frames, "reading")
    return frames, sample_frames(held_out, resolution, 256, "reading held-out")


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    interrupt = Interrupt()
    config.out.mkdir(parents=True, exist_ok=True)
    vit, device = VIT_SIZES[config.model], choose_device(config.device)
    frames, test = read_data(config, vit.resolution)

    # Model and optimiser, new or from where an earlier run stopped.
    torch.manual_seed(config.seed)
    mae, pixels = make_mae(vit, config).to(device), ViT(dataclasses.replace(vit, layers=0))
    pixels.to(device)
    optimizer = torch.optim.AdamW(
        mae.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    free = {"data", "out", "layout", "device", "threads", "report_every", "checkpoint_s", "resume"}
    settings = {**settings_of(config, free | {"steps"}), "frames": str(len(frames))}
    checkpoint = Checkpoint(config.out / "checkpoint.pt", mae, optimizer, settings)
    first_step = checkpoint.load() if config.resume == "auto" else 0
    log = MetricsLog(config.out / "metrics.jsonl", first_step)
    print(f"{config.model}: {len(frames)} frames, from step {first_step}")

    # Training. All randomness of a step comes from (seed, step), so that is all there is to resume.
    bar = tqdm(total=config.steps, initial=first_step, unit="step", desc=config.model)
    for step in range(first_step, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        chosen = torch.randint(len(frames), (config.batch_size,), generator=generator)
        noise = torch.rand(config.batch_size, vit.side**2, generator=generator).to(device)
        with fast_matmul(device.type):
            loss = mae_loss(mae, pixels.pixels(frames[chosen].to(device)), noise)
        set_lr(optimizer, lr_at(step, config))
        descend(mae, optimizer, loss)
        bar.update()

        if step % config.report_every == 0 or step == config.steps - 1:
            test_loss = held_out_loss(mae, pixels, test, config.batch_size)
            log.write(step=step, loss=loss.item(), held_out_loss=test_loss)
            bar.set_postfix(loss=f"{loss.item():.4f}", held_out=f"{test_loss:.4f}")
        checkpoint.save_when_due(step + 1, config.checkpoint_s)
        if interrupt.requested:
            checkpoint.save(step + 1)
            raise SystemExit(f"\nstopped after step {step + 1}; the same command continues there")
    bar.close()
    checkpoint.save(config.steps)
    final = held_out_loss(mae, pixels, test, config.batch_size)
    about = {"trained": settings_of(config, free), "held_out_loss": final}
    digest = export(mae, config, about)
    print(f"{config.out / 'backbone.safetensors'} sha256 {digest[:12]}, held-out loss {final:.4f}")


def export(mae: Any, config: Config, about: dict[str, Any]) -> str:
    """The encoder, in half precision, as backbone.safetensors and .json; returns the SHA-256."""
    tensors = {k: t.half() for k, t in from_transformers(mae.state_dict()).items()}
    vit = dataclasses.asdict(VIT_SIZES[config.model])
    content = {"kind": "vit", "model": config.model, "vit": vit, **about}
    return save_weights(config.out / "backbone.safetensors", tensors, content)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
