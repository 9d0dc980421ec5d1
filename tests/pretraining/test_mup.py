"""muP: activations do not depend on the width, and neither does the best learning rate."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining import train
from pretraining.mup import kind_of, mup_groups, scale_weights, scales_of, with_multipliers
from pretraining.optimizer import make_optimizer, set_lr, standard_groups
from toto_robot.backbone.causal import CausalModel
from toto_robot.backbone.models import MODELS, family_of, make_model, model_config, resized

BASE = 32
Trained = tuple[CausalModel, torch.optim.AdamW]


def start(
    name: str, width: int, mup: bool, seed: int, layers: int = 2, base_depth: int = 0
) -> Trained:
    torch.manual_seed(seed)
    config = resized(replace(model_config(name), vocabulary=60), dim=width, layers=layers)
    if not mup:
        model = make_model(config)
        return model, make_optimizer(standard_groups(model, 0.1))
    model = make_model(with_multipliers(config, BASE, base_depth))
    scale_weights(model, width / BASE)
    groups = mup_groups(model, 0.1, width / BASE, model.config.residual_scale)
    return model, make_optimizer(groups)


def step(trained: Trained, tokens: torch.Tensor, lr: float) -> float:
    model, optimizer = trained
    set_lr(optimizer, lr)
    loss = model.loss(tokens)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def sizes(
    name: str, width: int, mup: bool, lr: float, steps: int = 8, layers: int = 2, depth: int = 0
) -> np.ndarray:
    """Mean |x| of the embeddings, after each block, and of the logits, after a few steps."""
    total = np.zeros(layers + 2)
    for seed in range(2):
        trained = start(name, width, mup, seed, layers, base_depth=depth)
        tokens = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(seed))
        for _ in range(steps):
            step(trained, tokens, lr)
        with torch.no_grad():
            states = [*trained[0].hidden_states(tokens), trained[0](tokens)]
        total += [x.abs().mean().item() for x in states]
    return total


@pytest.mark.parametrize(
    ("name", "widths", "lr", "steps"),
    [("tiny", (32, 64, 128, 256), 1e-2, 8), ("gpt2-tiny", (64, 128, 256), 5e-3, 16)],
)
def test_coordinates(name: str, widths: tuple[int, ...], lr: float, steps: int) -> None:
    """The coordinate check: slope of log size against log width, at a large learning rate."""

    def slopes(mup: bool) -> np.ndarray:
        values = np.array([sizes(name, width, mup, lr, steps) for width in widths])
        return np.polyfit(np.log(widths), np.log(values), 1)[0]

    assert np.abs(slopes(mup=True)).max() < 0.1
    assert slopes(mup=False)[1:].min() > 0.3


def test_coordinates_over_depth() -> None:
    """With a base depth the last block's states do not grow with the number of blocks."""

    def slope(base_depth: int) -> float:
        depths = (2, 4, 8)
        values = [sizes("tiny", BASE, True, 1e-2, layers=n, depth=base_depth)[-2] for n in depths]
        return np.polyfit(np.log(depths), np.log(values), 1)[0]

    assert abs(slope(2)) < 0.1
    assert slope(0) > 0.3


