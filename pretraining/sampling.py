"""Which sample comes when, as a pure function: nothing to save, nothing to seek.

Sample k of a run is position k mod N of epoch k div N, and each epoch is a permutation of 0..N-1
computed index by index by a Feistel network keyed with (seed, epoch). So the state of the data
loader is (seed, samples seen, hash of the manifest), whatever the batch size or the number of ranks:
checkpoints hold the step, and refuse another seed or another manifest.
"""

import numpy as np
from jaxtyping import Int

ROUNDS = 4


def mix(
    values: Int[np.ndarray, " n"], key: int | np.integer | Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """splitmix64 (Steele et al. 2014): a hash of 64-bit integers."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.asarray(key, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def round_keys(seed: int, epochs: Int[np.ndarray, " n"]) -> Int[np.ndarray, "rounds n"]:
    start = mix(np.array([seed]), 1) ^ mix(epochs, 2)
    return np.stack([mix(start, 3 + i) for i in range(ROUNDS)])


def permute(
    indices: Int[np.ndarray, " n"], size: int, seed: int, epoch: int | Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Where a permutation of 0..size-1, chosen by (seed, epoch), sends each index.

    A Feistel network permutes 0..2^(2b)-1, the smallest such range that holds `size`; indices that
    land outside walk on until they are inside ("cycle walking"), fewer than four steps on average.

    Args:
        epoch: one for all indices, or one for each.
    """
    if indices.size and not (0 <= indices.min() and indices.max() < size):
        raise ValueError(f"indices must lie in 0..{size - 1}, got {indices.min()}..{indices.max()}")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    one = np.ndim(epoch) == 0
    keys = round_keys(seed, np.atleast_1d(epoch))
    result = indices.astype(np.uint64)
    pending = np.ones(result.shape, bool)
    while pending.any():
        left, right = result[pending] >> half, result[pending] & low
        for key in keys if one else keys[:, pending]:
            left, right = right, left ^ (mix(right, key) & low)
        result[pending] = (left << half) | right
        pending = result >= size
    return result.astype(np.int64)


def draw(seed: int, numbers: Int[np.ndarray, " B"], size: int) -> Int[np.ndarray, " B"]:
    """Indices (0..size-1) of a run's samples of these numbers; each epoch holds every index once."""
    if size < 1:
        raise ValueError("the data set has no samples")
    return permute(numbers % size, size, seed, numbers // size)
