"""Backbone names, where their weights are looked for, and `load_backbone`."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from toto_robot.backbone.causal import CausalConfig, CausalModel
from toto_robot.backbone.dvae import DVAE_SIZES, Encoder
from toto_robot.backbone.encoders import (
    ENCODERS,
    RANDOM,
    TIMM,
    random_vit,
    read_vit,
    timm_encoder,
)
from toto_robot.backbone.frozen import FrozenBackbone
from toto_robot.backbone.images import Frames
from toto_robot.backbone.models import MODELS, config_from_json, make_model
from toto_robot.backbone.pixels import NO_WEIGHTS, PixelPatches, Pixels
from toto_robot.backbone.tokenizers import TokenEncoder, make_encoder
from toto_robot.backbone.vit import VIT_SIZES
from toto_robot.backbone.weights import nearest, read_weights, tensors_sha256

BACKBONES = {  # name -> (row of MODELS, row of DVAE_SIZES when the weights are random)
    "toto-tiny": ("tiny", "tiny"),
    "toto-base": ("base", "dalle"),
    "toto-large": ("large", "dalle"),
    "toto-1b": ("1b", "dalle"),
    "toto-gpt2-tiny": ("gpt2-tiny", "tiny"),  # the paper's Table 6
    "toto-gpt2-280m": ("gpt2-280m", "dalle"),
    "toto-mamba-tiny": ("mamba-tiny", "tiny"),
    "toto-mamba-290m": ("mamba-290m", "dalle"),
}
CNN = "cnn"
PIXELS = "pixels"
NAMES = (*BACKBONES, *ENCODERS, *RANDOM, PIXELS, CNN)  # all that `load_backbone` knows
PACKAGED = Path(__file__).parent / "pretrained"
RANDOM_SEED = 0
RESOLUTION, CONTEXT = 128, 16  # px, frames: the paper's, where a file does not say


class WeightsNotFoundError(FileNotFoundError):
    """No weights for a backbone in any of the places that were searched."""


def cache_folder(name: str) -> Path:
    root = os.environ.get("TOTO_ROBOT_CACHE") or Path.home() / ".cache" / "toto_robot"
    return Path(root) / name


def in_folder(folder: Path, name: str) -> Path | None:
    for candidate in (folder / f"{name}.safetensors", folder / "backbone.safetensors"):
        if candidate.is_file():
            return candidate
    return None


def from_hub(repository: str, name: str) -> Path:
    """Download a weights file and its JSON from the Hugging Face hub (kept in the hub's cache)."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise WeightsNotFoundError(
            f"backbone.weights={repository} is neither a file nor a folder; to read it as a hub "
            "repository, install huggingface_hub (pip install huggingface_hub)"
        ) from error
    try:
        hf_hub_download(repository, f"{name}.json")
        return Path(hf_hub_download(repository, f"{name}.safetensors"))
    except (OSError, ValueError) as error:
        raise WeightsNotFoundError(
            f"backbone.weights={repository} is neither a file nor a folder, and {name}.safetensors "
            f"could not be read from a hub repository of that name ({error})"
        ) from error


