"""`pretraining.generate` on a small model: the film, what it holds, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import generate
from toto_robot.backbone.decoder import SIZES, Decoder
from toto_robot.backbone.tokenizers import load_tokenizer, save_decoder
from toto_robot.backbone.weights import save_weights, tensors_sha256


@pytest.fixture(scope="module")
def backbone(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained two-block model of 4-frame sequences, every second frame, as train exports it."""
    folder = tmp_path_factory.mktemp("backbone")
    parts, about = load_tokenizer(tokenizer)
    torch.manual_seed(1)
    config = dataclasses.replace(SIZES["tiny"], layers=2, vocabulary=32)
    tensors = {f"encoder.{k}": t for k, t in parts.encoder.state_dict().items()}
    tensors |= {f"decoder.{k}": t for k, t in Decoder(config).state_dict().items()}
    del tensors["decoder.head.weight"]  # tied
    content = {
        "kind": "toto",
        "model": "tiny",
        "decoder": dataclasses.asdict(config),
        "tokenizer": about["config"],
        "encoder_sha256": tensors_sha256(parts.encoder.state_dict()),
        "resolution": 32,
        "trained": {"frames": "4", "stride": "2"},
    }
    save_weights(folder / "backbone.safetensors", tensors, content)
    save_decoder(parts, folder / "backbone-decoder.safetensors")
    return folder


def config(weights: Path, films: Path, file: Path, **changes: Any) -> generate.Config:
    values: dict[str, Any] = {
        "clip": films / "wrist" / "clip_0.mp4", "weights": str(weights), "out": file,
        "frames": 2, "scale": 1,
    }  # fmt: skip
    return generate.Config(**values | changes)


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_a_film_with_the_given_frames_marked(backbone: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "film.mp4"
    report = generate.main(config(backbone, films, out, samples=2))
    film = read(out)
    assert film.shape == (5, 32, 4 * 32 + 3 * 2, 3)  # three of four frames given, two made
    bars = film[:, 1, [16, 50, 84, 118]].astype(int)  # in the middle of each panel's bar
    for t, bar in enumerate(bars[:, 2:]):
        expected = generate.GREEN if t < 3 else generate.ORANGE
        assert np.abs(bar - expected).max() < 12
    original = read(films / "wrist" / "clip_0.mp4")[::2]
    assert np.abs(film[:, 8:, :30].astype(int) - original[:5, 8:, :30]).mean() < 4
    assert len(report["psnr_continued"]) == 2  # the clip goes on long enough to compare
    assert json.loads(out.with_suffix(".json").read_text())["stride"] == 2


def test_the_seed_decides(backbone: Path, films: Path, tmp_path: Path) -> None:
    """From given codes: an untrained tokenizer's own are near ties, which rounding may turn."""
    codes = torch.randint(32, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    first, again, other = (
        generate.generate(c, generate.load(c), codes)
        for c in (config(backbone, films, tmp_path / "x.mp4", seed=seed) for seed in (0, 0, 1))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_past_the_end_of_the_clip_as_gif(backbone: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "film.gif"
    report = generate.main(config(backbone, films, out, prompt=2, first=5, frames=4, scale=2))
    with Image.open(out) as film:
        assert film.n_frames == 6 and film.size == (2 * (3 * 32 + 4), 64)  # pyright: ignore
    assert len(report["psnr_continued"]) == 2  # frames 9 and 11 are the last there are


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": Path("film.avi")}, r"ends in \.mp4 or \.gif"),
        ({"frames": 0}, "frames=0: expected 1"),
        ({"clip": Path("nothing.mp4")}, "nothing.mp4 does not exist"),
        ({"prompt": 4}, "reads 4 frames at a time, so 1 to 3"),
        ({"first": 9}, "too few frames: 3 given ones, every 2th from frame 9, need 14"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"context": 1}, "single frames"),
        ({"tokenizer": Path("nowhere.safetensors")}, "decoder_for="),
        ({"backbone": "toto-tinny"}, "Did you mean 'toto-tiny'"),
    ],
)
def test_refusals(backbone: Path, films: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises((SystemExit, ValueError), match=message):
        generate.main(config(backbone, films, tmp_path / "film.mp4", **changes))


def test_a_trunk_without_a_head_is_refused(backbone: Path, films: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(backbone / "backbone.safetensors")
    del tensors["decoder.norm.weight"]
    about = json.loads((backbone / "backbone.json").read_text())
    save_weights(tmp_path / "backbone.safetensors", tensors, about)
    with pytest.raises(ValueError, match="decoder.norm.weight"):
        generate.main(config(tmp_path, films, tmp_path / "film.mp4"))


def test_a_foreign_decoder_is_refused(backbone: Path, films: Path, tmp_path: Path) -> None:
    for name in ("backbone-decoder.safetensors", "backbone-decoder.json"):
        shutil.copy(backbone / name, tmp_path)
    about = tmp_path / "backbone-decoder.json"
    content = json.loads(about.read_text()) | {"encoder_sha256": "0" * 64}
    about.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="decodes the codes of encoder 0000"):
        generate.main(config(backbone, films, tmp_path / "film.mp4", tokenizer=tmp_path))
