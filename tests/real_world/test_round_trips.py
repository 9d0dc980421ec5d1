"""record -> one file -> robomimic's loader -> train -> run; record -> LeRobotDataset -> back."""

import importlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies import recorded
from policies.demonstrations import DemonstrationFile
from policies.recorded import off_beat, read_recorded, undelayed
from real_world import record_demos
from real_world.record_demos import RecordConfig
from real_world.recorder import Recorder
from toto_robot import convert
from toto_robot.convert import ConvertConfig, to_hdf5, to_lerobot

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two short episodes that a typist recorded in the simulator, and a failure."""
    from tests.real_world.fakes import Typist

    out = tmp_path_factory.mktemp("recorded")
    said = iter("sfs")
    typist = Typist(held=lambda step: ["up", "c"])

    def pressed():
        if typist.step % 12 != 11:
            return ["enter"]
        typist.step += 1
        return [next(said)]

    typist.pressed = pressed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_demos, "open_keys", lambda kind, on_stop, stop: typist)
        config = RecordConfig(paced=False, out=out, start="key", n=2, hold_seconds=0.1,
                              image_size=SIZE, keep_failures=True)  # fmt: skip
        config.device = "keyboard"
        record_demos.run(config)
    assert len(list(out.glob("episode_*.hdf5"))) == 3
    return out


@pytest.fixture(scope="module")
def one_file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "demos.hdf5"
    assert to_hdf5(ConvertConfig(source=folder, out=path)) == 2  # without the failure
    return path


def test_robomimics_own_loader_reads_it(one_file):
    pytest.importorskip("robomimic", reason="scripts/setup.sh installs it")
    import policies.robomimic_bc  # noqa: F401 - its stand-in for torchvision comes first

    loader: Any = importlib.import_module("robomimic.utils.dataset")
    data = loader.SequenceDataset(
        str(one_file), obs_keys=["proprioception"], dataset_keys=["actions", "rewards", "dones"],
        load_next_obs=False, filter_by_attribute="train", hdf5_cache_mode=None,
    )  # fmt: skip
    with DemonstrationFile(one_file) as file:
        first = file.read(file.names("train")[0])
    assert len(data) == len(first)
    for step in (0, len(first) - 1):
        assert (data[step]["actions"][0] == first.actions[step]).all()
        seen = first.vectors["proprioception"][step]
        assert (data[step]["obs"]["proprioception"][0] == seen).all()


def test_trained_on_it_a_policy_runs(one_file, tmp_path):
    pytest.importorskip("robomimic", reason="scripts/setup.sh installs it")
    from real_world.run_bc import run
    from real_world.run_config import RunConfig
    from toto_robot.backbone import load_backbone
    from toto_robot.bc import BCConfig, Run, train
    from toto_robot.runs import StopSignal

    config = BCConfig(data=one_file, out=tmp_path / "bc", backbone="toto-tiny", epochs=1,
                      steps_per_epoch=2, eval_every=0)  # fmt: skip
    training = Run(config, load_backbone("toto-tiny"))
    train(training, StopSignal())
    policy = tmp_path / "bc/checkpoints/best"
    report = run(RunConfig(policy=policy, paced=False, episodes=1, seconds=0.3,
                           out=tmp_path / "run"))  # fmt: skip
    assert report["episodes"][0]["steps"] == 9 and not report["fault"]
    assert report["rate_hz"] == 30


def test_lerobot_and_back_is_bit_exact(folder, one_file, tmp_path):
    pytest.importorskip("pyarrow")
    assert to_lerobot(ConvertConfig(source=folder, out=tmp_path / "set")) == 2
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["fps"], info["robot_type"]) == (30, "franka")
    assert to_hdf5(ConvertConfig(source=tmp_path / "set", out=tmp_path / "back.hdf5")) == 2
    with DemonstrationFile(one_file) as there, DemonstrationFile(tmp_path / "back.hdf5") as back:
        assert back.about == there.about and back.env_args == there.env_args
        for one, other in zip(there, back, strict=True):
            assert one.actions.dtype == np.float32
            assert one.actions.tobytes() == other.actions.tobytes()
            assert one.vectors["proprioception"].tobytes() == (
                other.vectors["proprioception"].tobytes()
            )
            assert one.columns.keys() == other.columns.keys() >= {"q_sent_rad", "targets"}
            for key, column in one.columns.items():
                assert column.tobytes() == other.columns[key].tobytes(), key
            assert (one.success, one.facts) == (other.success, other.facts)
            there_px, back_px = (d.images["wrist"].astype(int) for d in (one, other))
            assert np.abs(there_px - back_px).mean() < 3


def test_what_is_in_the_file_is_what_was_recorded(folder, one_file):
    with DemonstrationFile(one_file) as file:
        demos = list(file)
        assert file.about["action_space"] == record_demos.ACTION_SPACE
    for demo, path in zip(demos, recorded.successes(folder), strict=True):
        with DemonstrationFile(path) as file:
            raw = file.read("demo_0")
        assert raw.actions.tobytes() == demo.actions.tobytes()
        assert (raw.images["wrist"] == demo.images["wrist"]).all() and demo.success


def test_actions_that_are_known_late_move_to_what_they_follow_from(folder):
    (demo, _) = read_recorded(folder)
    steps = len(demo)
    late = replace(demo, facts={**demo.facts, "delay_steps": 2})
    moved = undelayed(late)
    assert len(moved) == steps - 2 and "delay_steps" not in moved.facts
    assert (moved.actions == demo.actions[2:]).all()
    assert (moved.columns["targets"] == demo.columns["targets"][2:]).all()
    assert (moved.columns["q_rad"] == demo.columns["q_rad"][:-2]).all()
    assert (moved.images["wrist"] == demo.images["wrist"][:-2]).all()
    assert moved.rewards[-1] == demo.rewards[-1] == 1
    moved.check()
    with pytest.raises(ValueError, match="steps late"):
        undelayed(replace(demo, facts={"delay_steps": steps}))


def write(folder, times_s, **about):
    options = {"env": "franka_pick", "control_rate_hz": 10, "image_size": 4}
    with Recorder(folder, {"options": options, **about}) as recorder:
        recorder.begin()
        for t in times_s:
            recorder.append({
                "obs/wrist_image": np.zeros((4, 4, 3), np.uint8),
                "obs/proprioception": np.zeros(3, np.float32),
                "actions": np.zeros(2, np.float32), "t_sent_s": float(t),
            })  # fmt: skip
        recorder.end(True, "success")


def test_an_episode_with_gaps_is_left_out_and_said(tmp_path, capsys):
    steady = np.arange(30) / 10
    write(tmp_path, steady + 0.02 * np.sin(np.arange(30)))
    gaps = steady.copy()
    for k in range(5, 30, 5):
        gaps[k:] += 0.1  # a skipped step
    write(tmp_path, gaps)
    kept = list(read_recorded(tmp_path))
    assert len(kept) == 1 and off_beat(kept[0], 10) == 0
    assert "episode_0001.hdf5 is left out: 17% of its steps came late" in capsys.readouterr().err


def test_episodes_of_two_kinds_or_none_are_refused(tmp_path):
    write(tmp_path, [0.0, 0.1], robot="franka")
    write(tmp_path, [0.0, 0.1], robot="kuka")
    with pytest.raises(ValueError, match="says of itself"):
        list(read_recorded(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no successful episode"):
        recorded.read_about(tmp_path / "empty")


@pytest.mark.parametrize(("out", "kind"), [("demos.hdf5", "is_file"), ("set", "is_dir")])
def test_the_command_sees_what_it_is_given(folder, tmp_path, monkeypatch, capsys, out, kind):
    pytest.importorskip("pyarrow")
    words = ["convert", f"source={folder}", f"out={tmp_path / out}"]
    monkeypatch.setattr("sys.argv", words)
    convert.main()
    assert "2 demonstrations in" in capsys.readouterr().out
    assert getattr(tmp_path / out, kind)()
