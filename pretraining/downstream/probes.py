"""Probes of every layer on cached features: fitted side by side, scored with intervals, drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from pretraining.downstream.common import EvaluateConfig, Metric, Result
from pretraining.downstream.features import FeatureOptions, Features
from pretraining.downstream.published import PEAKS
from pretraining.pictures import Line, Panel, plot_panels
from pretraining.probing import CLASS_RATES, Split, fit_classes
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START
from toto_robot.intervals import wilson_interval

BATCHES, SMALLEST, LARGEST = 40, 32, 1024  # of an epoch; rows of a batch
WHOLE = {"imagenet": 1000, "kinetics": 400}  # classes
BATCH_TOKENS = 2**18  # of a batch: 64 clips of 4,096; 1.1 GB where features are 1,024 wide


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(EvaluateConfig):
    """Options of every evaluation that fits probes to cached features."""

    pooling: Literal["attention", "cross", "mean", "linear"] = "attention"
    layers: tuple[int, ...] | None = None  # None: all
    resolution: int | None = None  # px; None: the backbone's
    start: Literal["video", "image"] = "video"  # what a causal model's sequences begin with
    grid: int | None = None  # tokens of a frame averaged down to grid x grid; None: all of them
    epochs: int = 100  # AIMv2's number; the paper does not give its own
    rates: tuple[float, ...] = CLASS_RATES  # tried side by side, chosen on a tenth of train
    batch_size: int | None = None  # None: a fortieth of the rows, 32 to 1024, of 2^18 tokens
    cache: Path = Path("outputs/features")
    cache_gb: float = 50.0  # of training or validation features; larger ones are refused
    workers: int = 4  # threads that decode

    def folder(self, task: str) -> Path:
        """Rows of another pooling, resolution or number of frames lie beside each other."""
        folder = super().folder(task)
        shown = {"pooling": "{}", "resolution": "{}px", "frames": "{}frames"}
        more = [
            shown[option.name].format(value)
            for option in fields(self)
            if option.name in shown and (value := getattr(self, option.name)) != option.default
        ]
        return folder.with_name("-".join([folder.name, *more])) if self.label is None else folder

    def features(self) -> FeatureOptions:
        """Averages need one token of each frame, the mean of its tokens."""
        return FeatureOptions(
            folder=self.cache,
            layers=self.layers,
            grid=1 if self.pooling in ("mean", "linear") else self.grid,
            start=VIDEO_START if self.start == "video" else IMAGE_START,
            limit_gb=self.cache_gb,
            workers=self.workers,
        )


@dataclass(frozen=True)
class LayerFit:
    """What a layer's probe says of the test clips.

    Attributes:
        logits: of the clips that were kept.
        rate: learning rate that was chosen.
    """

    layer: int
    logits: Float[Tensor, "M C"]
    rate: float


def shuffled_rows(kept: np.ndarray, group: int, seed: int) -> np.ndarray:
    """Rows to train on in random order; the `group` views of a source stay together, so that the
    tenth that chooses rates has sources of its own."""
    sources = np.random.default_rng(seed).permutation(len(kept) // group)
    rows = (sources[:, None] * group + np.arange(group)).ravel()
    return rows[kept[rows]]


def batch_size_for(train: Features) -> int:
    """As many batches an epoch for all data sets, as far as memory lets them."""
    tokens = next(iter(train.layers.values())).shape[1]
    rows = min(max(int(train.kept.sum()) // BATCHES, SMALLEST), LARGEST)
    return max(1, min(rows, BATCH_TOKENS // tokens))


def fit_layers(
    train: Features,
    train_classes: Int[Tensor, " N"],
    test: Features,
    num_classes: int,
    config: ProbeConfig,
    *,
    device: torch.device | str = "cpu",
    group: int = 1,
    head: Callable[[int, int], nn.Module] | None = None,
) -> list[LayerFit]:
    """Fit a probe at each layer that is there, several learning rates at once.

    Args:
        train_classes: of all training rows, those that were skipped included.
        group: training rows that are views of one source, next to each other.
        head: another probe than `config.pooling` names, of (width, number of classes).
    """
    rows = torch.from_numpy(shuffled_rows(train.kept, group, config.seed))
    test_rows = torch.from_numpy(np.flatnonzero(test.kept))
    places = torch.cat([rows, -1 - test_rows])  # negative: a row of `test`
    batch_size = config.batch_size or batch_size_for(train)
    fits = []
    for layer in tqdm(train.layers, desc="probes", unit="layer"):

        def prepare(places: Tensor, layer: int = layer) -> Float[Tensor, "B N D"]:
            is_test = bool(places[0] < 0)  # never mixed: test rows are read by themselves
            found = test.rows(layer, -1 - places) if is_test else train.rows(layer, places)
            return found.to(device)

        logits, rate = fit_classes(
            Split(places[: len(rows)], train_classes[rows], places[len(rows) :], test_rows),
            num_classes,
            config.pooling,
            prepare,
            train.layers[layer].shape[2],
            epochs=config.epochs,
            seed=config.seed,
            batch_size=batch_size,
            rates=config.rates,
            head=head,
            device=device,
        )
        fits.append(LayerFit(layer, logits, rate))
    return fits


def accuracies(
    logits: Float[Tensor, "M C"], classes: Int[Tensor, " M"], ranks: Sequence[int] = (1, 5)
) -> dict[str, Metric]:
    """Top-1 and top-5 in percent with Wilson's 95 % intervals; top-k only of more than k classes."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    found = {}
    for k in ranks:
        if k < logits.shape[1]:
            right = int((order[:, :k] == classes[:, None]).any(1).sum())
            low, high = wilson_interval(right, len(classes))
            share = right / len(classes)
            found[f"top{k}_%"] = Metric(100 * share, 100 * low, 100 * high, len(classes))
    return found


