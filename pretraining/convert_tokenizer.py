"""Released tokenizers into ours, once: a folder with tokenizer.safetensors and tokenizer.json.

    python -m pretraining.convert_tokenizer encoder=encoder.pkl decoder=decoder.pkl out=data/dalle
    python -m pretraining.convert_tokenizer vqgan=last.ckpt size=f16-16384 out=data/vqgan
    python -m pretraining.convert_tokenizer backbone=data/toto-tiny/backbone.safetensors out=data/own

`encoder.pkl` and `decoder.pkl` are OpenAI's release of DALL-E's dVAE (cdn.openai.com/dall-e): whole
pickled modules. They are read by an unpickler that builds tensors and nothing else, so a file that
would run code is refused. `encoder=` may also be the weights of the hub's encoder-only port
(facebook/flava-image-codebook: model.safetensors or pytorch_model.bin); without `decoder=` the
tokenizer can encode, not decode. `vqgan=` is a checkpoint of taming-transformers; what it holds for
its own training (discriminator, perceptual loss, optimiser) is left out. `backbone=` takes the
tokenizer out of an exported backbone; it holds the encoder alone, so this one cannot decode either.
"""

import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toto_robot.backbone.dvae import DVAE, DVAEConfig, dvae_size
from toto_robot.backbone.tokenizers import KINDS, save_tokenizer
from toto_robot.backbone.vqgan import VQGAN, VQGANConfig, our_names, vqgan_size
from toto_robot.backbone.weights import read_weights, sha256_of
from toto_robot.cli import parse

TOKENS_PER_SIDE = 16  # the paper's


@dataclass(frozen=True, kw_only=True)
class Config:
    """OpenAI's dVAE (or the hub's port of its encoder), a released VQGAN, or a backbone's tokenizer."""

    out: Path
    encoder: Path | None = None
    decoder: Path | None = None
    vqgan: Path | None = None
    backbone: Path | None = None
    size: str = "dalle"  # or f16-1024, f16-16384
    resolution: int | None = None  # px, of the frames to tokenize; 16 x 16 tokens by default

    def __post_init__(self) -> None:
        given = [x for x in (self.encoder, self.vqgan, self.backbone) if x is not None]
        if len(given) != 1:
            raise SystemExit("give encoder= (and decoder=), or vqgan=, or backbone=")


class _Inert:
    """Stands for any class of a pickled module: holds what it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


_TENSOR_BUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"), ("torch", "device"), ("torch", "Size"),
    ("builtins", "set"), ("__builtin__", "set"),
}  # fmt: skip
# Lightning's checkpoints hold its callbacks and NumPy numbers besides the weights.
_INERT_PACKAGES = ("torch.nn.modules.", "dall_e.", "pytorch_lightning.", "numpy.", "_codecs.")


class _TensorsOnly(pickle.Unpickler):
    """Builds tensors and containers; classes become `_Inert`; whatever else is asked for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSOR_BUILDERS:
            return super().find_class(module, name)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module + ".").startswith(_INERT_PACKAGES):
            return _Inert
        raise pickle.UnpicklingError(
            f"the file asks for {module}.{name}, which a file of weights has no need of; not loaded"
        )


def read_released(path: Path) -> dict[str, Tensor]:
    """Parameters of a file of weights by their released names, without running code from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it asks for more than tensors, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return load_file(path)
    restricted = ModuleType("restricted_pickle")  # what torch.load takes instead of `pickle`
    vars(restricted).update(Unpickler=_TensorsOnly, load=_refuse, loads=_refuse)
    try:
        loaded = torch.load(path, "cpu", pickle_module=restricted, weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a file of weights that can be trusted: {error}") from error
    if isinstance(loaded, Mapping):
        loaded = loaded.get("state_dict", loaded)
        return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
    return dict(_parameters(loaded, ""))


def _refuse(*_: Any, **__: Any) -> Any:
    raise pickle.UnpicklingError("an old format of torch.save, which is not read here")


def _parameters(module: Any, prefix: str):
    """(name, tensor) of a pickled module's tree."""
    state = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if tensor is not None:
                yield prefix + name, tensor
    for name, child in (state.get("_modules") or {}).items():
        yield from _parameters(child, f"{prefix}{name}.")


# Released names of a convolution's numbers: OpenAI's modules, the hub's port.
_ENDINGS = {"w": "weight", "b": "bias", "weight": "weight", "bias": "bias"}
_BLOCK = re.compile(
    r"blocks\.group_(\d+)\.(?:group\.)?block_(\d+)\.(?:(id_path)|res_path\.(?:path\.)?conv_(\d))$"
)


