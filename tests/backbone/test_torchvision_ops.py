"""What stands in for torchvision's compiled operators, against definitions and torchvision itself."""

import importlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from toto_robot.backbone import torchvision_ops
from toto_robot.backbone.torchvision_ops import align, need_torchvision, suppress


def boxes_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 50
    sizes = 5 + torch.rand(count, 2, generator=generator) * 25
    return torch.cat([corners, corners + sizes], 1), torch.rand(count, generator=generator)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = sides.clip(0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def test_suppression_keeps_the_best_of_each_heap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    assert suppress(boxes, torch.tensor([0.5, 0.9, 0.3]), 0.5).tolist() == [1, 2]
    assert suppress(boxes[:0], torch.zeros(0), 0.5).tolist() == []
    boxes, scores = boxes_of(80, seed=1)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i].numpy(), boxes[j].numpy()) <= 0.4 for j in kept):
            kept.append(i)
    assert 5 < len(kept) < 80
    assert suppress(boxes, scores, 0.4).tolist() == kept


def test_align_reads_a_plane_exactly():
    # Bilinear readings of f(x, y) = 2 x + 3 y are exact; a cell's mean is f at its middle.
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    plane = (2 * x + 3 * y)[None, None]
    (cells,) = align(plane, torch.tensor([[0.0, 4, 8, 20, 16]]), 0.5, 2, 4, 2, False)
    middles_x, middles_y = torch.tensor([3.0, 5, 7, 9]), torch.tensor([5.0, 7])
    assert torch.allclose(cells[0], 2 * middles_x + 3 * middles_y[:, None])


@pytest.mark.parametrize("aligned", [False, True])
def test_align_is_torchvision_s(aligned):
    try:
        need_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    spec = importlib.util.find_spec("torchvision.ops.roi_align")
    assert spec is not None and spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    boxes, _ = boxes_of(30, seed=2)
    rois = torch.cat([torch.arange(30.0)[:, None] % 2, boxes * 2 - 10], 1)  # some stick out
    features = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(3))
    args = (features, rois, 0.25, 3, 5, 2, aligned)
    assert torch.allclose(align(*args), theirs._roi_align.__wrapped__(*args), atol=1e-5)
    with pytest.raises(ValueError, match="fixed number of samples"):
        align(features, rois, 0.25, 3, 5, 0, aligned)


def test_a_missing_torchvision_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(torchvision_ops, "declare_missing", lambda: None)
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision==0.28.0"):
        need_torchvision()


AFTER_ROBOMIMIC = """
import policies.robomimic_bc  # stands empty modules in torchvision's place where it does not load
from toto_robot import load_backbone
print(load_backbone("dinov2-small", weights="random", layer=0).feature_shape)
"""


def test_timm_s_encoders_load_beside_robomimic():
    for module in ("robomimic", "timm"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    run = [sys.executable, "-c", AFTER_ROBOMIMIC]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.endswith("(64, 384)\n"), ended.stderr
