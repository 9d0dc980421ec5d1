"""DAVIS-2017, semi-supervised: the first mask carried through each video (paper, Table 10 and Fig. 5).

    python -m pretraining.evaluate task=davis backbone=toto-base data=DAVIS resolution=256

Training-free: every frame is encoded alone, and tokens take the labels of the tokens most like them
in the frames before (label_propagation.py). Predicted masks are written as the benchmark's program
reads them, and scored from there (davis_data.py).
"""

import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from pretraining.downstream.common import EvaluateConfig, Metric, Result
from pretraining.downstream.davis_data import (
    ObjectScore,
    Sequence,
    count_objects,
    find_sequences,
    read_frame,
    read_mask,
    score_folder,
    write_mask,
)
from pretraining.downstream.davis_film import write_film
from pretraining.downstream.label_propagation import (
    PRESETS,
    Propagator,
    Rules,
    to_mask,
    token_labels,
)
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START

TASK = "davis"
STARTS = {"video": VIDEO_START, "image": IMAGE_START}
PAPER_PX = 256  # Table 10, "256/8"; 512 is its other row
TOKENS_AT_ONCE = 4096  # of frames in flight; states of all layers are in memory
REPEATS = 2000  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Config(EvaluateConfig):
    """DAVIS-2017 by label propagation. data= is the folder with JPEGImages, Annotations, ImageSets."""

    subset: str = "val"
    sequences: tuple[str, ...] = ()  # (): all of the subset
    resolution: int | None = None  # px; None: 256, of encoders of images their own
    layers: tuple[int, ...] = ()  # (): all, 0 (embeddings) to the last
    start: Literal["video", "image"] = "video"  # token before a frame, of causal models
    preset: Literal["stc", "dino"] = "stc"  # the options below that are None are as in it
    top_k: int | None = None
    context: int | None = None  # frames besides the first
    radius: float | None = None  # tokens; 0: the whole frame
    neighbourhood: str | None = None  # disk or square
    temperature: float | None = None
    first_everywhere: bool | None = None
    fill: bool | None = None
    soft_start: bool | None = None
    normalise: bool | None = None
    films: int = 3  # of the first sequences
    keep: Literal["best", "all"] = "best"  # layers whose masks stay on disk

    def rules(self) -> Rules:
        own = {field.name: getattr(self, field.name) for field in fields(Rules)}
        return replace(
            PRESETS[self.preset], **{name: v for name, v in own.items() if v is not None}
        )


def chosen_layers(config: Config, backbone: FrozenBackbone) -> list[int]:
    depth = backbone.trunk.config.layers
    layers = sorted(set(config.layers or range(depth + 1)))
    if layers[0] < 0 or layers[-1] > depth:
        raise ValueError(
            f"layers={','.join(map(str, config.layers))}: {backbone.name} has 0 (embeddings) to "
            f"{depth}"
        )
    return layers


def layer_folder(masks: Path, layer: int) -> Path:
    return masks / f"layer_{layer:02d}"


def squeeze(frame: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[Tensor, "side side 3"]:
    """The whole frame as a square; the paper's 256 and 224 px are squares, DAVIS's frames are not."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    return pixels[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def frame_states(
    paths: list[Path], backbone: FrozenBackbone, layers: list[int], start: int
) -> list[list[Float[Tensor, "N D"]]]:
    """For each frame, encoded alone, the states of its tokens at each layer."""
    frames = torch.stack([squeeze(read_frame(path), backbone.resolution) for path in paths])
    states = backbone.hidden_states(frames, start, depth=layers[-1])
    return [[states[layer][i].clone() for layer in layers] for i in range(len(paths))]


def propagate(
    sequence: Sequence,
    backbone: FrozenBackbone,
    layers: list[int],
    rules: Rules,
    masks: Path,
    start: int = VIDEO_START,
) -> None:
    """Write the predicted masks of one sequence, for each layer."""
    ids, palette = read_mask(sequence.masks[0])
    objects, side = count_objects(sequence), backbone.tokens_per_side
    given = token_labels(ids, objects, backbone.resolution, side, rules.soft_start)
    folders = [layer_folder(masks, layer) / sequence.name for layer in layers]
    for folder in folders:
        folder.mkdir(parents=True)
        write_mask(folder / sequence.masks[0].name, ids, palette)
    at_once = max(1, TOKENS_AT_ONCE // side**2)
    carriers: list[Propagator] = []
    for begin in range(0, len(sequence.frames), at_once):
        paths = sequence.frames[begin : begin + at_once]
        for number, states in enumerate(frame_states(paths, backbone, layers, start), begin):
            if number == 0:
                carriers = [Propagator(rules, state, given) for state in states]
                continue
            for carrier, state, folder in zip(carriers, states, folders, strict=True):
                labels = carrier.step(state)
                mask = to_mask(labels, backbone.resolution, ids.shape, rules.normalise)
                write_mask(folder / sequence.masks[number].name, mask, palette)


def values_of(score: ObjectScore) -> dict[str, float]:
    """The benchmark's seven measures, in percent."""
    j, f = score.j, score.f
    shares = {
        "J&F_%": score.mean,
        "J_%": j.mean,
        "F_%": f.mean,
        "J_recall_%": j.recall,
        "J_decay_%": j.decay,
        "F_recall_%": f.recall,
        "F_decay_%": f.decay,
    }
    return {name: 100 * share for name, share in shares.items()}


def summarise(scores: list[ObjectScore], seed: int) -> dict[str, Metric]:
    """Means over objects, with percentile-bootstrap intervals over sequences."""
    table = [values_of(score) for score in scores]
    names, values = list(table[0]), np.array([list(row.values()) for row in table])
    groups = [
        values[[score.sequence == name for score in scores]]
        for name in dict.fromkeys(score.sequence for score in scores)
    ]
    low = high = [None] * len(names)
    if len(groups) > 1:
        sums, counts = np.array([g.sum(axis=0) for g in groups]), np.array([len(g) for g in groups])
        draws = np.random.default_rng(seed).integers(len(groups), size=(REPEATS, len(groups)))
        means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1, keepdims=True)
        low, high = np.quantile(means, (0.025, 0.975), axis=0).tolist()
    return {
        name: Metric(float(values[:, i].mean()), low[i], high[i], len(values))
        for i, name in enumerate(names)
    }


