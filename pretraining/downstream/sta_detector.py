"""A Faster R-CNN on five hidden states that also says which verb comes next, and when.

After StillFast (Ragusa et al. 2023; github.com/fpv-iplab/stillfast, stillfast/models/faster_rcnn_sta.py
and configs/sta/STILL_FAST_R50_X3DM_EGO4D_v2.yaml): features of a box joined by the frame's own, then
noun, box, verb (with a "none") and time to contact from one vector; scores are noun x verb. Toto
(section 4.4) puts its tokens of five layers in place of the two networks' pyramids. How is not
published: here each becomes a level, the shallowest the finest. The parts are torchvision's.
"""

# pyright: reportMissingImports=false
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from toto_robot.backbone.torchvision_ops import need_torchvision

need_torchvision()
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss  # noqa: E402
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead  # noqa: E402
from torchvision.ops import (  # noqa: E402
    FeaturePyramidNetwork,
    MultiScaleRoIAlign,
    batched_nms,
    clip_boxes_to_image,
    remove_small_boxes,
)

SCALES = (4.0, 2.0, 1.0, 0.5, 0.25)  # of the pyramid's levels, in cells per token
CELL = 8  # units of length per token: strides are powers of two whatever the tokenizer's is
ANCHORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of a side of the frame, one size per level
RATIOS = (0.5, 1.0, 2.0)
POOLED = 7  # cells a side of what a box's features are read from
BACKGROUND = 0  # of nouns and verbs inside the detector; category i is i + 1 there


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes and thresholds; the defaults are StillFast's, version 2."""

    nouns: int
    verbs: int
    channels: int = 256
    hidden: int = 1024
    noun_weight: float = 1.0
    verb_weight: float = 0.1
    ttc_weight: float = 0.5
    proposals: int = 1000  # twice as many in training
    score_threshold: float = 0.05
    detections: int = 100  # per frame
    verbs_per_box: int = 1


@dataclass(frozen=True)
class Target:
    """Objects of a frame; boxes x1, y1, x2, y2 as shares of its sides."""

    boxes: Float[Tensor, "N 4"]
    nouns: Int[Tensor, " N"]  # 0, 1, …
    verbs: Int[Tensor, " N"]
    ttcs_s: Float[Tensor, " N"]


@dataclass(frozen=True)
class Detections(Target):
    """The same of what was found, best first."""

    scores: Float[Tensor, " N"]


class Pyramid(nn.Module):
    """Five states [B, N, D] of a square grid -> five levels [B, C, h, w], "0" the finest."""

    def __init__(self, width: int, tokens_per_side: int, channels: int) -> None:
        super().__init__()
        self.side = tokens_per_side
        self.cells = 4 * -(-tokens_per_side // 4)  # so that the coarsest level is whole
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in SCALES)
        self.reduce = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in SCALES)
        self.fuse = FeaturePyramidNetwork([channels] * len(SCALES), channels)

    def forward(self, states: list[Float[Tensor, "B N D"]]) -> dict[str, Tensor]:
        levels: OrderedDict[str, Tensor] = OrderedDict()
        parts = zip(SCALES, self.norms, self.reduce, states, strict=True)
        for number, (scale, norm, reduce, state) in enumerate(parts):
            grid = norm(state).mT.unflatten(2, (self.side, self.side))
            size = [round(self.cells * scale)] * 2
            levels[str(number)] = F.interpolate(reduce(grid), size, mode="bilinear", antialias=True)
        return self.fuse(levels)