def find_weights(name: str, weights: str | None) -> Path:
    """Path of a backbone's weights: `weights`, then the local cache, then the package.

    Raises:
        WeightsNotFoundError: nothing there; the message names the ways to get weights.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        found = in_folder(path, name) if path.is_dir() else path if path.is_file() else None
        if found:
            return found
        if not path.exists() and re.fullmatch(r"[\w-]+/[\w.-]+(?<!\.safetensors)", weights):
            return from_hub(weights, name)
        raise WeightsNotFoundError(
            f"backbone.weights={weights}: no such file, no folder with {name}.safetensors or "
            "backbone.safetensors in it, and no hub repository (org/name)"
        )
    searched = (cache_folder(name), PACKAGED)
    for folder in searched:
        if found := in_folder(folder, name):
            return found
    if name in VIT_SIZES:
        raise WeightsNotFoundError(
            f"no weights for {name} in {searched[0]} or {searched[1]}. Ways to get them:\n"
            f"  pre-train:       python -m pretraining.train_mae model={name} data=<films> "
            f"out={searched[0]}\n"
            "  point to a file: backbone.weights=<MVP's or MAE's .pth, or a .safetensors>\n"
            "To run untrained features on purpose: backbone.weights=random"
        )
    size = BACKBONES[name][0]
    raise WeightsNotFoundError(
        f"no weights for {name} in {searched[0]} or {searched[1]}. Three ways to get them:\n"
        f"  pre-train:       python -m pretraining.train model={size} data=<shards> steps=<n> "
        f"out={searched[0]}\n"
        "  point to a file: backbone.weights=<file.safetensors or folder>\n"
        "  hub:             backbone.weights=<org/name>\n"
        "To run untrained features on purpose: backbone.weights=random"
    )


def encoder_and_trunk(
    path: Path, size: str, layer: int | None, *, head: bool = False
) -> tuple[TokenEncoder, CausalModel, dict[str, Any], CausalConfig]:
    """Read a weights file; only the first `layer` blocks (all when None) are built.

    With `head`, the final norm and the output projection come with all of them.
    """
    tensors, about = read_weights(path)
    if about.get("kind") != "toto" or about.get("model") != size:
        raise ValueError(
            f"{path} holds kind {about.get('kind')!r}, model {about.get('model')!r}; expected kind "
            f"'toto', model {size!r}: choose the backbone that fits the file"
        )
    kind = about.get("tokenizer_kind", "dvae")  # files from before there were others do not say
    encoder = make_encoder(kind, about["tokenizer"], str(path))
    full = config_from_json(about.get("family", "llama"), about["decoder"], str(path))
    depth = full.layers if layer is None else check_layer(layer, full)
    trunk = make_model(replace(full, layers=depth), head=head)
    if head and full.tied and "decoder.embedding.weight" in tensors:
        tensors["decoder.head.weight"] = tensors["decoder.embedding.weight"]
    for module, prefix in ((encoder, "encoder."), (trunk, "decoder.")):
        part = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        wanted = module.state_dict().keys()
        if missing := sorted(wanted - part.keys()):
            raise ValueError(f"{path} lacks {len(missing)} tensors, such as {prefix}{missing[0]}")
        module.load_state_dict({k: t for k, t in part.items() if k in wanted})
    digest = tensors_sha256(encoder.state_dict())
    if digest != about["encoder_sha256"]:
        raise ValueError(
            f"the tokenizer in {path} has SHA-256 {digest[:12]}…, the decoder was trained on tokens "
            f"of {str(about['encoder_sha256'])[:12]}…: its codes would mean other things; use the "
            "tokenizer of the training, or train again"
        )
    return encoder, trunk, about, full


def load_with_head(
    name: str, weights: str | None = None
) -> tuple[TokenEncoder, CausalModel, dict[str, Any], Path]:
    """Tokenizer encoder, model with its next-token head, what the JSON says, and where it was.

    `name` and `weights` as in `load_backbone`; there is no point in random weights here.

    Raises:
        WeightsNotFoundError, ValueError: as `load_backbone`; also for files without a head.
    """
    if not (size := check_name(name)):
        raise ValueError(f"{name} is no causal model: there is no next-token head")
    path = find_weights(name, weights)
    encoder, model, about, _ = encoder_and_trunk(path, size, None, head=True)
    return encoder.eval(), model.eval(), about, path


def random_with_head(name: str) -> CausalModel:
    """The untrained model that `random_parts` cuts its trunk from, with its next-token head."""
    size, tokenizer = BACKBONES[RANDOM.get(name, name)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        config = DVAE_SIZES[tokenizer]
        Encoder(config)  # drawn before the model there
        return make_model(replace(MODELS[size], vocabulary=config.vocabulary))


def random_parts(name: str, layer: int | None) -> tuple[Encoder, CausalModel, CausalConfig]:
    """Untrained encoder and trunk, the same on every machine."""
    size, tokenizer = BACKBONES[name]
    config = DVAE_SIZES[tokenizer]
    full = replace(MODELS[size], vocabulary=config.vocabulary)
    depth = full.layers if layer is None else check_layer(layer, full)
    torch.manual_seed(RANDOM_SEED)
    encoder, decoder = Encoder(config), make_model(full)
    return encoder, decoder.truncate(depth), full


def check_name(name: str) -> str:
    """The row of `MODELS` that a backbone's name stands for; "" for one that is not Toto."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise ValueError(f"unknown backbone {name!r}, known: {known}.{nearest(name, NAMES)}")
    return BACKBONES[RANDOM.get(name, name)][0] if RANDOM.get(name, name) in BACKBONES else ""


def check_layer(layer: int, config: CausalConfig) -> int:
    if not 0 <= layer <= config.layers:
        raise ValueError(f"layer={layer}, the model has layers 0 (embeddings) to {config.layers}")
    return layer


