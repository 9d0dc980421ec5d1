"""Causal attention, and a way to train it on one CPU thread in about 60 % of PyTorch's time.

PyTorch's CPU kernel spends a step at 4k context in small matrix products and in exponentials. Here a
head's queries are taken in blocks against all keys up to the block's end: the products are large,
little is computed above the diagonal, powers of two replace powers of e, and the backward pass gets
P = 2^(S - L) and dS = P (dP - delta) by giving -L and -delta to a matrix product as its bias
(notation of Dao et al. 2022, arXiv 2205.14135, algorithm 4). As there, only the log-sum-exp L is kept
from the forward pass, and all sums are in float32.

Heads and blocks come one after another, so that more threads help only inside the products: with two,
PyTorch's kernel, which divides heads among threads, is the faster one and is used.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK = 256  # queries at a time: their scores against 4,096 keys stay in the cache
SHORTEST = 512  # tokens from which blocks pay


@torch.compiler.assume_constant_result
def one_thread() -> bool:
    """Asked while compiling, once and for all."""
    return torch.get_num_threads() == 1


def causal_attention(
    q_BHNK: Float[Tensor, "B H N K"],
    k_BHNK: Float[Tensor, "B H N K"],
    v_BHNK: Float[Tensor, "B H N K"],
    scale: float | None = None,
) -> Float[Tensor, "B H N K"]:
    """softmax(scale q k^T) v, each query seeing the keys up to its own; scale: 1 / sqrt(K) if None."""
    training = torch.is_grad_enabled() and q_BHNK.requires_grad
    blocks = training and q_BHNK.device.type == "cpu" and q_BHNK.shape[2] >= SHORTEST
    if blocks and one_thread():
        scale = q_BHNK.shape[-1] ** -0.5 if scale is None else scale
        return blockwise_attention(q_BHNK, k_BHNK, v_BHNK, scale)[0]
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, is_causal=True, scale=scale)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias; oneDNN's float32 product has AVX-512, torch.mm's (MKL) on AMD only AVX2.

    A `b` that is neither a whole matrix nor the transpose of one falls into a loop 1,000 times slower.
    """
    if torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def blocks(length: int) -> list[tuple[int, int]]:
    return [(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]


def heads(*tensors: Tensor) -> zip:
    """Each head's matrices in turn."""
    return zip(*(t.contiguous().flatten(0, 1) for t in tensors), strict=True)


# A custom operator: torch.compile leaves it alone instead of unrolling its loops.
@torch.library.custom_op("toto::blockwise_attention", mutates_args=())
def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, K], and log2 of the sums of exponentials, float32 [B, H, N]."""
    q2, above = scale * math.log2(math.e) * q.float(), torch.full((BLOCK, BLOCK), -math.inf).triu(1)
    out, sums = torch.empty(v.shape, dtype=v.dtype), torch.empty(v.shape[:3])
    for queries, keys, values, mixed, logs in heads(q2, k.float(), v, out, sums):
        for first, last in blocks(len(queries)):
            scores = product(queries[first:last], keys[:last])
            scores[:, first:] += above[: last - first, : last - first]
            largest = scores.amax(dim=1, keepdim=True)
            weights = scores.sub_(largest).exp2_()
            total = weights.sum(dim=1, keepdim=True)
            mixed[first:last] = product(weights.to(v.dtype), values[:last].t()) / total
            logs[first:last] = (largest + total.log2()).squeeze(1)
    return out, sums


@blockwise_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("toto::blockwise_attention_backward", mutates_args=())
def blockwise_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    Here a block is [keys, queries], so that the biases are per query; P is scaled through its bias,
    as two of its three uses want it.
    """
    q2, delta = scale * math.log2(math.e) * q.float(), (dout.float() * out.float()).sum(dim=-1)
    dq, dk, dv = torch.empty(q.shape, dtype=q.dtype), torch.zeros(k.shape), torch.zeros(v.shape)
    for queries, queries2, keys, keys32, values, douts, shift, deltas, dqs, dks, dvs in heads(
        q, q2, k, k.float(), v, dout, math.log2(scale) - sums, -delta, dq, dk, dv
    ):
        for first, last in blocks(len(queries)):
            p = product(keys32[:last], queries2[first:last], shift[first:last]).exp2_()
            p[first:].triu_()
            p = p.to(q.dtype)
            ds = product(values[:last], douts[first:last], deltas[first:last]).mul_(p)
            dvs[:last] += product(p, douts[first:last].t())
            dks[:last] += product(ds, queries[first:last].t())
            dqs[first:last] = product(keys[:last].t(), ds.t()).t()
    return dq, dk.to(q.dtype), dv.div_(scale).to(q.dtype)


@blockwise_backward.register_fake
def _(dout, q, k, v, out, sums, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.scale = inputs[3]


def _backward(ctx, dout, _dsums):
    return *blockwise_backward(dout, *ctx.saved_tensors, ctx.scale), None


blockwise_attention.register_autograd(_backward, setup_context=_keep)
