"""J, F and their statistics against values by hand and a search over all pairs of pixels."""

import math

import numpy as np
import pytest

from pretraining.downstream.davis_metrics import (
    boundary,
    boundary_accuracy,
    dilate,
    region_similarity,
    statistics,
)


def square(top: int, left: int, side: int = 20, shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY = np.zeros((100, 100), bool)


@pytest.mark.parametrize(
    ("truth", "prediction", "j", "f"),
    [
        (square(30, 30), square(30, 30), 1.0, 1.0),
        (square(10, 10), square(60, 60), 0.0, 0.0),
        # One pixel is within ceil(0.008 * 141.4) = 2 pixels everywhere.
        (square(30, 30), square(30, 31), 19 / 21, 1.0),
        # Five pixels: of the outline's 80 pixels, 18 of the upper and of the lower row match, and
        # of the nearer side the 2 below and the 2 above those rows; the other way round alike.
        (square(30, 30), square(30, 35), 15 / 25, 40 / 80),
        # Half of the square: 10 of 20 columns.
        (square(30, 30), square(30, 30) & square(20, 20, side=20), 100 / 400, None),
        (EMPTY, EMPTY, 1.0, 1.0),
        (square(30, 30), EMPTY, 0.0, 0.0),
        (EMPTY, square(30, 30), 0.0, 0.0),
        (~EMPTY, ~EMPTY, 1.0, 1.0),  # no boundary at all
        (~EMPTY, EMPTY, 0.0, 1.0),
    ],
)
def test_by_hand(truth: np.ndarray, prediction: np.ndarray, j: float, f: float | None) -> None:
    assert region_similarity(truth, prediction) == pytest.approx(j)
    assert region_similarity(prediction, truth) == pytest.approx(j)
    if f is not None:
        assert boundary_accuracy(truth, prediction) == pytest.approx(f)


def outline(mask: np.ndarray) -> list[tuple[int, int]]:
    """As the benchmark's words have it: a neighbour right, below or right below differs."""
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [(v, u) for v, u in others if v < height and u < width]
            if any(mask[v, u] != mask[y, x] for v, u in inside):
                found.append((y, x))
    return found


def by_search(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    true, predicted = outline(truth), outline(prediction)
    if not true or not predicted:
        return float(len(true) == len(predicted))

    def share(of: list[tuple[int, int]], near: list[tuple[int, int]]) -> float:
        close = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in near) for y, x in of]
        return sum(close) / len(close)

    precision, recall = share(predicted, true), share(true, predicted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.008, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_ragged_masks_at_the_edges_of_the_picture(seed: int, tolerance: float) -> None:
    random = np.random.default_rng(seed)
    shape = (24, 37)
    truth, prediction = (
        (random.random((2, 6, 10)) < 0.4).repeat(4, axis=1).repeat(4, axis=2)[:, :, : shape[1]]
    )
    assert list(zip(*np.nonzero(boundary(truth)), strict=True)) == outline(truth)
    radius = math.ceil(tolerance * math.hypot(*shape))
    assert boundary_accuracy(truth, prediction, tolerance) == pytest.approx(
        by_search(truth, prediction, radius)
    )


def test_the_tolerance_of_480p_is_eight_pixels() -> None:
    """ceil(0.008 * 979.6): an outline that is 8 pixels off is right, 9 pixels off wrong.

    Of the larger outline's 4 * 216 pixels, those beyond the corners of the smaller one, 4 * 15, are
    farther away; the smaller one's are all near.
    """
    truth, precision = square(100, 100, 200, (480, 854)), 804 / 864
    found = boundary_accuracy(truth, square(92, 92, 216, (480, 854)))
    assert found == pytest.approx(2 * precision / (precision + 1))
    assert boundary_accuracy(truth, square(91, 91, 218, (480, 854))) == 0


def test_dilation_is_a_disk() -> None:
    dot = np.zeros((9, 11), bool)
    dot[4, 5] = True
    y, x = np.mgrid[-4:5, -5:6]
    for radius in range(5):
        assert np.array_equal(dilate(dot, radius), y**2 + x**2 <= radius**2)


def test_statistics_by_hand() -> None:
    """Eight frames: quarters end at frames 1, 3, 5, 6, 8, so 1 to 3 are the first, 6 to 8 the last."""
    found = statistics(np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]))
    assert found.mean == pytest.approx(0.65)
    assert found.recall == 5 / 8  # above, not at, one half
    assert found.decay == pytest.approx(0.9 - 0.4)
    one = statistics(np.array([0.7]))
    assert (one.mean, one.recall, one.decay) == (0.7, 1, 0)
