"""What a report holds: speed, utilisation in both conventions, and only where a peak is known."""

import json
from pathlib import Path

import pytest

from pretraining.tracker import Tracker


def reports(out: Path, peak: float | None, capsys: pytest.CaptureFixture[str]) -> tuple[list, str]:
    tracker = Tracker(
        out,
        enabled=True,
        first_step=0,
        steps=2,
        tokens_per_step=1000,
        flops_per_token={"full": 2e6, "causal": 1e6},
        peak_flops=peak,
        wandb=None,
        description="model",
    )
    for step in range(2):
        tracker.report(step, loss=3.0)
    tracker.close()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], capsys.readouterr().err


def test_utilisation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, second), shown = reports(tmp_path, 1e12, capsys)
    for line in (first, second):
        expected = line["tokens_per_s"] * 2e6 / 1e12
        assert line["mfu_full"] == pytest.approx(expected, rel=0.01, abs=1e-4)
        assert line["mfu_causal"] == pytest.approx(expected / 2, rel=0.01, abs=1e-4)
    assert "mfu=" in shown and "loss=3.000" in shown and "tokens_s=" in shown


def test_no_claim_without_a_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, shown = reports(tmp_path, None, capsys)
    assert not any(key.startswith("mfu") for line in lines for key in line)
    assert "mfu" not in shown and lines[0]["tokens_per_s"] > 0
