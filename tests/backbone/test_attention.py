"""Attention in blocks against its definition in float64, and against PyTorch's kernel."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toto_robot.backbone import attention
from toto_robot.backbone.attention import SHORTEST, blockwise_attention, causal_attention
from toto_robot.backbone.decoder import Decoder, DecoderConfig


def inputs(length: int, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> list[Tensor]:
    """q, k, v as the decoder makes them (views into one tensor), and a gradient of the output."""
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(2, length, 3, 3, 8, generator=generator)
    qkv[:, :, :2] *= spread
    gradient = torch.randn(2, 3, length, 8, generator=generator)
    return [*qkv.to(dtype).permute(2, 0, 3, 1, 4), gradient.to(dtype)]


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(future, -math.inf)
    return scores.softmax(dim=-1) @ v


def with_gradients(function, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def in_blocks(scale: float):
    return lambda q, k, v: blockwise_attention(q, k, v, scale)[0]


@pytest.mark.parametrize(("length", "scale"), [(1, 0.3), (64, 0.3), (200, 0.05)])
def test_equals_definition_and_pytorch(
    monkeypatch: pytest.MonkeyPatch, length: int, scale: float
) -> None:
    """Whole and broken blocks."""
    monkeypatch.setattr(attention, "BLOCK", 64)
    tensors = inputs(length)
    ours = with_gradients(in_blocks(scale), *tensors)
    exact = with_gradients(
        lambda q, k, v: definition(q, k, v, scale), *(x.double() for x in tensors)
    )
    theirs = with_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale),
        *tensors,
    )
    for own, truth, other in zip(ours, exact, theirs, strict=True):
        torch.testing.assert_close(own, truth.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "spread"), [(torch.bfloat16, 1), (torch.float32, 30)])
def test_as_exact_as_pytorchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, spread: float
) -> None:
    """Where rounding shows: in 8 bits, and with scores in the thousands."""
    monkeypatch.setattr(attention, "BLOCK", 64)
    tensors = inputs(300, dtype, spread)
    scale = 8**-0.5
    exact = with_gradients(
        lambda q, k, v: definition(q, k, v, scale), *(x.double() for x in tensors)
    )
    theirs = with_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *tensors
    )
    for own, other, truth in zip(
        with_gradients(in_blocks(scale), *tensors), theirs, exact, strict=True
    ):
        assert own.dtype == dtype
        errors = [(x.double() - truth).square().mean().sqrt() for x in (own, other)]
        assert errors[0] < 1.5 * errors[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = attention.blockwise_attention

    def spy(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(attention, "blockwise_attention", spy)
    q, k, v, _ = (x.requires_grad_() for x in inputs(SHORTEST))
    with torch.no_grad():
        expected = causal_attention(q, k, v)
    causal_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:])
    assert not calls
    out = causal_attention(q, k, v)
    assert len(calls) == 1 and calls[0][3] == 8**-0.5
    torch.set_num_threads(2)
    causal_attention(q, k, v)
    assert len(calls) == 1
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_operator_is_registered_as_pytorch_wants_it() -> None:
    """Shapes without data, gradients, tracing: what torch.compile relies upon."""
    q, k, v, _ = (x.contiguous().requires_grad_() for x in inputs(20))
    torch.library.opcheck(blockwise_attention, (q, k, v, 0.3))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_model_trains_the_same(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(dim=32, heads=2, layers=2, mlp=48, vocabulary=60))
    tokens = torch.randint(64, (1, SHORTEST + 89))
    results = []
    for shortest in (SHORTEST, 10**9):
        monkeypatch.setattr(attention, "SHORTEST", shortest)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model.loss(tokens)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for own, other in zip(*results, strict=True):
        near = 0.03 * other.abs().amax().item() if bfloat16 else 1e-5
        torch.testing.assert_close(own, other, atol=near, rtol=0.0 if bfloat16 else 1e-5)
