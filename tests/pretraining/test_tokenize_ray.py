"""The same shards from Ray."""

import os
import subprocess
import sys
from pathlib import Path

from tests.pretraining.test_tokenize import contents


def test_ray(films: Path, tokenizer: Path, shards: Path, tmp_path: Path) -> None:
    """On a cluster of this machine, in a process of its own, as Ray warns about this and that."""
    words = [f"data={films}", f"tokenizer={tokenizer}", f"out={tmp_path / 'out'}"]
    words += ["held_out=0.2", "per_shard=2", "device=cpu", "launcher=ray"]
    done = subprocess.run(
        [sys.executable, "-m", "pretraining.tokenize", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert "3 shards, 60 frames, 960 tokens, 0 videos skipped" in done.stdout
    assert contents(tmp_path / "out") == contents(shards)
