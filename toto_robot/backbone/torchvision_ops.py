"""torchvision beside a torch of another build: importable, and good enough for detection.

PyPI's torchvision is linked against PyPI's torch (CUDA). Beside another build of the same version its
compiled operators do not load, and `import torchvision` fails: "operator torchvision::nms does not
exist". Everything but these operators is Python. Here the missing names are declared before the
import; of the operators, detection needs two: non-maximum suppression, which is written in torch
below, and RoI align, for which torchvision looks for a version in torch.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INSTALL = (
    "Each torchvision goes with one torch (0.26 with 2.11, … 0.29 with 2.14): pip install "
    "torchvision==0.28.0 beside torch 2.13, with --index-url <where torch came from> if it did not "
    "come from PyPI"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # operators live as long as it does


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Rows of boxes [N, 4] that no better one overlaps by more than the threshold, best first."""
    order = scores.argsort(descending=True, stable=True)
    x = boxes[order]
    area = (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])
    least, most = torch.maximum(x[:, None, :2], x[:, :2]), torch.minimum(x[:, None, 2:], x[:, 2:])
    shared = (most - least).clamp(min=0).prod(-1)
    clear = (shared <= iou_threshold * (area[:, None] + area - shared)).cpu().numpy()
    kept = np.ones(len(x), bool)
    for i in range(len(x)):
        if kept[i]:
            kept[i + 1 :] &= clear[i, i + 1 :]
    return order[torch.from_numpy(kept).to(order.device)]


def align(
    features: Tensor,
    rois: Tensor,
    scale: float,
    height: int,
    width: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """RoI align of features [B, C, H, W] for rois [K, 5] (image, x1, y1, x2, y2), [K, C, height, width].

    Means of samples x samples bilinear readings per cell (He et al. 2017), as torchvision takes them:
    clamped to the outermost pixels' centres. (Its compiled operator gives zero more than a pixel
    outside of the features, where boxes that were clipped to the image have no samples.)
    """
    if samples < 1:
        raise ValueError(f"sampling_ratio={samples}: expected a fixed number of samples per cell")
    limits = torch.tensor(features.shape[:1:-1], device=rois.device)  # W, H
    corner = rois[:, 1:3] * scale - 0.5 * aligned
    size = (rois[:, 3:] - rois[:, 1:3]) * scale
    size = size if aligned else size.clamp(min=1)
    x, y = (
        corner[:, axis, None]
        + (torch.arange(cells * samples, device=rois.device) + 0.5)
        * (size[:, axis, None] / (cells * samples))
        for axis, cells in ((0, width), (1, height))
    )
    place = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    grid = 2 * place / (limits - 1).clamp(min=1) - 1
    out = features.new_zeros(len(rois), features.shape[1], height, width)
    for image in range(len(features)):
        rows = (rois[:, 0] == image).nonzero()[:, 0]
        if len(rows):
            read = F.grid_sample(
                features[image : image + 1],
                grid[rows].flatten(0, 1)[None].to(features.dtype),
                padding_mode="border",
                align_corners=True,
            )
            read = read[0].unflatten(1, (len(rows), -1)).transpose(0, 1)
            out = out.index_copy(0, rows, F.avg_pool2d(read, samples))
    return out


def _forget_torchvision() -> dict[str, ModuleType]:
    """Take its modules out of `sys.modules`; returns them."""
    names = [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    return {name: sys.modules.pop(name) for name in names}


def declare_missing() -> None:
    """Make `import torchvision` possible where its operators do not load; nothing elsewhere."""
    global _library
    if _library is not None:
        return
    present = sys.modules.get("torchvision")
    if present is not None and getattr(present, "__file__", None) is None:
        stand_ins = _forget_torchvision()  # policies/torchvision_stub.py
        if importlib.util.find_spec("torchvision") is None:
            sys.modules.update(stand_ins)
            return
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _forget_torchvision()
        _library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            _library.define(schema)
        _library.impl("nms", suppress, "CompositeExplicitAutograd")


def need_torchvision() -> ModuleType:
    """torchvision with working NMS and RoI align.

    Raises:
        ImportError: there is none, or it is for another version of torch; says what to install.
    """
    try:
        declare_missing()
        torchvision = importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"torchvision cannot be imported ({error}). {INSTALL}") from error
    if _library is not None:
        boxes, roi_align = (
            importlib.import_module(f"torchvision.ops.{n}") for n in ("boxes", "roi_align")
        )
        vars(boxes)["_assert_has_ops"] = lambda: None
        # Its own would compile itself, which takes a C++ compiler; uncompiled it is 100 times slower.
        vars(roi_align)["_roi_align"] = align
    return torchvision
