"""Weights in few bits per number, so that a larger model fits into a repository or a package.

A matrix is stored row by row as integers of `bits` bits with one scale per row (symmetric,
round to nearest). Models compute with the numbers that come out, in float32 or bfloat16: packing saves
disk, not memory. Vectors (norms) and the tokenizer stay as they are: a code must not change.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BITS = (4, 6, 8)
SCALES = ".scale"  # name of a packed matrix's row scales: <name>.scale


def pack(matrix: Float[Tensor, "R C"], bits: int) -> tuple[UInt8[Tensor, " bytes"], Tensor]:
    """Bytes and float32 scales [R, 1]; ValueError for other widths than `BITS`."""
    if bits not in BITS:
        raise ValueError(f"bits={bits}: expected one of {', '.join(map(str, BITS))}")
    largest = 2 ** (bits - 1) - 1
    scales = matrix.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / largest
    values = (matrix / scales).round().clamp(-largest, largest).to(torch.int64) + largest
    per_group, group_bytes = _grouping(bits)
    flat = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % per_group))
    word = (flat.view(-1, per_group) << (bits * torch.arange(per_group))).sum(dim=1)
    return _bytes_of(word, group_bytes), scales


def unpack(
    packed: UInt8[Tensor, " bytes"], scales: Tensor, bits: int, shape: tuple[int, int]
) -> Float[Tensor, "R C"]:
    """The float32 matrix again; ValueError when the bytes are too few or too many for its shape."""
    per_group, group_bytes = _grouping(bits)
    groups = -(-shape[0] * shape[1] // per_group)
    if packed.numel() != groups * group_bytes or scales.shape != (shape[0], 1):
        raise ValueError(
            f"{packed.numel()} bytes and scales {tuple(scales.shape)} are no {bits}-bit matrix of "
            f"{shape[0]}x{shape[1]}: expected {groups * group_bytes} bytes, scales {(shape[0], 1)}"
        )
    places = 8 * torch.arange(group_bytes)
    word = (packed.view(-1, group_bytes).to(torch.int64) << places).sum(dim=1)
    values = (word[:, None] >> (bits * torch.arange(per_group))) & (2**bits - 1)
    largest = 2 ** (bits - 1) - 1
    return (values.flatten()[: shape[0] * shape[1]] - largest).view(shape).float() * scales


def _grouping(bits: int) -> tuple[int, int]:
    """Numbers that fill whole bytes together, and how many bytes: 6 bits are 4 numbers in 3."""
    return {4: (2, 1), 6: (4, 3), 8: (1, 1)}[bits]


def _bytes_of(word: Tensor, count: int) -> UInt8[Tensor, " bytes"]:
    return ((word[:, None] >> (8 * torch.arange(count))) & 255).to(torch.uint8).flatten()


def pack_all(
    tensors: Mapping[str, Tensor], prefix: str, bits: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Pack every matrix whose name begins with `prefix`; the tensors to save and how to read them."""
    result, how = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(prefix) and tensor.ndim == 2:
            result[name], result[name + SCALES] = pack(tensor, bits)
            how[name] = {"bits": bits, "shape": list(tensor.shape)}
        else:
            result[name] = tensor
    return result, how


def unpack_all(tensors: Mapping[str, Tensor], how: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `pack_all` was given, up to rounding; tensors that were not packed as they are."""
    result = {name: t for name, t in tensors.items() if name.removesuffix(SCALES) not in how}
    for name, about in how.items():
        scales = tensors[name + SCALES]
        result[name] = unpack(tensors[name], scales, about["bits"], tuple(about["shape"]))
    return result
