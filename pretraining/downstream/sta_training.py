"""Training and running the anticipation detector: batches, flips, towers of states, checkpoints."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pretraining.downstream.sta_data import Example, Frames, read_clip
from pretraining.downstream.sta_detector import SCALES, Detector, Target
from pretraining.optimizer import descend
from pretraining.progress import Checkpoint, Interrupt, MetricsLog
from pretraining.video import CorruptSourceError
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.names import load_with_head

CLIP_NORM = 10.0
Item = tuple[int, np.ndarray | str]  # number of the example; its frames, or why there are none


def evenly_spaced(depth: int, layers: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The five layers that are read, 1 (after the first block) to `depth`, unless they are given.

    Raises:
        ValueError: there are not five, or the model has no such layer.
    """
    count = len(SCALES)
    chosen = layers or tuple(max(1, round(depth * (i + 1) / count)) for i in range(count))
    if len(chosen) != count or not all(0 <= layer <= depth for layer in chosen):
        raise ValueError(f"layers={layers}: expected {count} of 0 (embeddings) to {depth}")
    return chosen


class FrozenTower(nn.Module):
    """Frames [B, T, R, R, 3] -> states of the last one after the chosen layers; learns nothing."""

    def __init__(self, backbone: FrozenBackbone, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.held = (backbone,)  # in a tuple: its weights are not part of the checkpoint
        self.layers, self.tokens = layers, backbone.tokens_per_side**2

    def forward(
        self, frames: UInt8[Tensor, "B T R R 3"]
    ) -> tuple[list[Float[Tensor, "B N D"]], Float[Tensor, ""] | None]:
        states = self.held[0].hidden_states(frames)
        return [states[layer][:, -self.tokens :] for layer in self.layers], None


class TunedTower(FrozenTower):
    """The same from a copy of the model that is trained along, with its next-token loss (nats)."""

    def __init__(
        self, backbone: FrozenBackbone, layers: tuple[int, ...], weights: str | None
    ) -> None:
        super().__init__(backbone, layers)
        if backbone.reads_images or backbone.trunk.config.patch or backbone.untrained:
            raise ValueError(
                f"mode=finetune: {backbone.name} has no next-token loss over codes to go on with; "
                "expected a trained causal model of codes (toto-*), or mode=frozen"
            )
        self.model = load_with_head(backbone.name, weights)[1].to(backbone.device)
        self.model.requires_grad_(True)

    def forward(
        self, frames: UInt8[Tensor, "B T R R 3"]
    ) -> tuple[list[Float[Tensor, "B N D"]], Float[Tensor, ""] | None]:
        backbone = self.held[0]
        codes = backbone.encode(frames)
        with backbone.matmul():
            states = self.model.hidden_states(self.model.sequence(codes))
            logits = self.model.logits(states[-1][:, :-1]).float() if self.training else None
        read = [states[layer][:, -self.tokens :].float() for layer in self.layers]
        if logits is None:
            return read, None
        return read, F.cross_entropy(logits.flatten(0, 1), codes.flatten())


class Anticipator(nn.Module):
    """Tower and detector; of a frozen tower only the detector is saved."""

    def __init__(self, tower: FrozenTower, detector: Detector) -> None:
        super().__init__()
        self.tower, self.detector = tower, detector

    def losses(self, frames: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        states, next_token = self.tower(frames)
        losses = self.detector.losses(states, targets)
        return losses if next_token is None else losses | {"next_token": next_token}


@dataclass(frozen=True)
class Clips(Dataset):
    """Frames of examples; a damaged or missing one comes as the reason."""

    examples: list[Example]
    where: list[Frames]
    num_frames: int
    stride: int
    resolution: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Item:
        try:
            args = (self.num_frames, self.stride, self.resolution)
            return number, read_clip(self.where, self.examples[number], *args)
        except CorruptSourceError as error:
            return number, str(error)


def as_is(items: list[Item]) -> list[Item]:
    return items


def order(count: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Which examples each step sees: whole epochs in random order, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch_size // count)
    rows = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return [batch.tolist() for batch in rows[: steps * batch_size].split(batch_size)]


def loaded(clips: Clips, batches: list[list[int]], workers: int) -> Iterator[list[Item]]:
    yield from DataLoader(clips, batch_sampler=batches, collate_fn=as_is, num_workers=workers)


def target_of(example: Example, nouns: list[int], verbs: list[int], device: torch.device) -> Target:
    """An annotation as the detector learns it: shares of the frame, places in lists of ids."""
    objects = example.objects
    assert objects is not None
    shares = objects.boxes / np.array(example.size * 2)
    return Target(
        torch.tensor(shares, dtype=torch.float32, device=device).clamp(0, 1),
        torch.tensor([nouns.index(noun) for noun in objects.nouns.tolist()], device=device),
        torch.tensor([verbs.index(verb) for verb in objects.verbs.tolist()], device=device),
        torch.tensor(objects.ttcs_s, dtype=torch.float32, device=device),
    )


def flipped(target: Target) -> Target:
    """Of the mirrored frame."""
    left, top, right, bottom = target.boxes.unbind(1)
    return replace(target, boxes=torch.stack([1 - right, top, 1 - left, bottom], dim=1))


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: AdamW, linear warm-up, cosine to zero."""

    steps: int
    batch_size: int
    lr: float
    trunk_lr: float  # of a tuned tower
    weight_decay: float
    warmup: int
    flip: bool
    seed: int
    workers: int
    report_every: int
    checkpoint_s: float

    def lr_share(self, step: int) -> float:
        warm = min(self.warmup, self.steps // 10)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def make_optimizer(model: Anticipator, recipe: Recipe) -> torch.optim.Optimizer:
    groups = [{"params": list(model.detector.parameters()), "peak": recipe.lr}]
    if trunk := list(model.tower.parameters()):
        groups.append({"params": trunk, "peak": recipe.trunk_lr})
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=recipe.weight_decay)


def train(
    model: Anticipator,
    clips: Clips,
    targets: list[Target],
    recipe: Recipe,
    folder: Path,
    settings: dict[str, str],
    *,
    resume: bool,
) -> dict[str, str]:
    """Train, or go on from `folder`/checkpoint.pt; returns uids whose frames failed, and why.

    All randomness of a step comes from (seed, step), so that a resumed run is the same run.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came; the checkpoint is written.
        ValueError: the checkpoint is of other settings, or no frame of a batch can be read.
    """
    interrupt = Interrupt()
    optimizer = make_optimizer(model, recipe)
    checkpoint = Checkpoint(folder / "checkpoint.pt", model, optimizer, settings)
    first = checkpoint.load() if resume else 0
    log = MetricsLog(folder / "metrics.jsonl", first)
    batches = order(len(clips), recipe.batch_size, recipe.steps, recipe.seed)[first:]
    failed: dict[str, str] = {}
    model.train()
    bar = tqdm(total=recipe.steps, initial=first, unit="step", desc="anticipation")
    for step, items in enumerate(loaded(clips, batches, recipe.workers), first):
        failed |= {clips.examples[i].uid: what for i, what in items if isinstance(what, str)}
        read = [(i, what) for i, what in items if not isinstance(what, str)]
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # flips, and torchvision's sampling
        losses = step_losses(model, read, targets, recipe.flip) if read else {}
        if not losses:
            raise ValueError(f"step {step}: none of its frames can be read: {items[0][1]}")
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * recipe.lr_share(step)
        descend(model, optimizer, torch.stack(list(losses.values())).sum(), CLIP_NORM)
        bar.update()
        if step % recipe.report_every == 0 or step == recipe.steps - 1:
            values = {name: loss.item() for name, loss in losses.items()}
            log.write(step=step, loss=sum(values.values()), **values)
            bar.set_postfix(loss=f"{sum(values.values()):.3f}")
        checkpoint.save_when_due(step + 1, recipe.checkpoint_s)
        if interrupt.requested:
            checkpoint.save(step + 1)
            raise SystemExit(f"\nstopped after step {step + 1}; the same command continues there")
    bar.close()
    checkpoint.save(recipe.steps)
    return failed


def step_losses(
    model: Anticipator, read: list[tuple[int, np.ndarray]], targets: list[Target], flip: bool
) -> dict[str, Tensor]:
    """Losses of a batch, half of its frames mirrored."""
    frames = torch.from_numpy(np.stack([what for _, what in read]))
    wanted = [targets[i] for i, _ in read]
    if flip:
        mirrored = torch.rand(len(frames)) < 0.5
        frames[mirrored] = frames[mirrored].flip(3)
        wanted = [flipped(t) if m else t for t, m in zip(wanted, mirrored.tolist(), strict=True)]
    return model.losses(frames, wanted)


@torch.no_grad()
def run(
    model: Anticipator, clips: Clips, batch_size: int, workers: int
) -> Iterator[tuple[Example, Any]]:
    """(example, its Detections, or why there are none), in order."""
    model.eval()
    numbers = torch.arange(len(clips)).split(batch_size)
    batches = [rows.tolist() for rows in numbers]
    with tqdm(total=len(clips), unit="frame", desc="detecting") as bar:
        for items in loaded(clips, batches, workers):
            read = [what for _, what in items if not isinstance(what, str)]
            states = model.tower(torch.from_numpy(np.stack(read)))[0] if read else []
            found = iter(model.detector.detect(states) if read else [])
            for number, what in items:
                yield clips.examples[number], what if isinstance(what, str) else next(found)
            bar.update(len(items))
