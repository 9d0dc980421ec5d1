"""The paper's numbers agree with each other and with the names that our tasks use."""

from collections import Counter

import pytest

from pretraining import evaluate
from pretraining.downstream.published import CURVES, PEAKS, ROWS, STA_METRICS, rows_of
from toto_robot.backbone import SIZES

METRICS = {
    "cater": ["top1_%"],
    "davis": ["J&F_%", "J_%", "F_%"],
    "ego4d-sta": list(STA_METRICS),
    "imagenet": ["top1_%"],
    "kinetics": ["top1_%"],
    "real-robot": ["success_%"],
}
ROUNDING = 0.2  # two digits, twice
READING = 1.1  # off a figure


def test_every_row_has_a_source_and_the_metrics_of_its_task() -> None:
    for row in ROWS:
        assert row.table.startswith("Table ") and row.name
        assert list(row.metrics) == METRICS[row.task]
        assert all(0 < value < 100 for value in row.metrics.values())
    assert {row.table.removeprefix("Table ") for row in ROWS} == set(
        "3 5 7 8 9 10 11 12 13 14 16".split()
    )
    once = Counter((r.table, r.name, r.size, r.setting) for r in ROWS)
    assert set(once.values()) == {1}


def test_tasks_are_those_of_the_command() -> None:
    assert set(evaluate.TASKS) - {"robot"} == set(METRICS) - {"real-robot"}


def toto(task: str, table: str) -> dict[str, float]:
    own = [row for row in rows_of(task) if row.table == table and row.is_toto]
    return {row.name: next(iter(row.metrics.values())) for row in own}


def test_j_and_f_is_their_mean() -> None:
    for row in rows_of("davis"):
        both = (row.metrics["J_%"] + row.metrics["F_%"]) / 2
        assert row.metrics["J&F_%"] == pytest.approx(both, abs=ROUNDING)


def test_tables_agree_with_each_other() -> None:
    small = [r.metrics["top1_%"] for r in rows_of("imagenet") if "16x16 tokens, 8k" in r.setting]
    assert toto("imagenet", "Table 5")["Toto dVAE-dVAE"] > 53.2 == small[0]
    for table, task in (("Table 7", "imagenet"), ("Table 8", "kinetics"), ("Table 16", "kinetics")):
        values = list(toto(task, table).values())
        assert values == sorted(values)  # larger is better
    with_mlp, plain = toto("kinetics", "Table 16"), toto("kinetics", "Table 8")
    assert all(with_mlp[name] > plain[name] for name in plain)
    assert toto("imagenet", "Table 14")["Toto-1b"] < toto("imagenet", "Table 7")["Toto-1b"]


def test_peaks_are_near_the_tables() -> None:
    for peak in PEAKS:
        tables = [
            row.metrics[peak.metric]
            for row in rows_of(peak.task)
            if row.name == peak.name and peak.setting in row.setting
        ]
        assert min(abs(value - peak.value) for value in tables) < READING
        assert peak.layers == SIZES[peak.name.removeprefix("Toto-")].layers
        assert 0.4 < peak.layer / peak.layers < 0.6  # half way up


def test_curves_end_where_the_models_do_and_peak_at_the_peaks() -> None:
    peaks = {(peak.task, peak.name): peak for peak in PEAKS if not peak.setting}
    for curve in CURVES:
        assert len(curve.values) == curve.layers  # the last, or the embeddings, are not drawn
        if peak := peaks.get((curve.task, curve.name)):
            assert curve.first + curve.values.index(max(curve.values)) == peak.layer
            assert max(curve.values) == peak.value
