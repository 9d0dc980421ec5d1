"""Top-5 mean average precision of Ego4D's short-term anticipation, as the challenge scores it.

A detection is right if its box has IoU > 0.5 with an object that no better detection took and its
noun (and verb, and time to contact to 0.25 s) is the object's. As people cannot name all objects that
might be next, the 4 N best-scored wrong detections of a frame with N objects are not counted at all.
Average precision is over all frames, per noun that occurs; its mean over nouns is the score, in %.

Definition: github.com/EGO4D/forecasting, ego4d_forecasting/evaluation/sta_metrics.py
(STAMeanAveragePrecision) and tools/short_term_anticipation/evaluate_short_term_anticipation_results.py,
down to two peculiarities that its numbers depend on: box sides are a pixel longer than x2 - x1, and
a frame without any detection is left out, objects and all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

CHALLENGE = "ego4d_short_term_object_interaction_anticipation"
VERSION = "1.0"
METRICS = ("noun", "noun_verb", "noun_ttc", "overall")  # columns of what `match` returns
TOP_K = 5
IOU_THRESHOLD, TTC_THRESHOLD_S = 0.5, 0.25
FIELDS = {  # of a detection in the result JSON
    "box": list,
    "noun_category_id": int,
    "verb_category_id": int,
    "time_to_contact": float,
    "score": float,
}


@dataclass(frozen=True)
class Objects:
    """What a frame has, or what was detected in it; boxes are x1, y1, x2, y2 in pixels."""

    boxes: Float[np.ndarray, "N 4"]
    nouns: Int[np.ndarray, " N"]  # category ids
    verbs: Int[np.ndarray, " N"]
    ttcs_s: Float[np.ndarray, " N"]
    scores: Float[np.ndarray, " N"] | None = None  # of detections

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> "Objects":
        """Rows as in the annotations (`objects`) or, with a score, as in the results."""

        def column(name: str, kind: type) -> np.ndarray:
            return np.array([row[name] for row in rows], kind)

        return cls(
            column("box", float).reshape(-1, 4),
            column("noun_category_id", int),
            column("verb_category_id", int),
            column("time_to_contact", float),
            column("score", float) if rows and "score" in rows[0] else None,
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Rows of the result JSON, of the types that the challenge checks for."""
        assert self.scores is not None, "only detections are written"
        columns = (self.boxes, self.nouns, self.verbs, self.ttcs_s, self.scores)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(FIELDS, row, strict=True)) for row in rows]


def iou(a: Float[np.ndarray, "N 4"], b: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """Intersection over union of boxes whose last row and column of pixels count."""
    least, most = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    shared = np.clip(most - least + 1, 0, None).prod(-1)
    area_a, area_b = (np.clip(x[:, 2:] - x[:, :2] + 1, 0, None).prod(-1) for x in (a, b))
    return shared / (area_a[:, None] + area_b[None] - shared + 1e-11)


def agreement(found: Objects, truth: Objects) -> Bool[np.ndarray, "N M 4"]:
    """Whether each detection may be each object, by the four criteria of `METRICS`."""
    noun = (iou(found.boxes, truth.boxes) > IOU_THRESHOLD) & (found.nouns[:, None] == truth.nouns)
    verb = found.verbs[:, None] == truth.verbs
    ttc = np.abs(found.ttcs_s[:, None] - truth.ttcs_s) <= TTC_THRESHOLD_S
    return np.stack([noun, noun & verb, noun & ttc, noun & verb & ttc], axis=-1)


def match(found: Objects, truth: Objects) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "N 4"]]:
    """The order of a frame's detections, best first, and in that order 1 right, 0 wrong, NaN free."""
    assert found.scores is not None
    order = found.scores.argsort()[::-1]
    overlap, allowed = iou(found.boxes, truth.boxes), agreement(found, truth)
    taken = np.zeros((len(truth), len(METRICS)), bool)
    right = np.zeros((len(found), len(METRICS)))
    possible = set(allowed.nonzero()[0].tolist())
    for place, i in enumerate(order):
        for k in range(len(METRICS)) if int(i) in possible else ():
            candidates = np.flatnonzero(allowed[i, :, k] & ~taken[:, k])
            if len(candidates):
                taken[candidates[overlap[i, candidates].argmax()], k] = True
                right[place, k] = 1
    wrong = 1 - right
    right[(wrong == 1) & (wrong.cumsum(0) <= (TOP_K - 1) * len(truth))] = np.nan
    return order, right


