"""The utilisation benchmark's arithmetic, and a step of it."""

import argparse

import pytest
import torch

from benchmarks import mfu
from pretraining.parallel import World

WORLD = World(torch.device("cpu"))
ARGS = argparse.Namespace(
    micro_batches=[1, 2, 4], frames=1, vocabulary=512, steps=1, compile="auto"
)


def test_utilisation_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 rows do not fit; tiny is 8 blocks of 4 d^2 + 3 d m weights and a head of 516 rows."""
    monkeypatch.setattr(
        mfu, "seconds_per_step", lambda model, opt, rows, *_: None if rows == 4 else 0.5
    )
    monkeypatch.setattr(mfu, "peak_flops", lambda device, bfloat16: 1e12)
    records = list(mfu.measure("tiny", "trainer", ARGS, WORLD))
    assert [r["fits"] for r in records] == [True, True, False]
    weights = 8 * (4 * 128**2 + 3 * 128 * 512) + 516 * 128
    per_token = 6 * weights + 12 * 8 * 128 * 256
    assert records[1]["tokens_per_s"] == 2 * 256 / 0.5
    assert records[1]["mfu_full"] == pytest.approx(1024 * per_token / 1e12)
    assert records[1]["mfu_causal"] < records[1]["mfu_full"]
    assert "does not fit" in mfu.describe(records[2]) and "MFU" in mfu.describe(records[1])


@pytest.mark.parametrize("attention", ["trainer", "flash", "default"])
def test_a_step(attention: str) -> None:
    [record] = mfu.measure(
        "tiny", attention, argparse.Namespace(**vars(ARGS) | {"micro_batches": [1]}), WORLD
    )
    assert record["tokens_per_s"] > 0 and record["mfu_full"] is None
    assert "no utilisation" in mfu.describe(record)
