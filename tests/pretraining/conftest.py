"""Small films, a small tokenizer and small shards, made once."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pretraining import index, tokenize
from toto_robot.backbone.dvae import DVAE, DVAE_SIZES
from toto_robot.backbone.tokenizers import save_tokenizer


def write_film(path: Path, seed: int, frames: int, width: int = 32, height: int = 32) -> None:
    """A square drifting over a plain ground."""
    random = np.random.default_rng(seed)
    ground, colour = random.integers(0, 256, (2, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            picture = np.empty((height, width, 3), np.uint8)
            picture[:] = ground
            picture[8:20, i % 16 : i % 16 + 12] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_noise(path: Path, frames: int, width: int, **options: str) -> None:
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "7", "bf": "3", **options})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, 32, "yuv420p"
        for _ in range(frames):
            picture = random.integers(0, 256, (32, width, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    (folder / "wrist").mkdir()
    for i in range(5):
        write_film(folder / "wrist" / f"clip_{i}.mp4", seed=i, frames=12)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer with a vocabulary of 32 at 32 px: 16 tokens per frame."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    config = replace(
        DVAE_SIZES["tiny"], vocabulary=32, encoder_widths=(8, 16), decoder_widths=(8, 16)
    )
    save_tokenizer(DVAE(config), folder, resolution=32)
    return folder


@pytest.fixture(scope="session")
def shards(films: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    tokenize.main(
        tokenize.Config(data=films, tokenizer=tokenizer, out=folder, held_out=0.2, per_shard=2)
    )
    return folder


@pytest.fixture(scope="session")
def live(films: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("live")
    index.main(index.Config(data=films, tokenizer=tokenizer, out=out, held_out=0.2))
    return out


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, twice as wide as high, so that every crop is another picture; without a tokenizer."""
    films, out = tmp_path_factory.mktemp("wide_films"), tmp_path_factory.mktemp("wide")
    for i in range(3):
        write_noise(films / f"{i}.mp4", frames=40, width=64)
    index.main(index.Config(data=films, out=out, resolution=32))
    return out


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """The training scripts take over Ctrl-C; pytest wants it back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
