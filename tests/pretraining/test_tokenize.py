"""Tokenizing in one process: what lands in shards and manifest, damage, kills at every write."""

import io
import json
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pretraining import tokenize, tokenize_plan, tokenize_task
from pretraining.shards import Manifest, read_manifest
from pretraining.sources import Source, images, tar_members, videos, webdataset
from pretraining.tokenize_plan import decide_held_out, list_sources, read_plan
from pretraining.tokenize_task import ranges, unfinished
from pretraining.video import (
    CorruptSourceError,
    count_frames,
    crops_of,
    decode,
    read_frames,
    read_source,
    sample_frames,
    to_square,
)
from tests.pretraining.conftest import write_film
from toto_robot.backbone import weights
from toto_robot.backbone.tokenizers import load_tokenizer, save_tokenizer
from toto_robot.backbone.vqgan import VQGAN, VQGAN_SIZES


@pytest.fixture
def config(films: Path, tokenizer: Path, tmp_path: Path) -> tokenize.Config:
    """As the `shards` of conftest were made, into a folder of its own."""
    return tokenize.Config(
        data=films, tokenizer=tokenizer, out=tmp_path / "out", held_out=0.2, per_shard=2
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven colourful pictures of several sizes, formats and colour modes."""
    folder = tmp_path / "pictures"
    (folder / "n01").mkdir(parents=True)
    random = np.random.default_rng(0)
    kinds = ["a.JPEG", "b.png", "c.jpg", "d.png", "e.webp", "f.png", "g.png"]
    for i, name in enumerate(kinds):
        pixels = random.integers(0, 256, (40 + i, 32 + 2 * i, 3), np.uint8)
        mode = {"b.png": "L", "d.png": "P", "f.png": "RGBA"}.get(name, "RGB")
        Image.fromarray(pixels).convert(mode).save(folder / "n01" / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def codes_of(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """Codes of each (source, crop) that the shards hold."""
    manifest, found = read_manifest(folder), {}
    for entry in manifest.shards:
        shard = np.fromfile(folder / f"{entry['name']}.bin", "<u2")
        shard = shard.reshape(-1, manifest.tokens_per_frame)
        for video, first, count, _, crop in np.load(folder / f"{entry['name']}.npy").tolist():
            found[manifest.videos[video], crop] = shard[first : first + count]
    return found


def encoded(tokenizer: Path, frames: list[np.ndarray]) -> np.ndarray:
    encoder = load_tokenizer(tokenizer)[0].encoder
    return encoder.encode(torch.from_numpy(np.stack(frames))).flatten(1).numpy()


def test_manifest_of_films(shards: Path) -> None:
    manifest = read_manifest(shards)
    assert (manifest.kind, manifest.layout, manifest.dtype) == ("video", "videos", "uint16")
    assert (manifest.frames, manifest.tokens) == (60, 960)
    assert "FFmpeg" in manifest.decoder and "float32" in manifest.encoder
    rows = np.concatenate([np.load(path) for path in sorted(shards.glob("*.npy"))])
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (rows[:, 2:] == [12, 30_000, 0]).all()


def test_a_second_start_only_checks(
    config: tokenize.Config, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize.main(config)
    before = contents(config.out)
    assert before == contents(shards)  # the settings are the fixture's
    monkeypatch.setattr(tokenize_task, "encode_sources", None)  # would raise if called
    tokenize.main(config)
    assert contents(config.out) == before


class KilledError(BaseException):
    """In place of SIGKILL: nothing catches it."""


# Per task a shard's two files and a record; before that tokenizer and plan, at last the manifest.
@pytest.mark.parametrize("last", range(3 + 3 * 3 + 1))
def test_killed_at_any_write(
    config: tokenize.Config, shards: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Killed in place of the rename number `last`, then started again: as if nothing had been."""
    renames = []

    def rename(temporary: Path, path: Path) -> None:
        if len(renames) == last:
            raise KilledError
        renames.append(path)
        original(temporary, path)

    original = weights.replace_atomically
    for module in (tokenize_plan, tokenize_task, weights, "pretraining.shards"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.replace_atomically", rename, raising=False)
    with pytest.raises(KilledError):
        tokenize.main(config)
    assert not (config.out / "manifest.json").exists()
    monkeypatch.undo()
    tokenize.main(config)
    assert {k: v for k, v in contents(config.out).items() if ".tmp" not in k} == contents(shards)


def test_two_runs_at_once(
    config: tokenize.Config, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have computed the same shard when both write it, every time."""
    together = threading.Barrier(2, timeout=20)
    original = tokenize_task.write_finished

    def meet(*arguments):
        together.wait()
        return original(*arguments)

    tokenize_plan.make_plan(config.out, config.data, config.tokenizer, held_out=0.2, per_shard=2)
    monkeypatch.setattr(tokenize_task, "write_finished", meet)
    threads = [threading.Thread(target=tokenize.main, args=(config,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(config.out) == contents(shards)


def test_damaged_shard_is_made_again(config: tokenize.Config) -> None:
    tokenize.main(config)
    before = contents(config.out)
    path = config.out / "shard_00001.bin"
    path.write_bytes(path.read_bytes()[:-2])  # seen at the start
    tokenize.main(config)
    assert contents(config.out) == before
    path.write_bytes(bytes(len(before[path.name])))  # seen at the end
    with pytest.raises(ValueError, match="shard_00001.bin does not have the SHA-256"):
        tokenize.main(config)
    assert unfinished(read_plan(config.out)) == [1]
    tokenize.main(config)
    assert contents(config.out) == before


def test_single_tasks_and_the_finish(config: tokenize.Config, shards: Path) -> None:
    tokenize.main(replace(config, task="1"))
    with pytest.raises(ValueError, match=r"2 of 3 tasks are not finished \(0,2\)"):
        tokenize.main(replace(config, task="finish"))
    tokenize.main(replace(config, task="0/2"))
    tokenize.main(replace(config, task="finish"))
    assert contents(config.out) == contents(shards)
    for wrong in ("3", "x", "1/0", "1/2/3"):
        with pytest.raises(ValueError, match=f"task={wrong}"):
            tokenize.main(replace(config, task=wrong))
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_other_films_or_settings(config: tokenize.Config, tmp_path: Path) -> None:
    tokenize.main(config)
    with pytest.raises(ValueError, match="crops: 1 then, 2 now.*choose another out="):
        tokenize.main(replace(config, crops=2))
    with pytest.raises(ValueError, match="resolution: 32 then, 64 now"):
        tokenize.main(replace(config, resolution=64, task="0"))
    for i in range(2):
        write_film(tmp_path / f"other_{i}.mp4", seed=9 + i, frames=3)
    with pytest.raises(ValueError, match="sources: 5 then, 2 now"):
        tokenize.main(replace(config, data=tmp_path))
    (config.out / "plan.jsonl").write_text("{")
    with pytest.raises(ValueError, match="plan.jsonl is damaged"):
        tokenize.main(config)


def test_corrupt_films_are_skipped_and_recorded(
    config: tokenize.Config, films: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(films, tmp_path / "films")
    whole = (data / "wrist" / "clip_1.mp4").read_bytes()
    (data / "wrist" / "clip_1.mp4").write_bytes(whole[: len(whole) // 2])
    (data / "wrist" / "aa.mp4").write_bytes(b"")  # with ab.mp4 the whole of the first task
    (data / "wrist" / "ab.mp4").write_text("no film")
    tokenize.main(replace(config, data=data))
    manifest = read_manifest(config.out)
    assert set(manifest.skipped) == {f"wrist/{name}.mp4" for name in ("aa", "ab", "clip_1")}
    assert all("cannot be decoded" in reason for reason in manifest.skipped.values())
    assert [entry["name"] for entry in manifest.shards] == [f"shard_0000{i}" for i in (1, 2, 3)]
    sound = codes_of(config.out)
    assert set(sound) == {(f"wrist/clip_{i}.mp4", 0) for i in (0, 2, 3, 4)}
    frames = list(read_frames(films / "wrist" / "clip_2.mp4", 32))
    assert np.array_equal(sound["wrist/clip_2.mp4", 0], encoded(config.tokenizer, frames))


def test_nothing_decodes(config: tokenize.Config, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "films" / name).write_text("no film")
    with pytest.raises(CorruptSourceError, match="none of the 3 sources .*a.mp4 cannot be decoded"):
        tokenize.main(replace(config, data=tmp_path / "films"))


def test_a_lost_mount_is_no_corruption(
    config: tokenize.Config, films: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(films, tmp_path / "films")
    config = replace(config, data=data)
    tokenize.main(replace(config, task="0"))
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="films is not there on"):
        tokenize.main(replace(config, task="1"))
    (tmp_path / "elsewhere").rename(data)
    tokenize.main(config)
    assert not read_manifest(config.out).skipped


def test_resolution_other_than_the_tokenizers(config: tokenize.Config, films: Path) -> None:
    tokenize.main(replace(config, resolution=64))
    manifest = read_manifest(config.out)
    assert (manifest.resolution, manifest.tokens_per_side) == (64, 8)
    frames = list(read_frames(films / "wrist" / "clip_3.mp4", 64))
    codes = codes_of(config.out)["wrist/clip_3.mp4", 0]
    assert codes.shape == (12, 64) and np.array_equal(codes, encoded(config.tokenizer, frames))
    with pytest.raises(ValueError, match="no multiple of a token's 8 px"):
        tokenize.main(replace(config, out=config.out / "x", resolution=60))


def test_half_precision(config: tokenize.Config, shards: Path, tmp_path: Path) -> None:
    tokenize.main(replace(config, precision="float16"))
    assert read_manifest(config.out).encoder.endswith("float16")
    ours, expected = codes_of(config.out), codes_of(shards)
    alike = [np.mean(ours[name] == expected[name]) for name in expected]
    assert 0.97 < np.mean(alike)
    save_tokenizer(VQGAN(VQGAN_SIZES["vqgan-tiny"]), tmp_path / "vqgan", resolution=32)
    with pytest.raises(ValueError, match="known to work with a dVAE, not vqgan"):
        tokenize.main(replace(config, tokenizer=tmp_path / "vqgan", precision="float16"))


def test_pictures(config: tokenize.Config, pictures: Path) -> None:
    (pictures / "n01" / "broken.jpg").write_bytes((pictures / "n01" / "c.jpg").read_bytes()[:300])
    (pictures / "n01" / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 2000)).save(pictures / "n01" / "narrow.png")
    tokenize.main(replace(config, data=pictures, per_shard=0, batch_size=3))
    manifest = read_manifest(config.out)
    assert (manifest.kind, manifest.layout, manifest.frames) == ("image", "images", 7)
    assert "Pillow" in manifest.decoder and len(manifest.shards) == 1
    assert set(manifest.skipped) == {f"n01/{n}" for n in ("broken.jpg", "empty.png", "narrow.png")}
    assert "Truncated" in manifest.skipped["n01/broken.jpg"]
    assert manifest.skipped["n01/empty.png"].endswith("is no picture; it begins b''")
    assert manifest.skipped["n01/narrow.png"].endswith("is 2 x 2000 px")
    codes = codes_of(config.out)
    with Image.open(pictures / "n01" / "g.png") as picture:  # 46 x 44 px: needs no colour mode
        pixels = np.asarray(picture)
    scaled = to_square(av.VideoFrame.from_ndarray(pixels, format="rgb24"), 32)
    assert np.array_equal(codes["n01/g.png", 0], encoded(config.tokenizer, [scaled]))
    rows = np.load(config.out / "shard_00000.npy")
    assert (rows[:, 2:] == [1, 0, 0]).all()


def test_pictures_of_any_mode_are_their_rgb(pictures: Path) -> None:
    """Not scaled, as the resolution is their shorter side: the middle of what Pillow reads."""
    found = images(pictures)
    for source in found:
        with Image.open(source.path) as picture:
            expected = np.asarray(picture.convert("RGB"))
        side = min(expected.shape[:2])
        top, left = ((length - side) // 2 for length in expected.shape[:2])
        (squares,) = read_source(source, side, crops_of(source.name, 1))
        assert np.array_equal(squares[0], expected[top : top + side, left : left + side])
    assert len(found) == 7


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_members_of_tars_are_as_files(
    config: tokenize.Config, films: Path, shards: Path, tmp_path: Path
) -> None:
    data = tmp_path / "tars"
    data.mkdir()
    for number, part in enumerate(((0, 1), (2, 3, 4))):
        with tarfile.open(data / f"{number:06d}.tar", "w") as archive:
            for i in part:
                add(archive, f"clip_{i}.json", b"{}")
                add(archive, f"clip_{i}.mp4", (films / "wrist" / f"clip_{i}.mp4").read_bytes())
    assert [s.name for s in webdataset(data)][2] == "000001.tar/clip_2.mp4"
    tokenize.main(replace(config, data=data))
    manifest = read_manifest(config.out)
    assert (manifest.layout, manifest.kind) == ("webdataset", "video")
    ours, expected = codes_of(config.out), codes_of(shards)
    assert len(ours) == 5
    for (name, _), codes in ours.items():
        assert np.array_equal(codes, expected[name.replace(name[:11], "wrist/"), 0])


def test_tars_of_pictures_whole_and_damaged(
    config: tokenize.Config, pictures: Path, tmp_path: Path
) -> None:
    data = tmp_path / "tars"
    data.mkdir()
    for name in ("good.tar", "torn.tar"):
        with tarfile.open(data / name, "w") as archive:
            for path in sorted((pictures / "n01").iterdir()):
                add(archive, f"./{path.name}", path.read_bytes())
    whole = (data / "torn.tar").read_bytes()
    cut = next(s for s in tar_members(data / "torn.tar", "torn.tar") if s.name.endswith("d.png"))
    assert cut.offset
    (data / "torn.tar").write_bytes(whole[: cut.offset + 20])
    (data / "nonsense.tar").write_bytes(b"no archive" * 100)
    tokenize.main(replace(config, data=data))
    manifest = read_manifest(config.out)
    reasons = manifest.skipped
    assert set(reasons) == {"nonsense.tar", "torn.tar", "torn.tar/d.png"}
    assert all("no archive" in reasons[name] for name in ("nonsense.tar", "torn.tar"))
    codes = codes_of(config.out)
    assert len(codes) == 7 + 3
    assert np.array_equal(codes["good.tar/c.jpg", 0], codes["torn.tar/c.jpg", 0])
    tokenize.main(replace(config, data=pictures, out=config.out / "files"))
    assert np.array_equal(
        codes["good.tar/f.png", 0], codes_of(config.out / "files")["n01/f.png", 0]
    )


def test_videos_go_before_pictures_in_tars(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_film(tmp_path / "clip.mp4", seed=0, frames=2)
    with tarfile.open(tmp_path / "mixed.tar", "w") as archive:
        add(archive, "clip.jpg", b"a thumbnail")
        add(archive, "clip.mp4", (tmp_path / "clip.mp4").read_bytes())
    assert [source.name for source in webdataset(tmp_path)] == ["mixed.tar/clip.mp4"]
    assert "1 pictures beside the videos are left out" in capsys.readouterr().out


def test_crops(config: tokenize.Config, tmp_path: Path) -> None:
    """The first is the centre; the others depend on the name alone; square films have one."""
    (tmp_path / "films").mkdir()
    for i, width in enumerate((96, 96, 32)):
        write_film(tmp_path / "films" / f"{i}.mp4", seed=i, frames=4, width=width)
    config = replace(config, data=tmp_path / "films", crops=3)
    tokenize.main(config)
    codes = codes_of(config.out)
    expected = {("0.mp4", 0), ("0.mp4", 1), ("0.mp4", 2), ("1.mp4", 0), ("1.mp4", 1), ("1.mp4", 2)}
    assert set(codes) == expected | {("2.mp4", 0)}
    assert read_manifest(config.out).frames == 4 * 7 and read_manifest(config.out).crops == 3
    places = crops_of("0.mp4", 3)
    assert places[:2] == crops_of("0.mp4", 2) and places[1:] != crops_of("1.mp4", 3)[1:]
    centre = [to_square(f, 32) for f in decode(config.data / "0.mp4")]
    third = [to_square(f, 32, places[2]) for f in decode(config.data / "0.mp4")]
    assert np.array_equal(codes["0.mp4", 0], encoded(config.tokenizer, centre))
    assert np.array_equal(codes["0.mp4", 2], encoded(config.tokenizer, third))


def source(name: str, held_out: bool | None = None) -> Source:
    return Source(name, Path(name), "video", 1, held_out=held_out)


def test_held_out_is_the_data_sets_own(capsys: pytest.CaptureFixture) -> None:
    names = [f"{i}.mp4" for i in range(40)]
    hashed = [s.held_out for s in decide_held_out([source(n) for n in names], 0.2)]
    assert sum(map(bool, hashed)) == 8
    own = [source(n, i % 3 == 0) for i, n in enumerate(names)]
    assert decide_held_out(own, 0.2) == own
    assert not capsys.readouterr().out
    one_sided = [source(n, False) for n in names]
    assert [s.held_out for s in decide_held_out(one_sided, 0.2)] == hashed
    assert "one side only" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least 2"):
        decide_held_out([source("a.mp4")], 0.5)
    with pytest.raises(ValueError, match="nothing to train on"):
        decide_held_out([source("a.mp4"), source("b.mp4")], 1.0)


def test_layouts(films: Path, pictures: Path, tmp_path: Path) -> None:
    assert list_sources(films, "auto") == ("videos", videos(films))
    assert list_sources(pictures, "auto")[0] == "images"
    assert {s.kind for s in images(pictures)} == {"image"} and len(images(pictures)) == 7
    with pytest.raises(ValueError, match="unknown layout 'video'.*Did you mean 'videos'"):
        list_sources(films, "video")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="neither videos nor pictures"):
        list_sources(tmp_path / "none", "auto")


def test_labels_reach_the_manifest(
    config: tokenize.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labelled(root: Path) -> list[Source]:
        return [replace(s, label=i % 2, held_out=i == 3) for i, s in enumerate(videos(root))]

    monkeypatch.setitem(tokenize_plan.LAYOUTS, "labelled", labelled)
    tokenize.main(replace(config, layout="labelled"))
    manifest = read_manifest(config.out)
    assert manifest.labels == [0, 1, 0, 1, 0] and manifest.held_out == [3]
    assert isinstance(Manifest(**json.loads((config.out / "manifest.json").read_text())), Manifest)


def test_sampled_frames_are_evenly_spaced(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mkv" for i in range(2)]  # Matroska does not say how many frames
    for i, path in enumerate(paths):
        write_film(path, seed=i, frames=10 + i)
    sources = list_sources(tmp_path, "videos")[1]
    assert [count_frames(source) for source in sources] == [10, 11]
    sampled = sample_frames(sources, 32, 6, "reading")
    frames = [list(read_frames(path, 32)) for path in paths]
    expected = [frames[0][i] for i in (0, 4, 9)] + [frames[1][i] for i in (0, 5, 10)]
    assert np.array_equal(sampled.numpy(), np.stack(expected))


def test_sampled_pictures(pictures: Path) -> None:
    """All of them, or evenly spaced ones."""
    sources = list_sources(pictures, "images")[1]
    every = sample_frames(sources, 32, 100, "reading")
    assert len(every) == len(sources) == 7
    assert torch.equal(sample_frames(sources, 32, 3, "reading"), every[[0, 2, 4]])
