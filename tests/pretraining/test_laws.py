"""Scaling-law fits against planted laws, and the two commands that train many models."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest

from pretraining import scaling, sweep, train
from pretraining.laws import fit_parametric, fit_power, frontier
from pretraining.optimizer import Diverged
from toto_robot.cli import parse, split


def test_power_law_is_recovered() -> None:
    compute = np.logspace(12, 18, 40)
    noise = np.random.default_rng(0).normal(0, 0.005, 40)
    loss = 7.32 * compute**-0.0378 * np.exp(noise)
    loss[7] *= 1.3  # a spike, which a least-squares fit would follow
    law = fit_power(compute, loss, samples=60)
    low, high = law.intervals["b"]
    assert low < 0.0378 < high and high - low < 0.003
    assert law.values["b"] == pytest.approx(0.0378, abs=0.001)
    assert law.intervals["a"][0] < 7.32 < law.intervals["a"][1]


def test_power_law_without_noise_is_exact() -> None:
    compute = np.logspace(9, 13, 12)
    law = fit_power(compute, 3.0 * compute**-0.11, samples=3)
    assert law.values == pytest.approx({"a": 3.0, "b": 0.11}, rel=1e-5)
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        fit_power([1.0, 2.0], [3.0, 2.0])


def test_parametric_law_is_recovered() -> None:
    """Exponents from noisy losses lie close by, and mostly inside their intervals."""
    parameters, tokens = (
        x.ravel() for x in np.meshgrid(np.logspace(7, 10, 6), np.logspace(9, 12, 8))
    )
    clean = 1.8 + 400 / parameters**0.34 + 410 / tokens**0.28
    inside = []
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 0.003, len(clean))
        law = fit_parametric(parameters, tokens, clean * np.exp(noise), samples=12)
        for name, planted in (("E", 1.8), ("alpha", 0.34), ("beta", 0.28)):
            assert law.values[name] == pytest.approx(planted, rel=0.1)
            low, high = law.intervals[name]
            assert high - low < 0.1
            inside.append(low < planted < high)
    assert sum(inside) >= 6  # few samples make intervals of 95 % narrower than that


def test_losses_that_rise_with_size_are_no_law() -> None:
    n, d = (x.ravel() for x in np.meshgrid(np.logspace(4, 6, 4), np.logspace(4, 6, 5)))
    with pytest.raises(ValueError, match="do not fall with both size and tokens: best fit E = "):
        fit_parametric(n, d, 1 + 0.01 * n**0.2 + 9 / d**0.3, samples=2)


def test_frontier() -> None:
    compute, loss = [1.0, 2.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.5, 4.0, 4.2, 4.0, 3.0]
    assert frontier(compute, loss).tolist() == [0, 2, 5]


def planted_points() -> list[dict]:
    """Curves of four models whose envelope is 20 C^-0.1: each touches it once."""
    points = []
    for i, best in enumerate(np.logspace(12, 15, 4)):
        for compute in np.logspace(12, 15, 51):
            loss = 20 * compute**-0.1 * (1 + 0.03 * math.log(compute / best) ** 2)
            points.append({"model": f"m{i}", "parameters": 10.0**i, "tokens": compute / 10.0**i,
                           "macs": compute, "loss": loss, "share": 1.0})  # fmt: skip
    return points


def test_fit_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text(json.dumps({"points": planted_points()}))
    scaling.main([f"fit={tmp_path / 'points.json'}", f"out={tmp_path / 'out'}", "samples=10"])
    results = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert results["L(C) = a C^-b"]["b"]["value"] == pytest.approx(0.1, abs=0.02)
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="trains nothing; leave out steps=3"):
        scaling.main([f"fit={tmp_path / 'points.json'}", f"out={tmp_path}", "steps=3"])


COMMON = ["frames=2", "batch_size=2", "warmup=1", "eval_every=1", "base_width=32", "device=cpu",
          "precision=float32", "heads=2", "checkpoint_s=1e9"]  # fmt: skip


def test_scaling_command(shards: Path, tmp_path: Path) -> None:
    words = [f"data={shards}", f"out={tmp_path}", "models=16x1,32x1", "steps=5", "samples=5"]
    scaling.main([*words, *COMMON])
    results = json.loads((tmp_path / "scaling.json").read_text())
    assert [p["model"] for p in results["points"]] == ["16x1"] * 5 + ["32x1"] * 5
    last = results["points"][-1]
    assert last["tokens"] == 5 * 2 * 2 * 16 and last["share"] == 1
    # Blocks of 4 d^2 + 3 d (2.75 d), tied head of 36 rows, attention of 2 d per pair of 32 tokens.
    assert last["macs"] == (4 * 32**2 + 3 * 32 * 88 + 36 * 32 + 2 * 32 * 32) * last["tokens"]
    assert results["L(C) = a C^-b"]["b"]["value"] != 0
    assert (tmp_path / "scaling.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="models=32by2: expected a model's name or width x layers"):
        scaling.main([f"data={shards}", f"out={tmp_path}", "models=32by2", *COMMON])


def test_sweep_goes_on_where_it_stopped(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training diverges, one is interrupted; the second call trains only what is missing."""
    words = [f"data={shards}", f"out={tmp_path}", "widths=16,32", "log2_lrs=-8,-7,-6", "steps=3",
             "model=tiny", "layers=1", *COMMON]  # fmt: skip
    original, trained = train.run, []

    def run(config, world, interrupt):
        trained.append(config.out.name)
        if config.out.name == "w16_lr-6":
            config.out.mkdir(parents=True)
            raise Diverged("5 bad batches in a row")
        if trained.count("w32_lr-7") == 1 and config.out.name == "w32_lr-7":
            signal.raise_signal(signal.SIGTERM)  # as during any step
        return original(config, world, interrupt)

    monkeypatch.setattr(train, "run", run)
    with pytest.raises(SystemExit, match="stopped after step 1; the same command"):
        sweep.main(words)
    first = list(trained)
    sweep.main(words)
    assert first == ["w16_lr-8", "w16_lr-7", "w16_lr-6", "w32_lr-8", "w32_lr-7"]
    assert trained[len(first) :] == ["w32_lr-7", "w32_lr-6"]
    results = json.loads((tmp_path / "sweep.json").read_text())
    losses = {(r["width"], r["log2_lr"]): r["loss"] for r in results["runs"]}
    assert losses[16, -6] is None and all(v for k, v in losses.items() if k != (16, -6))
    best = min((loss, rate) for (width, rate), loss in losses.items() if width == 32)[1]
    assert results["best_log2_lr"]["32"] == best
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        sweep.main([*words, "seed=1"])
    samples = train.open_samples

    def other_data(config, device):
        data, test = samples(config, device)
        data.manifest_sha256 = "others"
        return data, test

    monkeypatch.setattr(train, "open_samples", other_data)
    with pytest.raises(ValueError, match="manifest_sha256: .* then, others now"):
        sweep.main(words)


def test_words_for_two_configurations() -> None:
    mine, theirs = split(sweep.Config, ["widths=1,2", "steps=3", "out=x"])
    assert (mine, theirs) == (["widths=1,2", "out=x"], ["steps=3"])
    assert parse(sweep.Config, mine).widths == (1, 2)
    with pytest.raises(SystemExit, match="widths=1,b: expected of type int"):
        parse(sweep.Config, ["widths=1,b", "out=x"])
    with pytest.raises(SystemExit, match="unknown option 'stepz'.*steps"):
        sweep.main(["out=x", "data=y", "stepz=3"])
