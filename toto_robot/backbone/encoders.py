"""Names of the image encoders that Toto is compared with, and where their weights come from.

`mae-tiny` is packaged; MVP's and MAE's checkpoints are given as files; timm's come from a file or,
where there is a network, from its hub. `random-*` are Toto without training.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from toto_robot.backbone.images import ImageEncoder
from toto_robot.backbone.timm_encoder import TIMM_NAMES, make_timm
from toto_robot.backbone.vit import VIT_SIZES, ViT, ViTConfig, from_transformers, load_timm_names
from toto_robot.backbone.weights import read_state_dict, read_weights, sha256_of, tensors_sha256

TIMM = "timm"  # with timm_name=
ENCODERS = (*VIT_SIZES, *TIMM_NAMES, TIMM)
RANDOM = {"random-tiny": "toto-tiny", "random-base": "toto-base"}

# MD5 of MVP's released files (Xiao et al. 2022, mvp/backbones/model_zoo.py) -> name, what it fits.
MVP_MD5 = {
    "fe6e30eb4256fae298ea0a6c6b4c1ae7": ("MVP vits-mae-hoi", "mae-small"),
    "29a004bd4332f97cd22f55c1da26bc15": ("MVP vits-mae-in", "mae-small"),
    "f8f23ba960af1017783c9b975875d36d": ("MVP vits-sup-in", "mae-small"),
    "526093597ac1dc55df618bcbdfe8da4a": ("MVP vitb-mae-egosoup", "mae-base"),
    "5352b0b6c04f044f67eba41b667fcde6": ("MVP vitl-256-mae-egosoup", "mae-large"),
}


def known_source(path: Path, name: str) -> str:
    """What a checkpoint is, by its MD5: one of MVP's, or "" for any other.

    Raises:
        ValueError: it is one of MVP's for another of our names.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    source, fits = MVP_MD5.get(digest, ("", name))
    if fits != name:
        raise ValueError(f"{path} is {source}: use backbone={fits}, not {name}")
    return source


def read_vit(path: Path, name: str, depth: int | None) -> tuple[ViT, ViTConfig, str, str]:
    """Encoder, its full configuration, SHA-256 of the file, and what it is (see `known_source`).

    `path`: our safetensors with JSON, or a checkpoint by the names of the MAE release (MVP's .pth)
    or of transformers' ViTMAE.

    Raises:
        ValueError: damaged, of another size, or not safe to read.
    """
    if path.with_suffix(".json").is_file():
        tensors, about = read_weights(path)
        if about.get("kind") != "vit" or about.get("model") != name:
            raise ValueError(
                f"{path} holds kind {about.get('kind')!r}, model {about.get('model')!r}; expected "
                f"kind 'vit', model {name!r}: choose the backbone that fits the file"
            )
        listed: dict[str, Any] = about["vit"]
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in listed.items()
        }
        full, source = ViTConfig(**fields), str(about.get("source", ""))
    else:
        full, source, tensors = VIT_SIZES[name], known_source(path, name), read_state_dict(path)
        if any("patch_embeddings" in key for key in tensors):
            tensors = from_transformers(tensors)
    vit = ViT(replace(full, layers=full.layers if depth is None else min(depth, full.layers)))
    load_timm_names(vit, tensors, str(path))
    return vit, full, sha256_of(path), source


def random_vit(name: str, depth: int | None, seed: int) -> tuple[ViT, ViTConfig]:
    """Untrained, the same on every machine."""
    full = VIT_SIZES[name]
    torch.manual_seed(seed)
    vit = ViT(full)
    del vit.blocks[full.layers if depth is None else depth :]
    return vit, full


def timm_encoder(
    name: str, timm_name: str | None, weights: str | None, depth: int | None, seed: int
) -> tuple[ImageEncoder, int, str | None]:
    """Encoder, depth of the full model, and the SHA-256 of its tensors (None: untrained).

    Raises:
        ValueError: as `make_timm`.
    """
    torch.manual_seed(seed)
    encoder: Any = make_timm(timm_name or TIMM_NAMES[name], weights)
    full = encoder.config.layers
    digest = None if weights == "random" else tensors_sha256(encoder.model.state_dict())
    if depth is not None:
        encoder.truncate(depth)
    return encoder, full, digest
