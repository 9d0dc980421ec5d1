"""A trained backbone, packed: smaller, nearly the same features, and it says what it is."""

from pathlib import Path

import pytest
import torch

from pretraining import pack, train
from toto_robot.backbone import load_backbone
from toto_robot.backbone.weights import read_weights


def test_packed_backbone_loads(shards: Path, tmp_path: Path, capsys) -> None:
    run = train.Config(model="tiny", data=shards, out=tmp_path / "run", steps=2,
                       frames=2, batch_size=2, warmup=2, layers=2)  # fmt: skip
    train.main(run)
    pack.main(pack.Config(backbone=tmp_path / "run", out=tmp_path / "packed", bits=8))
    cosine = float(capsys.readouterr().out.split("mean cosine ")[1].split()[0])
    assert 0.99 < cosine <= 1
    whole, packed = (tmp_path / d / "backbone.safetensors" for d in ("run", "packed"))
    assert packed.stat().st_size < 0.5 * whole.stat().st_size
    about = read_weights(packed)[1]
    assert about["packed_from"] == read_weights(whole)[1]["sha256"] != about["sha256"]
    frames = torch.randint(256, (2, 32, 32, 3)).to(torch.uint8)
    ours, theirs = (
        load_backbone("toto-tiny", weights=str(path), grid=4, layer=2) for path in (packed, whole)
    )
    assert torch.equal(ours.tokenize(frames), theirs.tokenize(frames)), "codes must not change"
    torch.testing.assert_close(ours(frames), theirs(frames), atol=0.02, rtol=0.02)
    assert not torch.equal(ours(frames), theirs(frames))
    with pytest.raises(SystemExit, match="packed already"):
        pack.main(pack.Config(backbone=tmp_path / "packed", out=tmp_path / "twice"))
    with pytest.raises(SystemExit, match="bits=5"):
        pack.main(pack.Config(backbone=tmp_path / "run", out=tmp_path / "five", bits=5))
