"""Both trainings: exact resume after a kill, errors on other settings, files that load."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import optimizer, tokenize, train, train_tokenizer
from pretraining.dvae_loss import DVAETraining
from pretraining.samples import ShardSamples
from pretraining.vqgan_loss import VQGANTraining
from toto_robot.backbone import load_backbone
from toto_robot.backbone.tokenizers import load_tokenizer, save_tokenizer
from toto_robot.backbone.vqgan import VQGAN, VQGANConfig
from toto_robot.backbone.weights import read_weights, sha256_of

SMALL = {"frames": 2, "batch_size": 2, "warmup": 2, "eval_every": 3, "checkpoint_s": 0.0}


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def config(shards: Path, out: Path, **changes: object) -> train.Config:
    return train.Config(
        **{"model": "tiny", "data": shards, "out": out, "steps": 6, **SMALL, **changes}
    )  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train.main(config(shards, out))
    return out


def test_killed_and_resumed_equals_uninterrupted(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGKILL at some step after the second; losses and weights are then equal bit by bit."""
    words = [f"{k}={v}" for k, v in SMALL.items()]
    command = [sys.executable, "-m", "pretraining.train", "model=tiny", "steps=6", *words]
    process = subprocess.Popen(
        [*command, f"data={shards}", f"out={tmp_path}", f"threads={torch.get_num_threads()}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "checkpoints").glob("step_*"))
    assert not (tmp_path / "backbone.safetensors").exists(), "the run ended before it was killed"
    train.main(config(shards, tmp_path))
    assert losses(tmp_path) == losses(uninterrupted) and len(losses(tmp_path)) == 6
    weights = [sha256_of(p / "backbone.safetensors") for p in (tmp_path, uninterrupted)]
    assert weights[0] == weights[1]


def test_interrupt_saves_and_continues(
    shards: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = ShardSamples.draw, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(ShardSamples, "draw", interrupting)
    with pytest.raises(SystemExit, match="stopped after step 4"):
        train.main(config(shards, tmp_path, checkpoint_s=1e9))
    train.main(config(shards, tmp_path, checkpoint_s=1e9))
    assert losses(tmp_path) == losses(uninterrupted)


def test_other_seed_is_another_run(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train.main(config(shards, tmp_path, seed=1))
    assert losses(tmp_path) != losses(uninterrupted)
    with pytest.raises(ValueError, match="seed: 1 then, 2 now"):
        train.main(config(shards, tmp_path, seed=2))


def test_exported_backbone_loads(shards: Path, uninterrupted: Path) -> None:
    about = read_weights(uninterrupted / "backbone.safetensors")[1]
    assert about["tokens_seen"] == 6 * 2 * 2 * 16
    backbone = load_backbone("toto-tiny", weights=str(uninterrupted), grid=4)
    assert not backbone.untrained and backbone.resolution == 32
    frames = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert backbone(frames).shape == (2, 16, 128)
    tokenizer, _ = load_tokenizer(shards)
    assert torch.equal(backbone.tokenize(frames), tokenizer.encoder.encode(frames))
    assert (uninterrupted / "loss.png").stat().st_size > 1000


def test_loss_falls(shards: Path, tmp_path: Path) -> None:
    train.main(config(shards, tmp_path, steps=30, lr=3e-3, checkpoint_s=1e9))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 1


def test_swapped_tokenizer(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    about = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(about | {"tokenizer_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="tokenizer .*tokenize again"):
        train.main(config(copy, tmp_path / "out"))


def test_schedule() -> None:
    at = [optimizer.lr_at(s, 1.0, 10, 110, 0.1) for s in (0, 9, 10, 60, 110)]
    assert at == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1])


@pytest.mark.parametrize("size", ["tiny", "vqgan-tiny"])
def test_tokenizer_training_resumes_exactly(films: Path, tmp_path: Path, size: str) -> None:
    def run(out: Path, stop_after: int | None = None) -> list[float]:
        options = train_tokenizer.Config(
            data=films,
            out=out,
            size=size,
            resolution=32,
            held_out=0.2,
            steps=4,
            batch_size=4,
            warmup=2,
            critic_start=1,
            revive_every=2,
            report_every=1,
            checkpoint_s=0.0 if stop_after else 1e9,
        )
        if stop_after is None:
            train_tokenizer.main(options)
            return losses(out)
        training = VQGANTraining if size == "vqgan-tiny" else DVAETraining
        with pytest.MonkeyPatch.context() as patch:
            original, calls = training.loss, []

            def failing(*arguments):
                calls.append(1)
                if len(calls) > stop_after:
                    raise KeyboardInterrupt
                return original(*arguments)

            patch.setattr(training, "loss", failing)
            with pytest.raises(KeyboardInterrupt):
                train_tokenizer.main(options)
        return losses(out)

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", stop_after=2) == whole[:2]
    assert run(tmp_path / "parts") == whole
    for name in ("reconstructions.png", "codebook.png", "tokenizer.json"):
        assert (tmp_path / "whole" / name).stat().st_size > 500
    first, second = (sha256_of(tmp_path / d / "tokenizer.safetensors") for d in ("whole", "parts"))
    assert first == second
    model, about = load_tokenizer(tmp_path / "whole")
    assert about["kind"] == ("vqgan" if size == "vqgan-tiny" else "dvae")
    frames = torch.randint(256, (2, 32, 32, 3)).to(torch.uint8)
    assert model.decoder.decode(model.encoder.encode(frames)).shape == frames.shape


def test_a_tokenizer_learns_from_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        picture = random.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    options = train_tokenizer.Config(
        data=tmp_path / "pictures", out=tmp_path / "out", resolution=32, held_out=0.25, steps=2,
        batch_size=4, warmup=1,
    )  # fmt: skip
    train_tokenizer.main(options)
    about = load_tokenizer(tmp_path / "out")[1]
    assert about["resolution"] == 32 and about["trained"]["frames"] == "6"


def test_damaged_checkpoint(shards: Path, tmp_path: Path) -> None:
    train.main(config(shards, tmp_path, steps=2))
    newest = max((tmp_path / "checkpoints").iterdir())
    for file in newest.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="resume=never"):
        train.main(config(shards, tmp_path, steps=2))
    train.main(config(shards, tmp_path, steps=2, resume="never"))


def test_a_vqgan_goes_the_whole_way_from_films_to_features(films: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = VQGANConfig(vocabulary=32, channels=32, multipliers=(1, 1, 2), blocks=1,
                        attention_levels=(), code_channels=8)  # fmt: skip
    vqgan = VQGAN(small).eval()
    save_tokenizer(vqgan, tmp_path / "tokenizer", resolution=32)
    shards = tmp_path / "shards"
    tokenize.main(tokenize.Config(data=films, tokenizer=tmp_path / "tokenizer", out=shards))
    train.main(config(shards, tmp_path / "run", steps=2))
    backbone = load_backbone("toto-tiny", weights=str(tmp_path / "run"), grid=4)
    frames = torch.randint(256, (2, 32, 32, 3)).to(torch.uint8)
    assert backbone(frames).shape == (2, 16, 128) and backbone.tokens_per_side == 8
    assert torch.equal(backbone.tokenize(frames), vqgan.encoder.encode(frames))
