"""Training of the masked autoencoder: its loss, what it writes, and going on after a stop."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pretraining import train_mae
from pretraining.train_mae import Config, lr_at, mae_loss, make_mae, noise_of
from toto_robot import load_backbone
from toto_robot.backbone.vit import VIT_SIZES, ViT, ViTConfig

pytest.importorskip("transformers", reason="not installed: pip install -e '.[compare]'")
SMALL = ViTConfig(dim=16, layers=2, heads=2, mlp=32, patch=8, resolution=32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIT_SIZES, "mae-tiny", SMALL)


def config_of(films: Path, out: Path, **more) -> Config:
    return Config(data=films, out=out, decoder_width=32, decoder_layers=1, held_out=0.2, steps=24,
                  batch_size=8, warmup=4, report_every=8, threads=1, device="cpu", **more)  # fmt: skip


def test_loss_is_that_of_transformers_with_normalised_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mae = make_mae(SMALL, config_of(tmp_path, tmp_path))
    mae.config.norm_pix_loss = True
    frames = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    pixels = ViT(dataclasses.replace(SMALL, layers=0)).pixels(frames)
    noise = noise_of(SMALL, 3, seed=1)
    expected = mae(pixels, noise=noise).loss
    # Its variance has n - 1 in the denominator, ours n.
    torch.testing.assert_close(mae_loss(mae, pixels, noise), expected, rtol=0.01, atol=0)
    assert mae.vit(pixels, noise=noise).mask.sum(1).tolist() == [12, 12, 12]


def test_learning_rate_warms_up_stays_and_falls() -> None:
    config = Config(data=Path(), out=Path(), steps=100, warmup=10, decay=0.2, lr=1.0)
    rates = [lr_at(step, config) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)
    assert lr_at(0, dataclasses.replace(config, warmup=0)) == 1.0


def test_it_learns_writes_an_encoder_and_goes_on_exactly_after_a_stop(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config_of(films, tmp_path / "whole")
    train_mae.main(whole)
    lines = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 8, 16, 23]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]  # of four films; the fifth looks otherwise

    halves = config_of(films, tmp_path / "halves")
    draw, steps = torch.randint, []

    def stop_after_ten(*arguments, **more):
        steps.append(1)
        if len(steps) == 10:
            interrupts[0].requested = True
        return draw(*arguments, **more)

    interrupts: list = []
    real = train_mae.Interrupt

    def remember():
        interrupts.append(real())
        return interrupts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(train_mae, "Interrupt", remember)
        patch.setattr(torch, "randint", stop_after_ten)
        with pytest.raises(SystemExit, match="stopped after step 10"):
            train_mae.main(halves)
    train_mae.main(halves)
    one, other = (
        load_backbone("mae-tiny", weights=str(c.out), readout="mean") for c in (whole, halves)
    )
    frames = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(one(frames), other(frames)) and one.weights_hash == other.weights_hash
    untrained = load_backbone("mae-tiny", weights="random", readout="mean")
    assert not torch.allclose(one(frames), untrained(frames))
    with pytest.raises(ValueError, match="lr: 0.0015 then, 0.1 now"):
        train_mae.main(dataclasses.replace(halves, lr=0.1))


def test_steps_may_be_changed_when_going_on(films: Path, tmp_path: Path) -> None:
    config = config_of(films, tmp_path)
    train_mae.main(dataclasses.replace(config, steps=4))
    train_mae.main(dataclasses.replace(config, steps=6))
    about = json.loads((tmp_path / "backbone.json").read_text())
    assert about["trained"]["steps"] == "6" and about["kind"] == "vit"


def test_an_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Did you mean 'mae-base'"):
        Config(data=tmp_path, out=tmp_path, model="mae-bas")
    with pytest.raises(SystemExit, match="mask=1.5"):
        Config(data=tmp_path, out=tmp_path, mask=1.5)
