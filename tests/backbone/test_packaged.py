"""The shipped weights: there, small, and really trained on what the cameras see."""

import math

import pytest
import torch

import envs
from envs.scripted import ScriptedMotions
from toto_robot import load_backbone
from toto_robot.backbone.causal import to_sequence
from toto_robot.backbone.models import make_model
from toto_robot.backbone.names import PACKAGED, load_with_head
from toto_robot.backbone.tokenizers import read_decoder, read_encoder
from toto_robot.backbone.weights import tensors_sha256


@pytest.mark.parametrize(
    ("name", "layer", "layers", "width", "largest"),
    [("toto-tiny", 4, 8, 128, 20e6), ("toto-base", 6, 6, 768, 50e6)],  # bytes
)
def test_loads_without_any_option_and_is_small(name, layer, layers, width, largest):
    backbone = load_backbone(name)
    assert not backbone.untrained and (backbone.layer, backbone.num_layers) == (layer, layers)
    assert backbone.feature_shape == (64, backbone.num_features) == (64, width)
    packaged = [path for path in PACKAGED.iterdir() if path.stem == name]
    assert {path.suffix for path in packaged} == {".safetensors", ".json", ".md"}
    assert sum(path.stat().st_size for path in packaged) < largest


def test_the_masked_autoencoder_is_small_and_its_filters_are_of_pictures():
    """Filters learnt from pictures are smooth, random ones are not: neighbouring weights agree."""
    backbone, random = load_backbone("mae-tiny"), load_backbone("mae-tiny", weights="random")
    assert not backbone.untrained and (backbone.layer, backbone.num_layers) == (4, 4)
    assert backbone.feature_shape == (64, 128)
    packaged = [path for path in PACKAGED.iterdir() if path.stem == "mae-tiny"]
    assert {path.suffix for path in packaged} == {".safetensors", ".json", ".md"}
    assert sum(path.stat().st_size for path in packaged) < 5e6

    def smoothness(encoder) -> float:
        filters = encoder.trunk.patch_embed.proj.weight
        left, right = filters[..., :-1].flatten(), filters[..., 1:].flatten()
        return float(torch.corrcoef(torch.stack([left, right]))[0, 1])

    assert smoothness(backbone) > 0.4 and abs(smoothness(random)) < 0.1


@pytest.mark.usefixtures("needs_gl")
def test_its_codes_can_be_seen():
    """The packaged decoder belongs to the packaged encoder and makes pictures of new scenes."""
    task = envs.make("FrankaPick", 4, seed=78, obs="pixels")
    task.reset()
    frames = task.obs_buf
    task.close()
    encoder = read_encoder(PACKAGED / "toto-tiny.safetensors")
    path = PACKAGED / "toto-tiny-decoder.safetensors"
    decoder = read_decoder(path, tensors_sha256(encoder.state_dict()))
    with torch.no_grad():
        error = (decoder.decode(encoder.encode(frames)) / 255 - frames / 255).square().mean()
    assert -10 * math.log10(error) > 19
    assert error < 0.2 * (frames / 255).var(dim=(0, 1, 2)).mean()  # of one colour all over
    assert path.stat().st_size < 5e6


@pytest.mark.usefixtures("needs_gl")
@pytest.mark.parametrize(("name", "largest"), [("toto-tiny", 3.0), ("toto-base", 5.0)])
def test_predicts_the_tokens_of_new_frames(name, largest):
    """Next-token loss on one frame of episodes it never saw: far below an untrained model's.

    A single frame is harder than the clips of the model card, whose later frames can be copied.
    """
    task = envs.make("FrankaPick", 6, seed=77, obs="pixels")
    task.reset()
    motions = ScriptedMotions(task, {"pick": 1.0}, seed=5)
    for _ in range(120):
        task.step(motions.act())
    frames = task.obs_buf[:3]
    task.close()

    encoder, trained, _, _ = load_with_head(name)
    codes = encoder.encode(frames)
    assert torch.equal(codes, load_backbone(name).tokenize(frames)) and len(codes.unique()) > 40
    untrained = make_model(trained.config)
    with torch.no_grad():
        loss, chance = (model.loss(to_sequence(codes)).item() for model in (trained, untrained))
    assert loss < largest and chance > 0.95 * math.log(trained.config.rows)