def about_size(task: str, num_classes: int) -> list[str]:
    """A note where the data are not the whole set that the task is named after."""
    whole = WHOLE.get(task, num_classes)
    return (
        []
        if num_classes == whole
        else [f"{num_classes} classes of data, not the {whole} of the set"]
    )


def layers_result(
    task: str,
    fits: Sequence[LayerFit],
    scores: Sequence[dict[str, Metric]],
    config: ProbeConfig,
    backbone: FrozenBackbone,
) -> Result:
    """A row out of each layer's probe and scores, the best layer's first (the paper reports the best
    layer too), and its plot."""
    best = max(range(len(fits)), key=lambda i: scores[i]["top1_%"].value)
    folder = config.folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    plot_layers([fit.layer for fit in fits], scores, backbone, task, folder / "layers.png")
    notes = ["the best layer is chosen on the clips that it is scored on, as in the paper"]
    notes += about_size(task, fits[0].logits.shape[1])
    if backbone.untrained:
        notes.insert(0, "untrained weights")
    return Result(
        task=task,
        metrics=scores[best],
        layers=list(scores),
        best_layer=fits[best].layer,
        files=["layers.png"],
        notes=notes,
        extra={
            "layer_numbers": [fit.layer for fit in fits],
            "rates": [fit.rate for fit in fits],
            "pooling": config.pooling,
            "num_classes": fits[0].logits.shape[1],
        },
    )


def metric_line(label: str, layers: Sequence[int], metrics: Sequence[Metric]) -> Line:
    """A metric of each layer, with its interval as a band."""
    return Line(
        label=label,
        x=layers,
        y=[m.value for m in metrics],
        style="o-",
        low=[m.value if m.low is None else m.low for m in metrics],
        high=[m.value if m.high is None else m.high for m in metrics],
    )


def plot_layers(
    layers: Sequence[int],
    scores: Sequence[dict[str, Metric]],
    backbone: FrozenBackbone,
    task: str,
    path: Path,
) -> None:
    """Top-1 by layer with its interval; published best layers at their share of the depth."""
    peaks = {peak.name.lower(): peak for peak in PEAKS if peak.task == task}
    shown = [peaks[backbone.name]] if backbone.name in peaks else peaks.values()
    marks = {
        f"published best: {peak.name}, layer {peak.layer} of {peak.layers}": peak.layer
        / peak.layers
        * backbone.num_layers
        for peak in shown
    }
    panel = Panel(
        title=f"{backbone.name}: top-1 by layer, 95 %",
        x="layer (0: embeddings)",
        y="top-1, %",
        lines=[metric_line(backbone.name, layers, [score["top1_%"] for score in scores])],
        marks=marks,
    )
    plot_panels([panel], path)
