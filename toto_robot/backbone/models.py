"""The families of causal models behind one door: name -> configuration -> model."""

from dataclasses import replace
from typing import Any

import torch

from toto_robot.backbone.causal import NUM_SPECIALS, CausalConfig, CausalModel
from toto_robot.backbone.decoder import SIZES, Decoder, DecoderConfig
from toto_robot.backbone.gpt2 import GPT2, GPT2_SIZES, GPT2Config
from toto_robot.backbone.mamba import MAMBA_SIZES, Mamba, MambaConfig
from toto_robot.backbone.weights import nearest

MODELS: dict[str, CausalConfig] = {**SIZES, **GPT2_SIZES, **MAMBA_SIZES}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (DecoderConfig, Decoder),
    "gpt2": (GPT2Config, GPT2),
    "mamba": (MambaConfig, Mamba),
}


def model_config(name: str) -> CausalConfig:
    """A row of `MODELS`; ValueError with the nearest name for any other."""
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise ValueError(f"unknown model {name!r}, known: {known}.{nearest(name, MODELS)}")
    return MODELS[name]


def resized(
    config: CausalConfig,
    *,
    dim: int | None = None,
    heads: int | None = None,
    layers: int | None = None,
) -> CausalConfig:
    """Another width, number of heads or depth; the MLP keeps its ratio to the width.

    Raises:
        ValueError: `heads` for a family without heads, or a width that they do not divide.
    """
    changes: dict[str, Any] = {"dim": dim or config.dim, "layers": layers or config.layers}
    if heads is not None:
        if not hasattr(config, "heads"):
            raise ValueError(f"heads={heads}: the {family_of(config)} family has no heads")
        changes["heads"] = heads
    if isinstance(config, DecoderConfig):
        changes["mlp"] = round(config.mlp * changes["dim"] / config.dim)
    return replace(config, **changes)


def family_of(config: CausalConfig) -> str:
    return next(name for name, (cls, _) in FAMILIES.items() if type(config) is cls)


def make_model(config: CausalConfig, *, head: bool = True) -> CausalModel:
    """A model of the configuration's family; without `head`, embedding and blocks alone."""
    return FAMILIES[family_of(config)][1](config, head=head)


def config_from_json(family: str, fields: dict[str, Any], where: str) -> CausalConfig:
    """A configuration as `dataclasses.asdict` and JSON give it back."""
    if family not in FAMILIES:
        raise ValueError(
            f"{where} holds a model of family {family!r}, known: {', '.join(FAMILIES)}."
            f"{nearest(family, FAMILIES)}"
        )
    return FAMILIES[family][0](**fields)


def num_parameters(config: CausalConfig) -> int:
    """Parameters as the paper counts them: tables of `vocabulary` rows, without the special ids.

    Those of models of patches are counted whole.
    """
    with torch.device("meta"):
        total = sum(p.numel() for p in make_model(config).parameters())
    if config.patch:
        return total
    tables = 1 if config.tied else 2
    return total - tables * NUM_SPECIALS * config.dim
