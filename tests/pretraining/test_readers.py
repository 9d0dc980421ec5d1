"""The readers of frames give the same pictures, and the same complaints."""

import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import readers, tokenize
from pretraining.readers import READERS, PyAVReader, TorchcodecReader, to_squares
from pretraining.shards import read_manifest
from pretraining.sources import Source, webdataset
from pretraining.video import CENTRE, CorruptVideoError, Crop, to_square

CPU = torch.device("cpu")
CROPS = [CENTRE, Crop(0.0, 0.9), Crop(0.7, 0.2, mirrored=True)]


def write_scene(path: Path, width: int, height: int, frames: int = 20) -> Path:
    """Smooth waves that move, so that resizing them is well-defined."""
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"g": "7"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            waves = [np.sin(x / 30 + i / 5), np.cos(y / 25 - i / 7), np.sin((x + y) / 40)]
            pixels = np.stack([128 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def source(path: Path) -> Source:
    return Source(path.name, path, "video", path.stat().st_size)


@pytest.fixture
def torchcodec() -> TorchcodecReader:
    try:
        return TorchcodecReader(CPU)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("size", "resolution"), [((64, 64), 64), ((96, 64), 64), ((64, 98), 64)])
def test_undecoded_pixels_are_equal(
    tmp_path: Path, torchcodec: TorchcodecReader, size: tuple[int, int], resolution: int
) -> None:
    scene = source(write_scene(tmp_path / "scene.mp4", *size))
    ours = np.stack(list(torchcodec.squares(scene, resolution, CROPS)))
    theirs = np.stack(list(PyAVReader().squares(scene, resolution, CROPS)))
    assert ours.shape == (20, 1 if size[0] == size[1] else 3, 64, 64, 3)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(320, 240), (128, 96), (48, 36)])
def test_resized_pixels_are_alike(
    tmp_path: Path, torchcodec: TorchcodecReader, size: tuple[int, int]
) -> None:
    scene = source(write_scene(tmp_path / "scene.mp4", *size))
    ours = np.stack(list(torchcodec.squares(scene, 64, CROPS))).astype(int)
    theirs = np.stack(list(PyAVReader().squares(scene, 64, CROPS))).astype(int)
    assert ours.shape == theirs.shape == (20, 3, 64, 64, 3)
    difference = np.abs(ours - theirs)
    assert difference.mean() < 2 and np.quantile(difference, 0.99) <= 6


@pytest.mark.parametrize("size", [(320, 240), (128, 96), (100, 130)])
def test_resized_colours_stay_where_they_are(tmp_path: Path, size: tuple[int, int]) -> None:
    """Against Pillow's box filter; also where the new width is odd and colours come halved."""
    path = write_scene(tmp_path / "scene.mp4", *size)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    ours = to_square(frame, 64, Crop(0.0, 0.0)).astype(int)
    scale = 64 / min(size)
    small = (round(size[0] * scale), round(size[1] * scale))
    expected = np.asarray(
        Image.fromarray(frame.to_ndarray(format="rgb24")).resize(small, Image.Resampling.BOX)
    )
    assert np.abs(ours - expected[:64, :64]).mean() < 1.5


def test_members_of_archives(tmp_path: Path, torchcodec: TorchcodecReader) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_scene(folder / "a.mp4", 64, 64)
    write_scene(folder / "b.mp4", 64, 64, frames=5)
    shutil.make_archive(str(tmp_path / "tars" / "one"), "tar", folder)
    for member, frames in zip(webdataset(tmp_path / "tars"), (20, 5), strict=True):
        ours = list(torchcodec.squares(member, 64, [CENTRE]))
        assert len(ours) == frames
        assert np.array_equal(ours, list(PyAVReader().squares(member, 64, [CENTRE])))


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_videos(tmp_path: Path, torchcodec: TorchcodecReader, damage: str) -> None:
    path = write_scene(tmp_path / "scene.mp4", 64, 64)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no film", "empty": b""}[damage])
    for reader in (torchcodec, PyAVReader()):
        with pytest.raises(CorruptVideoError, match="scene.mp4"):
            list(reader.squares(source(path), 64, [CENTRE]))


def test_shards_are_equal(
    films: Path, tokenizer: Path, tmp_path: Path, torchcodec: TorchcodecReader
) -> None:
    """32 px films need no resizing: the same codes; the manifest tells the readers apart."""
    content = {}
    for name in READERS:
        out = tmp_path / name
        config = {"data": films, "tokenizer": tokenizer, "held_out": 0.2, "device": "cpu"}
        tokenize.main(tokenize.Config(out=out, reader=name, **config))  # pyright: ignore
        content[name] = (out / "shard_00000.bin").read_bytes()
        assert read_manifest(out).decoder.lower().startswith(name)
    assert content["pyav"] == content["torchcodec"]
    with pytest.raises(ValueError, match="reader: torchcodec then, pyav now"):
        tokenize.main(tokenize.Config(out=tmp_path / "torchcodec", **config))  # pyright: ignore


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (32, 32)])
def test_squares_in_torch_are_cut_as_by_pyav(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    expected = np.stack([to_square(frame, 32, crop) for crop in CROPS])
    ours = to_squares(torch.from_numpy(pixels).permute(2, 0, 1)[None], 32, CROPS)
    assert np.array_equal(ours[0], expected)


def test_squares_in_torch_are_averages() -> None:
    """Halving is the mean over 2 x 2 pixels."""
    frames = torch.randint(256, (2, 3, 8, 12), dtype=torch.uint8)
    means = frames.double().reshape(2, 3, 4, 2, 6, 2).mean(dim=(3, 5)).round()
    ours = to_squares(frames, 4, [Crop(0.0, 0.0)])[:, 0]
    assert (np.abs(ours - means[..., :4].permute(0, 2, 3, 1).numpy()) <= 0.5).all()


def test_without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, before anything is tokenized."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(
        ImportError, match="apt install ffmpeg.*pip install torchcodec.*reader=pyav"
    ):
        readers.READERS["torchcodec"](CPU)
