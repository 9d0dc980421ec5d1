"""LeRobotDataset v3: there and back, and the tables that its readers need."""

import json
import sys

import numpy as np
import pytest

from policies.demonstrations import Demonstration, DemonstrationFile, assemble, write_episode
from policies.lerobot import read_dataset
from policies.lerobot_writer import write_dataset
from toto_robot import convert

pandas = pytest.importorskip("pandas")
parquet = pytest.importorskip("pyarrow.parquet")
CAMERA = "observation.images.wrist"


def demonstration(seed: int, length: int) -> Demonstration:
    """A bright square that moves over a gradient, a pixel a step; each episode in another row."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((length, 32, 48, 3), np.uint8)
    frames[..., 0] = np.arange(48) * 4
    for step in range(length):
        frames[step, 8 * (seed % 3) : 8 * (seed % 3) + 8, step : step + 8] = 230
    return Demonstration(
        images={"wrist": frames},
        vectors={
            "proprioception": rng.standard_normal((length, 4)).astype(np.float32),
            "oracle": rng.standard_normal((length, 6)).astype(np.float32),
            "wrench": rng.standard_normal((length, 2)).astype(np.float32),
        },
        actions=rng.uniform(-1, 1, (length, 3)).astype(np.float32),
        rewards=rng.uniform(0, 1, length).astype(np.float32),
        success=seed != 1,
        columns={"actions_sent": rng.uniform(-1, 1, (length, 3)).astype(np.float32)},
        facts={"seed": seed, "operator": "twin"},
    )


@pytest.fixture(scope="module")
def demos():
    return [demonstration(seed, 7 + 2 * seed) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(demos, tmp_path_factory):
    path = tmp_path_factory.mktemp("lerobot") / "set"
    assert write_dataset(path, demos, fps=30, robot="franka", task="move", about={"a": 1}) == 4
    return path


def assert_same(back: Demonstration, demo: Demonstration) -> None:
    assert back.arrays().keys() == demo.arrays().keys()
    assert (back.success, dict(back.facts)) == (demo.success, dict(demo.facts))
    for key, array in demo.arrays().items():
        if array.ndim == 4:
            assert np.abs(back.arrays()[key].astype(int) - array).mean() < 3
        else:
            assert back.arrays()[key].dtype == array.dtype
            np.testing.assert_array_equal(back.arrays()[key], array)


def test_there_and_back(folder, demos):
    for back, demo in zip(read_dataset(folder), demos, strict=True):
        assert_same(back, demo)


def test_rows_and_frames_are_where_the_tables_say(folder, demos):
    """The fields of format v3.0, as lerobot's own reader asks for them."""
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (4, 7 + 9 + 11 + 13, 30)
    data = parquet.read_table(folder / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(info["features"]) == {*data.column_names, CAMERA}
    assert data["index"].to_pylist() == list(range(40))
    np.testing.assert_allclose(data["timestamp"].to_numpy()[7:16], np.arange(9) / 30, atol=1e-6)
    episode = parquet.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[2]
    assert (episode["dataset_from_index"], episode["dataset_to_index"]) == (16, 27)
    assert episode[f"videos/{CAMERA}/from_timestamp"] == 16 / 30
    assert episode["tasks"] == ["move"]
    tasks = pandas.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.loc["move"].task_index == 0


def test_statistics_are_those_of_all_steps(folder, demos):
    stats = json.loads((folder / "meta/stats.json").read_text())
    actions = np.concatenate([demo.actions for demo in demos]).astype(float)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["action"][name], getattr(actions, name)(0), rtol=1e-6)
    assert stats["action"]["count"] == [40]
    image = stats[CAMERA]["mean"]
    assert np.shape(image) == (3, 1, 1)
    assert 0 < image[1][0][0] < image[0][0][0] < 1


def test_without_our_notes_success_is_read_from_the_columns(demos, tmp_path):
    write_dataset(tmp_path / "set", demos, fps=30, robot="franka", task="move")
    (tmp_path / "set/meta/toto.json").unlink()
    back = list(read_dataset(tmp_path / "set"))
    assert [demo.success for demo in back] == [True, False, True, True]
    assert back[0].facts == {"task": "move"}


def test_a_set_that_fails_does_not_appear(demos, tmp_path):
    def failing():
        yield demos[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", failing(), fps=30, robot="franka", task="move")
    assert not (tmp_path / "set").exists()
    write_dataset(tmp_path / "set", demos[:1], fps=30, robot="franka", task="move")
    with pytest.raises(FileExistsError, match="choose another out="):
        write_dataset(tmp_path / "set", demos, fps=30, robot="franka", task="move")


def test_errors_name_the_cause(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is no LeRobot data set"):
        next(read_dataset(tmp_path))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(ValueError, match="codebase_version v2.1, this code reads v3"):
        next(read_dataset(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[lerobot\]'"):
        next(read_dataset(folder))


def test_a_film_that_ends_too_early_is_named(demos, tmp_path):
    write_dataset(tmp_path / "long", demos, fps=30, robot="franka", task="move")
    write_dataset(tmp_path / "short", demos[:1], fps=30, robot="franka", task="move")
    film = f"videos/{CAMERA}/chunk-000/file-000.mp4"
    (tmp_path / "short" / film).replace(tmp_path / "long" / film)
    with pytest.raises(ValueError, match="ends after 0 of the 9 frames of episode 1"):
        list(read_dataset(tmp_path / "long"))


def test_the_command_converts_both_ways(demos, tmp_path, monkeypatch, capsys):
    paths = [tmp_path / f"{i}.hdf5" for i in range(len(demos))]
    for path, demo in zip(paths, demos, strict=True):
        write_episode(path, demo)
    about = {"options": {"env": "franka_pick", "control_rate_hz": 30}, "attempts": 4}
    assemble(tmp_path / "demos.hdf5", paths, {"env_name": "x"}, about)

    def run(source: str, out: str) -> None:
        words = ["convert", f"source={tmp_path / source}", f"out={tmp_path / out}"]
        monkeypatch.setattr("sys.argv", words)
        convert.main()

    run("demos.hdf5", "set")
    run("set", "back.hdf5")
    assert "4 demonstrations" in capsys.readouterr().out
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["fps"], info["robot_type"]) == (30, "franka")
    with DemonstrationFile(tmp_path / "back.hdf5") as file:
        assert file.about["attempts"] == 4
        for back, demo in zip(file, demos, strict=True):
            assert_same(back, demo)
    with pytest.raises(SystemExit, match="error: .*exists"):
        run("set", "back.hdf5")
