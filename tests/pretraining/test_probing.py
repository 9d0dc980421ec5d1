"""Read-outs: they find what is there, and nothing where there is nothing."""

import pytest
import torch

from pretraining.probing import (
    CLASS_RATES,
    HEADS,
    AttentiveHead,
    CrossHead,
    Split,
    average_grid,
    fit_attention,
    fit_classes,
    fit_cnn,
    fit_ridge,
    r_squared,
)


def split_of(x: torch.Tensor, y: torch.Tensor, train: int) -> Split:
    return Split(x[:train], y[:train], x[train:], y[train:])


def moving_dot(count: int, side: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token grids of noise with one marked token, and that token's row and column in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    tokens = 0.3 * torch.randn(count, side * side, width, generator=generator)
    place = torch.randint(side * side, (count,), generator=generator)
    tokens[torch.arange(count), place, 0] += 5.0
    where = torch.stack([place // side, place % side], 1).float() / (side - 1) * 2 - 1
    return tokens, where


def test_r_squared_by_hand():
    target = torch.tensor([[0.0], [1.0], [2.0]])
    assert r_squared(target, target).item() == 1.0
    assert r_squared(torch.ones(3, 1), target).item() == pytest.approx(0.0)
    assert r_squared(torch.tensor([[0.0], [1.0], [1.0]]), target).item() == pytest.approx(0.5)


def test_ridge_recovers_a_linear_map_and_not_noise():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 3, 8, generator=generator)
    y = x.flatten(1) @ torch.randn(24, 2, generator=generator)
    found = split_of(x, y, 300)
    assert (r_squared(fit_ridge(found), found.test_y) > 0.999).all()
    noise = split_of(x, torch.randn(400, 2, generator=generator), 300)
    assert (r_squared(fit_ridge(noise), noise.test_y) < 0.1).all()


def test_attention_finds_the_place_that_the_mean_loses():
    tokens, where = moving_dot(2500, side=8, width=32)
    found = split_of(tokens, where, 2000)
    mean = split_of(average_grid(tokens, 1), where, 2000)
    assert (r_squared(fit_attention(found, epochs=25), where[2000:]) > 0.9).all()
    assert (r_squared(fit_ridge(mean), where[2000:]) < 0.2).all()


def test_cnn_finds_a_bright_square():
    generator = torch.Generator().manual_seed(2)
    frames = torch.zeros(300, 32, 32, 3, dtype=torch.uint8)
    corner = torch.randint(0, 26, (300, 2), generator=generator)
    for frame, (top, left) in zip(frames, corner.tolist(), strict=True):
        frame[top : top + 6, left : left + 6] = torch.tensor([200, 30, 30], dtype=torch.uint8)
    found = split_of(frames, corner.float() / 26, 240)
    assert (r_squared(fit_cnn(found, epochs=15), found.test_y) > 0.8).all()


def test_grid_averages_neighbours():
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert average_grid(tokens, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(ValueError, match="3 x 3"):
        average_grid(tokens, 3)


@pytest.mark.parametrize("pooling", HEADS)
def test_classifiers_find_classes_and_nothing_where_there_is_nothing(pooling: str):
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(4, (480,), generator=generator)
    x = torch.randn(480, 6, 16, generator=generator)
    x[:, :, :4] += 4 * torch.eye(4)[classes][:, None]

    def accuracy(y: torch.Tensor) -> float:
        found = split_of(x, y, 360)
        logits, rate = fit_classes(found, 4, pooling, lambda part: part, 16, epochs=12)
        assert logits.shape == (120, 4) and rate in CLASS_RATES
        return (logits.argmax(1) == found.test_y).float().mean().item()

    assert accuracy(classes) == 1.0
    assert accuracy(classes[torch.randperm(480, generator=generator)]) < 0.4  # chance: 0.25


@pytest.mark.slow
def test_attention_pooling_finds_the_marked_token_that_the_mean_dilutes():
    """One of 64 tokens says the class; the others say all classes at random."""
    generator = torch.Generator().manual_seed(4)
    classes = torch.randint(4, (1200,), generator=generator)
    said = torch.randint(4, (1200, 64), generator=generator)
    place = torch.randint(64, (1200,), generator=generator)
    said[torch.arange(1200), place] = classes
    x = torch.zeros(1200, 64, 16)
    x[..., :4] = torch.eye(4)[said]
    x[torch.arange(1200), place, 5] = 1.0
    found = split_of(x + 0.1 * torch.randn(x.shape, generator=generator), classes, 1000)
    hits = {}
    for pooling in ("mean", "attention", "cross"):
        logits, _ = fit_classes(found, 4, pooling, lambda part: part, 16, epochs=30)
        hits[pooling] = (logits.argmax(1) == found.test_y).float().mean().item()
    assert hits["attention"] > 0.9 and hits["cross"] > 0.9 and hits["mean"] < 0.6


def test_attentive_head_equals_the_formula():
    """z = softmax(q K^T / sqrt(d)) V of the paper's section 3.5, for one head."""
    torch.manual_seed(0)
    head = AttentiveHead(8, 3, head_width=8).eval()
    tokens = torch.randn(2, 5, 8)
    keys, values = tokens @ head.key.weight.T, tokens @ head.value.weight.T
    weights = (keys @ head.query / 8**0.5).softmax(dim=1)
    expected = head.out((weights[..., None] * values).sum(1))
    assert torch.allclose(head(tokens), expected, atol=1e-5)


def test_cross_head_equals_the_formula():
    """z = q + W_o softmax(W_q q (W_k H)^T / sqrt(d)) W_v H, then z + MLP(LayerNorm(z)), for one head."""
    torch.manual_seed(0)
    head = CrossHead(8, 3, head_width=8).eval()
    tokens = torch.randn(2, 5, 8)
    query, key, value = head.attention.in_proj_weight.chunk(3)
    weights = (tokens @ key.T @ (query @ head.query) / 8**0.5).softmax(dim=1)
    mixed = (weights[..., None] * (tokens @ value.T)).sum(1)  # biases begin at zero
    z = head.query + mixed @ head.attention.out_proj.weight.T
    normal = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    first, last = head.mlp[1], head.mlp[3]
    assert isinstance(first, torch.nn.Linear) and isinstance(last, torch.nn.Linear)
    wide = torch.nn.functional.gelu(normal @ first.weight.T + first.bias)
    expected = z + wide @ last.weight.T + last.bias
    assert wide.shape == (2, 32)
    assert torch.allclose(head(tokens), head.out(expected), atol=1e-5)
    with pytest.raises(ValueError, match="width 131 does not divide into 2 heads"):
        CrossHead(131, 3)
