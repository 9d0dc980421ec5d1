"""ImageNet-1k: top-1 of probes at every layer (paper, section 4.2; Tables 3, 5, 7, 14; Figs 4, 8).

`data=` is the folder as ImageNet is distributed, whichever of its layouts (pretraining.datasets.imagenet).
Pictures: shortest side to the resolution, centre crop. The paper evaluates at 256 px.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pretraining.datasets.imagenet import imagenet1k
from pretraining.downstream.classify import Exam, classify
from pretraining.downstream.clips import Clip, View
from pretraining.downstream.common import Result
from pretraining.downstream.probes import accuracies, layers_result
from pretraining.downstream.tuning import TuneConfig
from pretraining.sources import Source
from pretraining.video import crops_of
from toto_robot.backbone import FrozenBackbone

TASK = "imagenet"


@dataclass(frozen=True, kw_only=True)
class Config(TuneConfig):
    """ImageNet-1k classification: probes at every layer, or the whole model trained (mode=)."""

    crops: int = 1  # squares of each training picture, the first its centre
    per_class: int | None = None  # training pictures of each class; None: all


def labelled_pictures(config: Config) -> tuple[list[Source], list[Source], int]:
    """Training and validation pictures with labels, and the number of classes.

    Raises:
        FileNotFoundError: this is no ImageNet-1k.
        ValueError: a part, or the classes of the validation part, are missing.
    """
    sources = imagenet1k(config.data)
    train = [s for s in sources if not s.held_out and s.label is not None]
    validation = [s for s in sources if s.held_out and s.label is not None]
    if not train or not validation:
        raise ValueError(
            f"{config.data} has {len(train)} training and {len(validation)} labelled validation "
            "pictures; expected both (classes of a flat val/ come from LOC_val_solution.csv or the "
            "development kit beside it)"
        )
    if config.per_class is not None:
        random = np.random.default_rng(config.seed)
        shuffled = [train[i] for i in random.permutation(len(train))]
        counts: dict[int | None, int] = {}
        chosen = []
        for source in shuffled:
            counts[source.label] = counts.get(source.label, 0) + 1
            if counts[source.label] <= config.per_class:
                chosen.append(source)
        train = sorted(chosen, key=lambda source: source.name)
    return train, validation, 1 + max(s.label or 0 for s in train + validation)


def evaluate(config: Config, backbone: FrozenBackbone) -> Result:
    train, validation, num_classes = labelled_pictures(config)
    network = backbone.at_resolution(config.resolution or backbone.resolution)
    clips = [Clip(s, View(crop=crop)) for s in train for crop in crops_of(s.name, config.crops)]
    classes = torch.tensor([s.label for s in validation])
    exam = Exam(
        (clips, torch.tensor([clip.source.label for clip in clips])),
        ([Clip(s) for s in validation], classes),
        num_classes,
        group=config.crops,
    )
    found = classify(TASK, config, network, exam)
    kept = torch.from_numpy(found.kept)
    scores = [accuracies(fit.logits, classes[kept]) for fit in found.fits]
    result = layers_result(TASK, found.fits, scores, config, backbone)
    result.skipped = found.skipped
    result.extra |= {"pictures": len(train), "resolution": network.resolution, "mode": config.mode}
    return result
