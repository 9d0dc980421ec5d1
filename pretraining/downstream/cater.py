"""CATER, snitch localisation: in which of 36 cells is the hidden object at the end (paper, Table 12).

`data=` is one version of CATER unpacked, all_actions or all_actions_cameramotion: `videos/` with
CLEVR_new_<6 digits>.avi and `lists/localize/{train,val}.txt` with a line `<file> <class>` per video.

Facts: github.com/rohitgirdhar/CATER, generate/README.md (what is hosted; task 3 uses all_actions),
generate/gen_train_test.py (class = 6 y + x of the last frame's cell of 1 x 1; 5,500 videos, 70 % of
them training), generate/render_videos.py (300 frames of 320 x 240 px at 24 Hz) and
baselines/video-nonlocal-net/lib/utils/localization_eval.py (top-1, top-5, mean L1 distance in cells).
By the camera matrix in baselines/tracking/proj_utils.py the middles of all 36 cells are in the central
square of a picture (0.74 of its half width, the square ends at 0.75), so that a centre crop keeps them.

The paper gives 16 and 32 frames and nothing else. Here: evenly over the whole video, its last frame
included; with 32, positions run on beyond those of the training. By default the backbone is
frozen (`mode=live`: without a cache); `mode=hybrid` and `mode=finetune` train it.
"""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from pretraining.datasets.listing import source_of, unexpected
from pretraining.downstream.common import Metric, Result
from pretraining.downstream.videos import (
    Probed,
    VideoConfig,
    Videos,
    probe_videos,
    video_result,
    view_scores,
)
from pretraining.sources import Source
from toto_robot.backbone import FrozenBackbone
from toto_robot.intervals import Z

TASK = "cater"
SIDE = 6  # cells
LISTS = "lists/localize"


@dataclass(frozen=True, kw_only=True)
class Config(VideoConfig):
    """CATER snitch localisation: probes at every layer of a frozen model, or mode=hybrid, finetune."""

    augment: bool = False  # in a mirrored picture the snitch is in another cell
    cutmix: float = 0.0  # a part of a picture may lack the snitch that its label tells of


def listed(root: Path, split: str) -> tuple[list[Source], dict[str, str]]:
    """Videos of a split with their cells; and those that are listed and not there.

    Raises:
        FileNotFoundError: this is no CATER.
        ValueError: a line is not a file and a class from 0 to 35.
    """
    path = root / LISTS / f"{split}.txt"
    if not path.is_file():
        raise unexpected(TASK, root, f"videos/ and {LISTS}/{split}.txt")
    sources, missing = [], {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdigit() or int(label) >= SIDE**2:
            raise ValueError(
                f"{path}, line {number}: {line!r}; expected a file and a class from 0 to {SIDE**2 - 1}"
            )
        video = root / "videos" / name
        if video.is_file():
            held_out = split == "val"
            sources.append(source_of(video, root, held_out=held_out, label=int(label)))
        else:
            missing[f"videos/{name}"] = f"listed in {split}.txt, not there"
    if not sources:
        raise ValueError(f"none of the {len(missing)} videos of {path} is in {root / 'videos'}")
    return sources, missing


def cell_distances(cells: Int[Tensor, " M"], others: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
    """|difference of columns| + |difference of rows| of cells numbered row by row."""
    rows = (cells // SIDE - others // SIDE).abs()
    return rows + (cells % SIDE - others % SIDE).abs()


def l1_distance(scores: Float[Tensor, "M C"], cells: Int[Tensor, " M"]) -> Metric:
    """Mean distance of the most probable cell, in cells; interval of a normal mean."""
    found = cell_distances(scores.argmax(dim=1), cells).float()
    mean, count = found.mean().item(), len(found)
    half = Z * found.std().item() / count**0.5 if count > 1 else float("inf")
    return Metric(mean, mean - half, mean + half, count)


def localisation_scores(probed: Probed) -> list[dict[str, Metric]]:
    """Top-1, top-5 and L1 distance by layer, of the middle view and of all averaged."""
    scores = view_scores(probed)
    for score, middle, averaged in zip(scores, probed.one_view(), probed.all_views(), strict=True):
        score["L1_cells"] = l1_distance(middle, probed.classes)
        if len(probed.averaged) > 1:
            score["L1_views_cells"] = l1_distance(averaged, probed.classes)
    return scores


def evaluate(config: Config, backbone: FrozenBackbone) -> Result:
    train, missing = listed(config.data, "train")
    test, missing_test = listed(config.data, "val")
    videos = Videos(train, test, SIDE**2, missing | missing_test)
    probed = probe_videos(TASK, videos, config, backbone)
    result = video_result(TASK, probed, localisation_scores(probed), config, backbone)
    result.extra |= {"training_videos": len(train)}
    return result
