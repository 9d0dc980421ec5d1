"""`python -m toto_robot.demos`: records, goes on after a kill, and adds to what is there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policies.demonstrations import DemonstrationFile
from toto_robot import demos

OPTIONS = ["control_rate_hz=20", "image_size=16", "tail=2", "worlds=2", "film=0", "noise=0.05"]


def run(monkeypatch, out, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["demos", f"out={out}", *OPTIONS, *words])
    demos.main()


def read(out):
    with DemonstrationFile(out) as file:
        return list(file), file.about


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Three demonstrations in one go; a fourth episode was played and left out."""
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("demos") / "fp.hdf5"
        run(patch, out, "n=3")
    return out


def test_demonstrations_of_the_scripted_expert(recorded):
    demonstrations, about = read(recorded)
    assert [demo.facts["attempt"] for demo in demonstrations] == [0, 1, 2]
    assert about["attempts"] == 3
    assert about["options"]["noise"] == 0.05
    assert not recorded.with_name("fp.hdf5.episodes").exists()
    for demo in demonstrations:
        assert demo.success
        assert len(demo) == int(demo.facts["success_step"]) + 2
        assert demo.images["wrist"].shape == (len(demo), 16, 16, 3)
        assert demo.images["wrist"].std() > 10
        assert demo.vectors["proprioception"].shape == (len(demo), 18)
        assert demo.vectors["oracle"].shape == (len(demo), 34)
        difference = demo.columns["actions_sent"] - demo.actions
        assert 0.02 < difference.std() < 0.06  # less than 0.05 where a bound was met
    first, second, _ = demonstrations
    assert not np.array_equal(first.vectors["oracle"][0], second.vectors["oracle"][0])


def test_a_killed_recording_goes_on_to_the_same_file(recorded, tmp_path, monkeypatch, capsys):
    out, real, written = tmp_path / "fp.hdf5", demos.write_episode, []

    def killed(path, demo):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        real(path, demo)

    monkeypatch.setattr(demos, "write_episode", killed)
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(monkeypatch, out, "n=3")
    assert not out.exists()
    monkeypatch.setattr(demos, "write_episode", real)
    run(monkeypatch, out, "n=3")
    for mine, whole in zip(read(out)[0], read(recorded)[0], strict=True):
        assert mine.facts == whole.facts
        for key, array in mine.arrays().items():
            np.testing.assert_array_equal(array, whole.arrays()[key])
    assert "3 of 3 episodes succeeded" in capsys.readouterr().out


def test_a_larger_n_adds_to_the_file(recorded, monkeypatch):
    run(monkeypatch, recorded, "n=4")
    demonstrations, about = read(recorded)
    assert [demo.facts["attempt"] for demo in demonstrations] == [0, 1, 2, 3]
    assert about["attempts"] == 4
    with pytest.raises(SystemExit, match="recorded with visuals=fixed; choose another out="):
        run(monkeypatch, recorded, "n=5", "visuals=mild")


def test_each_task_has_a_file_of_its_own() -> None:
    config = demos.parse(demos.DemosConfig, ["env=kuka_pick", "expert=teacher"])
    assert str(config.file) == "data/demos/kuka_pick.hdf5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=franka_pik"], "Did you mean 'franka_pick'"),
        (["env=kuka_pick"], "no scripted expert; use expert=teacher"),
        (["n=0"], "n=0: expected at least 1"),
        (["noise=-1"], "must not be negative"),
        (["visuals=wild"], "one of fixed, mild, strong"),
    ],
)
def test_wrong_options_are_refused(words, message):
    with pytest.raises(SystemExit, match=message):
        demos.parse(demos.DemosConfig, words)


def test_an_expert_that_is_not_there_claims_no_folder(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: no policy in"):
        run(monkeypatch, tmp_path / "x.hdf5", "n=1", f"expert={tmp_path / 'nobody'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cameras", [["wrist"], ["third_person", "wrist"]])
def test_a_policy_as_an_expert_sees_its_own_cameras(tmp_path, monkeypatch, cameras):
    own = SimpleNamespace(camera="wrist", image_size=4, bc=SimpleNamespace(cameras=cameras))
    monkeypatch.setattr(demos, "read_spec", lambda folder: own)
    shown = SimpleNamespace(act=lambda obs: obs["obs"])
    monkeypatch.setattr(demos, "load_policy", lambda folder: shown)
    recorded = ("wrist", "left", "third_person")
    frames = torch.arange(3).view(1, 3, 1, 1, 1).expand(2, 3, 4, 4, 3)
    seen = demos.PixelExpert(tmp_path, recorded, 4).act({"obs": frames})
    assert seen[..., 0, 0, 0].tolist() == ([[2, 0]] * 2 if len(cameras) == 2 else [0, 0])
    with pytest.raises(ValueError, match="sees camera .*wrist at 4 px; record with cameras="):
        demos.PixelExpert(tmp_path, ("left",), 4)
