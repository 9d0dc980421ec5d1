"""Sharded checkpoints (torch.distributed.checkpoint): written beside the old one, then renamed.

    checkpoints/step_00000500/    what all ranks wrote, and state.json (step, settings, loss history)

A kill at any moment leaves the last complete one; another number of ranks may read it.
"""

import json
import pickle
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.optim import Optimizer

from pretraining.parallel import World
from pretraining.progress import changes
from toto_robot.backbone.weights import write_json

PARTIAL = ".partial"
KEEP = 2


@contextmanager
def alone() -> Iterator[None]:
    """Without the warning that a single process is on its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Checkpoints:
    """The checkpoints of one run. With several ranks they are written in the background."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: Optimizer,
        settings: dict[str, str],
        world: World,
    ) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.settings, self.world = settings, world
        self._writing: tuple[Path, Future[Any] | None] | None = None
        self._saved_at = time.monotonic()
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(leftover)
        world.barrier()

    def complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step_*") if p.suffix != PARTIAL)

    def late(self, every_s: float) -> bool:
        """Whether a checkpoint is due by the main rank's clock."""
        return self.world.is_main and time.monotonic() - self._saved_at >= every_s

    def save(self, step: int, history: list[float]) -> None:
        """Start writing; `wait` (or the next `save`) gives the checkpoint its name."""
        self.wait()
        final = self.folder / f"step_{step:08d}"
        partial = final.with_name(final.name + PARTIAL)
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        if self.world.is_main:
            partial.mkdir()
            content = {"step": step, "settings": self.settings, "history": history}
            write_json(partial / "state.json", content)
        self.world.barrier()
        if self.world.mesh is None:
            with alone():
                save(state, checkpoint_id=partial, no_dist=True)
            future = None
        else:
            future = async_save(state, checkpoint_id=partial)
            assert isinstance(future, Future)
        self._writing, self._saved_at = (final, future), time.monotonic()
        if future is None:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint in the making is complete; then drop the ones that are too old."""
        if self._writing is None:
            return
        final, future = self._writing
        if future is not None:
            future.result()
        self.world.barrier()
        if self.world.is_main:
            if final.exists():
                shutil.rmtree(final)
            final.with_name(final.name + PARTIAL).rename(final)
            for old in self.complete()[:-KEEP]:
                shutil.rmtree(old)
        self.world.barrier()
        self._writing = None

    def load(self) -> tuple[int, list[float]]:
        """Restore the newest; step to go on with and loss history, or (0, []) without any.

        Raises:
            ValueError: it is damaged, or was written under other settings.
        """
        if not (found := self.complete()):
            return 0, []
        newest = found[-1]
        advice = f"delete {newest} to go on from an earlier one, or use resume=never"
        try:
            about = json.loads((newest / "state.json").read_text())
            self._check_settings(about["settings"])
            model, optimizer = get_state_dict(self.model, self.optimizer)
            state = {"model": model, "optimizer": optimizer}
            with alone():
                load(state, checkpoint_id=newest, no_dist=self.world.mesh is None)
        except (CheckpointException, OSError, json.JSONDecodeError, KeyError,
                pickle.UnpicklingError, EOFError, RuntimeError) as error:  # fmt: skip
            raise ValueError(f"{newest} is damaged ({str(error)[:300]}); {advice}") from error
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        return about["step"], about["history"]

    def _check_settings(self, before: dict[str, str]) -> None:
        if changed := changes(before, self.settings):
            raise ValueError(
                f"{self.folder} was written under other settings ({changed}); use them "
                "again, another out=, or resume=never"
            )
