"""The smaller commands, on very small jobs."""

import json
import sys

import av
import numpy as np
import pytest
import torch

import envs
from envs.scripted import ScriptedMotions
from toto_robot import doctor, film, probe
from toto_robot.backbone import load_backbone

pytestmark = pytest.mark.usefixtures("needs_gl")


def run(module, monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    module.main()


def test_film_writes_clips_and_does_not_film_twice(monkeypatch, tmp_path):
    words = (f"out={tmp_path}", "clips=3", "worlds=2", "frames=4", "image_size=64", "seed=3")
    run(film, monkeypatch, *words)
    clips = sorted((tmp_path / "franka_pick").glob("*.mp4"))
    assert len(clips) == 3
    with av.open(str(clips[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (64, 64, 3) and np.std(frames[0]) > 10
    times = [clip.stat().st_mtime_ns for clip in clips]
    clips[2].unlink()
    run(film, monkeypatch, *words)  # only the batch with the missing clip is filmed again
    assert [clip.stat().st_mtime_ns for clip in clips[:2]] == times[:2] and clips[2].exists()
    about = (tmp_path / "franka_pick/clips.jsonl").read_text()
    rows = [json.loads(line) for line in about.splitlines()]
    assert sorted(row["file"] for row in rows) == [clip.name for clip in clips]
    with pytest.raises(SystemExit, match="seed"):  # not silently the clips of another seed
        run(film, monkeypatch, *words[:-1], "seed=4")


def test_a_clip_ends_where_its_episode_does(monkeypatch, tmp_path):
    make, motions = envs.make, []

    def ends_early(*words, **more):
        task = make(*words, **more)
        step, steps = task.step, []

        def stepped(actions, draw=True):
            obs, rewards, resets, extras = step(actions, draw)
            steps.append(1)
            resets = resets.clone()
            resets[0] |= len(steps) == 4  # as if its cube had fallen
            task.progress_buf[0] *= len(steps) != 4
            return obs, rewards, resets, extras

        task.step = stepped
        return task

    class Watched(ScriptedMotions):
        def act(self):
            actions = super().act()
            motions.append(list(self.motion))
            return actions

    monkeypatch.setattr(envs, "make", ends_early)
    monkeypatch.setattr(film, "ScriptedMotions", Watched)
    run(film, monkeypatch, f"out={tmp_path}", "clips=2", "frames=6", "image_size=64", "seed=5")
    about = (tmp_path / "franka_pick/clips.jsonl").read_text()
    rows = [json.loads(line) for line in about.splitlines()]
    assert [row["frames"] for row in rows] == [2, 6]
    assert [row["motion"] for row in rows] == motions[0]
    with av.open(str(tmp_path / "franka_pick/clip_00000.mp4")) as container:
        assert len(list(container.decode(video=0))) == 2


@pytest.mark.parametrize(
    "words", [["image_size=84"], ["image_size=224"], ["backbone=cnn"], ["env=kuka_pick"]]
)
def test_probe_refuses_at_once_what_it_cannot_do(words):
    with pytest.raises(SystemExit, match=words[0].split("=")[0]):
        probe.parse(probe.ProbeConfig, words)


@pytest.mark.parametrize(("name", "layers"), [("mae-small", 13), ("pixels", 1)])
def test_other_grids_of_tokens_are_probed_too(name, layers):
    weights = None if name == "pixels" else "random"
    backbone = load_backbone(name, weights=weights, all_layers=True, grid=probe.ATTENTION_GRID)
    states = probe.hidden_states(backbone, torch.zeros(1, 128, 128, 3, dtype=torch.uint8), "")
    assert len(states) == layers and all(state.shape[1] == 64 for state in states)


def test_film_refuses_what_it_cannot_do(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="frames=900"):
        run(film, monkeypatch, f"out={tmp_path}", "frames=900")
    with pytest.raises(SystemExit, match="clips"):
        run(film, monkeypatch, f"out={tmp_path}", "clip=3")


def test_probe_targets_point_at_the_cube_in_the_picture():
    """The projected centre lies on a pixel of the cube, in worlds where the cube is seen."""
    task = envs.make("FrankaPick", 8, seed=4)
    task.reset()
    motions = ScriptedMotions(task, {"pick": 1.0}, seed=1)
    for _ in range(70):
        task.step(motions.act())
    where = probe.cube_in_camera(task)
    ids = task.engine.render_geom_ids("wrist", 128, 128)
    cube = task.engine.model.geom("cube").id
    seen = [w for w in range(8) if (ids[w] == cube).sum() > 20 and where[w, :2].abs().max() < 0.9]
    assert len(seen) >= 2
    for world in seen:
        u, v = ((where[world, :2] + 1) * 64).long().tolist()
        assert (ids[world, v - 2 : v + 3, u - 2 : u + 3] == cube).any()
    task.close()


def test_probe_collects_only_frames_with_the_cube():
    config = probe.ProbeConfig(worlds=8)
    frames = probe.collect(config, 12, seed=1, label="test")
    assert frames.images.shape == (12, 128, 128, 3) and frames.images.dtype == torch.uint8
    assert (frames.targets[:, :2].abs() <= 1).all() and (frames.targets[:, 4] > 0).all()


def test_doctor_reports_speeds_as_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "MEASURE_S", 0.02)
    monkeypatch.setattr(doctor, "NUM_WORLDS", 4)
    run(doctor, monkeypatch, "--json", "backbone.weights=random")
    report = json.loads(capsys.readouterr().out)
    for key in ("render_84px_per_s", "encode_per_s", "env_steps_per_s"):
        assert report[key] > 0
    for obs in ("state", "pixels"):
        assert report[f"{obs}_training_steps_per_s"] > 0
        assert report[f"{obs}_2M_steps_h"] > 0
    assert isinstance(report["software_rendering"], bool) and report["problems"] == []


def test_doctor_says_how_to_get_weights(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "MEASURE_S", 0.02)
    monkeypatch.setattr(doctor, "NUM_WORLDS", 4)
    run(doctor, monkeypatch, "backbone=toto-large")
    assert "backbone.weights=random" in capsys.readouterr().out


def test_a_random_trunk_has_the_same_shape_and_other_weights():
    backbone = load_backbone("toto-tiny", all_layers=True)
    before = backbone.digest()
    random = probe.with_random_trunk(backbone)
    shapes = [[p.shape for p in b.trunk.parameters()] for b in (backbone, random)]
    assert shapes[0] == shapes[1] and backbone.digest() == before != random.digest()
    frames = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    assert torch.equal(random.tokenize(frames), backbone.tokenize(frames))
