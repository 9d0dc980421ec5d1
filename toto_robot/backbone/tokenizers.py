"""The tokenizers behind one door: frames to codes, codes to frames, on disk with a hash.

A tokenizer has a `config` with `vocabulary` and `stride`, an `encoder` with
`encode(uint8 [B, H, W, 3]) -> codes [B, h, w]`, and a `decoder` with `decode`, its inverse.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from toto_robot.backbone import dvae, vqgan
from toto_robot.backbone.weights import nearest, read_weights, save_weights

Tokenizer = dvae.DVAE | vqgan.VQGAN
TokenEncoder = dvae.Encoder | vqgan.Encoder
KINDS: dict[str, Any] = {  # kind -> (config, encoder, whole)
    "dvae": (dvae.DVAEConfig, dvae.Encoder, dvae.DVAE),
    "vqgan": (vqgan.VQGANConfig, vqgan.Encoder, vqgan.VQGAN),
}


def kind_of(config: Any) -> str:
    return next(kind for kind, (cls, _, _) in KINDS.items() if isinstance(config, cls))


def _check_kind(kind: Any, where: str) -> str:
    if kind not in KINDS:
        raise ValueError(
            f"{where} holds a tokenizer of kind {kind!r}, expected {' or '.join(map(repr, KINDS))}."
            f"{nearest(str(kind), KINDS)}"
        )
    return kind


def make_encoder(kind: str, config: dict[str, Any], where: str) -> TokenEncoder:
    """The encoder alone, which is what a frozen backbone needs; `config` as JSON gives it."""
    config_class, encoder_class, _ = KINDS[_check_kind(kind, where)]
    return encoder_class(config_class.from_json(config))


def save_tokenizer(model: Tokenizer, folder: Path, **about: Any) -> str:
    """Write tokenizer.safetensors and tokenizer.json; return the SHA-256 of the weights."""
    config = model.config
    return save_weights(
        folder / "tokenizer.safetensors",
        model.state_dict(),
        {
            "kind": kind_of(config),
            "vocabulary": config.vocabulary,
            "stride": config.stride,
            "config": dataclasses.asdict(config),
            **about,
        },
    )


def load_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Read what `save_tokenizer` wrote. Errors as in `read_weights`."""
    tensors, about = read_weights(folder / "tokenizer.safetensors")
    config_class, _, whole_class = KINDS[_check_kind(about.get("kind"), str(folder))]
    model: nn.Module = whole_class(config_class.from_json(about["config"]))
    model.load_state_dict(tensors)
    return model.eval(), about  # pyright: ignore[reportReturnType]
