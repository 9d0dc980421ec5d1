"""The layouts in which data sets are distributed: name -> the function that lists their sources.

A layout reads what the official downloads leave on the disk, nothing renamed or moved (docs/data.md).
"""

from collections.abc import Callable
from pathlib import Path

from pretraining.datasets.ego4d import ego4d
from pretraining.datasets.films import films
from pretraining.datasets.howto100m import howto100m
from pretraining.datasets.imagenet import imagenet1k, imagenet21k
from pretraining.datasets.kinetics import kinetics
from pretraining.sources import BASIC, Source

LAYOUTS: dict[str, Callable[[Path], list[Source]]] = {
    **BASIC,
    "films": films,
    "imagenet1k": imagenet1k,
    "imagenet21k": imagenet21k,
    "kinetics": kinetics,
    "ego4d": ego4d,
    "howto100m": howto100m,
}
