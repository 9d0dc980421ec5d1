"""Labels of the first frame carried through a video by its features alone; nothing is trained.

Each token of a new frame takes the labels of the most similar tokens of the frames before it. Rules
as two programs have them, from which published numbers come: that of STC, whose protocol the paper
names (Jabri et al. 2020, videowalk), and that of DINO (Caron et al. 2021). The paper gives none of
the numbers.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from toto_robot.backbone.weights import nearest

Neighbourhood = Literal["disk", "square"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How labels are carried; what the two programs differ in."""

    top_k: int  # most similar tokens, over all frames looked at
    context: int  # newest frames that are looked at, besides the first
    radius: float  # in tokens, of the neighbourhood of a token's own place; 0: the whole frame
    neighbourhood: Neighbourhood  # "disk": nearer than radius; "square": at most radius by axis
    temperature: float  # of the softmax over the top k
    first_everywhere: bool  # in the first frame the neighbourhood is the whole frame
    fill: bool  # before there are enough frames, copies of the first stand for them
    soft_start: bool  # tokens of the first frame have shares of labels; False: one label each
    normalise: bool  # each label's map to 0…1 before the largest is taken

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.context < 0 or self.radius < 0 or self.temperature <= 0:
            raise ValueError(
                f"top_k={self.top_k} context={self.context} radius={self.radius:g} "
                f"temperature={self.temperature:g}: expected at least 1, 0, 0, and above 0"
            )
        if self.neighbourhood not in (known := get_args(Neighbourhood)):
            raise ValueError(
                f"neighbourhood={self.neighbourhood}: expected {' or '.join(known)}."
                f"{nearest(self.neighbourhood, known)}"
            )


PRESETS = {
    "stc": Rules(
        top_k=10,
        context=20,
        radius=12,
        neighbourhood="disk",
        temperature=0.05,
        first_everywhere=True,
        fill=True,
        soft_start=True,
        normalise=False,
    ),
    "dino": Rules(
        top_k=5,
        context=7,
        radius=12,
        neighbourhood="square",
        temperature=0.1,
        first_everywhere=False,
        fill=False,
        soft_start=False,
        normalise=True,
    ),
}


def far_away(side: int, rules: Rules, device: torch.device | str) -> Bool[Tensor, "N N"] | None:
    """Which tokens [query, key] are outside of each other's neighbourhood; None: none are."""
    if not rules.radius:
        return None
    places = torch.arange(side, device=device)
    apart = (places[:, None] - places[None]).abs()
    y, x = apart[:, None, :, None], apart[None, :, None, :]  # [query y, query x, key y, key x]
    if rules.neighbourhood == "disk":
        far = y**2 + x**2 >= rules.radius**2
    else:
        far = (y > rules.radius) | (x > rules.radius)
    return far.expand(side, side, side, side).reshape(side**2, side**2)


class Propagator:
    """One video, one layer. Memory: features of `context` + 1 frames, and similarities of one pair
    of frames at a time, N x N; no more for longer videos."""

    def __init__(
        self,
        rules: Rules,
        features: Float[Tensor, "N D"],
        labels: Float[Tensor, "N C"],
    ) -> None:
        """Of the first frame: features of its tokens in raster order, and what share of each token
        is of each label."""
        self.rules, self.labels = rules, labels.to(features.device)
        self.first = F.normalize(features.float(), dim=-1), self.labels
        self.past: deque[tuple[Tensor, Tensor]] = deque(maxlen=rules.context)
        if rules.fill:
            self.past.extend([self.first] * rules.context)
        self.far = far_away(round(len(features) ** 0.5), rules, features.device)

    def step(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Labels of the next frame's tokens; shares that sum to 1."""
        query = F.normalize(features.float(), dim=-1)
        first_far = None if self.rules.first_everywhere else self.far
        best = [self._nearest(query, *self.first, first_far)]
        known: dict[int, tuple[Tensor, Tensor]] = {}  # copies of a frame are alike
        for keys, labels in self.past:
            if id(keys) not in known:
                known[id(keys)] = self._nearest(query, keys, labels, self.far)
            best.append(known[id(keys)])
        similarity = torch.cat([s for s, _ in best], dim=1)
        candidates = torch.cat([c for _, c in best], dim=1)  # [N, candidates, C]
        similarity, place = similarity.topk(min(self.rules.top_k, similarity.shape[1]), dim=1)
        weights = (similarity / self.rules.temperature).softmax(dim=1)
        chosen = candidates.gather(1, place[..., None].expand(-1, -1, candidates.shape[2]))
        self.labels = (weights[..., None] * chosen).sum(dim=1)
        self.past.append((query, self.labels))
        return self.labels

    def _nearest(
        self, query: Tensor, keys: Tensor, labels: Tensor, far: Tensor | None
    ) -> tuple[Float[Tensor, "N k"], Float[Tensor, "N k C"]]:
        """Similarity and labels of the `top_k` most similar tokens of one frame."""
        similarity = query @ keys.T
        if far is not None:
            similarity.masked_fill_(far, -torch.inf)
        values, places = similarity.topk(min(self.rules.top_k, len(keys)), dim=1)
        return values, labels[places]


def token_labels(
    mask: UInt8[np.ndarray, "H W"], objects: int, resolution: int, side: int, soft: bool
) -> Float[Tensor, "N C"]:
    """A mask of ids 0 (ground) to `objects` on the grid of tokens; C is `objects` + 1.

    The picture is squeezed to a square of `resolution` pixels, as the frames are. `soft`: the
    bilinear share of each label at a token's centre; else the label of its nearest pixel.
    """
    size = resolution if soft else side
    small = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
    ids = torch.from_numpy(np.array(small)).long()
    ids[ids > objects] = 0
    maps = F.one_hot(ids, objects + 1).permute(2, 0, 1).float()
    if soft:
        maps = F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
    return maps.flatten(1).T.contiguous()


def to_mask(
    labels: Float[Tensor, "N C"], resolution: int, size: tuple[int, int], normalise: bool
) -> UInt8[np.ndarray, "H W"]:
    """Labels of tokens -> ids of pixels: bilinear to `resolution`, the largest, nearest to `size`
    (height, width)."""
    side = round(len(labels) ** 0.5)
    maps = labels.T.unflatten(1, (side, side))
    maps = F.interpolate(maps[None], (resolution,) * 2, mode="bilinear", align_corners=False)[0]
    if normalise:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        maps = torch.where(high > 0, (maps - low) / (high - low).clamp_min(1e-12), maps)
    ids = maps.argmax(dim=0).to(torch.uint8).cpu().numpy()
    height, width = size
    return np.array(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))
