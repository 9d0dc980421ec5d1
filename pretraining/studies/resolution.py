"""Few tokens per picture, many, or many after few (paper, Table 4).

    python -m pretraining.studies.resolution data=data/shapes tokenizer=data/dvae out=outputs/tables

The last two rows go on from the first at twice the resolution, with the base of the rotary
positions kept and raised. How long they go on is open: the paper's text says one epoch of 400, its
compute column 50 (`finetune=0.125`, the default). At the paper's scale: `model=large layer=9
data=<ImageNet-1k> tokenizer=<OpenAI's dVAE> resolution=128 steps=<400 epochs>`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pretraining.studies.common import Row, TableConfig, run_table
from toto_robot.cli import parse

PUBLISHED = {
    "source": "arXiv 2501.05453, Table 4: ImageNet-1k, large, layer 9 of 16; compute in "
    "multiply-adds per token times pictures (of 256 tokens)",
    "rows": {  # compute, top-1 in %
        "dVAE/16": [1.42e17, 53.2],
        "dVAE/32": [5.68e17, 61.2],
        "dVAE/16 to 32": [2.13e17, 63.2],
        "dVAE/16 to 32, RoPE base 50,000": [2.13e17, 64.4],
    },
}


@dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Top-1 at two resolutions, and after fine-tuning from the lower at the higher one."""

    tokenizer: Path
    resolution: int = 128  # px; the higher one is twice this
    finetune: float = 0.125  # share of `steps`
    model: str = "tiny"
    layers: int | None = None


def rows(config: Config) -> list[Row]:
    names, numbers = zip(*PUBLISHED["rows"].items(), strict=True)
    low = Row(
        name=names[0],
        tokenizer=config.tokenizer,
        resolution=config.resolution,
        model=config.model,
        layers=config.layers,
        steps=config.steps,
    )
    high = replace(low, name=names[1], resolution=2 * config.resolution)
    tuned = replace(
        high, name=names[2], start=low, steps=max(1, round(config.finetune * config.steps))
    )
    turned = replace(tuned, name=names[3], rope_base=50_000.0)
    return [
        replace(row, published_compute=compute, published=top1)
        for row, (compute, top1) in zip((low, high, tuned, turned), numbers, strict=True)
    ]


ORDERS = [
    ("dVAE/32", "dVAE/16"),
    ("dVAE/16 to 32", "dVAE/16"),
    ("dVAE/16 to 32", "dVAE/32"),
    ("dVAE/16 to 32, RoPE base 50,000", "dVAE/16 to 32"),
]


def main(config: Config) -> None:
    title = "Tokens per picture (16 and 32 stand for the lower and the higher resolution)"
    run_table("resolution", title, rows(config), ORDERS, PUBLISHED, config)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