def our_name(released: str, blocks: tuple[int, ...], resampled: bool = True) -> str | None:
    """Name of a released parameter in `Encoder.layers` or `Decoder.layers`; None if it has none.

    `blocks` are the numbers of blocks of the groups in the order in which they are applied.
    """
    stem, _, ending = released.rpartition(".")
    if ending not in _ENDINGS:
        return None
    starts, place = (
        [],
        1,
    )  # after the input convolution; a pool or upsampling before groups 2, 3, ...
    for i, count in enumerate(blocks):
        place += resampled and i > 0
        starts.append(place)
        place += count
    if stem == "blocks.input":
        return f"layers.0.{_ENDINGS[ending]}"
    if stem == "blocks.output.conv":
        return f"layers.{place + 1}.{_ENDINGS[ending]}"  # a ReLU comes before it
    if not (match := _BLOCK.match(stem)):
        return None
    group, block, identity, conv = match.groups()
    if not 1 <= int(group) <= len(starts):
        return None
    inside = "identity" if identity else f"residual.{2 * int(conv) - 1}"
    return f"layers.{starts[int(group) - 1] + int(block) - 1}.{inside}.{_ENDINGS[ending]}"


def convert_half(module: torch.nn.Module, released: dict[str, Tensor], blocks, path: Path) -> None:
    """Load released parameters into an encoder or decoder.

    Raises ValueError that names what is missing, left over, or of another shape."""
    named = {our_name(name, blocks): tensor.float() for name, tensor in released.items()}
    unknown = [name for name in released if our_name(name, blocks) is None]
    own = module.state_dict()
    missing = sorted(own.keys() - named.keys())
    wrong = [
        f"{name}: {tuple(named[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in named and named[name].shape != tensor.shape
    ]
    if unknown or missing or wrong or len(named) != len(own):
        raise ValueError(
            f"{path} does not hold this architecture: unknown {unknown[:3]}, missing {missing[:3]}, "
            f"shapes {wrong[:3]}"
        )
    module.load_state_dict({name: named[name] for name in own})


def convert_dvae(config: Config, architecture: DVAEConfig) -> DVAE:
    model = DVAE(architecture)
    assert config.encoder is not None
    convert_half(
        model.encoder, read_released(config.encoder), architecture.encoder_blocks, config.encoder
    )
    if config.decoder is not None:
        blocks = architecture.decoder_blocks[::-1]
        convert_half(model.decoder, read_released(config.decoder), blocks, config.decoder)
    return model


def convert_vqgan(path: Path, architecture: VQGANConfig) -> VQGAN:
    """Raises ValueError that names what is missing or of another shape."""
    model, named = VQGAN(architecture), {}
    for released, tensor in read_released(path).items():
        named |= dict.fromkeys(our_names(released), tensor.float())
    own = model.state_dict()
    missing = sorted(own.keys() - named.keys())
    unknown = sorted(named.keys() - own.keys())
    wrong = [
        f"{name}: {tuple(named[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in named and named[name].shape != tensor.shape
    ]
    if missing or unknown or wrong:
        raise ValueError(
            f"{path} does not hold this architecture: unknown {unknown[:3]}, missing {missing[:3]}, "
            f"shapes {wrong[:3]}"
        )
    model.load_state_dict(named)
    return model


def convert(config: Config, architecture: DVAEConfig | VQGANConfig) -> str:
    """Write the tokenizer; returns the SHA-256 of its weights."""
    if isinstance(architecture, VQGANConfig):
        assert config.vqgan is not None
        model: DVAE | VQGAN = convert_vqgan(config.vqgan, architecture)
    else:
        model = convert_dvae(config, architecture)
    sources = {"encoder": config.encoder, "decoder": config.decoder, "vqgan": config.vqgan}
    return save_tokenizer(
        model.eval(),
        config.out,
        resolution=config.resolution or TOKENS_PER_SIDE * architecture.stride,
        released={name: sha256_of(path) for name, path in sources.items() if path is not None},
        can_decode=config.decoder is not None or config.vqgan is not None,
    )


def take_out(path: Path, out: Path, resolution: int | None) -> str:
    """Write the tokenizer of an exported backbone; returns the SHA-256 of its weights."""
    tensors, about = read_weights(path)
    config_class, _, whole_class = KINDS[about.get("tokenizer_kind", "dvae")]
    model: DVAE | VQGAN = whole_class(config_class.from_json(about["tokenizer"]))
    part = {k.removeprefix("encoder."): t for k, t in tensors.items() if k.startswith("encoder.")}
    model.encoder.load_state_dict(part)
    return save_tokenizer(
        model.eval(),
        out,
        resolution=resolution or about["resolution"],
        released={"backbone": about["sha256"]},
        can_decode=False,
    )


def main() -> None:
    config = parse(Config, sys.argv[1:])
    try:
        if config.backbone is not None:
            digest = take_out(config.backbone, config.out, config.resolution)
        else:
            size = vqgan_size if config.vqgan is not None else dvae_size
            digest = convert(config, size(config.size))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{config.out / 'tokenizer.safetensors'} sha256 {digest[:12]}")


if __name__ == "__main__":
    main()
