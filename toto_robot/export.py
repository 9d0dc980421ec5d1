"""Compile a frozen backbone ahead of time: `python -m toto_robot.export backbone=toto-tiny out=toto.pt2`.

The package holds tokenizer, trunk and read-out as machine code with their weights, for camera frames
of one size and number: uint8 [batch, R, R, 3] -> float32 [batch, *feature_shape]. A C++ program loads it
through AOTIModelPackageLoader, a Python one, without any of this repository, so:

    run = torch._inductor.aoti_load_package("toto.pt2")
    features = run(frames)

Beside it a JSON file says what it is; the hash of the weights is in the package too
(`run.get_metadata()`). It runs on machines like the one that made it: same kind of processor, same
torch.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from toto_robot.backbone import FrozenBackbone, load_backbone
from toto_robot.backbone.weights import sha256_of, write_json
from toto_robot.cli import parse

LEAST_COSINE = 0.999


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Compile a frozen backbone into a package for C++ and Python (AOTInductor)."""

    out: Path
    backbone: str = "toto-tiny"
    weights: str | None = field(default=None, metadata={"alias": "backbone.weights"})
    layer: int | None = None
    readout: str = "grid"
    grid: int = 8
    precision: str = "auto"  # float32 where other processors than this one may run it
    batch: int = 1  # frames per call
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.out.suffix != ".pt2":
            raise SystemExit(f"out={self.out}: expected a name that ends in .pt2")
        if self.batch < 1:
            raise SystemExit(f"batch={self.batch}: expected 1 or more")


class FramesToFeatures(nn.Module):
    """`FrozenBackbone` for frames that have its resolution already, on its device."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, frames: UInt8[Tensor, "B R R 3"]) -> Float[Tensor, "B ..."]:
        return self.backbone.one_pass(frames.unsqueeze(1)).squeeze(1)


def compile_package(backbone: FrozenBackbone, batch: int, out: Path) -> None:
    """Write the package. Takes a C++ compiler (g++) on the CPU, and a minute or so."""
    device = backbone.device
    side = backbone.resolution
    example = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device)
    metadata = {"backbone": backbone.name, "weights_hash": backbone.weights_hash}
    with torch.no_grad():
        program = torch.export.export(FramesToFeatures(backbone), (example,))
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(out),
            inductor_configs={"aot_inductor.metadata": metadata},
        )


def compare(backbone: FrozenBackbone, run: Any, batch: int) -> tuple[float, float]:
    """Package against backbone on frames of noise: largest difference, least cosine."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, backbone.resolution, backbone.resolution, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    expected = backbone(frames)
    features = run(frames.to(expected.device))
    cosine = torch.nn.functional.cosine_similarity(features, expected, dim=-1)
    return (features - expected).abs().max().item(), cosine.min().item()


def main(config: ExportConfig) -> dict[str, Any]:
    backbone = load_backbone(
        config.backbone,
        weights=config.weights,
        layer=config.layer,
        readout=config.readout,
        grid=config.grid,
        precision=config.precision,
        device=config.device,
    )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    compile_package(backbone, config.batch, config.out)
    took_s = time.monotonic() - started_s
    run = torch._inductor.aoti_load_package(str(config.out))
    difference, cosine = compare(backbone, run, config.batch)
    if not cosine >= LEAST_COSINE:  # also for a NaN
        config.out.unlink()
        raise SystemExit(
            f"the compiled features differ: cosine {cosine:.4f}, expected {LEAST_COSINE} or more "
            f"(largest difference {difference:.2g}); no package was written"
        )
    side = backbone.resolution
    about = {
        "backbone": backbone.name,
        "weights_hash": backbone.weights_hash,
        "untrained": backbone.untrained,
        "layer": backbone.layer,
        "readout": backbone.readout,
        "precision": backbone.precision,
        "input": ["uint8", config.batch, side, side, 3],
        "output": ["float32", config.batch, *backbone.feature_shape],
        "device": config.device,
        "torch": torch.__version__,
        "largest_difference": difference,
        "least_cosine": cosine,
        "sha256": sha256_of(config.out),
    }
    write_json(config.out.with_suffix(".json"), about)
    print(
        f"{config.out}: {config.out.stat().st_size / 1e6:.1f} MB in {took_s:.0f} s; against the "
        f"backbone: largest difference {difference:.2g}, least cosine {cosine:.6f}"
    )
    return about


if __name__ == "__main__":
    try:
        main(parse(ExportConfig, sys.argv[1:]))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
