"""Attention pooling: equal to textbook cross-attention, and able to find a small thing."""

import pytest
import torch
import torch.nn.functional as F

from toto_robot.backbone import AttentionPool
from toto_robot.backbone.pooling import sine_positions


def test_equals_cross_attention_with_folded_projections() -> None:
    """Textbook queries q, keys W_k x, values W_v x and output W_o, folded: W_k^T q / sqrt(D) and W_o W_v."""
    torch.manual_seed(0)
    B, N, D, Q = 2, 16, 12, 3
    pool = AttentionPool(D, N, num_queries=Q, out_features=5)
    queries, keys, values = torch.randn(Q, D), torch.randn(D, D), torch.randn(D, D)
    merge = torch.randn(5, Q, D)
    with torch.no_grad():
        pool.queries.copy_(queries @ keys / D**0.5)
        pool.out.weight.copy_(torch.einsum("oqd,de->oqe", merge, values).flatten(1))
    tokens = torch.randn(B, N, D)
    x = pool.norm(tokens) + pool.positions
    seen = F.scaled_dot_product_attention(queries.expand(B, Q, D), x @ keys.T, x @ values.T)
    expected = torch.einsum("bqd,oqd->bo", seen, merge) + pool.out.bias
    torch.testing.assert_close(pool(tokens), expected, atol=1e-3, rtol=1e-3)


def test_finds_where_one_token_differs() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(32, 64, num_queries=4, out_features=2)
    optimizer = torch.optim.Adam(pool.parameters(), lr=3e-3)
    marker = torch.randn(32) * 3

    def sample(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.randint(64, (count,))
        tokens = torch.randn(count, 64, 32)
        tokens[torch.arange(count), place] += marker
        return tokens, torch.stack([place // 8, place % 8], 1) / 7.0 - 0.5

    for _ in range(200):
        tokens, target = sample(64)
        loss = F.mse_loss(pool(tokens), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, target = sample(256)
    with torch.no_grad():
        error = F.mse_loss(pool(tokens), target) / target.var()
    assert error < 0.2  # R^2 above 0.8


def test_half_precision_is_computed_in_single() -> None:
    pool = AttentionPool(32, 64)
    tokens = torch.randn(2, 64, 32).half()
    assert torch.equal(pool(tokens), pool(tokens.float()))
    assert pool(tokens).dtype == torch.float32


def test_positions_are_distinct() -> None:
    positions = sine_positions(64, 32)
    assert positions.shape == (64, 32)
    distances = torch.cdist(positions, positions) + torch.eye(64) * 100
    assert distances.min() > 0.1
    assert sine_positions(7, 10).shape == (7, 10)


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 64, 32\)"):
        AttentionPool(32, 64)(torch.zeros(2, 16, 32))
