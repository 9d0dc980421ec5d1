"""Region similarity J, boundary accuracy F, and their statistics, as the DAVIS-2017 benchmark has them.

Perazzi et al. 2016 define them, Pont-Tuset et al. 2017 take their means over objects; in what the
papers leave open (empty masks, the half-pixel of a boundary, what "recall" and "decay" are), this
follows the benchmark's own program, davis2017-evaluation.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

BOUNDARY_TOLERANCE = 0.008  # of the picture's diagonal
RECALL_ABOVE = 0.5
QUARTERS = 4  # of a video; decay is first minus last

Mask = Bool[np.ndarray, "H W"]


def region_similarity(truth: Mask, prediction: Mask) -> float:
    """J, the intersection over the union; 1 where both are empty."""
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


def boundary(mask: Mask) -> Mask:
    """Pixels whose right, lower or lower right neighbour is on the other side.

    One pixel wide, and half a pixel towards the origin from the outline itself. Past the last row
    and column there is nothing to differ from.
    """
    found = np.zeros_like(mask)
    found[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    found[:-1] |= mask[:-1] ^ mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return found


def dilate(mask: Mask, radius: int) -> Mask:
    """All pixels within `radius` of a set one: dilation by a disk, row by row of the disk."""
    height, width = mask.shape
    padded = np.pad(mask, radius)
    sums = np.zeros((len(padded), padded.shape[1] + 1), np.int32)  # of what lies to the left
    np.cumsum(padded, axis=1, out=sums[:, 1:], dtype=np.int32)
    grown = np.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - dy**2)
        rows = sums[radius + dy : radius + dy + height]
        after = rows[:, radius + half + 1 : radius + half + 1 + width]
        grown |= after > rows[:, radius - half : radius - half + width]
    return grown


def boundary_accuracy(
    truth: Mask, prediction: Mask, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """F, the harmonic mean of precision and recall of the predicted boundary.

    A boundary pixel is right if the other boundary comes within `tolerance` diagonals of it, rounded
    up to whole pixels. Of two masks without boundary F is 1, of one it is 0.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    predicted, true = boundary(prediction), boundary(truth)
    if not predicted.any() or not true.any():
        return float(predicted.any() == true.any())
    where = np.nonzero(predicted | true)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in where)  # nothing is outside of it
    predicted, true = predicted[box], true[box]
    precision = np.mean(dilate(true, radius)[predicted])
    recall = np.mean(dilate(predicted, radius)[true])
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


@dataclass(frozen=True)
class Statistics:
    """Of one measure over the frames of one object."""

    mean: float
    recall: float  # share of frames above RECALL_ABOVE
    decay: float  # mean of the first quarter of the frames less that of the last


def statistics(values: Float[np.ndarray, " T"]) -> Statistics:
    """Quarters share the frame between them, and ends are rounded half up, as in the benchmark."""
    ends = np.round(np.linspace(1, len(values), QUARTERS + 1) + 1e-10).astype(int) - 1
    first, last = values[: ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return Statistics(
        mean=float(values.mean()),
        recall=float(np.mean(values > RECALL_ABOVE)),
        decay=float(first.mean() - last.mean()),
    )
