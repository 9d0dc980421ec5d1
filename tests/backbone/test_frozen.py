"""FrozenBackbone: what it returns, what it refuses, and that nothing changes it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from toto_robot.backbone import (
    BACKBONES,
    SIZES,
    AttentionPool,
    FrozenBackbone,
    WeightsNotFoundError,
    load_backbone,
)
from toto_robot.backbone.decoder import Decoder
from toto_robot.backbone.dvae import DVAE_SIZES, Encoder
from toto_robot.backbone.models import MODELS
from toto_robot.backbone.weights import save_weights, sha256_of, tensors_sha256


def frames(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    return load_backbone("toto-tiny", weights="random")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights file as pretraining.train writes it."""
    encoder = Encoder(DVAE_SIZES["tiny"])
    decoder = Decoder(replace(SIZES["tiny"], vocabulary=DVAE_SIZES["tiny"].vocabulary))
    tensors = {f"encoder.{k}": t for k, t in encoder.state_dict().items()}
    tensors |= {f"decoder.{k}": t for k, t in decoder.state_dict().items() if "head" not in k}
    about = {
        "kind": "toto",
        "model": "tiny",
        "decoder": asdict(decoder.config),
        "tokenizer": asdict(encoder.config),
        "encoder_sha256": tensors_sha256(encoder.state_dict()),
        "resolution": 128,
    }
    path = tmp_path / "toto-tiny.safetensors"
    save_weights(path, tensors, about)
    return path


def edit_json(path: Path, **changes: object) -> None:
    about = path.with_suffix(".json")
    about.write_text(json.dumps(json.loads(about.read_text()) | changes))


def test_names_have_rows() -> None:
    for size, tokenizer in BACKBONES.values():
        assert size in MODELS and tokenizer in DVAE_SIZES


def test_grid_is_the_mean_of_tokens(backbone: FrozenBackbone) -> None:
    tokens = load_backbone(weights="random", readout="tokens")
    mean = load_backbone(weights="random", readout="mean")
    last = load_backbone(weights="random", readout="last")
    batch = frames(2, 128, 128)
    x = tokens(batch)
    assert x.shape == (2, 256, 128) and tokens.feature_shape == (256, 128)
    assert backbone(batch).shape == (2, 64, 128) and backbone.feature_shape == (64, 128)
    corner = x[:, [0, 1, 16, 17]].mean(dim=1)  # the 2 x 2 tokens at the top left
    torch.testing.assert_close(backbone(batch)[:, 0], corner)
    torch.testing.assert_close(backbone(batch)[:, 9], x[:, [34, 35, 50, 51]].mean(dim=1))
    torch.testing.assert_close(mean(batch), x.mean(dim=1))
    assert torch.equal(last(batch), x[:, -1]) and last.feature_shape == (128,)
    assert backbone(batch).dtype == torch.float32


def test_default_layer_is_the_middle_and_later_blocks_are_absent(backbone: FrozenBackbone) -> None:
    assert backbone.layer == 4 and backbone.num_layers == 8
    assert len(backbone.trunk.blocks) == 4


def test_layers_agree_with_the_full_model() -> None:
    batch = frames(2, 128, 128)
    full = load_backbone(weights="random", all_layers=True, readout="tokens")
    states = full.hidden_states(batch)
    assert len(states) == 9 and states[0].shape == (2, 256, 128)
    assert torch.equal(full(batch), states[4])
    for layer in (0, 3, 8):
        one = load_backbone(weights="random", layer=layer, readout="tokens")
        assert torch.equal(one(batch), states[layer])


def test_video_is_one_causal_sequence(backbone: FrozenBackbone) -> None:
    """The first frame's features do not depend on the second; the second's do on the first."""
    video = frames(1, 2, 128, 128)
    features = backbone(video)
    assert features.shape == (1, 2, 64, 128)
    alone = backbone(video[:, 0])
    assert torch.nn.functional.cosine_similarity(features[0, 0], alone[0], dim=-1).min() > 0.999
    other = video.clone()
    other[:, 0] = 255 - other[:, 0]
    assert (backbone(other)[0, 1] - features[0, 1]).abs().max() > 1e-4


def test_chunks_do_not_change_features(backbone: FrozenBackbone) -> None:
    batch = frames(67, 128, 128)
    torch.testing.assert_close(backbone(batch)[65:], backbone(batch[65:]), atol=2e-2, rtol=1e-2)


def test_arrays_and_other_sizes(backbone: FrozenBackbone) -> None:
    batch = frames(1, 128, 128)
    array = batch.numpy()
    array.setflags(write=False)
    assert torch.equal(backbone(array), backbone(batch))
    enlarged = batch.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert backbone(enlarged).shape == (1, 64, 128)
    wide = torch.full((1, 120, 200, 3), 90, dtype=torch.uint8)
    square = torch.full((1, 128, 128, 3), 90, dtype=torch.uint8)
    assert torch.equal(backbone.tokenize(wide), backbone.tokenize(square))


