"""Packed matrices: half a step of error at most, exact bytes, damage is found."""

import pytest
import torch

from toto_robot.backbone.packing import BITS, pack, pack_all, unpack, unpack_all


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(3, 5), (8, 16), (1, 1)])
def test_round_trip_is_within_half_a_step(bits: int, shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, scales = pack(matrix, bits)
    again = unpack(packed, scales, bits, shape)
    assert ((again - matrix).abs() <= scales / 2 + 1e-6).all()
    assert packed.numel() <= -(-matrix.numel() * bits // 8) + 2
    repacked, _ = pack(again, bits)
    assert torch.equal(repacked, packed), "what was unpacked packs to the same bytes"


def test_by_hand() -> None:
    """Rows of scale 1 and 2 in 4 bits: -7..7 are stored as 0..14, the first in the low half."""
    packed, scales = pack(torch.tensor([[7.0, -7.0], [14.0, 2.0]]), 4)
    assert scales.flatten().tolist() == [1.0, 2.0]
    assert packed.tolist() == [14 + 16 * 0, 14 + 16 * 8]


def test_only_matrices_below_the_prefix() -> None:
    tensors = {"decoder.a": torch.randn(4, 4), "decoder.norm": torch.randn(4),
               "encoder.w": torch.randn(2, 2)}  # fmt: skip
    packed, how = pack_all(tensors, "decoder.", 6)
    assert set(how) == {"decoder.a"} and packed["decoder.a"].dtype == torch.uint8
    again = unpack_all(packed, how)
    assert again.keys() == tensors.keys()
    assert torch.equal(again["decoder.norm"], tensors["decoder.norm"])
    assert torch.equal(again["encoder.w"], tensors["encoder.w"])
    assert (again["decoder.a"] - tensors["decoder.a"]).abs().max() < 0.1


def test_a_zero_row_and_wrong_sizes() -> None:
    packed, scales = pack(torch.zeros(2, 4), 6)
    assert torch.equal(unpack(packed, scales, 6, (2, 4)), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="5 bytes.*expected 6 bytes"):
        unpack(packed[:5], scales, 6, (2, 4))
    with pytest.raises(ValueError, match="bits=5"):
        pack(torch.zeros(2, 4), 5)
