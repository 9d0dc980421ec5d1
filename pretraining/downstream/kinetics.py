"""Kinetics: top-1 and top-5 of probes at every layer (paper, section 4.3; Tables 8 and 16; Fig. 8).

`data=` is the folder as the Common Visual Data Foundation hosts it (pretraining.datasets.kinetics:
annotations/, train/, val/, replacement/). The paper reads 16 frames of 128 px and reports the best
layer. Stride, views and crops are not in it: every fourth frame is what it trains on, the middle of a
video and 5 x 3 views averaged are our choice. `pooling=cross` is Table 16's head.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.datasets.kinetics import annotations, kinetics
from pretraining.downstream.common import Result
from pretraining.downstream.videos import (
    VideoConfig,
    Videos,
    probe_videos,
    video_result,
    view_scores,
)
from toto_robot.backbone import FrozenBackbone

TASK = "kinetics"


@dataclass(frozen=True, kw_only=True)
class Config(VideoConfig):
    """Kinetics: probes at every layer of a frozen model, or mode=hybrid, finetune."""

    stride: int | None = 4
    views: int = 5
    crops: int = 3
    split: Literal["val", "test"] = "val"  # that is scored


def labelled_videos(config: Config) -> Videos:
    """Clips with labels; those that are annotated and not there are `missing`.

    Raises:
        FileNotFoundError: this is no Kinetics.
        ValueError: no clip of a split is there, or none has a label.
    """
    sources = kinetics(config.data)
    labelled = [source for source in sources if source.label is not None]
    parts = {
        split: [source for source in labelled if source.name.startswith(f"{split}/")]
        for split in ("train", config.split)
    }
    for split, found in parts.items():
        if not found:
            there = sum(source.name.startswith(f"{split}/") for source in sources)
            raise ValueError(
                f"{config.data} has {there} clips in {split}/ and none of them with a label; expected "
                f"{split}/…/<id>_<start>_<end>.mp4 and annotations/{split}.csv (Kinetics-600's test "
                "split has none)"
            )
    stems = {Path(source.name).stem for source in sources}
    missing = {
        f"{split}/{stem}.mp4": "annotated, not there"
        for split in parts
        for stem in sorted(annotations(config.data, split).keys() - stems)
    }
    classes = 1 + max(source.label or 0 for source in labelled)
    return Videos(parts["train"], parts[config.split], classes, missing)


def evaluate(config: Config, backbone: FrozenBackbone) -> Result:
    videos = labelled_videos(config)
    probed = probe_videos(TASK, videos, config, backbone)
    result = video_result(TASK, probed, view_scores(probed), config, backbone)
    result.extra |= {"training_videos": len(videos.train), "split": config.split}
    return result
