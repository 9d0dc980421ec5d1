"""Samples decoded and tokenized while training, from what `pretraining.index` has listed.

They are numbered like those of shards made from the same sources, so that both give the same run;
sample number -> clip -> codes is a pure function here too, whatever the number of ranks or threads.
Pixels are at hand, so that crops may differ from epoch to epoch and models may read patches.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pretraining.index import Index, read_index
from pretraining.samples import Batch, Samples
from pretraining.sampling import draw, mix
from pretraining.shards import Manifest
from pretraining.sources import Source
from pretraining.video import CENTRE, CorruptSourceError, Crop, address, read_picture, to_square
from toto_robot.backbone.causal import IMAGE_START, VIDEO_START
from toto_robot.backbone.tokenizers import TokenEncoder, load_tokenizer

Augment = Literal["none", "crop", "crop-mirror"]
AUGMENT_KEY = 0x43524F50  # keeps crops independent of the order of samples
AHEAD = 2  # requests under way before they are needed


def crops_of(seed: int, numbers: Int[np.ndarray, " B"], augment: Augment) -> list[Crop]:
    """The crop of each sample number: the centre, or chosen by a hash of (seed, number)."""
    if augment == "none":
        return [CENTRE] * len(numbers)
    key = int(mix(np.array([seed], np.uint64), AUGMENT_KEY)[0])
    mirror = augment == "crop-mirror"
    return [
        Crop((bits >> 40) / 2**24, (bits >> 16 & 0xFFFFFF) / 2**24, mirror and bits & 1 == 1)
        for bits in map(int, mix(numbers, key))
    ]


def frames_from(source: Source, number: int, pts: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) from a keyframe on; none when the seek ends up behind it."""
    with av.open(address(source)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # clips are decoded side by side already
        frames = container.decode(stream)
        if number > 0:
            container.seek(pts, stream=stream)
            # Frames of the group before, or such as refer to it and cannot be decoded rightly.
            frames = dropwhile(lambda frame: frame.pts is None or frame.pts < pts, frames)
        for n, frame in enumerate(frames, number):
            if n == number > 0 and frame.pts != pts:
                return
            yield n, frame


def read_clip(
    source: Source,
    wanted: Sequence[int],
    keyframes: Int[np.ndarray, "K 2"],
    resolution: int,
    crop: Crop = CENTRE,
) -> UInt8[np.ndarray, "T R R 3"]:
    """A picture, or some frames of a video, decoded from the last keyframe before them.

    Args:
        wanted: numbers of the frames, ascending.
        keyframes: (frame, presentation time) as the index has them, ascending.

    Raises:
        CorruptSourceError: they are not there, though the index promises them.
    """
    if source.kind == "image":
        return to_square(read_picture(source), resolution, crop)[None]
    before = keyframes[keyframes[:, 0] <= wanted[0]][-1:]
    problem: Exception | None = None
    for number, pts in [*map(tuple, before), (0, 0)]:  # from the start where seeking does not work
        pixels = []
        try:
            for n, frame in frames_from(source, int(number), int(pts)):
                if n in wanted:
                    pixels.append(to_square(frame, resolution, crop))
                if len(pixels) == len(wanted):
                    return np.stack(pixels)
        except av.error.FFmpegError as error:
            problem = error
    raise CorruptSourceError(
        f"{source.name} does not give frames {wanted[0]} to {wanted[-1]}, which were there when it was "
        f"indexed ({problem or 'it ends before'}); index again, or restore the file"
    )


class PixelSamples:
    """Clips, or sequences of T pictures, of the training or the held-out part of an index.

    Args:
        index, keyframes: as `read_index` gives them.
        encoder: of its tokenizer, on the device of the training; None: pixels without codes.
        threads: clips decoded at a time; 0: one per core.
        augment: of drawn samples; `at` always gives the centre.

    Raises:
        ValueError: no video is long enough, or there are too few pictures.
    """

    def __init__(
        self,
        index: Index,
        keyframes: Int[np.ndarray, "K 3"],
        encoder: TokenEncoder | None,
        *,
        frames: int,
        stride: int,
        held_out: bool = False,
        augment: Augment = "none",
        threads: int = 0,
    ) -> None:
        self.index = index
        self.manifest: Manifest = index
        self.manifest_sha256 = index.digest()
        self.encoder = encoder
        self.augment: Augment = augment
        self.pictures = index.kind == "image"
        self.per_sample = frames if self.pictures else 1  # clips; a picture is a clip of one frame
        self.offsets = np.arange(1 if self.pictures else frames) * stride
        span = int(self.offsets[-1]) + 1
        lengths = np.array(index.lengths)
        used = np.isin(np.arange(len(lengths)), index.held_out) == held_out
        self.videos = np.flatnonzero(used & (lengths >= span))
        self.ends = np.cumsum(lengths[self.videos] - span + 1)  # clips up to and with each video
        if len(self) == 0:
            part = "held-out" if held_out else "training"
            wanted = f"{frames} pictures" if self.pictures else f"video of {span} frames"
            raise ValueError(
                f"the {part} part of {index.root} has no {wanted}, which frames={frames} stride={stride} "
                "spans; lower them, or index more"
            )
        bounds = np.searchsorted(keyframes[:, 0], np.arange(len(lengths) + 1))
        self.keyframes = [keyframes[a:b, 1:] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        self.pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "decode")

    def __len__(self) -> int:
        return int(self.ends[-1]) // self.per_sample if len(self.ends) else 0

    def at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        clips = self._places(indices)
        if self.pictures:  # not 16 neighbours of one class
            clips = draw(0, clips, int(self.ends[-1]))
        return self._read(clips, [CENTRE] * len(clips))

    def draw(self, seed: int, numbers: Int[np.ndarray, " B"]) -> Batch:
        places = self._places(numbers)
        clips = draw(seed, places, int(self.ends[-1]))
        return self._read(clips, crops_of(seed, places, self.augment))

    def _places(self, numbers: Int[np.ndarray, " B"]) -> Int[np.ndarray, " clips"]:
        """Numbers of a sample's clips: one of a video, T pictures."""
        numbers = np.asarray(numbers, np.int64)
        return (numbers[:, None] * self.per_sample + np.arange(self.per_sample)).ravel()

    def _read(self, clips: Int[np.ndarray, " clips"], crops: list[Crop]) -> Batch:
        decoded = np.stack(list(self.pool.map(self._clip, clips, crops)))
        frames = torch.from_numpy(decoded.reshape(-1, *self._shape, 3))
        start = IMAGE_START if self.pictures else VIDEO_START
        if self.encoder is None:
            return Batch(torch.empty(*frames.shape[:2], 0, dtype=torch.int64), start, frames)
        frames = frames.to(next(self.encoder.parameters()).device)
        return Batch(encode(self.encoder, frames), start, frames)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """T R R."""
        side = self.index.resolution
        return self.per_sample * len(self.offsets), side, side

    def _clip(self, number: int, crop: Crop) -> UInt8[np.ndarray, "T R R 3"]:
        place = int(np.searchsorted(self.ends, number, side="right"))
        video = int(self.videos[place])
        first = int(number - (self.ends[place - 1] if place else 0))
        wanted = (first + self.offsets).tolist()
        source = self.index.source(video)
        return read_clip(source, wanted, self.keyframes[video], self.index.resolution, crop)


@torch.no_grad()
def encode(encoder: TokenEncoder, frames: UInt8[Tensor, "B T R R 3"]) -> Int[Tensor, "B T N"]:
    """Codes, one sample at a time: alike whatever micro-batch or rank a sample is in.

    In float32, also inside autocast: rounding would turn one code in sixty into another.
    """
    with torch.autocast(frames.device.type, enabled=False):
        return torch.stack([encoder.encode(clip).flatten(1) for clip in frames])


def open_pixels(
    folder: Path,
    *,
    frames: int,
    stride: int,
    augment: Augment,
    device: torch.device,
    threads: int,
    codes: bool = True,
) -> tuple[PixelSamples, PixelSamples]:
    """Training and held-out samples of an index; without `codes` no tokenizer is run.

    Raises:
        ValueError: codes are wanted and the index names no tokenizer; or as `read_index`.
    """
    index, keyframes = read_index(folder)
    encoder = load_encoder(folder, index, device) if codes else None
    options: dict[str, Any] = {"frames": frames, "stride": stride, "threads": threads}
    training = PixelSamples(index, keyframes, encoder, augment=augment, **options)
    return training, PixelSamples(index, keyframes, encoder, held_out=True, **options)


def load_encoder(folder: Path, index: Index, device: torch.device) -> TokenEncoder:
    """The encoder that the index was made for; ValueError if it was made without, or for another."""
    if not index.vocabulary:
        raise ValueError(
            f"{folder} was made without a tokenizer, so there are no codes; index the sources with "
            "tokenizer=<folder>, or train with objective=patch"
        )
    tokenizer, about = load_tokenizer(folder)
    if about["sha256"] != index.tokenizer_sha256:
        raise ValueError(
            f"the tokenizer in {folder} has SHA-256 {about['sha256'][:12]}…, the index was made for "
            f"{index.tokenizer_sha256[:12]}…; index again"
        )
    torch.backends.cudnn.allow_tf32 = False  # float32 in the tokenizer's convolutions too
    return tokenizer.encoder.to(device).requires_grad_(False)


class Ahead:
    """Samples whose next batches are drawn in background threads, at most `AHEAD` of them.

    Args:
        seed, numbers: what will be drawn, batch after batch.
    """

    def __init__(
        self, samples: Samples, seed: int, numbers: Iterable[Int[np.ndarray, " B"]]
    ) -> None:
        self.samples, self.seed, self.numbers = samples, seed, iter(numbers)
        self.manifest, self.manifest_sha256 = samples.manifest, samples.manifest_sha256
        self.waiting: deque[tuple[Int[np.ndarray, " B"], Future[Batch]]] = deque()
        # A thread's own count of threads is not the one that threads= has set.
        self.pool = ThreadPoolExecutor(
            AHEAD, "ahead", torch.set_num_threads, (torch.get_num_threads(),)
        )

    def __len__(self) -> int:
        return len(self.samples)

    def at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        return self.samples.at(indices)

    def draw(self, seed: int, numbers: Int[np.ndarray, " B"]) -> Batch:
        self._fill()
        expected, future = self.waiting.popleft()
        assert seed == self.seed and np.array_equal(numbers, expected), "drawn out of order"
        self._fill()
        return future.result()

    def _fill(self) -> None:
        while len(self.waiting) < AHEAD and (numbers := next(self.numbers, None)) is not None:
            draw = self.pool.submit(self.samples.draw, self.seed, numbers)
            self.waiting.append((numbers, draw))