def average_precision(right: Float[np.ndarray, " N"], scores: np.ndarray, objects: int) -> float:
    """Area under the precision-recall curve, precision made monotonic (Pascal VOC 2010), 0 to 1."""
    hits = right[scores.argsort()[::-1]].cumsum()
    if len(hits) == 0:
        return 0.0
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((np.diff(hits, prepend=0) * precision).sum() / objects)


@dataclass(frozen=True)
class Matched:
    """A frame's detections, best first, and the nouns of its objects."""

    nouns: Int[np.ndarray, " N"]
    scores: Float[np.ndarray, " N"]
    right: Float[np.ndarray, "N 4"]  # as `match` has it
    true_nouns: Int[np.ndarray, " M"]


def match_frame(found: Objects, truth: Objects) -> Matched:
    if len(found) == 0:  # left out, objects and all
        none = np.zeros(0, int)
        return Matched(none, np.zeros(0), np.zeros((0, len(METRICS))), none)
    assert found.scores is not None
    order, right = match(found, truth)
    return Matched(found.nouns[order], found.scores[order], right, truth.nouns)


def mean_aps(rows: Sequence[Matched]) -> dict[str, float]:
    """The four scores in % over all frames; 0 if nothing was detected in any."""
    true_nouns = np.concatenate([row.true_nouns for row in rows])
    if len(true_nouns) == 0:
        return dict.fromkeys(METRICS, 0.0)
    noun = np.concatenate([row.nouns for row in rows])
    score = np.concatenate([row.scores for row in rows])
    right = np.concatenate([row.right for row in rows])
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for one, objects in zip(*np.unique(true_nouns, return_counts=True), strict=True):
        of_noun = noun == one
        right_of, score_of = right[of_noun], score[of_noun]
        for k, name in enumerate(METRICS):
            counted = ~np.isnan(right_of[:, k])
            found[name].append(average_precision(right_of[counted, k], score_of[counted], objects))
    return {name: 100 * float(np.mean(aps)) for name, aps in found.items()}


def top5_map(frames: Iterable[tuple[Objects, Objects]]) -> dict[str, float]:
    """The four scores in % of (detections, objects) of each frame."""
    return mean_aps([match_frame(found, truth) for found, truth in frames])


def intervals(
    rows: Sequence[Matched], videos: Sequence[str], seed: int, repeats: int = 200
) -> tuple[dict[str, float], dict[str, float]]:
    """Lower and upper ends of 95 % of the scores of resampled videos (frames of one are alike)."""
    frames: dict[str, list[Matched]] = {}
    for row, video in zip(rows, videos, strict=True):
        frames.setdefault(video, []).append(row)
    groups, random = list(frames.values()), np.random.default_rng(seed)
    drawn = []
    for _ in range(repeats):
        chosen = random.integers(len(groups), size=len(groups))
        drawn.append(mean_aps([row for i in chosen for row in groups[i]]))
    ends = {name: np.quantile([d[name] for d in drawn], (0.025, 0.975)) for name in METRICS}
    low, high = ({name: float(end[i]) for name, end in ends.items()} for i in (0, 1))
    return low, high


def check_results(results: Mapping[str, Any], uids: Iterable[str]) -> None:
    """What the challenge checks before it scores.

    Raises:
        ValueError: with what is missing or of another type, and where.
    """
    for field, expected in (("version", VERSION), ("challenge", CHALLENGE)):
        if results.get(field) != expected:
            raise ValueError(f"{field} is {results.get(field)!r}, expected {expected!r}")
    if not isinstance(results.get("results"), Mapping):
        raise ValueError("no `results`: expected an object of lists of detections by uid")
    for uid, rows in results["results"].items():
        for row in rows:
            for name, kind in FIELDS.items():
                value = row.get(name)
                if not isinstance(value, kind) or (name == "box" and len(row[name]) != 4):
                    raise ValueError(f"uid {uid}: {name} is {value!r}, expected {kind.__name__}")
    if missing := sorted(set(uids) - results["results"].keys()):
        some = ", ".join(missing[:5])
        raise ValueError(f"no results for {len(missing)} uids of the annotations, such as {some}")
