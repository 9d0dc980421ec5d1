"""Demonstration files: what is written is read again, and what is wrong is named."""

import json
from typing import Any

import h5py
import numpy as np
import pytest

from policies.demonstrations import Demonstration, DemonstrationFile, assemble, write_episode
from policies.film import film_demonstrations

ENV = {"env_name": "toto_robot/FrankaPick-v0", "type": 2, "env_kwargs": {}}


def demonstration(seed: int = 0, length: int = 5, **changes) -> Demonstration:
    rng = np.random.default_rng(seed)
    parts: dict[str, Any] = {
        "images": {"wrist": rng.integers(0, 256, (length, 8, 6, 3), np.uint8)},
        "vectors": {"proprioception": rng.standard_normal((length, 4)).astype(np.float32)},
        "actions": rng.uniform(-1, 1, (length, 3)).astype(np.float32),
        "rewards": rng.uniform(0, 1, length).astype(np.float32),
        "success": bool(seed % 2),
        "columns": {"actions_sent": rng.uniform(-1, 1, (length, 3)).astype(np.float32)},
        "facts": {"seed": seed, "operator": "twin"},
    }
    return Demonstration(**{**parts, **changes})


def episodes(folder, seeds, **changes):
    paths = [folder / f"{seed:06d}.hdf5" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        write_episode(path, demonstration(seed, 5 + seed, **changes))
    return paths


def assert_same(a: Demonstration, b: Demonstration) -> None:
    assert a.arrays().keys() == b.arrays().keys()
    for key, array in a.arrays().items():
        assert array.dtype == b.arrays()[key].dtype
        np.testing.assert_array_equal(array, b.arrays()[key])
    assert (a.success, dict(a.facts)) == (b.success, dict(b.facts))


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "demos.hdf5"
    assert assemble(path, episodes(tmp_path, range(12)), ENV, {"who": "me"}) == 12
    with DemonstrationFile(path) as file:
        assert len(file) == 12
        for seed, demo in enumerate(file):
            assert_same(demo, demonstration(seed, 5 + seed))
        assert file.about["who"] == "me"
        assert file.env_args == ENV
        assert file.names("valid") == ["demo_9"]
        assert set(file.names("train")) == set(file.names()) - {"demo_9"}


def test_the_layout_is_robomimics(tmp_path):
    """real_world.md 1.2: what its loader asks of a file."""
    assemble(tmp_path / "d.hdf5", episodes(tmp_path, range(3)), ENV, {})
    with h5py.File(tmp_path / "d.hdf5", "r") as opened:
        file: Any = opened
        data = file["data"]
        assert data.attrs["total"] == 5 + 6 + 7
        assert json.loads(data.attrs["env_args"])["env_name"] == ENV["env_name"]
        assert data["demo_1"].attrs["num_samples"] == 6
        assert data["demo_1/obs/wrist_image"].shape == (6, 8, 6, 3)
        assert data["demo_1/dones"][:].tolist() == [0, 0, 0, 0, 0, 1]
        assert file["mask/train"][:].tolist() == [b"demo_0", b"demo_1"]


def test_a_file_grows_in_order(tmp_path):
    path, parts = tmp_path / "d.hdf5", episodes(tmp_path, range(4))
    assemble(path, parts[:2], ENV, {"attempts": 2})
    assert assemble(path, parts[2:], ENV, {"attempts": 4}) == 4
    with DemonstrationFile(path) as file:
        assert [demo.facts["seed"] for demo in file] == [0, 1, 2, 3]
        assert file.about["attempts"] == 4


def test_a_file_that_fails_to_grow_stays_as_it_was(tmp_path):
    path = tmp_path / "d.hdf5"
    assemble(path, episodes(tmp_path, [0]), ENV, {})
    before = path.read_bytes()
    wider = {"vectors": {"proprioception": np.zeros((6, 9), np.float32)}}
    with pytest.raises(ValueError, match=r"proprioception': \(9,\).*proprioception': \(4,\)"):
        assemble(path, episodes(tmp_path, [1], **wider), ENV, {})
    assert path.read_bytes() == before


def test_an_unfinished_episode_is_never_visible(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.Group, "create_dataset", killed)
    with pytest.raises(KeyboardInterrupt):
        write_episode(tmp_path / "000000.hdf5", demonstration())
    assert not list(tmp_path.glob("*.hdf5"))
    monkeypatch.undo()
    write_episode(tmp_path / "000000.hdf5", demonstration())  # over what was left behind
    with DemonstrationFile(tmp_path / "000000.hdf5") as file:
        assert len(file) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(4, np.float32)}, r"rewards has shape \(4,\).*5 steps"),
        ({"vectors": {"x": np.full((5, 2), np.nan)}}, "obs/x has NaN or infinity, first at step 0"),
        ({"images": {"wrist": np.zeros((5, 3, 8, 6), np.uint8)}}, r"uint8 \[T, H, W, 3\]"),
        ({"images": {"wrist": np.zeros((5, 8, 6, 3))}}, "got float64"),
        ({"actions": np.zeros((0, 3), np.float32)}, "T >= 1"),
    ],
)
def test_a_wrong_demonstration_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_episode(tmp_path / "x.hdf5", demonstration(**changes))
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "d.hdf5"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        DemonstrationFile(path)
    assemble(path, episodes(tmp_path, [0]), ENV, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        DemonstrationFile(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["data/demo_0"].attrs["num_samples"] = 9
    with DemonstrationFile(path) as file:
        with pytest.raises(ValueError, match="5 actions, num_samples says 9"):
            file.read("demo_0")
        with pytest.raises(ValueError, match="no 'demo_7'; it has 1"):
            file.read("demo_7")
        with pytest.raises(ValueError, match=r"no mask 'test'; it has \['train', 'valid'\]"):
            file.names("test")


def test_the_film_shows_all_cameras_of_each_demonstration(tmp_path):
    import av

    demos = [demonstration(seed, 9) for seed in range(3)]
    film_demonstrations(tmp_path / "film.mp4", demos, rate_hz=10.0, size_px=32)
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 10  # every second of 9 steps and of a second more
    assert frames[0].shape == (2 * (32 + 18), 2 * 32, 3)
    success, failure = frames[-1][18 + 1, 32 + 16], frames[-1][18 + 1, 16]
    assert success[1] > 100 > success[0]  # green
    assert failure[0] > 100 > failure[1]  # red
