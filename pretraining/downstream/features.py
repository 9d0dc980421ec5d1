"""Token features of every layer of a frozen backbone, kept on disk: each frame is encoded once.

A folder holds the features of one list of clips under one key: the tensors of the backbone, what is
done with the frames before it reads them, and name, size and time of every file. Another key is
another folder, so nothing in it can be stale. In it is a memory-mapped file of float16 for each layer,
and beside it a journal with a line for each chunk of rows that is on the disk, with its checksum: who
is killed goes on after the last line, and rows that are not what was written are made again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm import tqdm

from pretraining.downstream.clips import Clip, read_clips
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.causal import VIDEO_START
from toto_robot.backbone.weights import write_json

PREPROCESSING = (
    1  # raise it with every change of what is done to frames before a backbone reads them
)
CHUNK_TOKENS = 16_384  # of one chunk, all its layers are in memory at once
CHUNK_ROWS = 64
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Features:
    """Features of clips, row by row.

    Attributes:
        layers: number of the layer -> float16 [clips, tokens, D], on disk.
        kept: whether a clip could be read; rows of the others are zeros.
        skipped: name of a clip that could not -> why.
        tokens_per_frame: frames of a clip follow each other along the tokens.
        key: digest of all that the features depend on.
    """

    layers: dict[int, np.ndarray]
    kept: Bool[np.ndarray, " clips"]
    skipped: dict[str, str]
    tokens_per_frame: int
    key: str

    def rows(
        self, layer: int, rows: Tensor | np.ndarray | list[int]
    ) -> Float[Tensor, "B tokens D"]:
        """float32 of some clips at one layer."""
        return torch.from_numpy(self.layers[layer][np.asarray(rows)]).float()


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How clips become features.

    Attributes:
        folder: holds the cache, a folder for each key.
        layers: 0 (embeddings) to the backbone's last; None: all.
        grid: tokens of a frame averaged down to grid x grid; None: as they are.
        start: token before a causal model's sequence.
        limit_gb: more than this is refused, before anything is encoded.
        workers: threads that decode.
    """

    folder: Path
    layers: tuple[int, ...] | None = None
    grid: int | None = None
    start: int = VIDEO_START
    limit_gb: float = 50.0
    workers: int = 4


def layers_of(backbone: FrozenBackbone, layers: Sequence[int] | None) -> list[int]:
    """Those asked for, or all that were loaded; ValueError for one that is not there."""
    depth = int(backbone.trunk.config.layers)
    chosen = list(range(depth + 1)) if layers is None else sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] > depth:
        raise ValueError(f"layers {chosen}, {backbone.name} has 0 (embeddings) to {depth}")
    return chosen


def encode(
    backbone: FrozenBackbone,
    frames: UInt8[Tensor, "B T R R 3"],
    layers: Sequence[int],
    grid: int | None = None,
    start: int = VIDEO_START,
) -> dict[int, Float[Tensor, "B tokens D"]]:
    """States of clips after so many blocks, on the backbone's device.

    A causal model reads a clip as one sequence, an image encoder frame by frame.
    """
    states = backbone.hidden_states(frames, start, depth=max(layers))
    return {layer: to_grid(states[layer], frames.shape[1], grid) for layer in layers}


