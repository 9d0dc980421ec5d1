"""Parts of a batch side by side on a CPU: each on a thread of Python's with one thread of torch's.

Torch's own threads share every single operation instead. In turns with the stepping of worlds that is
slower: DAgger from pixels does 1.33 times the steps with lanes (two cores, LOG.md of 2026-11-28).
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Tensor], Result], parts: Sequence[Tensor], lanes: int
) -> list[Result]:
    """`[work(part) for part in parts]` without gradients, in so many lanes if there is a part for each."""
    work = torch.no_grad()(work)
    if lanes == 1 or len(parts) < lanes:
        return [work(part) for part in parts]
    return list(_pool(lanes).map(work, parts))


def _one_thread() -> None:
    torch.get_num_threads()  # a thread's first question sets its number to that of all
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _pool(lanes: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(lanes, "lane", initializer=_one_thread)
    everyone = Barrier(lanes)  # a pool starts no thread before there is work for it
    list(pool.map(lambda _: everyone.wait(), range(lanes)))
    torch.set_num_threads(before)  # what threads that are yet to come begin with
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a fork
