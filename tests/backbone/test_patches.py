"""Models of patches: what they read and predict, by hand; causal; learnable; frozen like the others."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from toto_robot.backbone.causal import IMAGE_START, VIDEO_START, CausalConfig, CausalModel
from toto_robot.backbone.frozen import FrozenBackbone
from toto_robot.backbone.models import MODELS, make_model, num_parameters
from toto_robot.backbone.patches import PatchConfig, PatchEncoder, normalised, to_patches

PATCH = 4


def small(model: str = "tiny", **changes: object) -> CausalConfig:
    options = {"dim": 32, "layers": 2, "vocabulary": 11, "patch": PATCH, "predicts": "patch"}
    options |= {"tied": False, **({"heads": 2} if "mamba" not in model else {}), **changes}
    return replace(MODELS[model], **options)  # pyright: ignore[reportArgumentType]


def build(config: CausalConfig) -> CausalModel:
    torch.manual_seed(0)
    return make_model(config)


def clips(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (*shape, 8, 8, 3), dtype=torch.uint8, generator=generator)


NO_CODES = torch.empty(2, 3, 0)


def test_patches_are_in_raster_order() -> None:
    frames = clips(2)
    patches = to_patches(frames, PATCH)
    assert patches.shape == (2, 2, 2, 48)
    for row in range(2):
        for column in range(2):
            cut = frames[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            torch.testing.assert_close(patches[:, row, column], (cut / 255 - 0.5) / 0.25)
    with pytest.raises(ValueError, match="patches of 3 px do not divide frames of 8 px"):
        to_patches(frames, 3)


def test_normalised_patches() -> None:
    patches = normalised(to_patches(clips(2), PATCH))
    assert patches.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(patches.std(-1), torch.ones(2, 2, 2), atol=1e-4, rtol=0)
    grey = torch.full((1, 8, 8, 3), 77, dtype=torch.uint8)
    assert torch.equal(normalised(to_patches(grey, PATCH)), torch.zeros(1, 2, 2, 48))


@pytest.mark.parametrize("model", ["tiny", "gpt2-tiny", "mamba-tiny"])
@pytest.mark.parametrize("predicts", ["patch", "code"])
def test_loss_is_the_naive_one(model: str, predicts: str) -> None:
    """Position by position: the model is run anew on each prefix and its last output compared."""
    decoder = build(small(model, predicts=predicts))
    frames, codes = clips(2, 3), torch.arange(24).reshape(2, 3, 4) % 11
    losses = decoder.clip_losses(codes, VIDEO_START, frames)
    assert losses.shape == (2, 12)
    sequence = decoder.sequence(to_patches(frames.flatten(0, 1), PATCH).view(2, 3, 2, 2, 48))
    for n in range(12):
        output = decoder(sequence[:, : n + 1])[:, -1]
        if predicts == "patch":
            cut = frames[:, n // 4, n % 4 // 2 * 4 :, n % 2 * 4 :][:, :4, :4].flatten(1).float()
            target = (cut - cut.mean(1, keepdim=True)) / cut.std(1, keepdim=True)
            expected = ((output - target) ** 2).mean(1)
        else:
            expected = -F.log_softmax(output, dim=1)[range(2), codes.flatten(1)[:, n] + 4]
        torch.testing.assert_close(losses[:, n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["tiny", "gpt2-tiny", "mamba-tiny"])
def test_a_later_patch_changes_no_earlier_prediction(model: str) -> None:
    decoder = build(small(model))
    sequence = decoder.sequence(torch.randn(2, 12, 48))
    changed = sequence.clone()
    changed[:, 6] += 1
    before, after = decoder(sequence), decoder(changed)
    assert before.shape == (2, 13, 48)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax((0, 2)).min() > 0


def test_starts_of_videos_and_images_are_learned_apart() -> None:
    decoder = build(small())
    weight = decoder.embedding.weight
    both = decoder.sequence(torch.zeros(2, 1, 48), torch.tensor([VIDEO_START, IMAGE_START]))
    video, image = decoder.hidden_states(both)[0][:, 0]
    assert torch.equal(video, weight[:, 48]) and torch.equal(image, weight[:, 49])
    assert not decoder.hidden_states(both)[0][:, 1].any()


def test_parameters_are_counted() -> None:
    """The large model of Table 3: its blocks, and linear maps from and to 16 x 16 x 3 values."""
    config = replace(MODELS["large"], patch=16, predicts="patch", tied=False)
    block = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024
    assert num_parameters(config) == 16 * block + (768 + 2) * 1024 + 1024 + 1024 * 768
    config = replace(MODELS["large"], patch=8, tied=False)
    assert num_parameters(config) == 16 * block + (192 + 2) * 1024 + 1024 + 1024 * 8196


@pytest.mark.parametrize("predicts", ["patch", "code"])
def test_one_clip_can_be_learned_by_heart(predicts: str) -> None:
    decoder = build(small(predicts=predicts))
    frames, codes = clips(1, 3), torch.arange(12).reshape(1, 3, 4) % 11
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = decoder.clip_losses(codes, frames=frames).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and losses[-1] < 0.1


def test_memory_goes_on_as_one_pass_does() -> None:
    decoder = build(small()).eval()
    sequence = decoder.sequence(torch.randn(2, 12, 48))
    memory = decoder.remember(2, 13)
    with torch.no_grad():
        parts = [decoder.extend(part, memory) for part in sequence.split([1, 5, 7], dim=1)]
        whole = decoder.hidden_states(sequence)[-1]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_frozen_backbone_of_patches() -> None:
    decoder = build(small())
    frozen = FrozenBackbone(
        PatchEncoder(PatchConfig(PATCH)), decoder.truncate(1), name="toto-tiny", layer=1,
        num_layers=2, resolution=8, readout="tokens",
    )  # fmt: skip
    frames = clips(2, 3)
    patches = to_patches(frames.flatten(0, 1), PATCH).view(2, 3, 2, 2, 48)
    expected = decoder.hidden_states(decoder.sequence(patches))[1][:, 1:]
    assert frozen(frames).shape == (2, 3, 4, 32) and frozen.feature_shape == (4, 32)
    torch.testing.assert_close(frozen(frames).flatten(1, 2), expected, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="patches of 4 px, not codes"):
        frozen.tokenize(frames)


@pytest.mark.parametrize("cached", [True, False])
def test_stream_of_patches(cached: bool) -> None:
    """Frame by frame as in one pass."""
    trunk = build(small()).truncate(2)
    frozen = FrozenBackbone(
        PatchEncoder(PatchConfig(PATCH)), trunk, name="toto-tiny", layer=1, num_layers=2,
        resolution=8, readout="tokens", context=3, precision="float32",
    )  # fmt: skip
    video, stream = clips(2, 3), frozen.stream(2, cached=cached)
    features = torch.stack([stream.push(frame) for frame in video.unbind(1)], dim=1)
    torch.testing.assert_close(features, frozen(video), atol=1e-5, rtol=1e-4)


def test_wrong_inputs() -> None:
    decoder = build(small())
    with pytest.raises(ValueError, match="codes without their frames"):
        decoder.clip_losses(NO_CODES)
    with pytest.raises(ValueError, match="12 patches and 27 codes a clip"):
        build(small(predicts="code")).clip_losses(torch.zeros(2, 3, 9), frames=clips(2, 3))
    with pytest.raises(ValueError, match="reads float32 patches, it was given torch.int64"):
        decoder.sequence(torch.zeros(2, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="reads codes, it was given torch.float32"):
        build(small(patch=0, predicts="code")).sequence(torch.zeros(2, 12, 48))