@pytest.mark.parametrize("name", [n for n, c in MODELS.items() if family_of(c) != "mamba"])
def test_every_parameter_has_a_rule(name: str) -> None:
    with torch.device("meta"):
        model = make_model(replace(model_config(name), tied=False))
    kinds = {n: kind_of(n) for n, _ in model.named_parameters()}
    assert kinds["embedding.weight"] == kinds["head.weight"] == "table"
    assert kinds["norm.weight"] == "vector"
    square = [n for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blocks")]
    assert square and all(kinds[n] == "hidden" for n in square)
    assert all(kinds[n] == "vector" for n, p in model.named_parameters() if p.ndim == 1)


def test_rules() -> None:
    hidden = scales_of("blocks.3.mlp.down.weight", 4)
    assert (hidden.init, hidden.lr, hidden.weight_decay, hidden.eps) == (0.5, 0.25, 4.0, 0.25)
    assert hidden.lr * hidden.weight_decay == 1  # what AdamW decays by stays the same
    assert scales_of("blocks.3.mlp.down.weight", 4, decay_exponent=0.5).weight_decay == 2
    assert scales_of("blocks.3.mlp.down.weight", 4, r=0.5).eps == 0.125
    assert (
        scales_of("norm.weight", 4, r=0.5).eps
        == scales_of("embedding.weight", 4, r=0.5).eps
        == 0.25
    )
    assert scales_of("blocks.3.attention_norm.weight", 4).weight_decay == 0
    with pytest.raises(ValueError, match="no rule for the parameter blocks.0.in_proj.weight"):
        scales_of("blocks.0.in_proj.weight", 2)
    with pytest.raises(ValueError, match="mamba family, only for llama and gpt2"):
        with_multipliers(model_config("mamba-tiny"), 64)


def test_multipliers_of_the_forward_pass() -> None:
    """Base and large have heads of 64, whose scores stay; 1b has 128, and scores half as large."""
    base, large, biggest = (with_multipliers(model_config(n), 256) for n in ("base", "large", "1b"))
    assert base.attention_scale == large.attention_scale == 64**-0.5  # pyright: ignore[reportAttributeAccessIssue]
    assert biggest.attention_scale == 64**-0.5 / 2  # pyright: ignore[reportAttributeAccessIssue]
    assert [c.output_scale for c in (base, large, biggest)] == [1 / 3, 1 / 4, 1 / 8]


def test_at_the_base_width_nothing_changes() -> None:
    config = replace(model_config("tiny"), vocabulary=60, dim=64, heads=1, mlp=256, layers=2)
    tokens = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))
    losses = []
    for mup in (True, False):
        torch.manual_seed(0)
        model = make_model(with_multipliers(config, 64) if mup else config)
        scale_weights(model, 1.0)
        groups = mup_groups(model, 0.1, 1.0) if mup else standard_groups(model, 0.1)
        trained = model, make_optimizer(groups)
        losses.append([step(trained, tokens, 3e-3) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and losses[0][3] < losses[0][0] - 0.1


WORDS = {"model": "tiny", "layers": 1, "width": 96, "heads": 2, "mup": True, "base_width": 32,
         "frames": 2, "batch_size": 2, "warmup": 2, "eval_every": 3, "steps": 5, "seed": 3,
         "checkpoint_s": 1e9, "precision": "float32", "device": "cpu"}  # fmt: skip


def losses_of(out: Path) -> list[float]:
    return [json.loads(x)["loss"] for x in (out / "metrics.jsonl").read_text().splitlines()]


def test_sharded_and_resumed(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FSDP2 as alone, and after a stop the groups' multipliers are as before."""
    config = train.Config(data=shards, out=tmp_path / "one", **WORDS)  # pyright: ignore[reportArgumentType]
    original, calls = train.accumulate, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "accumulate", interrupting)
        with pytest.raises(SystemExit, match="stopped after step 3"):
            train.main(config)
    train.main(config)
    about = json.loads((tmp_path / "one" / "backbone.json").read_text())
    assert about["decoder"]["mlp"] == 384 and about["decoder"]["output_scale"] == 1 / 3

    words = [f"{k}={v}" for k, v in (WORDS | {"data": shards, "out": tmp_path / "two"}).items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, "-m", "pretraining.train", *words], check=True, timeout=120)
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
def test_the_best_rate_is_the_same_at_two_widths() -> None:
    """Sequences that repeat after eight tokens: losses differ by rate, the best rate does not move.

    In the standard parametrisation it moves by at least two steps of the same grid.
    """
    grid = [2.0**-k for k in range(11, 3, -1)]

    def best(width: int, mup: bool) -> int:
        final = []
        for lr in grid:
            generator = torch.Generator().manual_seed(0)
            trained, losses = start("tiny", width, mup, seed=0), []
            for i in range(60):
                tokens = torch.randint(64, (16, 8), generator=generator).repeat(1, 4)
                losses.append(step(trained, tokens, lr * min(1, (i + 1) / 10)))
            final.append(np.mean(losses[-10:]))
        return int(np.argmin(final))

    assert abs(best(32, mup=True) - best(256, mup=True)) <= 1
    assert abs(best(32, mup=False) - best(256, mup=False)) >= 2
