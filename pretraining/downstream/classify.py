"""Classes of clips, learned as `mode=` says: from cached features, or beside the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pretraining.downstream.clips import Clip
from pretraining.downstream.features import cached_features
from pretraining.downstream.finetune import FineTuned
from pretraining.downstream.hybrid import Hybrid
from pretraining.downstream.live import LiveProbes
from pretraining.downstream.probes import LayerFit, fit_layers
from pretraining.downstream.tuning import LiveClips, TuneConfig, fit, parts_of, predict
from toto_robot.backbone import FrozenBackbone

MADE = {"live": LiveProbes, "hybrid": Hybrid, "finetune": FineTuned}


@dataclass(frozen=True)
class Classified:
    """What is said of the test clips.

    Attributes:
        fits: of each layer, for the test clips in `kept`.
        kept: whether a test clip could be read.
        skipped: name of a clip that could not -> why.
    """

    fits: list[LayerFit]
    kept: Bool[np.ndarray, " M"]
    skipped: dict[str, str]


Part = tuple[Sequence[Clip], Int[Tensor, " N"]]  # clips and their classes


@dataclass(frozen=True)
class Exam:
    """What is learned from, and what is classified then.

    Attributes:
        group: so many training clips are views of one source, next to each other.
    """

    train: Part
    test: Part
    num_classes: int
    group: int = 1


def classify(task: str, config: TuneConfig, backbone: FrozenBackbone, exam: Exam) -> Classified:
    """Learn from the training clips as `config.mode` says; classify the test clips.

    `backbone`: at the resolution that is read.

    Raises:
        ValueError: as `cached_features`, `whole_model` and `fit`.
    """
    if config.mode != "probe":
        return tune(task, config, backbone, exam)
    options = config.features()
    learned = cached_features(backbone, exam.train[0], options, "training features")
    scored = cached_features(backbone, exam.test[0], options, "test features")
    fits = fit_layers(
        learned, exam.train[1], scored, exam.num_classes, config,
        device=backbone.device, group=exam.group,
    )  # fmt: skip
    return Classified(fits, scored.kept, learned.skipped | scored.skipped)


def tune(task: str, config: TuneConfig, backbone: FrozenBackbone, exam: Exam) -> Classified:
    """`classify` without a cache: heads, or a whole model, trained on nine tenths of the training
    clips. A tokenizer stays as it is."""
    folder = config.folder(task) / config.mode
    folder.mkdir(parents=True, exist_ok=True)
    data = LiveClips(*exam.train, backbone.resolution, config.workers, folder)
    rows, choosing = parts_of(len(exam.train[0]), exam.group, config.seed)
    torch.manual_seed(config.seed)
    network: Any = MADE[config.mode](config, backbone, exam.num_classes).to(backbone.device)
    fit(network, network.groups(len(rows)), data, rows, config, backbone)
    size = config.tuning_batch(len(rows))
    chosen = network.choose(*choice_of(network, data, choosing, size))
    held_out = LiveClips(*exam.test, backbone.resolution, config.workers, folder)
    logits, kept = predict(network, held_out, np.arange(len(exam.test[0])), size)
    readable = np.zeros(len(exam.test[0]), bool)
    readable[kept] = True
    fits = [LayerFit(layer, logits[head], rate) for layer, head, rate in chosen]
    return Classified(fits, readable, data.skipped | held_out.skipped)


def choice_of(
    network: nn.Module, data: LiveClips, rows: np.ndarray, size: int
) -> tuple[Float[Tensor, "K M C"], Int[Tensor, " M"]]:
    """Logits and classes of the clips that choose between heads."""
    logits, kept = predict(network, data, rows, size)
    return logits, data.classes[torch.from_numpy(kept)]
