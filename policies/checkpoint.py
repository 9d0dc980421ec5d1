"""A checkpoint is a policy folder (`policy.py`) that training can also go on from.

Beside `policy.safetensors` and `policy.json` it holds `trainer.pt` (optimiser, counters, random
states) and `progress.json` (steps, best score so far).
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.learner import Learner
from policies.policy import PolicySpec, check_backbone, load_weights, read_spec, save_policy


def save_checkpoint(
    folder: Path, learner: Learner, policy_spec: PolicySpec, progress: dict[str, Any]
) -> None:
    """Policy, trainer state and progress, swapped in as a whole folder."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    progress["steps"] = learner.num_timesteps
    save_policy(new, learner.policy, replace(policy_spec, env_steps=learner.num_timesteps))
    learner.save_trainer(new / "trainer.pt")
    (new / "progress.json").write_text(json.dumps(progress) + "\n")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_progress(checkpoint: Path) -> dict[str, Any]:
    """`steps` and `best` ([success rate, return]) of a checkpoint folder."""
    old = checkpoint.with_name(checkpoint.name + ".old")
    if not checkpoint.exists() and old.exists():  # killed between the two renames
        os.rename(old, checkpoint)
    return json.loads((checkpoint / "progress.json").read_text())


def load_checkpoint(checkpoint: Path, learner: Learner, backbone: Any) -> None:
    """Weights, optimiser, counters and random states of `checkpoint` into `learner`."""
    record = read_spec(checkpoint).backbone
    if record is not None:
        check_backbone(record, backbone, checkpoint)
    load_weights(checkpoint, learner.policy)
    learner.load_trainer(checkpoint / "trainer.pt")
