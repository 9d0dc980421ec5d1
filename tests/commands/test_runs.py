"""Run folder: Wilson interval, metrics, plot."""

import json
from pathlib import Path

import pytest
from PIL import Image

from toto_robot.intervals import wilson_interval
from toto_robot.runs import (
    Metrics,
    plot_success,
    read_metrics,
    success_report,
    write_environment,
    write_json,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # z = 1.96: n=10, p=.5: (0.5 + 0.19208) / 1.38416 = .5 ± .263; n=10, p=0: high = 3.8416/13.8416.
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (140, 200, 0.6332, 0.7592),
    ],
)
def test_wilson_interval_by_hand(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=2e-4)


def test_wilson_without_episodes_knows_nothing_and_refuses_what_is_no_rate() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2 episodes"):
        wilson_interval(3, 2)


def test_success_report_counts_wins() -> None:
    report = success_report([1.0, 0.0, 1.0, 1.0])
    assert report["success_rate"] == 0.75 and report["episodes"] == 4
    assert success_report([])["success_rate"] is None


def report(steps: int) -> dict:
    return {"steps": steps, **success_report([1.0, 0.0]), "episode_return": 2.0}


def test_metrics_are_on_disk_at_once_and_go_on_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for steps in (10, 20, 30):
        metrics.append(report(steps))
        assert read_metrics(path)[-1]["steps"] == steps
    metrics.close()
    with path.open("a") as file:
        file.write('{"steps": 4')  # a kill in the middle of a line
    again = Metrics(path, resume_at=20)  # killed after the checkpoint at 20
    again.append(report(40))
    again.close()
    assert [r["steps"] for r in read_metrics(path)] == [10, 20, 40]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Metrics(tmp_path / "metrics.jsonl").close()
    with pytest.raises(FileExistsError, match="resume="):
        Metrics(tmp_path / "metrics.jsonl")


def test_json_is_written_whole_and_never_holds_nan(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_json(path, {"episodes": 3})
    with pytest.raises(ValueError):
        write_json(path, {"episodes": float("nan")})
    assert json.loads(path.read_text()) == {"episodes": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]


def test_the_plot_is_stamped(tmp_path: Path) -> None:
    reports = [report(10), {**report(5), "success_rate": None}, report(20)]
    plot_success(tmp_path / "plain.png", reports, "franka_pick")
    plot_success(tmp_path / "stamped.png", reports, "franka_pick", "untrained backbone")
    plain, stamped = (Image.open(tmp_path / n).convert("RGB") for n in ("plain.png", "stamped.png"))
    assert plain.size == stamped.size and plain.tobytes() != stamped.tobytes()


def test_environment_names_versions_and_renderer(tmp_path: Path) -> None:
    write_environment(tmp_path / "env.txt", gl_renderer="llvmpipe")
    text = (tmp_path / "env.txt").read_text()
    assert "torch: " in text and "gl_renderer: llvmpipe" in text
