"""muP (Yang et al. 2022, arXiv 2203.03466): a learning rate found at one width holds at the others.

Everything follows from a parameter's name and m = width / base width, so that copies, meta devices
and FSDP2 change nothing. What a table or a vector is given does not depend on the width:

    kind     start  rate  decay  eps    which
    hidden   m^-½   1/m   m      r/m    matrices from width to width
    table    1      1     1      1/m    embedding, positions, output projection
    vector   1      1     0      r/m    norms and biases (of the final norm 1/m)

The forward pass has the rest (`with_multipliers`): logits times 1/m, which is what makes one rate
right for the tied embedding, and attention scores over the head's width instead of its root. With a
base depth what a block adds is multiplied by r = base depth / depth, and a rate holds at other depths
too (CompleteP, Dey et al. 2025, arXiv 2505.01618, with alpha = 1); otherwise r is 1.
AdamW decays by rate times decay: with 1/m and m that product stays the same at every width (arXiv
2510.19093). Gradients shrink with 1/m everywhere behind those logits, and so must AdamW's eps.
At the base width (and depth) everything is as without muP.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from toto_robot.backbone.causal import CausalConfig
from toto_robot.backbone.models import family_of

HEAD_WIDTH = 64  # at which scores are scaled as without muP: that of the paper's base and large
EPS = 1e-8  # AdamW's

KINDS = {
    r"(embedding|positions|head)\.weight": "table",
    r"blocks\.\d+\.(\w+\.)?(qkv|out|gate_up|up|down)\.weight": "hidden",
    r"(.*\.)?(\w*norm)\.(weight|bias)": "vector",
    r"blocks\.\d+\.(\w+\.)?\w+\.bias": "vector",
}
FAMILIES = ("llama", "gpt2")


@dataclass(frozen=True)
class Scales:
    """Multipliers of the initial standard deviation, and of AdamW's rate, weight decay and eps."""

    init: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


def kind_of(name: str) -> str:
    """hidden, table or vector; ValueError for a name that has no rule."""
    for pattern, kind in KINDS.items():
        if re.fullmatch(pattern, name):
            return kind
    raise ValueError(f"muP has no rule for the parameter {name}; known: {', '.join(KINDS)}")


def scales_of(name: str, m: float, r: float = 1.0, decay_exponent: float = 1.0) -> Scales:
    """Multipliers for one parameter.

    Args:
        m: width over base width.
        r: `residual_scale` of the model.
        decay_exponent: weight decay of hidden matrices grows with m to this power.
    """
    kind, inside = kind_of(name), r if name.startswith("blocks.") else 1.0
    if kind == "hidden":
        return Scales(m**-0.5, 1 / m, m**decay_exponent, inside / m)
    return Scales(weight_decay=1.0 if kind == "table" else 0.0, eps=inside / m)


def check_family(config: CausalConfig) -> None:
    """ValueError for a family without rules.

    Mamba's selective scan multiplies activations that depend on each other; that muP's rules carry
    over to it has been disputed (Vankadara et al. 2024).
    """
    if family_of(config) not in FAMILIES:
        raise ValueError(
            f"mup=true: no settled rules for the {family_of(config)} family, only for "
            f"{' and '.join(FAMILIES)}; use mup=false and search lr= at this width"
        )


def with_multipliers(config: CausalConfig, base_width: int, base_depth: int = 0) -> CausalConfig:
    """The configuration with the forward multipliers of muP; without those for depth if it is 0."""
    check_family(config)
    fields: Any = {"output_scale": config.output_scale * base_width / config.dim}
    head_width = config.dim // config.heads  # pyright: ignore[reportAttributeAccessIssue]
    fields["attention_scale"] = HEAD_WIDTH**0.5 / head_width
    if base_depth:
        fields["residual_scale"] = base_depth / config.layers
    return replace(config, **fields)


@torch.no_grad()
def scale_weights(model: nn.Module, m: float) -> None:
    """From the family's own initial weights to muP's, in place."""
    for name, parameter in model.named_parameters():
        parameter.mul_(scales_of(name, m).init)


def mup_groups(
    model: nn.Module, weight_decay: float, m: float, r: float = 1.0
) -> list[dict[str, Any]]:
    """AdamW's groups, for `make_optimizer` and `set_lr`: one per combination of multipliers."""
    members: dict[Scales, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        members.setdefault(replace(scales_of(name, m, r), init=1.0), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": scales.lr,
            "weight_decay": weight_decay * scales.weight_decay,
            "eps": EPS * scales.eps,
        }
        for scales, parameters in members.items()
    ]