def test_tokenize_matches_the_encoder(backbone: FrozenBackbone) -> None:
    codes = backbone.tokenize(frames(2, 3, 128, 128))
    assert codes.shape == (2, 3, 16, 16) and codes.dtype == torch.int64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(1, 128, 128, 3), "float32"),
        (np.full((1, 128, 128, 3), np.nan), "float64"),
        (frames(128, 128), r"\(128, 128, 3\)"),
        (frames(1, 128, 128).permute(0, 3, 1, 2), "channels go last"),
        (frames(0, 128, 128), "empty"),
        ([1, 2], "list"),
    ],
)
def test_bad_frames(backbone: FrozenBackbone, bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(bad)


def test_nothing_trains_it(backbone: FrozenBackbone) -> None:
    before = backbone.digest()
    holder = torch.nn.Sequential(backbone)
    holder.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    pool = AttentionPool(128, 64, out_features=3)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *pool.parameters()], lr=0.1)
    features = backbone(frames(2, 128, 128))
    assert not features.requires_grad
    pool(features).square().sum().backward()
    optimizer.step()
    assert backbone.digest() == before


def test_random_weights_are_the_same_each_time_and_marked(backbone: FrozenBackbone) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = load_backbone(weights="random")
    assert torch.equal(state, torch.get_rng_state())
    assert again.untrained and again.weights_hash == backbone.weights_hash


def test_weights_from_file_folder_and_cache(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = sha256_of(weights)
    for given in (str(weights), str(weights.parent)):
        found = load_backbone(weights=given)
        assert found.weights_hash == digest and not found.untrained
    cache = tmp_path / "cache"
    (cache / "toto-tiny").mkdir(parents=True)
    for suffix in (".safetensors", ".json"):
        source = weights.with_suffix(suffix)
        (cache / "toto-tiny" / source.name).write_bytes(source.read_bytes())
    monkeypatch.setenv("TOTO_ROBOT_CACHE", str(cache))
    assert load_backbone().weights_hash == digest
    tensors = load_file(weights)
    assert torch.equal(load_backbone().trunk.embedding.weight, tensors["decoder.embedding.weight"])


def test_missing_weights_name_the_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOTO_ROBOT_CACHE", str(tmp_path))
    with pytest.raises(WeightsNotFoundError) as caught:
        load_backbone("toto-large")
    message = str(caught.value)
    for way in ("pretraining.train model=large", "backbone.weights=<file", "hub", "=random"):
        assert way in message
    with pytest.raises(WeightsNotFoundError, match="no such file"):
        load_backbone(weights=str(tmp_path / "nothing.safetensors"))


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match="Did you mean 'toto-tiny'"):
        load_backbone("toto-tinny")
    with pytest.raises(ValueError, match="Did you mean 'grid'"):
        load_backbone(weights="random", readout="gird")
    with pytest.raises(ValueError, match="use 1, 2, 4, 8, 16"):
        load_backbone(weights="random", grid=5)
    with pytest.raises(ValueError, match="layer=9"):
        load_backbone(weights="random", layer=9)


def test_another_resolution_is_another_grid_of_the_same_weights() -> None:
    own = load_backbone(weights="random", all_layers=True, readout="tokens")
    other = own.at_resolution(192)
    assert own.at_resolution(128) is own and own.tokens_per_side == 16
    assert other.feature_shape == (24**2, 128) and other.trunk is own.trunk
    picture = frames(2, 192, 192)
    sequence = own.trunk.sequence(own.encoder.encode(picture))  # codes in float32
    with torch.no_grad(), own.matmul():
        expected = own.trunk.hidden_states(sequence)
    for found, state in zip(other.hidden_states(picture), expected, strict=True):
        torch.testing.assert_close(found, state[:, 1:].float())
    assert torch.equal(other(picture), other.hidden_states(picture)[own.layer])


def test_resolutions_that_a_backbone_cannot_read() -> None:
    with pytest.raises(ValueError, match="multiple of 8 px"):
        load_backbone(weights="random").at_resolution(100)
    with pytest.raises(ValueError, match="grid=8 does not divide 13"):
        load_backbone(weights="random").at_resolution(104)
    gpt2 = load_backbone("toto-gpt2-tiny", weights="random")
    assert gpt2.at_resolution(512).tokens_per_side == 64
    with pytest.raises(ValueError, match="positions for 4097"):
        gpt2.at_resolution(576)
    with pytest.raises(ValueError, match="mae-tiny has learned positions for 128 px"):
        load_backbone("mae-tiny").at_resolution(224)


def test_truncated_weights(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-4096])
    with pytest.raises(ValueError, match="truncated"):
        load_backbone(weights=str(weights))
    edit_json(weights, sha256=sha256_of(weights))  # even when the hash is made to fit
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_backbone(weights=str(weights))


def test_changed_weights(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        load_backbone(weights=str(weights))


def test_wrong_tokenizer(weights: Path) -> None:
    edit_json(weights, encoder_sha256="0" * 64)
    with pytest.raises(ValueError, match="tokenizer .* trained on tokens"):
        load_backbone(weights=str(weights))


def test_wrong_size(weights: Path) -> None:
    with pytest.raises(ValueError, match="model 'tiny'; expected kind 'toto', model 'base'"):
        load_backbone("toto-base", weights=str(weights))


def test_missing_json(weights: Path) -> None:
    weights.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="json"):
        load_backbone(weights=str(weights))
