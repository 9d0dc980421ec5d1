"""The losses of a VQGAN: who is trained by what, and that codes come back to life."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pretraining.perceptual import PerceptualLoss
from pretraining.vqgan_loss import VQGANTraining
from toto_robot.backbone.vqgan import VQGAN, VQGANConfig

SMALL = VQGANConfig(vocabulary=32, channels=32, multipliers=(1, 1, 2), blocks=1,
                    attention_levels=(), code_channels=8)  # fmt: skip


def frames() -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 32, 32, 3), generator=random).to(torch.uint8)


def make(**changes: object) -> VQGANTraining:
    torch.manual_seed(0)
    options = {"critic_start": 0, "critic_weight": 0.8, "revive_every": 0, **changes}
    return VQGANTraining(VQGAN(SMALL), **options)  # pyright: ignore[reportArgumentType]


def gradients(training: VQGANTraining, step: int) -> dict[str, Any]:
    training.zero_grad(set_to_none=True)
    training.loss(frames(), step, torch.Generator().manual_seed(0))[0].backward()
    return {name: p.grad for name, p in training.named_parameters()}


def test_each_part_is_trained_by_its_own_loss() -> None:
    training = make(critic_start=5)
    before, after = gradients(training, 4), gradients(training, 5)
    critic = [name for name in before if name.startswith("critic.")]
    assert critic and all(before[name] is None for name in critic)
    assert all(after[name] is not None for name in critic)
    last = "model.decoder.net.conv_out.weight"
    assert not torch.equal(before[last], after[last]), "the critic's opinion reaches the model"
    # The critic's own gradient is that of its hinge loss alone, by hand.
    codes = training.model.encoder.encode(frames())
    pixels = frames().permute(0, 3, 1, 2).float() / 127.5 - 1
    decoder = training.model.decoder
    made = decoder.net(decoder.post_quant_conv(decoder.codebook(codes).permute(0, 3, 1, 2)))
    hinge = (1 - training.critic(pixels)).relu().mean()
    hinge = 0.5 * (hinge + (1 + training.critic(made.detach())).relu().mean())
    name = "parts.0.weight"
    by_hand = torch.autograd.grad(hinge, dict(training.critic.named_parameters())[name])[0]
    torch.testing.assert_close(after[f"critic.{name}"], by_hand, atol=1e-5, rtol=1e-3)


def test_straight_through_reaches_the_encoder_and_the_codebook_learns() -> None:
    found = gradients(make(critic_weight=0.0), 0)
    for name in ("model.encoder.net.conv_in.weight", "model.encoder.codebook.weight"):
        assert found[name] is not None and found[name].abs().sum() > 0


def test_unused_codes_move_to_where_data_is() -> None:
    training = make(revive_every=3)
    generator = torch.Generator().manual_seed(0)
    before = training.model.encoder.codebook.weight.detach().clone()
    for step in range(3):
        training.loss(frames(), step, generator)
        codes = training.model.encoder.codebook.weight.detach()
        assert torch.equal(codes, before) == (step < 2)
    used = training.model.encoder.encode(frames()).unique()
    assert len(used) > 4 and training.used.sum() == 0


def test_perceptual_weights_are_read_under_their_makers_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="perceptual="):
        PerceptualLoss(tmp_path / "none.safetensors")
    with torch.device("meta"):
        shapes = {i: (o, c) for i, o, c in (
            (0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128), (12, 256, 256),
            (14, 256, 256), (17, 512, 256), (19, 512, 512), (21, 512, 512), (24, 512, 512),
            (26, 512, 512), (28, 512, 512),
        )}  # fmt: skip
    state = {}
    for i, (outputs, inputs) in shapes.items():
        state[f"features.{i}.weight"] = torch.randn(outputs, inputs, 3, 3) * (inputs * 4.5) ** -0.5
        state[f"features.{i}.bias"] = torch.zeros(outputs)
    for i, width in enumerate((64, 128, 256, 512, 512)):
        state[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1)
    save_file(state, tmp_path / "vgg.safetensors")
    loss = PerceptualLoss(tmp_path / "vgg.safetensors")
    a, b = torch.rand(2, 1, 3, 32, 32).unbind(0)
    assert loss(a, a).item() == 0 and loss(a, b).item() > 0
    assert loss(a, b).item() == pytest.approx(loss(b, a).item())
    training = make(perceptual=tmp_path / "vgg.safetensors")
    assert not any(name.startswith("perceptual") for name in training.state_dict())
    del state["features.28.bias"]
    save_file(state, tmp_path / "vgg.safetensors")
    with pytest.raises(ValueError, match="lacks 1 of 31 tensors, such as features.28.bias"):
        PerceptualLoss(tmp_path / "vgg.safetensors")
