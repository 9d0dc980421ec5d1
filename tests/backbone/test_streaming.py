"""Frame by frame against a pass over the whole window."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from toto_robot.backbone import FrozenBackbone, decoder, load_backbone, precision, streaming
from toto_robot.backbone.dvae import DVAE_SIZES, Encoder
from toto_robot.backbone.models import MODELS, make_model
from toto_robot.backbone.patches import PatchConfig, PatchEncoder

FRAMES = torch.randint(
    256, (2, 7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways to the same numbers agree to 1e-5 only if neither is rounded to bfloat16."""
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: False)


def small(model: str = "tiny", readout: str = "grid", layer: int = 2) -> FrozenBackbone:
    """4 x 4 tokens per frame of 32 px, three blocks, of which `layer` are run."""
    torch.manual_seed(0)
    encoder = Encoder(replace(DVAE_SIZES["tiny"], vocabulary=32, encoder_widths=(8, 16)))
    changes: dict[str, Any] = {"vocabulary": 32, "layers": 3}
    if model == "patches":
        model, encoder, changes = "tiny", PatchEncoder(PatchConfig(8)), {"layers": 3, "patch": 8}
    trunk = make_model(replace(MODELS[model], **changes), head=False)
    for parameter in trunk.parameters():
        parameter.data.normal_(std=0.1)
    return FrozenBackbone(
        encoder, trunk, name="small", layer=layer, num_layers=3, resolution=32,
        readout=readout, grid=2, context=4,
    )  # fmt: skip


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("model", "readout", "layer"),
    [("tiny", "grid", 2), ("tiny", "mean", 0), ("tiny", "last", 3), ("gpt2-tiny", "tokens", 2),
     ("mamba-tiny", "grid", 2), ("patches", "grid", 2)],
)  # fmt: skip
def test_growing_equals_one_pass(model: str, readout: str, layer: int, cached: bool) -> None:
    backbone = small(model, readout, layer)
    whole = backbone(FRAMES[:, :4])
    stream = backbone.stream(worlds=2, cached=cached)
    for t in range(4):
        features = stream.push(FRAMES[:, t])
        assert features.shape == (2, *backbone.feature_shape)
        torch.testing.assert_close(features, whole[:, t], atol=1e-5, rtol=1e-4)
        assert not stream.approximate.any()


def test_a_full_window_is_recomputed_exactly() -> None:
    backbone = small()
    stream = backbone.stream(worlds=2, cached=False)
    for t in range(7):
        features = stream.push(FRAMES[:, t])
        window = FRAMES[:, max(0, t - 3) : t + 1]
        torch.testing.assert_close(features, backbone(window)[:, -1], atol=1e-5, rtol=1e-4)
        assert not stream.approximate.any()


def test_a_full_memory_slides_near_the_window_and_says_so() -> None:
    backbone = small()
    stream = backbone.stream(worlds=2)
    for t in range(7):
        features = stream.push(FRAMES[:, t])
        window = backbone(FRAMES[:, max(0, t - 3) : t + 1])[:, -1]
        assert stream.approximate.tolist() == [t >= 4] * 2
        cosine = torch.nn.functional.cosine_similarity(features, window, dim=-1).mean()
        assert cosine > 0.9
        assert torch.allclose(features, window, atol=1e-5) == (t < 4)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("model", ["tiny", "mamba-tiny"])
def test_worlds_begin_anew_one_by_one(model: str, cached: bool) -> None:
    """World 1 starts over after its fifth frame, when the windows are already sliding."""
    backbone = small(model)
    stream, alone = (backbone.stream(worlds=n, cached=cached) for n in (2, 1))
    features = torch.empty(0)
    for t in range(7):
        if t == 5:
            stream.reset([1])
            assert stream.seen.tolist() == [5, 0]
        features = stream.push(FRAMES[:, t])
        other = alone.push(FRAMES[:1, t])  # world 0, as if there were no other
        torch.testing.assert_close(features[0], other[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[1], backbone(FRAMES[1:, 5:7])[0, 1], atol=1e-5, rtol=1e-4)
    stream.reset()
    torch.testing.assert_close(
        stream.push(FRAMES[:, 0]), backbone(FRAMES[:, 0]), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("cached", [True, False])
def test_each_frame_is_encoded_once(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small()
    stream, encoded = backbone.stream(worlds=2, cached=cached), []
    original = backbone.encoder.encode
    monkeypatch.setattr(
        backbone.encoder, "encode", lambda frames: encoded.append(len(frames)) or original(frames)
    )
    for t in range(6):
        stream.push(FRAMES[:, t])
    assert encoded == [2] * 6


def test_only_the_new_frame_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, lengths = small(), []
    stream = backbone.stream(worlds=2)
    original = decoder.DecoderBlock.forward

    def counting(self, x, *more):
        lengths.append(x.shape[1])
        return original(self, x, *more)

    monkeypatch.setattr(decoder.DecoderBlock, "forward", counting)
    for t in range(6):
        stream.push(FRAMES[:, t])
    # The start token, then 6 frames, through 2 of the 3 blocks.
    assert lengths == [1] * 2 + [16] * 12


def test_refusals() -> None:
    backbone = small("gpt2-tiny")
    with pytest.raises(ValueError, match="worlds=0, context=4"):
        backbone.stream(worlds=0)
    stream = backbone.stream(worlds=2)
    for bad in (FRAMES[:1, 0], FRAMES[:, :1]):
        with pytest.raises(ValueError, match=r"one frame for each of the 2 worlds: \[2, H, W, 3\]"):
            stream.push(bad)
    for t in range(4):
        stream.push(FRAMES[:, t])
    with pytest.raises(ValueError, match="cached=False"):
        stream.push(FRAMES[:, 4])


def test_context_comes_from_the_training() -> None:
    assert load_backbone("toto-tiny").context == 4
    assert load_backbone("toto-tiny", weights="random").context == 16
    assert isinstance(load_backbone("toto-tiny").stream(), streaming.FeatureStream)
