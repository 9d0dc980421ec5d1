"""A decoder alone, trained for the codes of an encoder that is there already."""

import shutil
from pathlib import Path

import pytest
import torch

from pretraining import train_tokenizer
from toto_robot.backbone.dvae import Encoder
from toto_robot.backbone.tokenizers import (
    load_tokenizer,
    read_decoder,
    read_encoder,
    save_tokenizer,
)
from toto_robot.backbone.vqgan import VQGAN, VQGAN_SIZES
from toto_robot.backbone.weights import tensors_sha256


def options(films: Path, out: Path, source: Path | str, steps: int = 6) -> train_tokenizer.Config:
    return train_tokenizer.Config(
        data=films,
        out=out,
        decoder_for=str(source),
        resolution=32,
        held_out=0.2,
        steps=steps,
        batch_size=8,
        warmup=2,
        report_every=1,
        checkpoint_s=0.0,
    )


def test_the_encoder_stays_and_the_decoder_learns(
    films: Path, tokenizer: Path, tmp_path: Path
) -> None:
    train_tokenizer.main(options(films, tmp_path, tokenizer))
    before, _ = load_tokenizer(tokenizer)
    after, about = load_tokenizer(tmp_path)
    digest = tensors_sha256(before.encoder.state_dict())
    assert tensors_sha256(after.encoder.state_dict()) == digest
    assert about["trained"]["decoder_for"] == str(tokenizer)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    ]
    assert all(changed)

    codes = torch.randint(32, (2, 4, 4))
    alone = read_decoder(tmp_path / "decoder.safetensors", digest)
    pictures = [decoder.decode(codes).int() for decoder in (alone, after.decoder)]
    assert (pictures[0] - pictures[1]).abs().max() <= 1  # half precision
    whole = read_decoder(tmp_path / "tokenizer.safetensors", digest)
    assert torch.equal(whole.decode(codes).int(), pictures[1])


def test_a_stopped_training_goes_on_where_it_was(
    films: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer.main(options(films, tmp_path / "whole", tokenizer))
    original, calls = train_tokenizer.DecoderTraining.loss, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_tokenizer.DecoderTraining, "loss", failing)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer.main(options(films, tmp_path / "parts", tokenizer))
    train_tokenizer.main(options(films, tmp_path / "parts", tokenizer))
    files = [tmp_path / run / "tokenizer.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_encoder_is_refused(films: Path, tokenizer: Path, tmp_path: Path) -> None:
    train_tokenizer.main(options(films, tmp_path, tokenizer, steps=1))
    with pytest.raises(ValueError, match="decodes the codes of encoder .*decoder_for="):
        read_decoder(tmp_path / "decoder.safetensors", "0" * 64)


def test_sources(films: Path, tokenizer: Path, tmp_path: Path) -> None:
    file = shutil.copy(tokenizer / "tokenizer.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match="json beside it"):
        train_tokenizer.main(options(films, tmp_path / "out", file))
    packaged = read_encoder(train_tokenizer.find_weights("toto-tiny", None))
    assert isinstance(packaged, Encoder) and packaged.config.vocabulary == 512
    save_tokenizer(VQGAN(VQGAN_SIZES["vqgan-tiny"]), tmp_path / "vqgan", resolution=32)
    with pytest.raises(SystemExit, match="no dVAE"):
        train_tokenizer.main(options(films, tmp_path / "out", tmp_path / "vqgan"))
