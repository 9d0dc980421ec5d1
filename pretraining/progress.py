"""What both training scripts need around their loop: metrics, checkpoints, Ctrl-C."""

import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn

from toto_robot.backbone.weights import replace_atomically

Requeue = Literal["auto", "always", "never"]


class MetricsLog:
    """`metrics.jsonl`, one object per report; on resume, lines after the checkpoint are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        lines = path.read_text().splitlines() if path.exists() and first_step > 0 else []
        kept = [
            line for line in lines if line.endswith("}") and json.loads(line)["step"] < first_step
        ]
        path.write_text("".join(line + "\n" for line in kept))
        self.path = path

    def write(self, **values: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")


def settings_of(config: Any, free: set[str]) -> dict[str, str]:
    """The settings that must not change between a run and its continuation."""
    fields = dataclasses.asdict(config).items()
    return {name: str(value) for name, value in fields if name not in free}


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """The settings that differ, "" if none does."""
    return "; ".join(
        f"{name}: {before.get(name)} then, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )


class Checkpoint:
    """Model, optimiser and step in one file; a kill at any moment leaves the old one or the new."""

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, str],
    ) -> None:
        self.path, self.model, self.optimizer, self.settings = path, model, optimizer, settings
        self.saved_at = time.monotonic()

    def save(self, step: int) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        temporary = self.path.with_name(self.path.name + ".tmp")
        torch.save({**state, "step": step, "settings": self.settings}, temporary)
        replace_atomically(temporary, self.path)
        self.saved_at = time.monotonic()

    def save_when_due(self, step: int, every_s: float) -> None:
        if time.monotonic() - self.saved_at >= every_s:
            self.save(step)

    def load(self) -> int:
        """Restore the state if there is one; return the step to go on with (0 if there is none).

        Raises:
            ValueError: the file is damaged, or was written under other settings.
        """
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); delete it or use resume=never"
            ) from error
        before = state["settings"]
        if changed := changes(before, self.settings):
            raise ValueError(
                f"{self.path} comes from other settings ({changed}); repeat the old "
                "ones, choose another out=, or start over with resume=never"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"]


class Interrupt:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into flags, so that a step is never cut in half.

    A second Ctrl-C ends the program at once, if it comes a second later: launchers pass the first
    one on. Outside the main thread (Ray Train) there are no signals to take.

    Attributes:
        requested: whether to stop after this step.
        time_is_up: whether it was SIGUSR1 that asked, with which SLURM warns of the time limit.
    """

    def __init__(self) -> None:
        self.requested = self.time_is_up = False
        self._at = math.inf
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self.note)

    def release(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - self._at > 1:
            os._exit(128 + number)
        self.requested, self._at = True, min(self._at, now)
        self.time_is_up = self.time_is_up or number == signal.SIGUSR1


def requeue(when: Requeue, time_is_up: bool) -> str:
    """Put this SLURM job back into the queue if it is to; says what became of it.

    Args:
        when: "auto" when SLURM's time limit came, "always" also after SIGTERM (a preemption that
            does not requeue by itself; but `scancel` sends it too), "never".
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or when == "never" or (when == "auto" and not time_is_up):
        return "the same command continues there"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        return f"the same command continues there (scontrol requeue {job} failed: {reason})"
    return f"SLURM job {job} is in the queue again"
