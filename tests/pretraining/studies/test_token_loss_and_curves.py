"""Loss per position against a computation by hand; loss curves from metrics.jsonl."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining import train
from pretraining.export import load_whole
from pretraining.shards import Clips
from pretraining.studies import curves, token_loss
from toto_robot.backbone.dvae import DVAE, DVAEConfig
from toto_robot.backbone.tokenizers import load_tokenizer, save_tokenizer

OPTIONS = {"frames": 2, "batch_size": 2, "warmup": 2, "eval_every": 2, "checkpoint_s": 1e9}


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train.main(train.Config(model="tiny", layers=2, data=shards, out=out, steps=5, **OPTIONS))  # pyright: ignore[reportArgumentType]
    return out


def test_losses_equal_log_probabilities_computed_by_hand(run: Path, shards: Path, tmp_path: Path):
    options = token_loss.Config(backbone=run, data=shards, out=tmp_path, clips=3, batch_size=2)
    token_loss.main(options)
    result = json.loads((tmp_path / "token_loss.json").read_text())
    assert result["frames"] == 2 and result["tokens_per_frame"] == 16
    model, _ = load_whole(run, shards)
    clips = Clips(shards, frames=2, stride=4, held_out=True)
    chosen = np.linspace(0, len(clips) - 1, 3).round().astype(int)
    codes = clips.batch(chosen).flatten(1).long()
    expected = torch.zeros(32)
    with torch.no_grad():
        for position in range(32):  # each from a sequence of its own, cut off before it
            read = torch.cat([torch.ones(3, 1, dtype=torch.long), codes[:, :position] + 4], dim=1)
            logits = model(read)[:, -1].double()
            right = logits.gather(1, codes[:, position, None] + 4)[:, 0]
            expected[position] = (logits.logsumexp(1) - right).mean()
    measured = result["measured"]
    assert measured["curve"] == pytest.approx(expected.tolist(), abs=2e-4)
    assert measured["per_frame"] == pytest.approx(expected.view(2, 16).mean(1).tolist(), abs=1e-4)
    rows = expected.view(2, 4, 4).mean(2)
    assert measured["per_row_of_frame_1"] == pytest.approx(rows[0].tolist(), abs=1e-4)
    assert measured["per_column_of_later_frames"] == pytest.approx(
        expected.view(2, 4, 4)[1].mean(0).tolist(), abs=1e-4
    )
    spike = expected[16] - expected[17:].mean()
    assert measured["spike"][1] == pytest.approx(spike.item(), abs=1e-4)
    assert (tmp_path / "token_loss.png").stat().st_size > 1000


def test_codes_of_another_encoder(run: Path, shards: Path, tmp_path: Path):
    tokenizer, about = load_tokenizer(shards)
    assert isinstance(tokenizer.config, DVAEConfig)
    torch.manual_seed(1)
    save_tokenizer(DVAE(tokenizer.config), tmp_path, resolution=about["resolution"])
    with pytest.raises(ValueError, match="backbone's tokenizer"):
        load_whole(run, tmp_path)


def test_curves_of_two_runs(run: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    lines = [{"step": i, "loss": float(i), "tokens": 100 * (i + 1)} for i in range(10)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (other / "metrics.jsonl").write_text(text + '{"step": 10, "lo')  # the run is being written
    curves.main(curves.Config(runs=f"{run},{other}", out=tmp_path, window=0.2))
    measured = json.loads((tmp_path / "curves.json").read_text())["measured"]
    assert measured["other"]["tokens"] == [100 * (i + 1) for i in range(10)]
    assert measured["other"]["loss"] == [0.0] + [i - 0.5 for i in range(1, 10)]
    assert measured[run.name]["tokens"] == [(i + 1) * 2 * 2 * 16 for i in range(5)]
    assert len(measured[run.name]["held_out_loss"]) == 3
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_runs_without_tokens_in_their_metrics(run: Path, tmp_path: Path):
    """As earlier versions wrote them: tokens follow from backbone.json."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = [{k: v for k, v in line.items() if k != "tokens"} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    with pytest.raises(ValueError, match="finish the run"):
        curves.read_run(tmp_path, 0.1)
    (tmp_path / "backbone.json").write_text((run / "backbone.json").read_text())
    assert curves.read_run(tmp_path, 0.1)["tokens"] == curves.read_run(run, 0.1)["tokens"]
