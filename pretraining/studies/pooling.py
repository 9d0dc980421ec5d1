"""Average or attention pooling of the same layer (paper, Table 5).

    python -m pretraining.studies.pooling data=data/shapes tokenizer=data/dvae out=outputs/tables

One training per seed, two classifiers on its frozen features. At the paper's scale: `model=large
data=<ImageNet-1k> tokenizer=<OpenAI's dVAE> resolution=128 layer=9 steps=<400 epochs>`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.studies.common import Row, TableConfig, run_table
from toto_robot.cli import parse

PUBLISHED = {
    "source": "arXiv 2501.05453, Table 5: ImageNet-1k, dVAE 16x16, large, 400 epochs, layer 9 of 16",
    "top1_%": {"average pooling": 53.2, "attention pooling": 61.1},
}


@dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Top-1 with average and with attention pooling."""

    tokenizer: Path
    resolution: int = 128  # px
    model: str = "tiny"
    layers: int | None = None


def rows(config: Config) -> list[Row]:
    def row(pooling: Literal["mean", "attention"], name: str) -> Row:
        return Row(
            name=name,
            tokenizer=config.tokenizer,
            resolution=config.resolution,
            model=config.model,
            layers=config.layers,
            steps=config.steps,
            pooling=pooling,
            published=PUBLISHED["top1_%"][name],
        )

    return [row("mean", "average pooling"), row("attention", "attention pooling")]


ORDERS = [("attention pooling", "average pooling")]


def main(config: Config) -> None:
    title = "Pooling of the probed layer"
    run_table("pooling", title, rows(config), ORDERS, PUBLISHED, config)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
