"""AdamW as in the paper (section 3.4), its schedule, and a guard against bad batches."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 64  # losses that the guard remembers
EARLIEST = 16  # losses before which only non-finite ones are bad


def lr_at(step: int, peak: float, warmup: int, steps: int, final: float) -> float:
    """Linear warm-up, then cosine down to `final` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


def standard_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; vectors (norms, biases) and Mamba's rates are not."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and not name.endswith("A_log")
        (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """Fused AdamW; a group's `lr_scale` (1 without one) multiplies the schedule's rate."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float = 1.0
) -> None:
    """One step on `loss`, gradients of `model` clipped to a norm of `max_norm`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


class Diverged(RuntimeError):
    """Too many bad batches in a row."""


class SpikeGuard:
    """Says which batches are too bad to learn from: not finite, or far above the recent losses.

    Args:
        deviations: standard deviations (at least 1 % of the loss each) above the recent mean.
        patience: bad batches in a row after which training stops.
    """

    def __init__(self, deviations: float, patience: int, history: list[float]) -> None:
        self.deviations, self.patience = deviations, patience
        self.history, self.in_a_row = history, 0

    def complaint(self, loss: float, norm: float) -> str | None:
        """None for a good batch, else what is wrong with it.

        Raises:
            Diverged: `patience` batches in a row were bad.
        """
        if not math.isfinite(loss) or not math.isfinite(norm):
            problem = f"loss {loss}, gradient norm {norm}"
        elif len(self.history) >= EARLIEST and loss > self._limit():
            problem = f"loss {loss:.3f}, the recent ones allow {self._limit():.3f}"
        else:
            self.history.append(loss)
            del self.history[:-WINDOW]
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            raise Diverged(
                f"{self.in_a_row} bad batches in a row ({problem}); they are in bad_batches.jsonl. "
                "Lower lr=, raise warmup=, or look at the data; the last checkpoint is from before"
            )
        return problem

    def _limit(self) -> float:
        mean = statistics.fmean(self.history)
        return mean + self.deviations * max(statistics.stdev(self.history), 0.01 * abs(mean))
