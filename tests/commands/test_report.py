"""`python -m toto_robot.report`: intervals against rliable and by hand, one page from run folders."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toto_robot import report
from toto_robot.report_curves import across_tasks, bootstrap, curve_of, interquartile_mean, mean
from toto_robot.report_runs import find_runs, group_runs, load_run
from toto_robot.runs import success_report

pytest.importorskip("rliable", reason="not installed: pip install -e '.[report]'")

CONFIG = """env: {{name: {env}}}
backbone: {{name: toto-tiny, weights: {weights}, layer: null}}
algo: {algo}
obs: {obs}
seed: {seed}
total_steps: {total}
"""


def write_run(
    folder: Path,
    env: str = "franka_pick",
    seed: int = 0,
    final: float | None = 0.5,
    algo: str = "ppo",
    obs: str = "pixels",
    total: int = 400,
    weights: str = "null",
) -> Path:
    """A run whose success grows evenly from 0 at 100 steps to `final` at 400; None: unfinished."""
    folder.mkdir(parents=True)
    config = CONFIG.format(env=env, weights=weights, algo=algo, obs=obs, seed=seed, total=total)
    (folder / "config.yaml").write_text(config)
    rates = [None, 0.0, *((final or 0.3) * i / 3 for i in (1, 2, 3))]
    lines = [
        {"steps": 100 * i, "success_rate": rate, "steps_per_s": 50.0, "encodes_per_step": 1.03}
        for i, rate in enumerate(rates)
    ]
    lines[0]["steps"] = 50
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "env.txt").write_text("mujoco: 4.0.0\ngpu: none\n")
    if final is not None:
        result = success_report([1.0] * round(40 * final) + [0.0] * (40 - round(40 * final)))
        more = {"episode_return": 12.0, "untrained_backbone": False}
        (folder / "eval.json").write_text(json.dumps(result | more))
    return folder


def loaded(root: Path) -> list[Any]:
    return [load_run(folder) for folder in find_runs([str(root)])]


def test_our_interquartile_mean_is_rliables() -> None:
    from rliable.metrics import aggregate_iqm, aggregate_mean

    scores = np.random.default_rng(0).uniform(size=(7, 3, 5))
    for point in range(5):
        assert interquartile_mean(scores)[point] == pytest.approx(aggregate_iqm(scores[..., point]))
        assert mean(scores)[point] == pytest.approx(aggregate_mean(scores[..., point]))


def test_the_bootstrap_by_hand() -> None:
    """Two seeds, 0 and 1: a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    scores = np.array([0.0, 1.0])[:, None, None]
    value, interval = bootstrap(scores, "mean", 500)
    assert value.tolist() == [0.5] and interval[:, 0].tolist() == [0.0, 1.0]
    # Two tasks, one of them always won: seeds are drawn within a task, so it stays won.
    _, interval = bootstrap(np.array([[0.0, 1.0], [0.0, 1.0]])[..., None], "mean", 500)
    assert interval[:, 0].tolist() == [0.5, 0.5]


def test_the_bootstrap_is_fixed_and_leaves_numpys_generator_alone() -> None:
    scores = np.random.default_rng(0).uniform(size=(5, 1, 3))
    np.random.seed(7)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # type: ignore[call-overload]
    first, again = bootstrap(scores, "iqm", 200), bootstrap(scores, "iqm", 200)
    assert (first[1] == again[1]).all()
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()  # type: ignore[call-overload]


def test_a_curve_covers_what_all_seeds_have_reached(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, final=0.3)
    longer = write_run(tmp_path / "b", seed=1, final=0.9)
    with (longer / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 800, "success_rate": 1.0, "steps_per_s": 50.0}\n')
    curve = curve_of(loaded(tmp_path), "mean", 200)
    assert curve is not None and curve.low is not None and curve.high is not None
    assert (curve.steps[0], curve.steps[-1]) == (100, 400)
    assert curve.value[-1] == pytest.approx(0.6) and curve.value[0] == 0
    assert curve.low[-1] == pytest.approx(0.3) and curve.high[-1] == pytest.approx(0.9)
    middle = np.interp(250, curve.steps, curve.value)
    assert middle == pytest.approx(0.3, abs=0.01)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    curve = curve_of(loaded(tmp_path), "iqm", 10)
    assert curve is not None and curve.low is None