def rows_of(scores: list[ObjectScore]) -> dict[str, list[dict[str, object]]]:
    """Tables by object and by sequence (mean over its objects), in percent."""
    objects = [{"sequence": s.sequence, "object": s.number, **values_of(s)} for s in scores]
    sequences: list[dict[str, object]] = []
    for name in dict.fromkeys(score.sequence for score in scores):
        own = [values_of(score) for score in scores if score.sequence == name]
        means = {key: float(np.mean([row[key] for row in own])) for key in own[0]}
        sequences.append({"sequence": name, "objects": len(own), **means})
    return {"objects": objects, "sequences": sequences}


def evaluate(config: Config, backbone: FrozenBackbone) -> Result:
    """Masks, scores of every layer, films.

    Raises:
        FileNotFoundError, ValueError: the data set is not whole; the backbone cannot read frames of
            this size, or has no such layer.
    """
    rules, layers = config.rules(), chosen_layers(config, backbone)
    own = backbone.resolution if backbone.reads_images else PAPER_PX
    backbone = backbone.at_resolution(config.resolution or own)
    sequences = find_sequences(config.data, config.subset, only=config.sequences)
    empty = [sequence.name for sequence in sequences if not count_objects(sequence)]
    if len(empty) == len(sequences):
        raise ValueError(f"no first mask in {config.data} has an object")
    folder = config.folder(TASK)
    shutil.rmtree(folder / "masks", ignore_errors=True)  # of an earlier run of this row
    for sequence in tqdm(sequences, desc="propagating"):
        propagate(sequence, backbone, layers, rules, folder / "masks", STARTS[config.start])
    scores = [score_folder(sequences, layer_folder(folder / "masks", at), True) for at in layers]
    metrics = [summarise(found, config.seed) for found in scores]
    at = max(range(len(layers)), key=lambda i: metrics[i]["J&F_%"].value)
    best = layer_folder(folder / "masks", layers[at])
    if config.keep == "best":
        for layer in set(layers) - {layers[at]}:
            shutil.rmtree(layer_folder(folder / "masks", layer))
    return Result(
        task=TASK,
        metrics=metrics[at],
        layers=metrics,
        best_layer=layers[at],
        files=[
            write_film_of(sequence, best, folder, scores[at])
            for sequence in sequences[: config.films]
        ],
        skipped={name: "no object in its first mask" for name in empty},
        notes=notes_of(layers, len(sequences)),
        extra={
            **rows_of(scores[at]),
            "preset": config.preset,
            "masks": str(best.relative_to(folder)),
            "rules": asdict(rules),
            "resolution_px": backbone.resolution,
            "tokens_per_side": backbone.tokens_per_side,
            "layer_numbers": layers,
        },
    )


def notes_of(layers: list[int], sequences: int) -> list[str]:
    notes = ["frames are squeezed to squares; the paper does not say how it makes them square"]
    if len(layers) > 1:
        notes.append("the layer is the best one on these sequences, as in the paper's Table 10")
    if sequences < 30:
        notes.append(f"{sequences} sequences; the benchmark's val has 30")
    return notes


def write_film_of(sequence: Sequence, masks: Path, folder: Path, scores: list[ObjectScore]) -> str:
    """Path of the film in the row's folder."""
    own = [score.mean for score in scores if score.sequence == sequence.name]
    score = f", J&F {100 * np.mean(own):.1f} %" if own else ""
    name = f"films/{sequence.name}.mp4"
    write_film(folder / name, sequence, masks, f"{sequence.name}: predicted{score}")
    return name
