"""The frozen perception backbone: tokenizer, causal decoder, read-outs, names and weights."""

from toto_robot.backbone.decoder import SIZES
from toto_robot.backbone.frozen import FrozenBackbone
from toto_robot.backbone.names import BACKBONES, NAMES, WeightsNotFoundError, load_backbone
from toto_robot.backbone.pooling import AttentionPool

__all__ = [
    "BACKBONES",
    "NAMES",
    "SIZES",
    "AttentionPool",
    "FrozenBackbone",
    "WeightsNotFoundError",
    "load_backbone",
]
