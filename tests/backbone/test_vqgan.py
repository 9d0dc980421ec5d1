"""VQGAN: exact sizes and key layout of the released checkpoints, and its parts by hand."""

import re

import pytest
import torch
import torch.nn.functional as F

from toto_robot.backbone.tokenizers import load_tokenizer, make_encoder, save_tokenizer
from toto_robot.backbone.vqgan import (
    VQGAN,
    VQGAN_SIZES,
    Attention,
    Downsample,
    VQGANConfig,
    our_names,
    vqgan_size,
)

SMALL = VQGANConfig(
    vocabulary=16, channels=32, multipliers=(1, 1, 2), blocks=1, attention_levels=(2,),
    code_channels=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def small() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(SMALL).eval()


def released_name(name: str) -> str:
    """Of a parameter of ours, as the checkpoints call it."""
    if name.endswith("codebook.weight"):
        return "quantize.embedding.weight"
    return re.sub(r"^(encoder|decoder)\.(net\.|(?=post_quant|quant))",
                  lambda m: f"{m[1]}." if m[2] else "", name)  # fmt: skip


@pytest.mark.parametrize(("size", "millions"), [("f16-1024", 72.1), ("f16-16384", 76.1)])
def test_published_sizes_and_key_layout(size, millions):
    with torch.device("meta"):
        state = VQGAN(VQGAN_SIZES[size]).state_dict()
    released = {released_name(name): tensor for name, tensor in state.items()}
    count = sum(tensor.numel() for tensor in released.values())  # the codebook counted once
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    shortcuts = {name.rsplit(".", 1)[0] for name in released if "nin_shortcut" in name}
    assert {"encoder.down.2.block.0.nin_shortcut", "encoder.down.4.block.0.nin_shortcut"} == {
        name for name in shortcuts if name.startswith("encoder")
    }
    for name in ("encoder.conv_in.weight", "encoder.down.4.attn.1.proj_out.bias",
                 "encoder.down.3.downsample.conv.weight", "encoder.mid.attn_1.q.weight",
                 "encoder.norm_out.weight", "decoder.up.0.block.2.conv2.weight",
                 "decoder.up.4.attn.2.k.weight", "decoder.up.1.upsample.conv.bias",
                 "quantize.embedding.weight", "quant_conv.weight", "post_quant_conv.bias"):  # fmt: skip
        assert name in released, name
    assert "encoder.down.4.downsample.conv.weight" not in released
    assert released["encoder.conv_out.weight"].shape == (256, 512, 3, 3)
    assert sorted(n for name in released for n in our_names(name)) == sorted(state)
    assert our_names("loss.discriminator.main.0.weight") == []


def test_codes_are_the_nearest_vectors(small):
    codes = small.encoder.codebook.weight
    z = codes[[3, 11, 3, 7]].T.reshape(1, 8, 2, 2) + 1e-3
    assert small.encoder.nearest(z).tolist() == [[[3, 11], [3, 7]]]
    any_z = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    by_hand = torch.cdist(any_z.permute(0, 2, 3, 1).reshape(-1, 8), codes).argmin(1)
    assert torch.equal(small.encoder.nearest(any_z).flatten(), by_hand)


def test_attention_and_downsampling_by_hand():
    torch.manual_seed(0)
    layer, x = Attention(32), torch.randn(1, 32, 2, 3)
    y = layer.norm(x)
    q, k, v = (conv(y).reshape(32, 6) for conv in (layer.q, layer.k, layer.v))
    weights = (q.T @ k / 32**0.5).softmax(dim=1)
    expected = x + layer.proj_out((v @ weights.T).reshape(1, 32, 2, 3))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    down = Downsample(32)
    assert down(torch.randn(1, 32, 8, 8)).shape == (1, 32, 4, 4)
    corner = F.conv2d(torch.ones(1, 32, 3, 3), down.conv.weight, down.conv.bias)
    torch.testing.assert_close(down(torch.ones(1, 32, 8, 8))[..., :1, :1], corner)


def test_frames_to_codes_to_frames(small):
    frames = torch.randint(256, (2, 16, 24, 3), generator=torch.Generator().manual_seed(2))
    codes = small.encoder.encode(frames.to(torch.uint8))
    assert codes.shape == (2, 4, 6) and 0 <= codes.min() and codes.max() < 16
    pictures = small.decoder.decode(codes)
    assert pictures.shape == (2, 16, 24, 3) and pictures.dtype == torch.uint8
    with pytest.raises(ValueError, match="18x24 px do not divide into tokens of 4x4"):
        small.encoder.encode(torch.zeros(1, 18, 24, 3, dtype=torch.uint8))


def test_saved_and_loaded(small, tmp_path):
    save_tokenizer(small, tmp_path, resolution=64)
    model, about = load_tokenizer(tmp_path)
    assert (about["kind"], about["vocabulary"], about["stride"]) == ("vqgan", 16, 4)
    frames = torch.randint(256, (1, 16, 16, 3)).to(torch.uint8)
    assert torch.equal(model.encoder.encode(frames), small.encoder.encode(frames))
    encoder = make_encoder("vqgan", about["config"], "here")
    assert encoder.state_dict().keys() == small.encoder.state_dict().keys()
    with pytest.raises(ValueError, match="kind 'vqgn', expected 'dvae' or 'vqgan'.*'vqgan'"):
        make_encoder("vqgn", {}, "here")
    with pytest.raises(ValueError, match="unknown VQGAN size 'f16-1042'"):
        vqgan_size("f16-1042")
