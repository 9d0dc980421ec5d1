"""What a training shows and writes while it runs: progress bar, metrics.jsonl, TensorBoard, W&B."""

import importlib
import json
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pretraining.progress import MetricsLog


class Tracker:
    """The main rank's reports; on every other rank it does nothing.

    Args:
        flops_per_token: name -> FLOPs of forward and backward pass; with `peak_flops` (of all ranks
            together) each gives a utilisation `mfu_<name>`.
    """

    def __init__(
        self,
        out: Path,
        *,
        enabled: bool,
        first_step: int,
        steps: int,
        tokens_per_step: int,
        flops_per_token: dict[str, float],
        peak_flops: float | None,
        wandb: str | None,
        description: str,
    ) -> None:
        self.enabled, self.out, self.tokens_per_step = enabled, out, tokens_per_step
        if not enabled:
            return
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.log = MetricsLog(out / "metrics.jsonl", first_step)
        self.writer = SummaryWriter(out / "tensorboard", purge_step=first_step)
        self.wandb = _wandb_run(wandb, out) if wandb else None
        self.bar = tqdm(total=steps, initial=first_step, unit="step", desc=description)
        self.last, self.rate, self.held_out = time.monotonic(), 0.0, float("nan")

    def report(self, step: int, **values: float) -> None:
        """One step: loss and what else there is; speed and utilisation are added."""
        if not self.enabled:
            return
        now = time.monotonic()
        rate = self.tokens_per_step / max(now - self.last, 1e-9)
        self.rate = rate if self.rate == 0 else 0.9 * self.rate + 0.1 * rate
        self.last = now
        values["tokens_per_s"] = round(rate)
        for name, flops in self.flops_per_token.items():
            if self.peak_flops:
                values[f"mfu_{name}"] = round(rate * flops / self.peak_flops, 4)
        self.log.write(step=step, tokens=(step + 1) * self.tokens_per_step, **values)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        self.held_out = values.get("held_out_loss", self.held_out)
        shown = {"loss": f"{values['loss']:.3f}", "held_out": f"{self.held_out:.3f}"}
        shown["tokens_s"] = f"{self.rate:.0f}"
        if "mfu_full" in values:
            shown["mfu"] = f"{100 * values['mfu_full']:.0f}%/{100 * values['mfu_causal']:.0f}%"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def bad_batch(self, step: int, first_sample: int, samples: int, problem: str) -> None:
        """A batch that was not learnt from: which samples it held, and why."""
        if not self.enabled:
            return
        entry = {"step": step, "first_sample": first_sample, "samples": samples, "why": problem}
        with open(self.out / "bad_batches.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
        tqdm.write(f"step {step} skipped: {problem}")

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            self.writer.close()
            if self.wandb is not None:
                self.wandb.finish()


def _wandb_run(project: str, out: Path) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise SystemExit(
            f"wandb={project}: Weights & Biases is not installed; pip install wandb"
        ) from error
    return wandb.init(project=project, name=out.name, dir=out, resume="allow", id=out.name)