def load_backbone(
    name: str = "toto-tiny",
    *,
    weights: str | None = None,
    layer: int | None = None,
    readout: str = "grid",
    grid: int = 8,
    device: str = "cpu",
    all_layers: bool = False,
    precision: str = "auto",
    compile: bool = False,
    timm_name: str | None = None,
) -> FrozenBackbone:
    """A frozen backbone by name.

    Args:
        name: one of `NAMES`. "cnn" is none: it hands out frames and declares itself trainable
            (see pixels.py); of the options below only `device` is for it. "pixels" has no weights
            either: its tokens are patches of the frame.
        weights: a .safetensors file (its .json beside it), a folder, a hub repository "org/name",
            or "random" for untrained features on purpose. None: the local cache
            ($TOTO_ROBOT_CACHE or ~/.cache/toto_robot), then what is packaged.
        layer: read the state after this many blocks; None: the middle, which probes best (paper,
            Fig. 6), of image encoders the last, as MVP. Later blocks are not even built.
        readout: "grid" (tokens averaged down to grid x grid), "tokens", "mean", "last", or, of image
            encoders that have one, "cls" (the class token; not normalised, as MVP caches it).
        all_layers: build all blocks, so that `hidden_states` gives every layer.
        precision: of the trunk; "auto" (bfloat16 where the hardware has it), "float32", "bfloat16",
            or "int8" (CPU only; weights and activations rounded, see int8.py). The hash that the
            backbone names stays that of the file; `digest()` is of what is in memory.
        compile: compile tokenizer, trunk and read-out into one (`FrozenBackbone.compile_pass`).
        timm_name: which of timm's encoders, for the name "timm".

    Raises:
        WeightsNotFoundError: there are no weights; the message says how to get some.
        ValueError: unknown name, layer, readout or precision; damaged or mismatched weights.
    """
    if name == CNN:  # it has what policies use of a FrozenBackbone
        return Pixels(RESOLUTION, readout, device)  # pyright: ignore[reportReturnType]
    if precision == "int8" and torch.device(device).type != "cpu":
        raise ValueError(f"precision=int8 is for CPUs, not device={device}; use bfloat16 there")
    check_name(name)
    if (name == TIMM) != (timm_name is not None):
        raise ValueError(
            f"backbone={name} backbone.timm_name={timm_name}: timm_name goes with backbone=timm "
            "and is its encoder, such as vit_small_patch14_dinov2"
        )
    options: dict[str, Any] = {"readout": readout, "grid": grid, "precision": precision}
    with torch.random.fork_rng(devices=[]):  # building modules must not shift the caller's seed
        if name in (*ENCODERS, PIXELS):
            backbone = image_backbone(name, weights, layer, all_layers, timm_name, options)
        else:
            backbone = causal_backbone(name, weights, layer, all_layers, options)
    backbone = backbone.to(device)
    if compile:
        backbone.compile_pass()
    return backbone


def causal_backbone(
    name: str, weights: str | None, layer: int | None, all_layers: bool, options: dict[str, Any]
) -> FrozenBackbone:
    """Toto, trained or (`random-*`) not."""
    if name in RANDOM and weights not in (None, "random"):
        raise ValueError(f"backbone={name} has no weights; backbone={RANDOM[name]} takes them")
    toto, weights = (RANDOM[name], "random") if name in RANDOM else (name, weights)
    size = check_name(toto)
    layer = MODELS[size].layers // 2 if layer is None else layer
    depth = None if all_layers else layer
    if weights == "random":
        encoder, trunk, full = random_parts(toto, depth)
        resolution, weights_hash, context = RESOLUTION, None, CONTEXT
    else:
        path = find_weights(toto, weights)
        encoder, trunk, about, full = encoder_and_trunk(path, size, depth)
        resolution, weights_hash = int(about["resolution"]), str(about["sha256"])
        context = int(about.get("trained", {}).get("frames", CONTEXT))
    return FrozenBackbone(
        encoder,
        trunk,
        name=name,
        layer=check_layer(layer, full),
        num_layers=full.layers,
        resolution=resolution,
        weights_hash=weights_hash,
        context=context,
        **options,
    )


def image_backbone(
    name: str,
    weights: str | None,
    layer: int | None,
    all_layers: bool,
    timm_name: str | None,
    options: dict[str, Any],
) -> FrozenBackbone:
    """An encoder of single images: MAE's, or one of timm's."""
    depth, source = (None if all_layers else layer), ""
    if name == PIXELS:
        if weights is not None:
            raise ValueError(f"backbone.weights={weights}: backbone=pixels has no weights")
        trunk, layers, weights_hash = PixelPatches(), 0, NO_WEIGHTS
    elif name not in VIT_SIZES:
        try:
            trunk, layers, weights_hash = timm_encoder(name, timm_name, weights, depth, RANDOM_SEED)
        except OSError as error:
            raise WeightsNotFoundError(
                f"{error}\nWith a file: backbone.weights=<timm's .safetensors or .pth>; to run "
                "untrained features on purpose: backbone.weights=random"
            ) from error
    elif weights == "random":
        (trunk, full), weights_hash = random_vit(name, depth, RANDOM_SEED), None
        layers = full.layers
    else:
        trunk, full, weights_hash, source = read_vit(find_weights(name, weights), name, depth)
        layers = full.layers
    layer = layers if layer is None else layer
    if not 0 <= layer <= layers:
        raise ValueError(f"layer={layer}, {name} has layers 0 (patch embeddings) to {layers}")
    backbone = FrozenBackbone(
        Frames(trunk.config.patch),
        trunk,
        name=name,
        layer=layer,
        num_layers=layers,
        resolution=trunk.config.resolution,
        weights_hash=weights_hash,
        context=1,
        **options,
    )
    backbone.source = source
    return backbone
