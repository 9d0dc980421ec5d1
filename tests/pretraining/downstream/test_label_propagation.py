"""Label propagation against the whole affinity matrix, and on features whose motion is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretraining.downstream.label_propagation import (
    PRESETS,
    Propagator,
    Rules,
    far_away,
    to_mask,
    token_labels,
)

SIDE = 6


def dense(rules: Rules, features: list[torch.Tensor], first: torch.Tensor) -> list[torch.Tensor]:
    """All similarities to all frames looked at, sorted whole: the two programs, as they read."""
    normal = [F.normalize(x, dim=1) for x in features]
    labels = [first]
    for t in range(1, len(features)):
        if rules.fill:  # the video begins with copies of its first frame
            window = [0, *[max(0, t - i) for i in range(rules.context, 0, -1)]]
        else:  # a queue that the first frame never enters
            window = [0, *range(max(1, t - rules.context), t)]
        columns, values = [], []
        for number, frame in enumerate(window):
            scores = normal[t] @ normal[frame].T
            for q in range(SIDE**2):
                for k in range(SIDE**2):
                    dy, dx = abs(q // SIDE - k // SIDE), abs(q % SIDE - k % SIDE)
                    near = (
                        (dy**2 + dx**2) ** 0.5 < rules.radius
                        if rules.neighbourhood == "disk"
                        else max(dy, dx) <= rules.radius
                    )
                    if not near and not (number == 0 and rules.first_everywhere):
                        scores[q, k] = -1e10
            columns.append(scores)
            values.append(labels[frame])
        order = torch.cat(columns, 1).sort(dim=1, descending=True)
        weights = torch.softmax(order.values[:, : rules.top_k] / rules.temperature, dim=1)
        chosen = torch.cat(values)[order.indices[:, : rules.top_k]]
        labels.append((weights[..., None] * chosen).sum(1))
    return labels[1:]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_against_the_whole_matrix(preset: str) -> None:
    torch.manual_seed(0)
    rules = replace(PRESETS[preset], context=3, radius=2, top_k=4)
    features = [torch.randn(SIDE**2, 8) for _ in range(6)]
    first = F.one_hot(torch.randint(3, (SIDE**2,)), 3).float()
    carrier = Propagator(rules, features[0], first)
    for state, expected in zip(features[1:], dense(rules, features, first), strict=True):
        labels = carrier.step(state)
        torch.testing.assert_close(labels, expected)
        torch.testing.assert_close(labels.sum(1), torch.ones(SIDE**2))
    assert len(carrier.past) == 3


def moved(grid: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    return grid.unflatten(0, (SIDE, SIDE)).roll((dy, dx), (0, 1)).flatten(0, 1)


@pytest.mark.parametrize(("radius", "found"), [(0, True), (2, True), (1, False)])
def test_labels_follow_their_tokens(radius: float, found: bool) -> None:
    """Every token unlike all others, two places to the right in each frame."""
    rules = replace(
        PRESETS["dino"], top_k=1, radius=radius, context=1, first_everywhere=False, fill=True
    )
    tokens = torch.eye(SIDE**2)
    first = F.one_hot(torch.arange(SIDE**2) % SIDE // 2, 3).float()
    labels = Propagator(rules, tokens, first).step(moved(tokens, 0, 2))
    inner = torch.arange(SIDE**2) % SIDE >= 2  # the others came round the edge
    same = torch.equal(labels[inner], moved(first, 0, 2)[inner])
    assert same == found


def test_the_first_frame_is_never_forgotten() -> None:
    rules = replace(PRESETS["dino"], top_k=1, radius=0, context=1)
    tokens = torch.eye(SIDE**2)
    first = F.one_hot(torch.arange(SIDE**2) % 2, 2).float()
    carrier = Propagator(rules, tokens, first)
    torch.manual_seed(0)
    for _ in range(3):  # nothing like the first frame
        carrier.step(torch.randn(SIDE**2, SIDE**2) - 3)
    assert torch.equal(carrier.step(tokens), first)


def test_neighbourhoods_by_hand() -> None:
    """Of the token in the middle of 5 x 5."""
    near = far_away(5, replace(PRESETS["stc"], radius=2), "cpu")
    assert near is not None
    disk = ~near[12].view(5, 5)
    assert disk.int().tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    square = far_away(5, replace(PRESETS["dino"], radius=1), "cpu")
    assert square is not None and torch.equal(square[12].view(5, 5), ~disk)
    assert far_away(5, replace(PRESETS["dino"], radius=0), "cpu") is None


@pytest.mark.parametrize("soft", [True, False])
def test_a_mask_on_tokens_and_back(soft: bool) -> None:
    """Edges on the grid of tokens, of a picture that is no square."""
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, 16:32] = 1
    mask[8:16, 48:64] = 2
    labels = token_labels(mask, 2, resolution=32, side=8, soft=soft)
    assert labels.shape == (64, 3) and torch.equal(labels.sum(1), torch.ones(64))
    back = to_mask(labels, 32, mask.shape, normalise=False)
    assert back.shape == mask.shape
    assert (back != mask).mean() < 0.02  # corners are rounded by the bilinear enlargement
    assert torch.equal(labels.argmax(1).view(8, 8)[2:6, 2:4], torch.ones(4, 2).long())


def test_normalising_lets_a_faint_object_win() -> None:
    labels = torch.tensor([[0.9, 0.1]] * 15 + [[0.7, 0.3]])
    assert to_mask(labels, 16, (16, 16), normalise=False).max() == 0
    assert to_mask(labels, 16, (16, 16), normalise=True)[-1, -1] == 1


def test_wrong_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        replace(PRESETS["stc"], temperature=0)
    with pytest.raises(ValueError, match="'disk'"):
        replace(PRESETS["stc"], neighbourhood="disc")  # pyright: ignore[reportArgumentType]
