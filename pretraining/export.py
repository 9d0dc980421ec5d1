"""From a trained model to the files that `load_backbone` reads, and back into a new training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from pretraining.shards import Manifest
from toto_robot.backbone.causal import CausalModel
from toto_robot.backbone.models import config_from_json, family_of, make_model, num_parameters
from toto_robot.backbone.tokenizers import PATCHES, load_tokenizer, save_decoder
from toto_robot.backbone.weights import read_weights, save_weights, tensors_sha256


def export(
    state: dict[str, Tensor],
    config: Any,
    model: str,
    data: Path,
    manifest: Manifest,
    out: Path,
    results: dict[str, Any],
) -> str:
    """Write backbone.safetensors (tokenizer encoder and `state`) and backbone.json; the SHA-256.

    Beside them backbone-decoder.safetensors, which makes pictures of codes (pretraining.generate).
    A model of patches takes no tokenizer along.
    """
    if config.patch:
        kind, tokenizer, encoder = PATCHES, {"stride": config.patch}, {}
    else:
        whole, about = load_tokenizer(data)
        save_decoder(whole, out / "backbone-decoder.safetensors")
        kind, tokenizer, encoder = about["kind"], about["config"], whole.encoder.state_dict()
    tensors = {f"encoder.{name}": t for name, t in encoder.items()}
    tensors |= {f"decoder.{name}": t for name, t in state.items()}
    if config.tied:
        del tensors["decoder.head.weight"]
    content = {
        "kind": "toto",
        "model": model,
        "family": family_of(config),
        "decoder": dataclasses.asdict(config),
        "tokenizer_kind": kind,
        "tokenizer": tokenizer,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "encoder_sha256": tensors_sha256(encoder),
        "resolution": manifest.resolution,
        "parameters": num_parameters(config),
        **results,
    }
    return save_weights(out / "backbone.safetensors", tensors, content)


def start_from(model: CausalModel, path: Path, manifest: Manifest) -> None:
    """Weights of an exported backbone as the start of another training (say, 16 x 16 -> 32 x 32).

    Raises:
        ValueError: its codes come from another tokenizer, or its shapes differ.
    """
    file = path / "backbone.safetensors" if path.is_dir() else path
    tensors, about = read_weights(file)
    if about["tokenizer_sha256"] != manifest.tokenizer_sha256:
        raise ValueError(
            f"{file} was trained on codes of tokenizer {about['tokenizer_sha256'][:12]}…, the shards "
            f"hold codes of {manifest.tokenizer_sha256[:12]}…; tokenize the data with the former"
        )
    try:
        model.load_state_dict(decoder_part(tensors, tied=model.config.tied))
    except RuntimeError as error:
        raise ValueError(
            f"{file} ({about['model']}, {json.dumps(about['decoder'])}) does not fit "
            f"{dataclasses.asdict(model.config)}: {str(error)[:300]}"
        ) from error


def decoder_part(tensors: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The causal model's own tensors out of an exported backbone's."""
    part = {k.removeprefix("decoder."): t for k, t in tensors.items() if k.startswith("decoder.")}
    if tied:
        part["head.weight"] = part["embedding.weight"]
    return part


def load_whole(path: Path, data: Path) -> tuple[CausalModel, dict[str, Any]]:
    """An exported backbone with its next-token head, in eval mode, and its JSON.

    Args:
        path: the file, or the folder with backbone.safetensors in it.
        data: the shards (or index) that it is to read.

    Raises:
        ValueError: the shards were made with another encoder than the backbone's. (Its decoder may
            differ, so this compares encoders and not the tokenizers' files.)
    """
    file = path / "backbone.safetensors" if path.is_dir() else path
    tensors, about = read_weights(file)
    reads_patches = about.get("tokenizer_kind") == PATCHES
    encoder = {} if reads_patches else load_tokenizer(data)[0].encoder.state_dict()
    digest = tensors_sha256(encoder)
    if digest != about["encoder_sha256"]:
        raise ValueError(
            f"{file} reads codes of encoder {about['encoder_sha256'][:12]}…, {data} holds codes of "
            f"{digest[:12]}…; tokenize the data with the backbone's tokenizer"
        )
    config = config_from_json(about.get("family", "llama"), about["decoder"], str(file))
    model = make_model(config)
    model.load_state_dict(decoder_part(tensors, tied=config.tied))
    return model.eval(), about
