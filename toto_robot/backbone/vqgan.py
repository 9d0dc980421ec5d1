"""VQGAN (Esser et al. 2021, arXiv 2012.09841): a tokenizer with a learnt codebook.

Modules and their names inside a network are those of the released checkpoints
(github.com/CompVis/taming-transformers): f16 with 1,024 and with 16,384 codes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from toto_robot.backbone.weights import nearest


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Widths per resolution, from pixels inwards; the decoder mirrors them outwards."""

    vocabulary: int
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2  # per resolution; the decoder has one more
    attention_levels: tuple[int, ...] = (4,)  # counted from the pixels; released: 16 x 16 of 256
    code_channels: int = 256

    @property
    def stride(self) -> int:
        """Side of a token in pixels."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "VQGANConfig":
        """From what `dataclasses.asdict` and JSON made of it: lists become tuples again."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)


VQGAN_SIZES = {
    "vqgan-tiny": VQGANConfig(
        vocabulary=512,
        channels=32,
        multipliers=(1, 1, 2, 4),
        blocks=1,
        attention_levels=(),
        code_channels=32,
    ),
    "f16-1024": VQGANConfig(vocabulary=1024),
    "f16-16384": VQGANConfig(vocabulary=16384),
}


def vqgan_size(name: str) -> VQGANConfig:
    """A row of `VQGAN_SIZES`; ValueError with the nearest name for any other."""
    if name not in VQGAN_SIZES:
        raise ValueError(
            f"unknown VQGAN size {name!r}, known: {', '.join(VQGAN_SIZES)}."
            f"{nearest(name, VQGAN_SIZES)}"
        )
    return VQGAN_SIZES[name]


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all places of the feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        y = self.norm(x)
        q, k, v = (
            layer(y).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]  # scale: channels ** -0.5
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and below only


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where this level has it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(map(ResnetBlock, widths[:-1], widths[1:]))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks * attention))
        self.downsample: nn.Module = nn.Identity()  # the networks below put one of them in
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = ResnetBlock(channels, channels), Attention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class EncoderNet(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        levels = []
        for i, (inputs, outputs) in enumerate(
            zip([config.channels, *widths], widths, strict=False)
        ):
            level = Level(inputs, outputs, config.blocks, i in config.attention_levels)
            if i < len(widths) - 1:
                level.downsample = Downsample(outputs)
            levels.append(level)
        self.down: list[Level] = nn.ModuleList(levels)  # pyright: ignore[reportAttributeAccessIssue]
        self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.code_channels, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level.downsample(level(x))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class DecoderNet(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.code_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for i in reversed(range(len(widths))):  # named by their distance from the pixels
            inputs = widths[min(i + 1, len(widths) - 1)]
            level = Level(inputs, widths[i], config.blocks + 1, i in config.attention_levels)
            if i > 0:
                level.upsample = Upsample(widths[i])
            levels.append(level)
        self.up: list[Level] = nn.ModuleList(reversed(levels))  # pyright: ignore[reportAttributeAccessIssue]
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up):
            x = level.upsample(level(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(nn.Module):
    """Frames -> codes: network, projection, nearest vector of the codebook."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config, self.net = config, EncoderNet(config)
        self.quant_conv = nn.Conv2d(config.code_channels, config.code_channels, 1)
        self.codebook = nn.Embedding(config.vocabulary, config.code_channels)

    def nearest(self, z: Float[Tensor, "B C h w"]) -> Int[Tensor, "B h w"]:
        """Index of the nearest code, by Euclidean distance."""
        codes = self.codebook.weight
        # |z - c|^2 without |z|^2, which is the same for all codes
        distances = codes.square().sum(dim=1) - 2 * z.permute(0, 2, 3, 1) @ codes.T
        return distances.argmin(dim=-1)

    def encode(self, frames: UInt8[Tensor, "B H W 3"]) -> Int[Tensor, "B h w"]:
        """Nearest code of each patch. H and W must be multiples of the stride."""
        stride = self.config.stride
        if frames.shape[1] % stride or frames.shape[2] % stride:
            raise ValueError(
                f"frames of {frames.shape[1]}x{frames.shape[2]} px do not divide into tokens of "
                f"{stride}x{stride} px; resize or crop them first"
            )
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.nearest(self.quant_conv(self.net(pixels)))


class Decoder(nn.Module):
    """Codes -> frames. Holds the codebook once more, so that either half can be used alone."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config, self.net = config, DecoderNet(config)
        self.post_quant_conv = nn.Conv2d(config.code_channels, config.code_channels, 1)
        self.codebook = nn.Embedding(config.vocabulary, config.code_channels)

    def decode(self, codes: Int[Tensor, "B h w"]) -> UInt8[Tensor, "B H W 3"]:
        """Picture of a grid of codes."""
        embedded = self.codebook(codes).permute(0, 3, 1, 2)
        pixels = self.net(self.post_quant_conv(embedded)).clamp(-1, 1)
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


class VQGAN(nn.Module):
    """Encoder and decoder, like `toto_robot.backbone.dvae.DVAE`."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config, self.encoder, self.decoder = config, Encoder(config), Decoder(config)


def our_names(released: str) -> list[str]:
    """Names in `VQGAN` of a parameter of a released checkpoint; none for parts of its training."""
    part, _, rest = released.partition(".")
    if part in ("encoder", "decoder"):
        return [f"{part}.net.{rest}"]
    if part == "quant_conv":
        return [f"encoder.{released}"]
    if part == "post_quant_conv":
        return [f"decoder.{released}"]
    if released == "quantize.embedding.weight":
        return ["encoder.codebook.weight", "decoder.codebook.weight"]
    return []
