"""Discrete VAE: the tokenizer of DALL-E (Ramesh et al. 2021), and the same one scaled down.

The blocks, their order and their initialisation are DALL-E's (github.com/openai/DALL-E). What is
scaled down is where the compute goes: DALL-E's first group runs at full resolution and takes most
of it, so `tiny` reaches a quarter of the resolution in a strided stem and works from there.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from toto_robot.backbone.weights import nearest


@dataclass(frozen=True, kw_only=True)
class DVAEConfig:
    """Widths and block counts, from pixels inwards; the decoder mirrors them outwards."""

    vocabulary: int
    stem_kernel: int
    stem_stride: int
    encoder_widths: tuple[int, ...]  # one per group; the resolution halves between groups
    encoder_blocks: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    decoder_input: int = 128
    residual_gain: float  # DALL-E: 1 / (number of blocks)^2
    logit_scale: float  # of the first logits; DALL-E 1. Larger ones are not drowned by Gumbel noise
    output_channels: int  # 3 colours; DALL-E adds 3 log-scales for its logit-Laplace loss
    factors: tuple[int, ...] = ()  # code = one choice from each; () one choice from all

    def __post_init__(self) -> None:
        if self.factors and math.prod(self.factors) != self.vocabulary:
            raise ValueError(f"factors {self.factors} do not make {self.vocabulary} codes")
        lengths = {
            len(self.encoder_widths),
            len(self.encoder_blocks),
            len(self.decoder_widths),
            len(self.decoder_blocks),
        }
        if len(lengths) != 1:
            raise ValueError(f"widths and blocks need one entry per group each, got {self}")

    @property
    def choices(self) -> tuple[int, ...]:
        """Sizes of the choices that make a code; the logits hold one after the other."""
        return self.factors or (self.vocabulary,)

    @property
    def stride(self) -> int:
        """Side of a token in pixels."""
        return self.stem_stride * 2 ** (len(self.encoder_widths) - 1)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "DVAEConfig":
        """From what `dataclasses.asdict` and JSON made of it: lists become tuples again."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)


DVAE_SIZES = {
    "tiny": DVAEConfig(
        vocabulary=512,
        stem_kernel=8,
        stem_stride=4,
        encoder_widths=(64, 128),
        encoder_blocks=(2, 4),
        decoder_widths=(64, 128),
        decoder_blocks=(2, 3),
        residual_gain=0.4,  # about 1/sqrt(blocks): 1/blocks^2 learns too slowly for a short training
        logit_scale=6.0,  # halves the loss at step 100 of a short training
        output_channels=3,
    ),
    "light": DVAEConfig(  # DALL-E's vocabulary; a softmax over all of it made a step 15 times slower
        vocabulary=8192,
        stem_kernel=8,
        stem_stride=4,
        encoder_widths=(64, 128),
        encoder_blocks=(2, 4),
        decoder_widths=(64, 128),
        decoder_blocks=(2, 3),
        residual_gain=0.4,
        logit_scale=6.0,
        output_channels=3,
        factors=(128, 64),
    ),
    "dalle": DVAEConfig(
        vocabulary=8192,
        stem_kernel=7,
        stem_stride=1,
        encoder_widths=(256, 512, 1024, 2048),
        encoder_blocks=(2, 2, 2, 2),
        decoder_widths=(256, 512, 1024, 2048),
        decoder_blocks=(2, 2, 2, 2),
        residual_gain=1 / 64,
        logit_scale=1.0,
        output_channels=6,
    ),
}


def dvae_size(name: str) -> DVAEConfig:
    """A row of `DVAE_SIZES`; ValueError with the nearest name for any other."""
    if name not in DVAE_SIZES:
        raise ValueError(
            f"unknown dVAE size {name!r}, known: {', '.join(DVAE_SIZES)}.{nearest(name, DVAE_SIZES)}"
        )
    return DVAE_SIZES[name]


PIXEL_EPS = 0.1  # DALL-E's logit_laplace_eps