def to_grid(
    state_BND: Float[Tensor, "B N D"], frames: int, grid: int | None
) -> Float[Tensor, "B tokens D"]:
    """Tokens of each frame averaged down to grid x grid; cells overlap where they must."""
    side = round((state_BND.shape[1] // frames) ** 0.5)
    if grid is None or grid == side:
        return state_BND
    squares = state_BND.unflatten(1, (frames, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
    cells = F.adaptive_avg_pool2d(squares, grid).flatten(2).mT
    return cells.unflatten(0, (-1, frames)).flatten(1, 2)


def key_of(
    backbone: FrozenBackbone, clips: Sequence[Clip], options: FeatureOptions
) -> dict[str, Any]:
    """All that features depend on, as what goes into JSON."""
    with backbone.matmul():
        bfloat16 = torch.is_autocast_enabled(backbone.device.type)
    files = hashlib.sha256()
    for clip in clips:
        source, status = clip.source, clip.source.path.stat()
        identity = (source.name, source.bytes, source.offset, status.st_size, status.st_mtime_ns)
        files.update(json.dumps([*identity, asdict(clip.view)]).encode())
    return {
        "backbone": backbone.name,
        "tensors": backbone.digest(),  # of what is in memory, whatever file that came from
        "networks": [repr(backbone.encoder.config), repr(backbone.trunk.config)],
        "precision": [backbone.precision, backbone.device.type, bfloat16],
        "resolution": backbone.resolution,
        "start": None if backbone.reads_images else options.start,
        "grid": options.grid,
        "preprocessing": PREPROCESSING,
        "clips": len(clips),
        "files": files.hexdigest(),
    }


@dataclass
class Store:
    """One folder of the cache.

    Attributes:
        shape: of every layer's file, [clips, tokens, D].
        chunk: rows of a chunk.
        skipped: row -> why, of all chunks that are there.
    """

    folder: Path
    shape: tuple[int, int, int]
    chunk: int
    skipped: dict[int, str] = field(default_factory=dict)

    @property
    def chunks(self) -> range:
        return range(-(-self.shape[0] // self.chunk))

    def rows_of(self, chunk: int) -> slice:
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.shape[0]))

    def open(self, layer: int) -> np.memmap:
        path = self.folder / f"layer_{layer:02d}.f16"
        with open(path, "ab") as file:
            file.truncate(2 * int(np.prod(self.shape)))  # sparse until it is written
        return np.memmap(path, np.float16, "r+", shape=self.shape)

    def journal(self, layer: int) -> Path:
        return self.folder / f"layer_{layer:02d}.jsonl"

    def finished(self, layer: int, data: np.memmap) -> set[int]:
        """Chunks that the journal names and that are what was written.

        Of a line that was cut off, nothing is known; of rows with another checksum, something broke.
        """
        entries: dict[int, dict[str, Any]] = {}
        path = self.journal(layer)
        for line in path.read_text().splitlines() if path.is_file() else []:
            if line.endswith("}"):
                entry = json.loads(line)
                entries[entry["chunk"]] = entry
        torn = [c for c, e in entries.items() if checksum(data[self.rows_of(c)]) != e["crc32"]]
        if torn:
            print(f"{data.filename}: {len(torn)} of {len(entries)} chunks are damaged, made again")
        for chunk in entries.keys() - set(torn):
            self.skipped |= {int(row): why for row, why in entries[chunk]["skipped"].items()}
        return entries.keys() - set(torn)

    def write(
        self, layer: int, data: np.memmap, chunk: int, rows: np.ndarray, skipped: dict[int, str]
    ) -> None:
        """Rows first, then, once they are on the disk, the line that vouches for them."""
        data[self.rows_of(chunk)] = rows
        data.flush()
        line = {"chunk": chunk, "crc32": checksum(rows), "skipped": skipped}
        with open(self.journal(layer), "a") as file:
            if file.tell() and not self.journal(layer).read_bytes().endswith(b"\n"):
                file.write("\n")  # the line before was cut off
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data)


def cached_features(
    backbone: FrozenBackbone, clips: Sequence[Clip], options: FeatureOptions, what: str = "features"
) -> Features:
    """Features of all clips at the chosen layers, made now or found from before.

    All clips have the same number of frames. `what`: said in the progress bar.

    Raises:
        ValueError: there are no clips, or none that can be read; a layer is not there; the features
            would be larger than `limit_gb` or than the disk.
    """
    if not clips or len({clip.view.frames for clip in clips}) != 1:
        raise ValueError(f"{len(clips)} clips of {what}; expected some, all of as many frames")
    layers = layers_of(backbone, options.layers)
    per_frame = (options.grid or backbone.tokens_per_side) ** 2
    tokens = clips[0].view.frames * per_frame
    key = key_of(backbone, clips, options)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = options.folder / f"{backbone.name}-{digest}"
    own_tokens = clips[0].view.frames * backbone.tokens_per_side**2
    chunk = max(1, min(CHUNK_ROWS, CHUNK_TOKENS // own_tokens))
    store = Store(folder, (len(clips), tokens, backbone.num_features), chunk)
    check_size(store, layers, backbone.tokens_per_side, options, what)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second finds it made
        write_json(folder / "key.json", key)
        data = {layer: store.open(layer) for layer in layers}
        fill(store, data, backbone, clips, options, what)
    kept = np.ones(len(clips), bool)
    kept[list(store.skipped)] = False
    skipped = {clips[row].source.name: store.skipped[row] for row in sorted(store.skipped)}
    if not kept.any():
        raise ValueError(
            f"none of the {len(clips)} {what} can be read: {next(iter(skipped.items()))}"
        )
    return Features(dict(data), kept, skipped, per_frame, digest)


def check_size(
    store: Store, layers: Sequence[int], side: int, options: FeatureOptions, what: str
) -> None:
    """Say how large the features are; ValueError, with the grid that fits, if that is too large."""
    rows, tokens, width = store.shape
    size_gb = 2 * rows * tokens * width * len(layers) / 1e9
    existing = next(p for p in (store.folder, *store.folder.absolute().parents) if p.exists())
    there = sum(p.stat().st_blocks * 512 for p in store.folder.glob("*.f16")) / 1e9
    free_gb = shutil.disk_usage(existing).free / 1e9 + there
    print(
        f"{what}: {rows:,} x {len(layers)} layers x {tokens} tokens x {width} = {size_gb:.3g} GB "
        f"in {store.folder} ({free_gb:.0f} GB free)"
    )
    if size_gb > min(options.limit_gb, free_gb):
        now = options.grid or side
        fitting = int(now * (min(options.limit_gb, free_gb) / size_gb) ** 0.5)
        advice = f"grid={fitting} fits; or" if fitting else "Even grid=1 is too large:"
        raise ValueError(
            f"features of {what} take {size_gb:.3g} GB, allowed are cache_gb={options.limit_gb:g} and "
            f"the {free_gb:.0f} GB that are free. {advice} choose fewer layers="
        )


def fill(
    store: Store,
    data: dict[int, np.memmap],
    backbone: FrozenBackbone,
    clips: Sequence[Clip],
    options: FeatureOptions,
    what: str,
) -> None:
    """Encode the chunks that are missing at any layer, each once for all of these layers."""
    finished = {layer: store.finished(layer, rows) for layer, rows in data.items()}
    missing = [c for c in store.chunks if any(c not in done for done in finished.values())]
    pending = [clips[store.rows_of(chunk)] for chunk in missing]
    unit = "picture" if clips[0].view.frames == 1 else "clip"
    with tqdm(total=sum(map(len, pending)), desc=what, unit=unit, disable=not pending) as progress:
        decoded = read_clips(pending, backbone.resolution, options.workers)
        for chunk, found in zip(missing, decoded, strict=True):
            first = store.rows_of(chunk).start
            skipped = {first + i: why for i, why in enumerate(found) if isinstance(why, str)}
            good = [i for i, frames in enumerate(found) if not isinstance(frames, str)]
            wanted = [layer for layer, done in finished.items() if chunk not in done]
            states: dict[int, Tensor] = {}
            if good:
                frames = torch.from_numpy(np.stack([found[i] for i in good]))
                states = encode(backbone, frames, wanted, options.grid, options.start)
            for layer in wanted:
                rows = np.zeros((len(found), *store.shape[1:]), np.float16)
                if good:
                    rows[good] = as_half(states[layer], layer).numpy()
                store.write(layer, data[layer], chunk, rows, skipped)
            for why in skipped.values():
                tqdm.write(f"skipped: {why}")
            store.skipped |= skipped
            progress.update(len(found))


def as_half(state: Tensor, layer: int) -> Tensor:
    """float16 on the CPU; ValueError if a value is none."""
    if not (largest := state.abs().max().item()) <= LARGEST:
        raise ValueError(f"layer {layer} has values up to {largest:g}, float16 ends at {LARGEST:g}")
    return state.half().cpu()
