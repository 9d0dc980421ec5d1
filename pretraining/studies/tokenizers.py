"""Tokenizers to pre-train on (paper, Table 3).

    python -m pretraining.studies.tokenizers data=data/shapes dvae=data/dvae vqgan=data/vqgan \\
        out=outputs/tables

At the paper's scale: `model=large layer=9 data=<ImageNet-1k> dvae=<OpenAI's dVAE> resolution=128
vqgan=<f16-16384>,<f16-1024> vqgan_resolution=256 patch_resolution=256 steps=<400 epochs>`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pretraining.studies.common import Row, TableConfig, paths_in, run_table
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.cli import parse

PUBLISHED = {
    "source": "arXiv 2501.05453, Table 3: ImageNet-1k, large, 400 epochs, layer 9 of 16, average "
    "pooling",
    "rows": [  # input, target, tokens, vocabulary, top-1 in %
        ["VQGAN", "VQGAN", "16x16", 16384, 61.3],
        ["VQGAN", "VQGAN", "16x16", 1024, 61.1],
        ["dVAE", "dVAE", "32x32", 8192, 61.2],
        ["dVAE", "dVAE", "16x16", 8192, 53.2],
        ["patch", "patch", "16x16", None, 60.6],
        ["patch", "dVAE", "16x16", 8192, 58.5],
    ],
}
VQGAN_TOP1 = {16384: 61.3, 1024: 61.1}  # by vocabulary; others stand beside the latter


@dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Top-1 after training on the codes of different tokenizers."""

    dvae: Path
    vqgan: str  # one or several folders, separated by commas
    resolution: int = 128  # px, of the dVAE; it also comes with twice this
    vqgan_resolution: int | None = None  # None: the same
    model: str = "tiny"
    layers: int | None = None
    patches: bool = True  # also the rows that read pixels
    patch_resolution: int | None = None  # px, of patch-patch; None: the dVAE's
    patch: int | None = None  # px a side; None: as many tokens as the dVAE has


def rows(config: Config) -> list[Row]:
    def row(name: str, tokenizer: Path, resolution: int, published: float) -> Row:
        return Row(
            name=name,
            tokenizer=tokenizer,
            resolution=resolution,
            model=config.model,
            layers=config.layers,
            steps=config.steps,
            published=published,
        )

    found = []
    for folder in paths_in(config.vqgan):
        codes = load_tokenizer(folder)[1]["vocabulary"]
        resolution, top1 = config.vqgan_resolution or config.resolution, VQGAN_TOP1.get(codes, 61.1)
        found.append(row(f"VQGAN, {codes} codes", folder, resolution, top1))
    few = row(FEW, config.dvae, config.resolution, 53.2)
    found += [row(MANY, config.dvae, 2 * config.resolution, 61.2), few]
    if config.patches:
        stride = load_tokenizer(config.dvae)[1]["stride"]
        resolution = config.patch_resolution or config.resolution
        patch = config.patch or stride * resolution // config.resolution
        pixels = replace(few, resolution=resolution, patch=patch, objective="patch")
        found += [
            replace(pixels, name="patch to patch", published=60.6),
            replace(few, name="patch to dVAE", objective="patch-code", published=58.5),
        ]
    return found


MANY, FEW = "dVAE, many tokens", "dVAE, few tokens"


def main(config: Config) -> None:
    table = rows(config)
    orders = [(row.name, FEW) for row in table if row.name != FEW]
    run_table("tokenizers", "Tokenizers", table, orders, PUBLISHED, config)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
