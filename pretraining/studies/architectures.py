"""LLaMA, GPT-2 and Mamba with equally many parameters (paper, Table 6).

    python -m pretraining.studies.architectures data=data/shapes tokenizer=data/dvae out=outputs/tables

With `match=true` the depths of GPT-2 and Mamba are those whose blocks come nearest to LLaMA's in
parameters. At the paper's scale: `llama=large gpt2=gpt2-280m mamba=mamba-290m match=false` (the
probed layer is half the depth of each).
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pretraining.studies.common import Row, TableConfig, run_table
from toto_robot.backbone.causal import CausalConfig
from toto_robot.backbone.models import model_config, num_parameters
from toto_robot.cli import parse

PUBLISHED = {
    "source": "arXiv 2501.05453, Table 6: ImageNet-1k, dVAE 16x16, 400 epochs, average pooling",
    "top1_%": {"GPT-2": 48.5, "Mamba": 40.7, "LLaMA": 53.2},
    "parameters": {"GPT-2": 280_000_000, "Mamba": 290_000_000, "LLaMA": 280_000_000},
}


@dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    """Top-1 of three architectures."""

    tokenizer: Path
    resolution: int = 128  # px
    llama: str = "tiny"
    gpt2: str = "gpt2-tiny"
    mamba: str = "mamba-tiny"
    layers: int | None = None  # of LLaMA
    match: bool = True  # the other depths to LLaMA's parameters


def block_parameters(config: CausalConfig) -> int:
    """Of one block: what one more adds."""
    one, two = (num_parameters(replace(config, layers=n)) for n in (1, 2))
    return two - one


def matched_layers(name: str, like: CausalConfig) -> int:
    """Depth at which the blocks of `name` have about as many parameters as those of `like`."""
    wanted = like.layers * block_parameters(like)
    return max(1, round(wanted / block_parameters(model_config(name))))


def rows(config: Config) -> list[Row]:
    llama = model_config(config.llama)
    if config.layers is not None:
        llama = replace(llama, layers=config.layers)

    def row(name: str, model: str) -> Row:
        layers = config.layers
        if model != config.llama:
            layers = matched_layers(model, llama) if config.match else None
        return Row(
            name=name,
            tokenizer=config.tokenizer,
            resolution=config.resolution,
            model=model,
            layers=layers,
            steps=config.steps,
            published=PUBLISHED["top1_%"][name],
        )

    return [row("GPT-2", config.gpt2), row("Mamba", config.mamba), row("LLaMA", config.llama)]


ORDERS = [("LLaMA", "GPT-2"), ("LLaMA", "Mamba"), ("GPT-2", "Mamba")]


def main(config: Config) -> None:
    title = "Architectures"
    run_table("architectures", title, rows(config), ORDERS, PUBLISHED, config)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
