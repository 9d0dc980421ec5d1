"""Colour weights and whitening: their normalisations, and that rarity counts."""

import pytest
import torch

from pretraining.colours import (
    LEVELS,
    colour_index,
    colour_weights,
    colour_whitening,
    pixel_weights,
)


def scene() -> torch.Tensor:
    """White pictures with a little noise and a red square of 1 % of the area."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(225, 256, (8, 40, 40, 3), dtype=torch.uint8, generator=generator)
    frames[:, 4:8, 4:8] = torch.tensor([200, 10, 10], dtype=torch.uint8)
    return frames


@pytest.mark.parametrize("temper", [0.0, 0.5, 1.0])
def test_mean_weight_is_one(temper: float) -> None:
    frames = scene()
    weights = pixel_weights(frames, colour_weights(frames, temper=temper))
    assert weights.shape == (8, 1, 40, 40)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-4)


def test_rare_colours_weigh_more_within_the_limit() -> None:
    frames = scene()
    weights = pixel_weights(frames, colour_weights(frames, temper=0.8, largest=20.0))[:, 0]
    ratio = (weights[:, 5, 5] / weights[:, 20, 20]).mean().item()
    assert 3 < ratio <= 20.001
    flat = pixel_weights(frames, colour_weights(frames, temper=0.0))
    torch.testing.assert_close(flat, torch.ones_like(flat))


def test_colour_index_covers_all_levels() -> None:
    corners = torch.tensor([[0, 0, 0], [255, 255, 255], [16, 0, 0]], dtype=torch.uint8)
    assert colour_index(corners).tolist() == [0, LEVELS**3 - 1, LEVELS**2]


def test_whitening_evens_out_the_spread_and_keeps_the_total() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn(64, 32, 32, 1, generator=generator) * 50
    colour = torch.randn(64, 32, 32, 3, generator=generator) * 8
    frames = (128 + grey + colour).clamp(0, 255).to(torch.uint8)
    pixels = frames[:, ::4, ::4].reshape(-1, 3) / 255
    before = torch.cov(pixels.T)
    for temper in (0.5, 1.0):
        matrix = colour_whitening(frames, temper=temper)
        after = torch.linalg.eigvalsh(matrix @ before @ matrix.T)
        assert after.sum().item() == pytest.approx(before.trace().item(), rel=0.03)
        spread = torch.linalg.eigvalsh(before)
        expected = (spread.max() / spread.min()) ** (1 - temper)
        assert (after.max() / after.min()).item() == pytest.approx(expected.item(), rel=0.15)
    torch.testing.assert_close(colour_whitening(frames, temper=0.0), torch.eye(3))
