"""Parts side by side give what they give one after another, and leave torch's threads as they were."""

import multiprocessing
import threading

import pytest
import torch

from toto_robot.backbone import load_backbone
from toto_robot.backbone.lanes import side_by_side


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def work(part):
    assert not torch.is_grad_enabled()
    return threading.current_thread().name.split("_")[0], torch.get_num_threads(), part.sum().item()


def test_parts_keep_their_order_and_each_lane_has_one_thread(threads):
    threads(3)
    done = side_by_side(work, torch.arange(8.0).split(1), 3)
    assert done == [("lane", 1, float(i)) for i in range(8)]
    assert torch.get_num_threads() == 3 and torch.is_grad_enabled()


@pytest.mark.parametrize(("lanes", "parts"), [(1, 4), (4, 3)])
def test_with_too_few_lanes_or_parts_the_caller_works(threads, lanes, parts):
    threads(2)
    main = threading.current_thread().name
    assert side_by_side(work, torch.zeros(parts).split(1), lanes) == [(main, 2, 0.0)] * parts


def test_features_are_the_same_whatever_the_number_of_threads(threads):
    backbone = load_backbone("toto-tiny")
    frames = torch.randint(0, 256, (32, 128, 128, 3), dtype=torch.uint8)  # parts of 8 in all three
    features = []
    for number in (1, 2, 4):
        threads(number)
        features.append(backbone(frames))
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[2])


def test_an_error_in_a_lane_is_raised(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda part: 1 / int(part.sum()), torch.tensor([1, 1, 0, 1]).split(1), 2)


def _in_a_fork(results) -> None:
    results.put(side_by_side(work, torch.arange(4.0).split(1), 2))


def test_a_fork_has_lanes_of_its_own(threads):
    threads(2)
    side_by_side(work, torch.zeros(4).split(1), 2)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_in_a_fork, args=(results,))
    process.start()
    assert [row[2] for row in results.get(timeout=30)] == [0.0, 1.0, 2.0, 3.0]
    process.join()
