"""Make an exported backbone small enough to ship: its matrices in 8, 6 or 4 bits per number.

    python -m pretraining.pack backbone=data/toto-base out=data/toto-base-6bit bits=6

The tokenizer stays in float32: a rounded one would give other codes. Prints how far the features
move on random frames; the probe of the result is what counts.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from toto_robot.backbone import load_backbone
from toto_robot.backbone.packing import pack_all
from toto_robot.backbone.weights import read_weights, save_weights
from toto_robot.cli import parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Matrices of an exported backbone in few bits per number."""

    backbone: Path  # a folder with backbone.safetensors, as pretraining.train writes it
    out: Path  # a folder, or a file <name>.safetensors
    bits: int = 8


def main(config: Config) -> None:
    source = config.backbone / "backbone.safetensors"
    target = config.out if config.out.suffix else config.out / "backbone.safetensors"
    try:
        tensors, about = read_weights(source)
        if about.get("packed"):
            raise ValueError(f"{source} is packed already; pack the original")
        packed, how = pack_all(tensors, "decoder.", config.bits)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    digest = save_weights(target, packed, {**about, "packed": how, "packed_from": about["sha256"]})
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{target} sha256 {digest[:12]}, {before / 1e6:.1f} -> {after / 1e6:.1f} MB")
    frames = torch.randint(256, (4, 128, 128, 3), generator=torch.Generator().manual_seed(0))
    name, layer = f"toto-{about['model']}", about["decoder"]["layers"]
    original, ours = (
        load_backbone(name, weights=str(path), layer=layer, readout="tokens")(frames.byte())
        for path in (source, target)
    )
    cosine = F.cosine_similarity(original, ours, dim=-1).mean().item()
    print(f"features of random frames, layer {layer}: mean cosine {cosine:.4f} to the original's")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