def test_runs_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    write_run(tmp_path / "c", seed=0, total=800)
    write_run(tmp_path / "d", seed=0, algo="dagger")
    write_run(tmp_path / "e", seed=0, weights="random")
    write_run(tmp_path / "f", seed=0, obs="state")
    groups = {
        group.label: [run.seed for run in group.runs] for group in group_runs(loaded(tmp_path))
    }
    assert groups == {
        "ppo · toto-tiny · total_steps=400": [0, 1],
        "ppo · toto-tiny · total_steps=800": [0],
        "dagger · toto-tiny": [0],
        "ppo · toto-tiny (random weights)": [0],
        "ppo · state": [0],
    }


def test_seeds_that_start_from_policies_of_their_own_are_alike(tmp_path: Path) -> None:
    for seed in (0, 1):
        config = write_run(tmp_path / f"s{seed}", seed=seed) / "config.yaml"
        config.write_text(config.read_text() + f"init: /somewhere/s{seed}\n")
    config = write_run(tmp_path / "s2", seed=2) / "config.yaml"
    config.write_text(config.read_text() + "init: null\n")
    labels = {g.label: len(g.runs) for g in group_runs(loaded(tmp_path))}
    assert labels == {"ppo · toto-tiny · init=policy": 2, "ppo · toto-tiny · init=None": 1}


def test_wall_time_leaves_out_the_pause_of_a_resumed_run(tmp_path: Path) -> None:
    (run,) = [load_run(write_run(tmp_path / "a"))]
    assert run.wall_time_s == pytest.approx(400 / 50) and run.steps_per_s == pytest.approx(50)


def test_tasks_are_strata_only_with_as_many_seeds_each(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"p{seed}", "franka_pick", seed, 0.5)
        write_run(tmp_path / f"c{seed}", "franka_cabinet", seed, 1.0)
    (row,) = across_tasks(group_runs(loaded(tmp_path)), "mean", 50)
    assert row[1] == ["franka_cabinet", "franka_pick"] and row[2] == 2
    assert row[3] == pytest.approx((0.75, 0.75, 0.75))
    write_run(tmp_path / "c2", "franka_cabinet", 2, 1.0)
    assert not across_tasks(group_runs(loaded(tmp_path)), "mean", 50)


def make_page(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["toto-report", *words, "repeats=50"])
    report.main()
    out = next(word for word in words if word.startswith("out=")).removeprefix("out=")
    return (Path(out) / "index.html").read_text()


def test_the_page_shows_every_seed_and_brings_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        write_run(tmp_path / f"runs/s{seed}", seed=seed, final=0.25 + 0.25 * seed)
    folder = write_run(tmp_path / "runs/s2", seed=2, final=0.75)
    (folder / "eval.mp4").write_bytes(b"film")
    rows = [
        {"shift": s, "stop_at_success": False} | success_report([1.0, 0.0])
        for s in ("none", "light")
    ]
    (folder / "eval_shifts.json").write_text(json.dumps({"rows": rows}))
    write_run(tmp_path / "runs/s3", seed=3, final=None)
    out = tmp_path / "page"
    page = make_page(monkeypatch, f"runs={tmp_path}/runs/s*", f"out={out}", "title=<b>Mine</b>")
    for text in (
        "25.0 %",
        "50.0 %",
        "75.0 %",
        "[14.2, 40.2]",
        "3 of 4",
        "training, 30.0 % lately",
    ):
        assert text in page, text
    assert "&lt;b&gt;Mine" in page and "<b>Mine" not in page
    assert "light" in page and "1.03" in page
    files = [part.split('"')[0] for part in page.split('src="')[1:]]
    files += [part.split('"')[0] for part in page.split('srcset="')[1:]]
    assert len(files) >= 3
    for file in files:
        assert "://" not in file and (out / file).is_file(), file


def test_the_results_in_the_repository_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Path(__file__).parents[2] / "benchmarks/results"
    page = make_page(monkeypatch, f"runs={results}/*_state_s[0-9]", f"out={tmp_path}")
    assert "franka_cabinet" in page and "ppo · state" in page


def test_no_runs_is_an_error_that_says_what_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        make_page(monkeypatch, f"runs={tmp_path}", f"out={tmp_path}")
    assert stopped.value.code == 2 and "no run folder there" in capsys.readouterr().err
