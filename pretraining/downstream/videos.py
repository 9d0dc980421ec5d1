"""Classification of videos from frozen features: clips of them, a probe at each layer, views averaged."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pretraining.downstream.classify import Exam, classify
from pretraining.downstream.clips import Clip, View
from pretraining.downstream.common import Metric, Result
from pretraining.downstream.probes import (
    LayerFit,
    accuracies,
    layers_result,
)
from pretraining.downstream.tuning import TuneConfig
from pretraining.sources import Source
from pretraining.video import CENTRE, Crop
from toto_robot.backbone import FrozenBackbone

LAST = 1 - 1e-6  # of places in [0, 1)


@dataclass(frozen=True, kw_only=True)
class VideoConfig(TuneConfig):
    """Options of evaluations that classify videos."""

    resolution: int | None = 128  # px
    frames: int = 16  # of a clip
    stride: int | None = (
        None  # from frame to frame; none: evenly over the whole video, ends included
    )
    train_views: int = 1  # clips of each training video, evenly over it; 1: its middle
    views: int = 1  # clips of each test video
    crops: int = 1  # squares of each test clip along the longer side; 1: its middle


@dataclass(frozen=True)
class Videos:
    """Labelled videos.

    Attributes:
        train, test: all with labels 0 to `num_classes` - 1.
        missing: videos that are listed and not there, and why they are skipped.
    """

    train: list[Source]
    test: list[Source]
    num_classes: int
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Probed:
    """What the probes say of the test videos that could be read.

    Attributes:
        logits: of each layer, [videos, views, classes]; the first view is the middle of the middle.
        averaged: those of the views that are averaged.
        skipped: videos that could not be used, and why.
    """

    fits: list[LayerFit]
    logits: list[Float[Tensor, "M V C"]]
    classes: Int[Tensor, " M"]
    averaged: list[int]
    skipped: dict[str, str]

    def one_view(self) -> list[Float[Tensor, "M C"]]:
        """Probabilities from the middle of each video alone, by layer."""
        return [logits_MVC[:, 0].softmax(-1) for logits_MVC in self.logits]

    def all_views(self) -> list[Float[Tensor, "M C"]]:
        """Mean probabilities of each video's views, by layer."""
        return [mean_of_views(logits_MVC[:, self.averaged]) for logits_MVC in self.logits]


def mean_of_views(logits_MVC: Float[Tensor, "M V C"]) -> Float[Tensor, "M C"]:
    """Mean of the softmax of the views."""
    return logits_MVC.softmax(dim=-1).mean(dim=1)


def along(count: int) -> list[float]:
    """`count` places from 0 to 1, the middle for one."""
    return np.linspace(0, 1, count).tolist() if count > 1 else [0.5]


def views_of(config: VideoConfig, clips: int, crops: int) -> list[View]:
    """`clips` times, from the start of a video to its end, by `crops` squares along its longer side.

    Raises:
        ValueError: less than one of anything, or several clips that would all be the whole video.
    """
    if min(config.frames, clips, crops, config.stride or 1) < 1:
        raise ValueError(
            f"frames={config.frames} stride={config.stride}, {clips} views and {crops} crops of a "
            "video; expected at least one of each"
        )
    if config.stride is None and clips > 1:
        raise ValueError(f"{clips} views of a video need a stride=; without, each is all of it")
    squares = [CENTRE if at == 0.5 else Crop(min(at, LAST), min(at, LAST)) for at in along(crops)]
    return [
        View(frames=config.frames, stride=config.stride, share=share, crop=crop)
        for share in along(clips)
        for crop in squares
    ]


def views_at_test(config: VideoConfig) -> tuple[list[View], list[int]]:
    """Views of a test video, its middle first, and which of them are averaged."""
    middle = views_of(config, 1, 1)
    averaged = views_of(config, config.views, config.crops)
    views = list(dict.fromkeys(middle + averaged))
    return views, [views.index(view) for view in averaged]


def probe_videos(
    task: str, videos: Videos, config: VideoConfig, backbone: FrozenBackbone
) -> Probed:
    """A probe at each layer. A test video of which any view cannot be read is skipped."""
    network = backbone.at_resolution(config.resolution or backbone.resolution)
    train_views = views_of(config, config.train_views, 1)
    views, averaged = views_at_test(config)
    train_clips = [Clip(source, view) for source in videos.train for view in train_views]
    test_clips = [Clip(source, view) for source in videos.test for view in views]
    classes = torch.tensor([clip.source.label for clip in test_clips])
    exam = Exam(
        (train_clips, torch.tensor([clip.source.label for clip in train_clips])),
        (test_clips, classes),
        videos.num_classes,
        group=len(train_views),
    )
    found = classify(task, config, network, exam)
    kept = torch.from_numpy(found.kept)
    whole = kept.view(-1, len(views)).all(dim=1)
    if not whole.any():
        raise ValueError(f"no test video can be read: {next(iter(found.skipped.items()))}")

    def by_video(logits: Tensor) -> Float[Tensor, "M V C"]:
        rows = logits.new_zeros(len(kept), videos.num_classes)
        rows[kept] = logits
        return rows.unflatten(0, (-1, len(views)))[whole]

    return Probed(
        found.fits,
        [by_video(fit.logits) for fit in found.fits],
        torch.tensor([source.label for source in videos.test])[whole],
        averaged,
        videos.missing | found.skipped,
    )


def video_result(
    task: str,
    probed: Probed,
    scores: list[dict[str, Metric]],
    config: VideoConfig,
    backbone: FrozenBackbone,
) -> Result:
    """A row out of each layer's scores, with what was read of the videos."""
    result = layers_result(task, probed.fits, scores, config, backbone)
    result.skipped = probed.skipped
    if config.mode == "probe":
        result.notes.append(
            "probes on frozen features; in the paper the backbone goes on learning to predict the "
            "task's videos meanwhile (mode=hybrid)"
        )
    result.extra |= {
        "mode": config.mode,
        "frames": config.frames,
        "stride": config.stride,
        "resolution": config.resolution or backbone.resolution,
        "views": f"{config.views} x {config.crops}",
        "train_views": config.train_views,
    }
    return result


def view_scores(probed: Probed) -> list[dict[str, Metric]]:
    """Top-1 and top-5 by layer: of the middle view, and of all averaged where there are several."""
    scores = [accuracies(p, probed.classes) for p in probed.one_view()]
    if len(probed.averaged) > 1:
        for score, p in zip(scores, probed.all_views(), strict=True):
            averaged = accuracies(p, probed.classes)
            score |= {name.replace("_%", "_views_%"): m for name, m in averaged.items()}
    return scores
