"""Anticipation from the files that Ego4D ships to the files that its challenge takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining import evaluate
from pretraining.downstream import ego4d_sta
from pretraining.downstream.sta_data import Frames, find_root, places, read_clip, read_part
from pretraining.downstream.sta_metrics import Objects, check_results
from pretraining.video import CorruptSourceError
from tests.pretraining.downstream.sta_tiny import FPS, FRAMES, HEIGHT, WIDTH, draw, write_tiny
from toto_robot.backbone import load_backbone
from toto_robot.backbone.torchvision_ops import need_torchvision

SMALL = ["batch_size=4", "channels=16", "hidden=32", "proposals=20", "threads=1"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ego4d")
    write_tiny(root / "v2")
    return root


@pytest.fixture
def torchvision() -> None:
    try:
        need_torchvision()
    except ImportError as error:
        pytest.skip(str(error))


def test_annotations_are_read_as_they_are_distributed(tiny):
    part = read_part(find_root(tiny), "train")
    assert part.nouns == {0: "brick_(red)", 2: "brick_(blue)"}
    assert part.version == "2.0"
    first = part.examples[0]
    assert (first.uid, first.video, first.frame) == ("uid-0-12", "video-0", 12)
    assert first.size == (WIDTH, HEIGHT)
    assert first.objects is not None
    assert first.objects.ttcs_s[0] == pytest.approx((FRAMES - 1 - 12) / FPS)
    assert first.objects.boxes[0, [0, 2]].tolist() == [110, 150]
    assert all(example.objects is None for example in read_part(tiny / "v2", "test").examples)


def test_older_files_say_video_id_and_a_lacking_field_is_named(tiny, tmp_path):
    root = shutil.copytree(tiny / "v2", tmp_path / "v1")
    path = root / "annotations" / "fho_sta_val.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row["video_id"] = row.pop("video_uid")
    path.write_text(json.dumps(content))
    assert read_part(find_root(tmp_path), "val").examples[0].video == "video-2"
    del content["annotations"][1]["objects"][0]["time_to_contact"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotation 1 \(uid uid-2-30\): KeyError 'time_to_con"):
        read_part(root, "val")
    with pytest.raises(FileNotFoundError, match="fho_sta_val.json"):
        find_root(root / "annotations")


@pytest.mark.parametrize("folder", ["object_frames", "full_scale", "clips"])
def test_each_layout_gives_the_annotated_frame(tiny, folder):
    example = read_part(tiny / "v2", "train").examples[1]  # frame 30: the hand is there
    (place,) = places(tiny / "v2", tiny / "v2" / folder)
    (frame,) = place.read(example, [30])
    assert example.objects is not None
    top = int(example.objects.boxes[0, 1])
    expected = draw(0, 1, top, 30).astype(float)
    found = frame.to_ndarray(format="rgb24")
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4
    earlier = np.abs(draw(0, 1, top, 28).astype(float) - expected).mean()
    assert np.abs(found - draw(0, 1, top, 28)).mean() > 0.5 * earlier  # not a frame beside it


def test_a_clip_ends_in_the_annotated_frame_and_is_squashed(tiny):
    example = read_part(tiny / "v2", "train").examples[0]
    where = places(tiny / "v2")
    assert [place.kind for place in where] == ["pictures", "videos", "clips"]
    clip = read_clip(where, example, count=4, stride=8, resolution=32)  # -12, -4, 4, 12
    assert clip.shape == (4, 32, 32, 3)
    first, last = (
        where[1].read(example, [number])[0].reformat(32, 32, "rgb24").to_ndarray()
        for number in (0, 12)
    )
    assert np.abs(clip[0] - first.astype(float)).mean() < 4  # before the beginning: frame 0
    assert np.abs(clip[3] - last.astype(float)).mean() < 4
    with pytest.raises(FileNotFoundError, match="needs videos or LMDB"):
        read_clip(where[:1], example, count=4, stride=8, resolution=32)


def test_frames_of_a_database(tiny, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    example = read_part(tiny / "v2", "train").examples[0]
    picture = (tiny / "v2" / "object_frames" / "video-0_0000012.jpg").read_bytes()
    (tmp_path / "lmdb").mkdir()
    with lmdb.open(str(tmp_path / "lmdb" / "video-0")) as env, env.begin(write=True) as values:
        values.put(b"video-0_0000000012", picture)
    (frame,) = Frames("lmdb", tmp_path / "lmdb").read(example, [12])
    assert (frame.width, frame.height) == (WIDTH, HEIGHT)
    with pytest.raises(CorruptSourceError, match="no frame video-0_0000000011"):
        Frames("lmdb", tmp_path / "lmdb").read(example, [11, 12])


def test_damaged_files_are_named(tiny, tmp_path):
    root = shutil.copytree(tiny / "v2", tmp_path / "v2")
    example = read_part(root, "train").examples[0]
    for name in ("object_frames/video-0_0000012.jpg", "full_scale/video-0.mp4"):
        (root / name).write_bytes(b"no picture")
    for folder, name in (("object_frames", "video-0_0000012.jpg"), ("full_scale", "video-0.mp4")):
        (place,) = places(root, root / folder)
        with pytest.raises(CorruptSourceError, match=name):
            place.read(example, [12])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(tiny, out, *words):
    evaluate.main(["task=ego4d-sta", f"data={tiny}", f"out={out}", *SMALL, *words])
    folder = out / "ego4d-sta" / "toto-tiny"
    return folder, json.loads((folder / "result.json").read_text())


def test_the_command_writes_what_the_challenge_takes_and_scores_it(torchvision, tiny, tmp_path):
    folder, result = run(tiny, tmp_path, "epochs=1.5", "score_threshold=0")
    content = json.loads((folder / "val.json").read_text())
    part = read_part(tiny / "v2", "val")
    check_results(content, [example.uid for example in part.examples])
    for example in part.examples:
        found = Objects.from_json(content["results"][example.uid])
        assert len(found) > 0
        assert (found.boxes >= 0).all() and (found.boxes <= [WIDTH, HEIGHT] * 2).all()
        assert set(found.nouns.tolist()) <= {0, 2} and set(found.verbs.tolist()) <= {1, 4}
        assert found.scores is not None and (np.diff(found.scores) <= 0).all()
        assert (found.ttcs_s > 0).all()
    assert list(result["metrics"]) == [
        "overall_mAP_%", "noun_mAP_%", "noun+verb_mAP_%", "noun+ttc_mAP_%",
    ]  # fmt: skip
    assert result["skipped"] == {}
    assert lines(folder / "metrics.jsonl")[-1]["step"] == 2
    for name in result["files"]:
        assert (folder / name).is_file()


def test_the_test_part_needs_no_new_training_and_has_no_scores(torchvision, tiny, tmp_path):
    run(tiny, tmp_path, "epochs=0.5", "score_threshold=0")
    before = (tmp_path / "ego4d-sta/toto-tiny/metrics.jsonl").read_text()
    folder, result = run(tiny, tmp_path, "epochs=0.5", "score_threshold=0", "part=test")
    assert (folder / "metrics.jsonl").read_text() == before
    assert list(result["metrics"]) == ["detections_per_frame"]
    uids = json.loads((folder / "test.json").read_text())["results"]
    assert sorted(uids) == ["uid-6-12", "uid-6-30", "uid-7-12", "uid-7-30"]


class StopAfterTwo:
    """Ctrl-C in the second step."""

    asked = 0

    @property
    def requested(self) -> bool:
        self.asked += 1
        return self.asked == 2


def test_ctrl_c_and_on_gives_the_same_as_one_go(torchvision, tiny, tmp_path, monkeypatch):
    from pretraining.downstream import sta_training

    words = ("epochs=2", "score_threshold=0", "report_every=1")
    whole, _ = run(tiny, tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        patch.setattr(sta_training, "Interrupt", StopAfterTwo)
        with pytest.raises(SystemExit, match="stopped after step 2"):
            run(tiny, tmp_path / "parts", *words)
    parts, _ = run(tiny, tmp_path / "parts", *words)
    assert (parts / "val.json").read_text() == (whole / "val.json").read_text()
    assert (parts / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_missing_frames_are_named_and_left_out_or_refused(torchvision, tiny, tmp_path):
    root = shutil.copytree(tiny / "v2", tmp_path / "v2")
    for folder in ("full_scale", "clips"):
        shutil.rmtree(root / folder)
    (root / "object_frames" / "video-0_0000012.jpg").unlink()
    (root / "object_frames" / "video-2_0000012.jpg").unlink()
    (root / "object_frames" / "video-3_0000030.jpg").write_bytes(b"no picture")
    folder, result = run(tmp_path, tmp_path / "out", "epochs=0.5", "score_threshold=0")
    assert sorted(result["skipped"]) == ["uid-0-12", "uid-2-12", "uid-3-30"]
    assert "no picture" in result["skipped"]["uid-3-30"]
    assert result["skipped"]["uid-2-12"].endswith("object_frames/video-2_0000012.jpg")
    assert json.loads((folder / "val.json").read_text())["results"]["uid-2-12"] == []
    assert any("2 of 4 frames have no detections" in note for note in result["notes"])
    with pytest.raises(SystemExit, match="1 of 8 are missing .*missing=skip goes on"):
        run(tmp_path, tmp_path / "out", "missing=refuse")


def test_the_whole_model_can_be_tuned_with_its_next_token_loss(torchvision, tiny, tmp_path):
    from pretraining.downstream.sta_training import TunedTower

    folder, _ = run(tiny, tmp_path, "epochs=0.5", "mode=finetune")
    assert lines(folder / "metrics.jsonl")[0]["next_token"] > 0
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    backbone = load_backbone("toto-tiny", all_layers=True, precision="float32")
    tower = TunedTower(backbone, (1, 2, 4, 6, 8), None)
    frames = torch.randint(0, 256, (1, 2, 128, 128, 3), dtype=torch.uint8)
    states, loss = tower(frames)
    frozen = backbone.hidden_states(frames)
    assert torch.allclose(states[2], frozen[4][:, -256:], atol=1e-3)
    codes = backbone.encode(frames)
    logits = tower.model(tower.model.sequence(codes))[0, :-1]
    expected = -logits.log_softmax(1)[torch.arange(512), codes.flatten()].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    tuned = {name.removeprefix("tower."): t for name, t in saved.items() if "tower" in name}
    changed = [name for name, t in tower.state_dict().items() if not torch.equal(t, tuned[name])]
    assert len(changed) > len(tuned) // 2
    with pytest.raises(SystemExit, match="no next-token loss over codes"):
        run(tiny, tmp_path / "other", "mode=finetune", "backbone=random-tiny")


def test_the_detector_learns_a_tiny_set(torchvision, tiny, tmp_path):
    """One fixed picture per class, seen again and again: all of its answers can be learnt."""
    from pretraining.downstream.sta_detector import Detector, DetectorConfig, Target

    torch.manual_seed(0)
    config = DetectorConfig(nouns=2, verbs=2, channels=16, hidden=32, proposals=20)
    detector = Detector(24, 8, config)
    states = [torch.randn(2, 64, 24) for _ in range(5)]
    targets = [
        Target(torch.tensor([box]), torch.tensor([i]), torch.tensor([1 - i]), torch.tensor([ttc]))
        for i, (box, ttc) in enumerate([([0.1, 0.1, 0.5, 0.6], 0.4), ([0.4, 0.5, 0.9, 0.9], 1.2)])
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(detector.losses(states, targets).values())).sum().backward()
        optimizer.step()
    for target, found in zip(targets, detector.eval().detect(states), strict=True):
        assert found.nouns[0] == target.nouns[0] and found.verbs[0] == target.verbs[0]
        assert (found.boxes[0] - target.boxes[0]).abs().max() < 0.1
        assert abs(found.ttcs_s[0] - target.ttcs_s[0]) < 0.25


def test_layers_are_five():
    from pretraining.downstream.sta_training import evenly_spaced

    assert evenly_spaced(16) == (3, 6, 10, 13, 16)
    assert evenly_spaced(8) == (2, 3, 5, 6, 8)
    with pytest.raises(ValueError, match="expected 5 of 0"):
        evenly_spaced(8, (1, 2, 3))


def test_without_torchvision_the_command_says_what_to_install(tiny, tmp_path, monkeypatch):
    def missing():
        raise ImportError("No module named 'torchvision'. pip install torchvision==0.28.0")

    monkeypatch.setattr("toto_robot.backbone.torchvision_ops.need_torchvision", missing)
    for name in ("sta_training", "sta_detector"):
        monkeypatch.delitem(__import__("sys").modules, f"pretraining.downstream.{name}", False)
        monkeypatch.delattr(f"pretraining.downstream.{name}", raising=False)
    with pytest.raises(SystemExit, match="pip install torchvision==0.28.0"):
        run(tiny, tmp_path)
    assert ego4d_sta.Config(data=tiny).epochs == 20
