"""The tokenizers behind one door: frames to codes, codes to frames, on disk with a hash.

A tokenizer has a `config` with `vocabulary` and `stride`, an `encoder` with
`encode(uint8 [B, H, W, 3]) -> codes [B, h, w]`, and a `decoder` with `decode`, its inverse.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toto_robot.backbone import dvae, vqgan
from toto_robot.backbone.patches import PatchConfig, PatchEncoder
from toto_robot.backbone.weights import nearest, read_weights, save_weights, tensors_sha256

Tokenizer = dvae.DVAE | vqgan.VQGAN
TokenEncoder = dvae.Encoder | vqgan.Encoder | PatchEncoder
TokenDecoder = dvae.Decoder | vqgan.Decoder
PATCHES = "patches"  # what models of patches have in place of a tokenizer: no codes, no way back
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
    if kind == PATCHES:
        return PatchEncoder(PatchConfig(**config))
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


def read_encoder(path: Path) -> TokenEncoder:
    """The encoder in a weights file, of a backbone or of a tokenizer. Errors as in `read_weights`."""
    tensors, about = read_weights(path)
    if about["kind"] == "toto":
        kind, config = about.get("tokenizer_kind", "dvae"), about["tokenizer"]
    else:
        kind, config = about["kind"], about["config"]
    encoder = make_encoder(kind, config, str(path))
    prefix = "encoder."
    encoder.load_state_dict(
        {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    )
    return encoder.eval()


def save_decoder(model: Tokenizer, path: Path, **about: Any) -> str:
    """Write the decoder alone, in half precision, with the hash of the encoder it belongs to."""
    tensors = {name: t.to(torch.float16) for name, t in model.decoder.state_dict().items()}
    content = {
        "kind": "decoder",
        "tokenizer_kind": kind_of(model.config),
        "tokenizer": dataclasses.asdict(model.config),
        "encoder_sha256": tensors_sha256(model.encoder.state_dict()),
        **about,
    }
    return save_weights(path, tensors, content)


def read_decoder(path: Path, encoder_sha256: str) -> TokenDecoder:
    """The decoder in a file of `save_decoder` or `save_tokenizer`, for the codes of an encoder.

    Raises:
        ValueError: it belongs to another encoder; and as in `read_weights`.
    """
    tensors, about = read_weights(path)
    prefix = "" if about.get("kind") == "decoder" else "decoder."
    kind = about.get("tokenizer_kind" if prefix == "" else "kind")
    config_class, _, whole_class = KINDS[_check_kind(kind, str(path))]
    config = config_class.from_json(about["tokenizer" if prefix == "" else "config"])
    own = about.get("encoder_sha256") or tensors_sha256(
        {k.removeprefix("encoder."): t for k, t in tensors.items() if k.startswith("encoder.")}
    )
    if own != encoder_sha256:
        raise ValueError(
            f"{path} decodes the codes of encoder {own[:12]}…, the backbone's encoder is "
            f"{encoder_sha256[:12]}…: the same code means another patch there; train a decoder with "
            "pretraining.train_tokenizer decoder_for=<backbone>"
        )
    decoder = whole_class(config).decoder
    decoder.load_state_dict(
        {k.removeprefix(prefix): t.float() for k, t in tensors.items() if k.startswith(prefix)}
    )
    return decoder.eval().requires_grad_(False)