def map_pixels(frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """uint8 [0, 255] -> float32 [0.1, 0.9], DALL-E's range, channels first (channels-last in memory)."""
    scale = (1 - 2 * PIXEL_EPS) / 255
    return frames.permute(0, 3, 1, 2).float().mul_(scale).add_(PIXEL_EPS)


def unmap_pixels(pixels: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B H W 3"]:
    """Inverse of `map_pixels`, clipped to what uint8 can hold."""
    unit = ((pixels.float() - PIXEL_EPS) / (1 - 2 * PIXEL_EPS)).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution with DALL-E's initialisation and "same" padding (also for the even stem)."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - stride + 1) // 2)
    nn.init.normal_(layer.weight, std=(inputs * kernel**2) ** -0.5)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer


class Block(nn.Module):
    """DALL-E's bottleneck residual block; the decoder's has its kernels in reversed order."""

    def __init__(self, inputs: int, outputs: int, gain: float, kernels: tuple[int, int]) -> None:
        super().__init__()
        hidden, (first, last) = outputs // 4, kernels
        self.gain = gain
        self.identity = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)
        self.residual = nn.Sequential(
            nn.ReLU(),
            conv(inputs, hidden, first),
            nn.ReLU(),
            conv(hidden, hidden, 3),
            nn.ReLU(),
            conv(hidden, hidden, 3),
            nn.ReLU(),
            conv(hidden, outputs, last),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.identity(x), self.residual(x), alpha=self.gain)


def channels_last(module: nn.Module) -> None:
    """Convolution weights in the memory order that is twice as fast on AVX-512 CPUs."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def group(
    inputs: int, width: int, count: int, gain: float, kernels: tuple[int, int]
) -> list[Block]:
    return [Block(inputs if i == 0 else width, width, gain, kernels) for i in range(count)]


class Encoder(nn.Module):
    """Pixels -> unnormalised log-probabilities of the codes, one set per `stride` x `stride` patch."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_widths[0]
        layers: list[nn.Module] = [conv(3, width, config.stem_kernel, config.stem_stride)]
        for i, (outputs, count) in enumerate(
            zip(config.encoder_widths, config.encoder_blocks, strict=True)
        ):
            if i > 0:
                layers.append(nn.MaxPool2d(2))
            layers += group(width, outputs, count, config.residual_gain, kernels=(3, 1))
            width = outputs
        output = conv(width, sum(config.choices), 1)
        with torch.no_grad():
            output.weight.mul_(config.logit_scale)
        self.layers = nn.Sequential(*layers, nn.ReLU(), output)
        channels_last(self)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L h w"]:
        """Logits of each choice, L = sum(config.choices); V with one choice from all codes."""
        return self.layers(pixels)

    def encode(self, frames: UInt8[Tensor, "B H W 3"]) -> Int[Tensor, "B h w"]:
        """Most probable code of each patch. H and W must be multiples of the stride."""
        stride = self.config.stride
        if frames.shape[1] % stride or frames.shape[2] % stride:
            raise ValueError(
                f"frames of {frames.shape[1]}x{frames.shape[2]} px do not divide into tokens of "
                f"{stride}x{stride} px; resize or crop them first"
            )
        logits = self(map_pixels(frames)).split(self.config.choices, dim=1)
        codes = logits[0].argmax(dim=1)
        for size, part in zip(self.config.choices[1:], logits[1:], strict=True):
            codes = codes * size + part.argmax(dim=1)
        return codes


class Decoder(nn.Module):
    """Codes (one-hot or relaxed) -> pixels in the range of `map_pixels`; for training and pictures."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_input
        layers: list[nn.Module] = [conv(sum(config.choices), width, 1)]
        outwards = list(zip(config.decoder_widths, config.decoder_blocks, strict=True))[::-1]
        for i, (outputs, count) in enumerate(outwards):
            if i > 0:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            layers += group(width, outputs, count, config.residual_gain, kernels=(1, 3))
            width = outputs
        kernel = 1 if config.stem_stride == 1 else 3
        layers += [nn.ReLU(), conv(width, config.output_channels * config.stem_stride**2, kernel)]
        layers.append(nn.PixelShuffle(config.stem_stride))
        self.layers = nn.Sequential(*layers)
        channels_last(self)

    def forward(self, codes: Float[Tensor, "B L h w"]) -> Float[Tensor, "B 3 H W"]:
        colours = self.layers(codes)[:, :3].float()
        return colours.sigmoid() if self.config.output_channels == 6 else colours + 0.5

    def decode(self, codes: Int[Tensor, "B h w"]) -> UInt8[Tensor, "B H W 3"]:
        """Picture of a grid of codes."""
        return unmap_pixels(self(self.one_hot(codes)))

    def one_hot(self, codes: Int[Tensor, "B h w"]) -> Float[Tensor, "B L h w"]:
        """What `forward` reads: a one at each choice that a code is made of."""
        parts = []
        for size in reversed(self.config.choices):
            parts.insert(0, F.one_hot(codes % size, size))
            codes = codes // size
        return torch.cat(parts, dim=-1).permute(0, 3, 1, 2).float()


class DVAE(nn.Module):
    """Encoder and decoder with the Gumbel-softmax relaxation between them."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        temperature: float,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B L h w"]]:
        """Reconstruction through relaxed codes, and the logits they were drawn from."""
        logits = self.encoder(pixels).float()
        # F.gumbel_softmax draws exponential noise on one thread: 20 times slower than this.
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        gumbel = -(-(uniform.clamp_(1e-7, 1 - 1e-7).log_())).log_()
        noisy = ((logits + gumbel) / temperature).split(self.config.choices, dim=1)
        relaxed = torch.cat([part.softmax(dim=1) for part in noisy], dim=1)
        return self.decoder(relaxed.contiguous(memory_format=torch.channels_last)), logits