class AnticipationHeads(RoIHeads):
    """What is in each proposal; torchvision's RoIHeads with StillFast's two more answers."""

    def __init__(self, config: DetectorConfig, extent: int) -> None:
        pool = MultiScaleRoIAlign(
            ["0", "1", "2", "3"],
            POOLED,
            sampling_ratio=2,
            canonical_scale=extent,  # the whole frame is read from the fourth level
            canonical_level=4,
        )
        super().__init__(
            box_roi_pool=pool,
            box_head=TwoMLPHead(config.channels * POOLED**2, config.hidden),
            box_predictor=FastRCNNPredictor(config.hidden, config.nouns + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=256,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=config.score_threshold,
            nms_thresh=0.5,
            detections_per_img=config.detections,
        )
        self.config = config
        self.join = nn.Sequential(
            nn.Linear(config.hidden + config.channels, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.hidden),
        )
        self.verb = nn.Linear(config.hidden, config.verbs + 1)
        self.ttc = nn.Linear(config.hidden, 1)

    def answers(
        self, levels: dict[str, Tensor], proposals: list[Tensor], shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noun logits, box regression, verb logits and times (s) of all frames' proposals."""
        box = self.box_head(self.box_roi_pool(levels, proposals, shapes))
        counts = torch.tensor([len(p) for p in proposals], device=box.device)
        frame = levels["4"].mean(dim=(2, 3)).repeat_interleave(counts, dim=0)
        box = box + self.join(torch.cat([box, frame], dim=1))
        nouns, regression = self.box_predictor(box)
        return nouns, regression, self.verb(box), F.softplus(self.ttc(box)[:, 0])

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Any = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Losses if there are targets, else (boxes, nouns, verbs, times, scores) of each frame."""
        if targets is None:
            answers = self.answers(features, proposals, image_shapes)
            return self.detect(answers, proposals, image_shapes), {}
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        nouns, regression, verbs, ttcs_s = self.answers(features, proposals, image_shapes)
        noun_loss, box_loss = fastrcnn_loss(nouns, regression, labels, wanted)
        rows = list(zip(targets, matched, strict=True))
        real = torch.cat(labels) > BACKGROUND
        true_verbs = torch.cat([target["verbs"][i] for target, i in rows]) * real
        true_ttcs = torch.cat([target["ttcs_s"][i] for target, i in rows])
        late = F.smooth_l1_loss(ttcs_s[real], true_ttcs[real], reduction="sum")
        return [], {
            "noun": self.config.noun_weight * noun_loss,
            "box": box_loss,
            "verb": self.config.verb_weight * F.cross_entropy(verbs, true_verbs),
            "ttc": self.config.ttc_weight * late / real.sum().clamp(min=1),
        }

    def detect(
        self, answers: tuple[Tensor, ...], proposals: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[tuple[Tensor, ...]]:
        """Boxes of each noun with their likeliest verbs, suppressed within each pair of the two."""
        nouns, regression, verbs, ttcs_s = answers
        decoded = self.box_coder.decode(regression, proposals)
        counts = [len(p) for p in proposals]
        parts = (decoded, nouns.softmax(1), verbs.softmax(1), ttcs_s)
        frames = zip(*(part.split(counts) for part in parts), shapes, strict=True)
        return [self.detect_in(*frame) for frame in frames]

    def detect_in(
        self, boxes: Tensor, nouns: Tensor, verbs: Tensor, ttcs_s: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Of one frame: boxes [P, 1 + nouns, 4], probabilities [P, 1 + nouns], [P, 1 + verbs]."""
        likely, verb = verbs[:, 1:].topk(min(self.config.verbs_per_box, self.config.verbs), dim=1)
        score = nouns[:, 1:, None] * likely[:, None, :]  # [P, nouns, K]
        row, noun, k = (score > self.score_thresh).nonzero(as_tuple=True)
        found = clip_boxes_to_image(boxes[row, noun + 1], shape)
        columns = [found, noun, verb[row, k], ttcs_s[row], score[row, noun, k]]
        whole = remove_small_boxes(found, min_size=1e-2)
        columns = [column[whole] for column in columns]
        found, noun, chosen, _, scores = columns
        kept = batched_nms(found, scores, noun * self.config.verbs + chosen, self.nms_thresh)
        return tuple(column[kept[: self.detections_per_img]] for column in columns)


class Detector(nn.Module):
    """States of five layers -> losses, or detections. Inside, a frame is `extent` units wide."""

    def __init__(self, width: int, tokens_per_side: int, config: DetectorConfig) -> None:
        super().__init__()
        self.pyramid = Pyramid(width, tokens_per_side, config.channels)
        self.extent = CELL * self.pyramid.cells
        sizes = tuple((round(self.extent * share),) for share in ANCHORS)
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            RPNHead(config.channels, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * config.proposals, "testing": config.proposals},
            post_nms_top_n={"training": 2 * config.proposals, "testing": config.proposals},
            nms_thresh=0.7,
        )
        self.heads = AnticipationHeads(config, self.extent)

    def levels(self, states: list[Tensor]) -> tuple[dict[str, Tensor], ImageList]:
        """The pyramid, and what torchvision wants to know of the frames."""
        shapes = [(self.extent, self.extent)] * len(states[0])
        blank = states[0].new_empty(len(states[0]), 0, self.extent, self.extent)
        return self.pyramid(states), ImageList(blank, shapes)

    def losses(
        self, states: list[Float[Tensor, "B N D"]], targets: list[Target]
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted losses of a batch, to be summed; in training mode."""
        rows = [
            {
                "boxes": target.boxes * self.extent,
                "labels": target.nouns + 1,
                "verbs": target.verbs + 1,
                "ttcs_s": target.ttcs_s,
            }
            for target in targets
        ]
        levels, images = self.levels(states)
        proposals, found = self.rpn(images, levels, rows)
        _, losses = self.heads(levels, proposals, images.image_sizes, rows)
        return losses | {
            "objectness": found["loss_objectness"],
            "proposals": found["loss_rpn_box_reg"],
        }

    @torch.no_grad()
    def detect(self, states: list[Float[Tensor, "B N D"]]) -> list[Detections]:
        """What is found in each frame; in eval mode."""
        levels, images = self.levels(states)
        proposals, _ = self.rpn(images, levels)
        found, _ = self.heads(levels, proposals, images.image_sizes)
        return [Detections(boxes / self.extent, *others) for boxes, *others in found]
