"""How many held-out pictures of labelled data a classifier on frozen features gets right.

Pictures are frames of the data's videos (or pictures) as their shards or their index hold them, so
that a probe reads what the training read; the class is what the data set says, or the folder's name.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from pretraining.index import INDEX, Index, read_index
from pretraining.probing import Split, fit_classes
from pretraining.shards import Manifest, read_manifest
from pretraining.video import CENTRE, read_source
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START, CausalModel
from toto_robot.backbone.patches import to_patches
from toto_robot.backbone.precision import fast_matmul


@dataclass(frozen=True)
class Labelled:
    """Single pictures and their classes 0, 1, …

    Attributes:
        inputs: their codes; of an index, (video, frame), to be decoded when needed.
    """

    inputs: Integer[Tensor, "N tokens"]
    classes: Int[Tensor, " N"]
    num_classes: int


Prepare = Callable[[Tensor], Tensor]


def manifest_of(data: Path) -> Manifest:
    """Of a folder of shards or of an index."""
    return read_index(data)[0] if (data / INDEX).is_file() else read_manifest(data)


def classes_of(manifest: Manifest) -> list[int]:
    """Class of each of the manifest's videos: what the data set says, or else its parent folder.

    Raises:
        ValueError: there are no class folders, or only one.
    """
    if manifest.labels and all(label is not None for label in manifest.labels):
        found: list[Any] = manifest.labels
    else:
        found = [Path(name).parent.name for name in manifest.videos]
    names = sorted(set(found))
    if len(names) < 2 or "" in names:
        raise ValueError(
            f"classes {names} in videos such as {manifest.videos[:1]}; expected a folder per class, "
            "as pretraining.studies.shapes makes them"
        )
    return [names.index(name) for name in found]


def evenly(length: int, count: int) -> list[int]:
    """`count` frames out of `length`, the middle one for one."""
    return ((np.arange(count) + 0.5) * length // count).astype(int).tolist()


def stored_codes(data: Path, manifest: Manifest, wanted: set[int], count: int) -> dict[int, Any]:
    """Codes [count, tokens] of evenly spaced frames of some videos."""
    codes: dict[int, Any] = {}
    for entry in manifest.shards:
        shape = (entry["frames"], manifest.tokens_per_frame)
        stored = np.memmap(data / f"{entry['name']}.bin", "<u2", "r", shape=shape)
        for video, first, length, _, *crop in np.load(data / f"{entry['name']}.npy").tolist():
            if video in wanted and not any(crop):  # the centre's
                codes[video] = np.array(stored[[first + i for i in evenly(length, count)]])
    return codes


def labelled(data: Path, *, held_out: bool, per_video: int, seed: int) -> Labelled:
    """Evenly spaced pictures of each video; videos in random order, unless held out."""
    manifest = manifest_of(data)
    classes, kept = classes_of(manifest), set(manifest.held_out)
    wanted = {i for i in range(len(manifest.videos)) if (i in kept) == held_out}
    if isinstance(manifest, Index):
        lengths = manifest.lengths
        found = {
            i: np.array([(i, frame) for frame in evenly(lengths[i], per_video)])
            for i in wanted
            if lengths[i] > 0
        }
    else:
        found = stored_codes(data, manifest, wanted, per_video)
    order = np.array(sorted(found))
    if not held_out:
        order = np.random.default_rng(seed).permutation(order)
    return Labelled(
        torch.from_numpy(np.concatenate([found[i] for i in order])),
        torch.tensor([classes[i] for i in order]).repeat_interleave(per_video),
        len(set(classes)),
    )


def decoder_of(index: Index, patch: int) -> Prepare:
    """(video, frame) of an index -> patches."""
    pool = ThreadPoolExecutor(thread_name_prefix="decode")

    def picture(place: list[int]) -> np.ndarray:
        video, frame = place
        frames = read_source(index.source(video), index.resolution, [CENTRE])
        return next(itertools.islice(frames, frame, None))[0]

    def decode(places: Tensor) -> Tensor:
        frames = np.stack(list(pool.map(picture, places.tolist())))
        return to_patches(torch.from_numpy(frames), patch).flatten(1, 2)

    return decode


def features_of(model: CausalModel, data: Path, depth: int, device: torch.device) -> Prepare:
    """Pictures as `labelled` gives them -> states [B, T, D] after `depth` blocks, float32."""
    manifest = manifest_of(data)
    start = IMAGE_START if manifest.kind == "image" else VIDEO_START
    trunk = model.truncate(depth).to(device).eval()
    patch = model.config.patch
    decode = decoder_of(manifest, patch) if isinstance(manifest, Index) else None

    @torch.no_grad()
    def prepare(inputs: Tensor) -> Float[Tensor, "B T D"]:
        visual = inputs if decode is None else decode(inputs)
        with fast_matmul(device.type):
            states = trunk.hidden_states(trunk.sequence(visual.to(device), start))[-1]
        return states[:, 1:].float()

    return prepare


def cached(
    prepare: Prepare, inputs: Tensor, pooling: str, cache_gb: float, device: torch.device
) -> tuple[Tensor, Prepare]:
    """What a probe reads: means or tokens made once, or pictures that are run through each time."""
    mean = pooling == "mean"
    size = 2 * prepare(inputs[:1]).numel() * len(inputs)
    if not mean and size > cache_gb * 1e9:
        return inputs, prepare
    parts = []
    for part in inputs.split(256):
        states = prepare(part)
        parts.append(states.mean(1, keepdim=True).cpu() if mean else states.half().cpu())
    return torch.cat(parts), lambda x: x.to(device).float()


def correct_on_held_out(
    model: CausalModel,
    data: Path,
    pooling: str,
    *,
    layer: int,
    epochs: int,
    batch_size: int,
    per_video: int,
    cache_gb: float,
    seed: int,
    device: torch.device,
) -> Bool[np.ndarray, " M"]:
    """Which held-out pictures, one of each video, a classifier on the frozen states gets right."""
    train = labelled(data, held_out=False, per_video=per_video, seed=seed)
    test = labelled(data, held_out=True, per_video=1, seed=seed)
    prepare = features_of(model, data, layer, device)
    both = torch.cat([train.inputs, test.inputs])
    x, read = cached(prepare, both, pooling, cache_gb, device)
    count = len(train.inputs)
    logits, _ = fit_classes(
        Split(x[:count], train.classes, x[count:], test.classes),
        train.num_classes,
        pooling,
        read,
        model.config.dim,
        epochs=epochs,
        seed=seed,
        batch_size=batch_size,
        device=device,
    )
    return (logits.argmax(1) == test.classes).numpy()
