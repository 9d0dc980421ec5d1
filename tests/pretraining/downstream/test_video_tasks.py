"""Kinetics' and CATER's tasks on small sets in the real layouts, with toto-tiny."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pretraining import evaluate
from pretraining.datasets.listing import source_of
from pretraining.downstream import cater
from pretraining.downstream.clips import Clip, read_clip, read_views
from pretraining.downstream.videos import (
    Probed,
    VideoConfig,
    mean_of_views,
    view_scores,
    views_at_test,
    views_of,
)
from pretraining.video import CENTRE

FRAMES = 13
LOSSLESS = {"libx264": {"crf": "0"}, "mjpeg": {"qmin": "1", "qmax": "1"}}


def write_video(path: Path, film: list[np.ndarray], codec: str = "libx264") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=LOSSLESS[codec])
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = film[0].shape[:2]
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def approaching(random: np.random.Generator) -> list[np.ndarray]:
    """A bright square that comes nearer."""
    ground, colour = random.integers(0, 60, 3), random.integers(180, 256, 3)
    middle = 32 + random.integers(-6, 7, 2)
    film = []
    for i in range(FRAMES):
        picture = np.empty((64, 64, 3), np.uint8)
        picture[:] = ground
        (top, left), (bottom, right) = (
            np.clip(middle + sign * (2 + 24 * i // FRAMES), 0, 64) for sign in (-1, 1)
        )
        picture[top:bottom, left:right] = colour
        film.append(picture)
    return film


def make_kinetics(root: Path, train: int, validation: int) -> Path:
    """Pairs of the same film forwards ("approaching") and backwards ("receding")."""
    random = np.random.default_rng(0)
    for split, pairs in (("train", train), ("val", validation)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for i in range(pairs):
            film = approaching(random)
            for label, pictures in (("approaching", film), ("receding", film[::-1])):
                identity = f"{split[0]}-{label[:4]}-{i:04d}"
                rows.append(f"{label},{identity},7,17,{split}")
                write_video(root / f"{split}/{identity}_000007_000017.mp4", pictures)
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def run(task: str, data: Path, out: Path, *words: str) -> dict:
    evaluate.main([f"task={task}", "backbone=toto-tiny", f"data={data}", f"out={out}",
                   f"cache={out / 'features'}", "threads=1", "rates=3e-3,1e-2", *words])  # fmt: skip
    (path,) = (out / task).glob("*/result.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kinetics(tmp_path_factory.mktemp("k400"), train=24, validation=8)


KINETICS = ("resolution=64", "grid=2", "frames=4")


def test_time_s_arrow_is_in_the_blocks_and_not_in_the_embeddings(films, tmp_path):
    """Both classes show the same frames, so that the mean of embeddings tells nothing: of each pair
    of films one is right. The states have read what came before."""
    words = (*KINETICS, "stride=4", "layers=0,4", "epochs=25", "views=1", "crops=1", "pooling=mean")
    result = run("kinetics", films, tmp_path, *words)
    embeddings, middle = (layer["top1_%"]["value"] for layer in result["layers"])
    assert embeddings == 50.0
    assert middle >= 90.0
    assert result["best_layer"] == 4 and result["metrics"] == result["layers"][1]
    assert result["metrics"]["top1_%"]["count"] == 16
    assert "top1_views_%" not in result["metrics"]
    assert (tmp_path / "kinetics/toto-tiny-mean-64px-4frames/layers.png").stat().st_size > 1000


def test_missing_corrupt_and_replaced_clips(films, tmp_path):
    data = tmp_path / "k400"
    for path in films.rglob("*.*"):
        copy = data / path.relative_to(films)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    names = [f"val/v-appr-000{i}_000007_000017.mp4" for i in range(3)]
    gone, torn, replaced = (data / name for name in names)
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:2000])
    (data / "replacement").mkdir()
    (data / "replacement" / replaced.name).write_bytes(replaced.read_bytes())
    replaced.write_bytes(b"corrupted")
    train = data / "train/t-rece-0001_000007_000017.mp4"
    train.write_bytes(b"")
    words = ("stride=2", "layers=4", "epochs=2", "pooling=mean", "views=3", "crops=3")
    result = run("kinetics", data, tmp_path / "out", *KINETICS, *words)
    assert set(result["skipped"]) == {names[0], names[1], "train/t-rece-0001_000007_000017.mp4"}
    assert result["skipped"][names[0]] == "annotated, not there"
    assert names[1] in result["skipped"][names[1]]
    for metric in ("top1_%", "top1_views_%"):
        assert result["metrics"][metric]["count"] == 14
    assert result["extra"]["views"] == "3 x 3"


@pytest.mark.parametrize("pooling", ["attention", "cross"])
def test_heads_run_on_tokens(films, tmp_path, pooling):
    words = ("stride=4", "layers=4", "epochs=12", "views=1", "crops=1", f"pooling={pooling}")
    result = run("kinetics", films, tmp_path, *KINETICS, *words)
    assert result["metrics"]["top1_%"]["value"] >= 75.0
    assert result["extra"]["pooling"] == pooling


def test_kinetics_without_labels_is_refused(films, tmp_path):
    with pytest.raises(SystemExit, match=r"0 clips in test/.*annotations/test.csv"):
        run("kinetics", films, tmp_path, "split=test")


def test_views_lie_evenly():
    config = VideoConfig(data=Path(), frames=4, stride=2, views=5, crops=3)
    views, averaged = views_at_test(config)
    assert len(views) == 15 and sorted(averaged) == list(range(15))
    assert views[0].crop is CENTRE and views[0].places(27) == [10, 12, 14, 16]
    starts = [view.places(27)[0] for view in views_of(config, 5, 1)]
    assert starts == [0, 5, 10, 15, 20]
    assert views[0].places(5) == [0, 2, 4, 4]  # too short: the last frame again
    even, averaged = views_at_test(VideoConfig(data=Path(), stride=1, views=2))
    assert len(even) == 3 and averaged == [1, 2]  # the middle is scored, and is none of the two
    left, middle, right = (view.crop for view in views_of(config, 1, 3))
    assert (left.right, middle.right) == (0, None) and 0.999 < (right.right or 0) < 1
    whole = VideoConfig(data=Path(), frames=5)
    assert views_of(whole, 1, 1)[0].places(301) == [0, 75, 150, 225, 300]
    with pytest.raises(ValueError, match="need a stride="):
        views_of(whole, 2, 1)
    with pytest.raises(ValueError, match="frames=0"):
        views_of(VideoConfig(data=Path(), frames=0), 1, 1)


def test_views_of_a_video_are_read_together(tmp_path):
    """Frame i is grey 8 i, with a black left and a white right edge."""
    film = [np.full((32, 96, 3), 8 * i, np.uint8) for i in range(20)]
    for picture in film:
        picture[:, :32], picture[:, 64:] = 0, 255
    path = write_video(tmp_path / "wide.mp4", film)
    views = views_of(VideoConfig(data=tmp_path, frames=3, stride=4), 2, 3)
    together = read_views(source_of(path, tmp_path), views, 32)
    greys = np.array([frames.mean(axis=(1, 2, 3)) for frames in together])
    assert greys[0].max() < 2 and greys[2].min() > 253
    assert greys[1] == pytest.approx([0, 32, 64], abs=2)
    assert greys[4] == pytest.approx([88, 120, 152], abs=2)
    for view, frames in zip(views, together, strict=True):
        assert np.array_equal(read_clip(Clip(source_of(path, tmp_path), view), 32), frames)


def test_views_are_averaged_after_the_softmax():
    """Softmax of (ln 3, 0) is (3/4, 1/4), of (0, ln 9) (1/10, 9/10); means 17/40 and 23/40.

    The mean of the logits would be (0.549, 1.099), the other way round for the second video."""
    ln = np.log
    logits = torch.tensor([[[ln(3), 0.0], [0.0, ln(9)]], [[ln(99), 0.0], [0.0, ln(120)]]])
    means = mean_of_views(logits)
    assert means[0].tolist() == pytest.approx([17 / 40, 23 / 40])
    assert means[1].tolist() == pytest.approx([(0.99 + 1 / 121) / 2, (0.01 + 120 / 121) / 2])
    probed = Probed([], [logits], torch.tensor([1, 0]), [0, 1], {})
    (score,) = view_scores(probed)
    assert score["top1_%"].value == 50.0  # first views: class 0, class 0
    assert score["top1_views_%"].value == 50.0 and "top5_%" not in score
    assert (score["top1_%"].low, score["top1_%"].high) == pytest.approx((9.45, 90.55), abs=0.01)


def snitch(random: np.random.Generator, cell: int) -> list[np.ndarray]:
    """A golden square that wanders over 6 x 6 cells of a wide picture and stops in `cell`."""
    film = []
    for i in range(2 * FRAMES):
        place = cell if i >= FRAMES else int(random.integers(36))
        picture = np.full((48, 64, 3), 70, np.uint8)
        top, left = 8 * (place // 6), 8 + 8 * (place % 6)
        picture[top : top + 8, left : left + 8] = (230, 190, 40)
        film.append(picture)
    return film


CELLS = (0, 5, 35)


def make_cater(root: Path, train: int, validation: int) -> Path:
    random = np.random.default_rng(0)
    number = 0
    (root / "lists/localize").mkdir(parents=True)
    for split, each in (("train", train), ("val", validation)):
        lines = []
        for cell in CELLS * each:
            name = f"CLEVR_new_{number:06d}.avi"
            write_video(root / "videos" / name, snitch(random, cell), "mjpeg")
            lines.append(f"{name} {cell}")
            number += 1
        (root / f"lists/localize/{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("frames", [16, 32])
def test_cater_finds_the_last_cell(tmp_path, frames):
    """Three of the 36 cells, and the snitch was everywhere before; one video is missing, one torn."""
    data = make_cater(tmp_path / "all_actions", train=12, validation=5)
    first, second = (data / f"videos/CLEVR_new_{i:06d}.avi" for i in (0, 36))
    first.unlink()
    second.write_bytes(b"RIFF")
    words = ("resolution=32", "grid=2", "layers=2", "epochs=40", f"frames={frames}")
    result = run("cater", data, tmp_path / "out", *words)
    assert result["extra"]["frames"] == frames and result["extra"]["num_classes"] == 36
    assert set(result["skipped"]) == {f"videos/{p.name}" for p in (first, second)}
    metrics = result["metrics"]
    assert metrics["top1_%"]["count"] == metrics["L1_cells"]["count"] == 14
    assert metrics["top1_%"]["value"] >= 80.0 and metrics["L1_cells"]["value"] <= 1.0


@pytest.mark.parametrize("mode", ["hybrid", "finetune"])
def test_cater_trains_on_the_squares_that_its_labels_are_of(tmp_path, monkeypatch, mode):
    """Every training clip is the whole centre, never mirrored: else its cell would be another."""
    data = make_cater(tmp_path / "all_actions", train=2, validation=1)
    seen = []

    def watch(source, views, resolution):
        seen.extend(view.crop for view in views)
        return read_views(source, views, resolution)

    monkeypatch.setattr("pretraining.downstream.clips.read_views", watch)
    words = (f"mode={mode}", "resolution=32", "frames=4", "layers=4", "epochs=1")
    run("cater", data, tmp_path / "out", *words, f"label={mode}")
    assert len(seen) >= 9 and set(seen) == {CENTRE}


def test_distances_by_hand():
    """Cell 6 y + x: 0 is (0, 0), 35 is (5, 5), 8 is (1, 2), 13 is (2, 1)."""
    cells, others = torch.tensor([0, 8, 13, 5]), torch.tensor([35, 13, 13, 6])
    assert cater.cell_distances(cells, others).tolist() == [10, 2, 0, 6]
    scores = torch.zeros(4, 36)
    scores[range(4), others] = 1.0
    metric = cater.l1_distance(scores, cells)
    assert (metric.value, metric.count) == (4.5, 4)
    half = 1.959964 * (19.6666667**0.5) / 2  # squares of 5.5, 2.5, 4.5, 1.5 by 3, by the root of 4
    assert (metric.low, metric.high) == pytest.approx((4.5 - half, 4.5 + half))


def test_lists_that_are_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="lists/localize/train.txt"):
        cater.listed(tmp_path, "train")
    path = tmp_path / "lists/localize/train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("CLEVR_new_000000.avi 36\n")
    with pytest.raises(ValueError, match="line 1: 'CLEVR_new_000000.avi 36'; expected .* 0 to 35"):
        cater.listed(tmp_path, "train")
    path.write_text("CLEVR_new_000000.avi 3\n")
    with pytest.raises(ValueError, match="none of the 1 videos"):
        cater.listed(tmp_path, "train")
