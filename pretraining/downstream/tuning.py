"""Training beside the data, without a cache: what `mode=live`, `hybrid` and `finetune` share.

Clips are decoded and tokenized as they are needed. A checkpoint holds everything; a step's random
numbers depend on seed and step alone, so that a run that was killed ends as it would have.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from pretraining.downstream.clips import Clip, read_clips
from pretraining.downstream.features import key_of
from pretraining.downstream.probes import ProbeConfig
from pretraining.optimizer import lr_at, set_lr
from pretraining.probing import VALIDATION_SHARE
from pretraining.progress import Checkpoint, Interrupt, MetricsLog, settings_of
from pretraining.video import Crop
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START, CausalModel
from toto_robot.backbone.names import load_with_head, random_with_head
from toto_robot.backbone.weights import write_json

FREE = {"out", "label", "device", "threads", "workers", "checkpoint_s", "cache", "cache_gb", "data"}
REPORT_EVERY = 20  # steps


@dataclass(frozen=True, kw_only=True)
class TuneConfig(ProbeConfig):
    """Probes on frozen features, cached or not (mode=live), or (mode=) the whole model trained further."""

    mode: Literal["probe", "live", "hybrid", "finetune"] = "probe"
    lr: float | None = None  # of the model; None: 3e-5 (hybrid), 5e-4 per 256 clips (finetune)
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps
    augment: bool = True  # random squares, mirrored half of the time
    layer_decay: float = 0.65  # finetune: rate of a block over that of the next; this and what
    drop_path: float = 0.1  # follows are MAE's recipe (the paper does not give its own)
    mixup: float = 0.8  # Beta parameters; 0: off
    cutmix: float = 1.0
    smoothing: float = 0.1
    randaugment: int = 0  # finetune: magnitude, MAE's is 9; wants torchvision (extra `detect`)
    checkpoint_s: float = 300.0

    def folder(self, task: str) -> Path:
        """Rows of trained models lie beside those of frozen ones."""
        folder = super().folder(task)
        beside = self.label is None and self.mode != "probe"
        return folder.with_name(f"{folder.name}-{self.mode}") if beside else folder

    def tuning_batch(self, clips: int) -> int:
        return min(self.batch_size or 256, clips)


class Tuned(Protocol):
    """What is trained."""

    def losses(
        self, frames: UInt8[Tensor, "B T R R 3"], classes: Int[Tensor, " B"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Parts of the loss; their sum is descended."""
        ...

    def predict(self, frames: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "K B C"]:
        """Logits of each of its K heads."""
        ...


@dataclass
class LiveClips:
    """Clips that are decoded when they are needed.

    Attributes:
        classes: of every clip.
        skipped: name of a clip that could not be read -> why; kept in `folder`.
    """

    clips: Sequence[Clip]
    classes: Int[Tensor, " N"]
    resolution: int
    workers: int
    folder: Path
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / "skipped.json"
        self.skipped |= json.loads(path.read_text()) if path.is_file() else {}

    def batches(
        self, rows: Iterable[np.ndarray], seed: int | None = None, first: int = 0
    ) -> Iterator[tuple[UInt8[Tensor, "B T R R 3"], Int[Tensor, " B"], np.ndarray]]:
        """Frames, classes and rows of each batch, corrupt clips left out (an empty batch too).

        `seed`: squares at random places, mirrored or not, of batch `first` + i by (seed, first + i).
        """
        for_clips, for_rows = itertools.tee(rows)

        def chunks() -> Iterator[list[Clip]]:
            for number, batch in enumerate(for_clips, first):
                chunk = [self.clips[row] for row in batch]
                if seed is not None:
                    random = np.random.default_rng((seed, number))
                    chunk = [replace(c, view=replace(c.view, crop=any_crop(random))) for c in chunk]
                yield chunk

        decoded = read_clips(chunks(), self.resolution, self.workers)
        for batch, found in zip(for_rows, decoded, strict=True):
            bad = {
                self.clips[row].source.name: why
                for row, why in zip(batch, found, strict=True)
                if isinstance(why, str)
            }
            if bad.keys() - self.skipped.keys():
                self.skipped |= bad
                write_json(self.folder / "skipped.json", self.skipped)
            good = [frames for frames in found if not isinstance(frames, str)]
            kept = batch[[not isinstance(frames, str) for frames in found]]
            frames = np.stack(good) if good else np.zeros((0, 1, 1, 1, 3), np.uint8)
            yield torch.from_numpy(frames), self.classes[torch.from_numpy(kept)], kept


def any_crop(random: np.random.Generator) -> Crop:
    down, right = random.random(2).tolist()
    return Crop(down, right, bool(random.random() < 0.5))


