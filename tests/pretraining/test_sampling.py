"""Sampling without state: a bijection, the same samples whatever the batch size."""

import numpy as np
import pytest

from pretraining.sampling import draw, permute


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    for epoch in (0, 1):
        assert sorted(permute(np.arange(size), size, seed=5, epoch=epoch)) == list(range(size))


def test_seed_and_epoch_give_other_orders() -> None:
    first = permute(np.arange(1000), 1000, seed=0, epoch=0)
    for seed, epoch in ((0, 1), (1, 0)):
        other = permute(np.arange(1000), 1000, seed=seed, epoch=epoch)
        assert (first == other).mean() < 0.02
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


def test_batches_do_not_matter() -> None:
    """100 samples in steps of 7 are those drawn at once, over more than one epoch of 37."""
    whole = draw(3, np.arange(105), 37)
    parts = [draw(3, np.arange(k, k + 7), 37) for k in range(0, 105, 7)]
    assert np.array_equal(whole, np.concatenate(parts))
    for epoch in range(2):
        assert sorted(whole[epoch * 37 : (epoch + 1) * 37]) == list(range(37))
        one = permute(np.arange(37), 37, seed=3, epoch=epoch)
        assert np.array_equal(whole[epoch * 37 : (epoch + 1) * 37], one)


def test_order_stays_what_it_was() -> None:
    """A run is resumed by drawing the same numbers again, perhaps with a later version of this."""
    assert permute(np.arange(10), 10, seed=5, epoch=3).tolist() == [8, 7, 6, 5, 9, 1, 0, 3, 4, 2]


def test_wrong_index() -> None:
    with pytest.raises(ValueError, match="0..9"):
        permute(np.array([10]), 10, 0, 0)
    with pytest.raises(ValueError, match="no samples"):
        draw(0, np.arange(1), 0)
