"""What is read and what is predicted: codes from codes, or one of the two from patches (Table 3)."""

from dataclasses import replace
from typing import Literal

from pretraining.shards import Manifest
from toto_robot.backbone.causal import CausalConfig

Objective = Literal[
    "code", "patch", "patch-code"
]  # in the paper: dVAE-dVAE, patch-patch, patch-dVAE
PATCH = 16  # pixels; with frames of 256 the 16 x 16 tokens of the paper
UNITS = {
    "code": "nats per token",
    "patch": "squared error of normalised pixels",
}  # by what is predicted


def with_objective(
    size: CausalConfig, objective: Objective, patch: int | None, manifest: Manifest
) -> CausalConfig:
    """The model's row, reading and predicting what the objective says.

    Args:
        patch: pixels a side; None: the tokenizer's stride where codes are predicted, else 16.

    Raises:
        ValueError: the patches do not fit the frames or the codes.
    """
    if objective == "code":
        if patch is not None:
            raise ValueError(
                f"patch={patch} goes with objective=patch or patch-code, not with code"
            )
        return size
    if objective == "patch":
        patch = patch or PATCH
        if manifest.resolution % patch:
            raise ValueError(f"patch={patch} does not divide frames of {manifest.resolution} px")
        return replace(size, patch=patch, predicts="patch", tied=False)
    stride = manifest.resolution // manifest.tokens_per_side
    if patch not in (None, stride):
        raise ValueError(
            f"patch={patch}: each patch predicts a code, and the tokenizer has one per {stride} px"
        )
    return replace(size, patch=stride, predicts="code", tied=False)


def tokens_per_frame(size: CausalConfig, manifest: Manifest) -> int:
    """Codes, or patches where these are read."""
    if size.patch:
        return (manifest.resolution // size.patch) ** 2
    return manifest.tokens_per_frame