def parts_of(count: int, group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and those that choose, a tenth; the views of a source are on one side."""
    order = np.random.default_rng(seed).permutation(count // group)
    chosen = max(1, round(len(order) * VALIDATION_SHARE))
    rows = order[:, None] * group + np.arange(group)
    return rows[:-chosen].ravel(), rows[-chosen:].ravel()


def batch_rows(
    rows: np.ndarray, size: int, seed: int, first: int, steps: int
) -> Iterator[np.ndarray]:
    """Rows of steps `first` to `steps`: each epoch in another order, without the rest at its end."""
    per_epoch = len(rows) // size
    for epoch in itertools.count(first // per_epoch):
        order = np.random.default_rng((seed, epoch)).permutation(rows)
        for place in range(per_epoch):
            step = epoch * per_epoch + place
            if step >= steps:
                return
            if step >= first:
                yield order[place * size : (place + 1) * size]


def whole_model(config: TuneConfig, backbone: FrozenBackbone) -> CausalModel:
    """The backbone's model with its next-token head, to be trained.

    Raises:
        ValueError: it is no causal model of codes; its file has no head.
    """
    if backbone.reads_images or backbone.trunk.config.patch:
        raise ValueError(
            f"mode={config.mode} trains a causal model of codes; {backbone.name} is none"
        )
    if backbone.untrained:
        return random_with_head(backbone.name)
    return load_with_head(backbone.name, config.weights)[1]


def start_of(config: TuneConfig) -> int:
    return VIDEO_START if config.start == "video" else IMAGE_START


def fit(
    network: Any,
    groups: list[dict[str, Any]],
    data: LiveClips,
    rows: np.ndarray,
    config: TuneConfig,
    backbone: FrozenBackbone,
) -> None:
    """Train in place, from the last checkpoint in `data.folder` if there is one.

    Args:
        network: a module that is `Tuned`.
        groups: of parameters; `lr_scale` is the peak rate of each.

    Raises:
        ValueError: the checkpoint is of other settings or other clips.
        SystemExit: Ctrl-C or SIGTERM came; the same command goes on.
    """
    size = config.tuning_batch(len(rows))
    steps = config.epochs * (len(rows) // size)
    warmup = max(1, round(config.warmup * steps))
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=config.weight_decay)
    settings = settings_of(config, FREE) | {
        name: str(value)
        for name, value in key_of(backbone, data.clips, config.features()).items()
        if name in ("tensors", "files", "preprocessing")
    }
    checkpoint = Checkpoint(data.folder / "tuning.pt", network, optimizer, settings)
    first = checkpoint.load()
    log, interrupt = MetricsLog(data.folder / "metrics.jsonl", first), Interrupt()
    wanted = batch_rows(rows, size, config.seed, first, steps)
    batches = data.batches(wanted, config.seed if config.augment else None, first)
    network.train()
    with tqdm(total=steps, initial=first, desc=config.mode, unit="step") as progress:
        for step, (frames, classes, kept) in enumerate(batches, first):
            if len(kept) > 1:  # batch normalisation wants two
                torch.manual_seed(config.seed * 1_000_003 + step)
                set_lr(optimizer, lr_at(step, 1.0, warmup, steps, 0.0))
                parts = network.losses(frames, classes.to(backbone.device))
                optimizer.zero_grad(set_to_none=True)
                torch.stack(list(parts.values())).sum().backward()
                optimizer.step()
                if step % REPORT_EVERY == 0 or step == steps - 1:
                    values = {name: part.item() for name, part in parts.items()}
                    log.write(step=step, **values)
                    progress.set_postfix({k: f"{v:.3f}" for k, v in values.items()})
            progress.update()
            checkpoint.save_when_due(step + 1, config.checkpoint_s)
            if interrupt.requested and step + 1 < steps:
                checkpoint.save(step + 1)
                raise SystemExit(f"stopped after step {step + 1}; the same command continues there")
    checkpoint.save(steps)
    interrupt.release()


@torch.no_grad()
def predict(
    network: Any, data: LiveClips, rows: np.ndarray, size: int
) -> tuple[Float[Tensor, "K M C"], np.ndarray]:
    """Logits of all heads for the rows that could be read, and these rows."""
    network.eval()
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    found, kept = [], []
    for frames, _, good in tqdm(data.batches(batches), total=len(batches), desc="score"):
        if len(good):
            found.append(network.predict(frames).float().cpu())
            kept.append(good)
    if not found:
        raise ValueError(
            f"none of {len(rows)} clips can be read: {next(iter(data.skipped.items()))}"
        )
    return torch.cat(found, dim=1), np.concatenate(kept)
