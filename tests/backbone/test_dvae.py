"""The dVAE: DALL-E's sizes, shapes, pixel mapping, files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toto_robot.backbone.dvae import (
    DVAE,
    DVAE_SIZES,
    Decoder,
    Encoder,
    dvae_size,
    map_pixels,
    unmap_pixels,
)
from toto_robot.backbone.tokenizers import load_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def tiny() -> DVAE:
    torch.manual_seed(0)
    return DVAE(DVAE_SIZES["tiny"]).eval()


def frames(count: int, side: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def test_full_size_is_dalles() -> None:
    """Parameter counts of the published encoder and decoder (paper.md, section 13.1)."""
    with torch.device("meta"):
        encoder, decoder = Encoder(DVAE_SIZES["dalle"]), Decoder(DVAE_SIZES["dalle"])
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in decoder.parameters()) == 43_829_766


@pytest.mark.parametrize("name", DVAE_SIZES)
def test_every_size_has_stride_eight(name: str) -> None:
    config = DVAE_SIZES[name]
    assert config.stride == 8
    with torch.device("meta"):
        logits = Encoder(config)(torch.zeros(1, 3, 128, 128))
        pixels = Decoder(config)(torch.zeros(1, sum(config.choices), 16, 16))
    assert logits.shape == (1, sum(config.choices), 16, 16)
    assert pixels.shape == (1, 3, 128, 128)


def test_codes_and_pictures(tiny: DVAE) -> None:
    codes = tiny.encoder.encode(frames(2))
    assert codes.shape == (2, 16, 16) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < tiny.config.vocabulary
    picture = tiny.decoder.decode(codes)
    assert picture.shape == (2, 128, 128, 3) and picture.dtype == torch.uint8


def test_a_code_of_factors_is_their_mixed_radix_number() -> None:
    torch.manual_seed(0)
    config = replace(DVAE_SIZES["tiny"], vocabulary=15, factors=(5, 3), encoder_widths=(8, 16),
                     decoder_widths=(8, 16))  # fmt: skip
    model = DVAE(config).eval()
    with torch.no_grad():
        first, second = model.encoder(map_pixels(frames(2, 32))).split((5, 3), dim=1)
    codes = model.encoder.encode(frames(2, 32))
    assert torch.equal(codes, 3 * first.argmax(1) + second.argmax(1)) and codes.max() < 15
    hot = model.decoder.one_hot(codes)
    assert torch.equal(hot[:, :5].argmax(1), codes // 3) and torch.equal(
        hot[:, 5:].argmax(1), codes % 3
    )
    assert torch.equal(hot.sum(1), torch.full((2, 4, 4), 2.0))
    with pytest.raises(ValueError, match="do not make 16 codes"):
        replace(config, vocabulary=16)


def test_each_frame_is_encoded_by_itself(tiny: DVAE) -> None:
    batch = frames(3)
    assert torch.equal(tiny.encoder.encode(batch)[1], tiny.encoder.encode(batch[1:2])[0])


def test_codes_at_low_temperature_are_those_of_the_encoder(tiny: DVAE) -> None:
    """As the logits outgrow the noise, the relaxed codes become the one-hot argmax."""
    pixels = map_pixels(frames(1, 32))
    with torch.no_grad():
        logits = tiny.encoder(pixels)
        last = tiny.encoder.layers[-1]
        assert isinstance(last, torch.nn.Conv2d)
        last.weight.mul_(1e4)
        output, _ = tiny(pixels, 0.01, torch.Generator().manual_seed(0))
        last.weight.div_(1e4)
        expected = tiny.decoder.decode(logits.argmax(dim=1))
    difference = (unmap_pixels(output).int() - expected.int()).abs()
    assert difference.float().mean() < 1


def test_pixel_mapping_is_inverted() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    mapped = map_pixels(values)
    assert mapped.min().item() == pytest.approx(0.1) and mapped.max().item() == pytest.approx(0.9)
    assert torch.equal(unmap_pixels(mapped), values)


def test_frames_that_do_not_divide(tiny: DVAE) -> None:
    with pytest.raises(ValueError, match="130x130"):
        tiny.encoder.encode(frames(1, 130))


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="Did you mean 'tiny'"):
        dvae_size("tinny")


def test_files(tiny: DVAE, tmp_path: Path) -> None:
    digest = save_tokenizer(tiny, tmp_path, resolution=128)
    model, about = load_tokenizer(tmp_path)
    assert about["sha256"] == digest and about["vocabulary"] == 512 and about["stride"] == 8
    assert torch.equal(model.encoder.encode(frames(1)), tiny.encoder.encode(frames(1)))
    path = tmp_path / "tokenizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_tokenizer(tmp_path)
