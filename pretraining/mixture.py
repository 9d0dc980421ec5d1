"""Several data sets in fixed shares: which of them gives the run's sample number k, as a pure function."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pretraining.index import INDEX
from pretraining.samples import Batch, Samples
from pretraining.sampling import permute
from pretraining.shards import MANIFEST, Manifest
from toto_robot.backbone.weights import nearest

MIXTURES = {  # share of the sequences of a batch
    "paper": "imagenet:0.2,kinetics600:0.1,ego4d:0.1,howto100m:0.6",  # section 3.3
}
MUST_AGREE = ("tokenizer_sha256", "vocabulary", "resolution", "tokens_per_side")


def parse_shares(text: str) -> dict[str, Fraction]:
    """`films:0.8,imagenet:0.2`, or a name in `MIXTURES`, as exact shares that sum to 1.

    Raises:
        ValueError: not of this form, a name twice, or a weight that is not above 0.
    """
    shares: dict[str, Fraction] = {}
    for word in MIXTURES.get(text, text).split(","):
        name, colon, weight = word.partition(":")
        try:
            shares[name] = Fraction(weight) if colon and name not in shares else Fraction(0)
        except (ValueError, ZeroDivisionError):
            shares[name] = Fraction(0)
        if shares[name] <= 0:
            raise ValueError(
                f"mixture={text}: {word!r} is not name:weight, with a name that comes once and a "
                f"weight above 0; or one of {', '.join(MIXTURES)}.{nearest(text, MIXTURES)}"
            )
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def to_counts(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """The smallest whole numbers of samples that stand in these proportions."""
    scale = math.lcm(*(share.denominator for share in shares.values()))
    counts = {name: int(share * scale) for name, share in shares.items()}
    divisor = math.gcd(*counts.values())
    return {name: count // divisor for name, count in counts.items()}


class Mixture:
    """Samples of several data sets; each cycle of `cycle` samples holds `counts` of each, exactly.

    A permutation of its own for every cycle says which of its samples come from which data set. Of
    cycle c, data set i gets its own samples number c * counts[i] to (c + 1) * counts[i] - 1, each
    once: so its epochs are whole too, and where the run stands is still one number.

    Raises:
        ValueError: tokenizer, vocabulary or resolution are not the same everywhere.
    """

    def __init__(self, parts: Mapping[str, Samples], counts: Mapping[str, int]) -> None:
        self.parts, self.counts = {name: parts[name] for name in counts}, dict(counts)
        self.cycle = sum(counts.values())
        self.ends = np.cumsum(list(counts.values()))  # of each data set's places in a cycle
        self.manifest = agreed({name: part.manifest for name, part in self.parts.items()})
        identity = [(name, part.manifest_sha256, counts[name]) for name, part in self.parts.items()]
        self.manifest_sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def shares(self) -> dict[str, float]:
        return {name: count / self.cycle for name, count in self.counts.items()}

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())

    def deal(
        self, seed: int, numbers: Int[np.ndarray, " B"]
    ) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """For each of the run's sample numbers the data set (its position) and its own number there."""
        cycle, place = np.divmod(np.asarray(numbers, np.int64), self.cycle)
        place = permute(place, self.cycle, seed, cycle)
        source = np.searchsorted(self.ends, place, side="right")
        counts = np.diff(self.ends, prepend=0)[source]
        return source, cycle * counts + place - (self.ends[source] - counts)

    def at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Numbered data set after data set."""
        ends = np.cumsum([len(part) for part in self.parts.values()])
        source = np.searchsorted(ends, indices, side="right")
        return self._collect(
            source, indices - np.append(0, ends)[source], lambda part, n: part.at(n)
        )

    def draw(self, seed: int, numbers: Int[np.ndarray, " B"]) -> Batch:
        source, own = self.deal(seed, numbers)
        return self._collect(source, own, lambda part, n: part.draw(seed, n))

    def _collect(
        self,
        source: Int[np.ndarray, " B"],
        numbers: Int[np.ndarray, " B"],
        take: Callable[[Samples, Int[np.ndarray, " b"]], Batch],
    ) -> Batch:
        batches, places = [], []
        for i, part in enumerate(self.parts.values()):
            here = np.flatnonzero(source == i)
            if here.size:
                batches.append(take(part, numbers[here]))
                places.append(here)
        return join(batches, np.argsort(np.concatenate(places)))


def join(batches: list[Batch], order: Int[np.ndarray, " B"]) -> Batch:
    """Batches one after another, then in this order; with pixels only if all have them."""
    starts = [torch.as_tensor(b.starts).expand(len(b.codes)) for b in batches]
    frames = [b.frames for b in batches if b.frames is not None]
    return Batch(
        _joined([b.codes for b in batches], order),
        _joined(starts, order),
        _joined(frames, order) if len(frames) == len(batches) else None,
    )


def _joined(tensors: list[Tensor], order: Int[np.ndarray, " B"]) -> Tensor:
    """On the device of the first that is not on the CPU; codes out of shards are uint16, others int64."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), tensors[0].device)
    dtype = tensors[0].dtype if len({t.dtype for t in tensors}) == 1 else torch.int64
    whole = torch.cat([t.to(device, dtype) for t in tensors])
    places = torch.from_numpy(order).to(device)
    if dtype == torch.uint16:  # which torch does not index
        return whole.view(torch.int16)[places].view(torch.uint16)
    return whole[places]


def agreed(manifests: Mapping[str, Manifest]) -> Manifest:
    """The first manifest; ValueError where another one contradicts it."""
    (first_name, first), *others = manifests.items()
    for name, other in others:
        for key in MUST_AGREE:
            ours, theirs = getattr(first, key), getattr(other, key)
            if ours != theirs:
                raise ValueError(
                    f"{first_name} and {name} cannot be mixed: {key} is {ours} in one and {theirs} "
                    "in the other; tokenize both with the same tokenizer at the same resolution"
                )
    return first


def data_folders(data: Path) -> dict[str, Path]:
    """Name -> folder of shards or index: `data` itself, the folders in it, or `a,b,c`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two have the same name.
    """
    folders = [Path(word) for word in str(data).split(",")]
    if len(folders) == 1 and not is_prepared(data):
        folders = [path for path in sorted(data.glob("*")) if is_prepared(path)]
    named = {folder.resolve().name: folder for folder in folders}
    if len(named) < len(folders):
        raise ValueError(f"data={data}: two folders have the same name; rename one")
    if not named or not all(map(is_prepared, folders)):
        raise FileNotFoundError(
            f"data={data}: neither it nor a folder in it has a {MANIFEST}; make shards first: "
            "python -m pretraining.tokenize data=<films> tokenizer=<folder> out=<folder>"
        )
    return named


def is_prepared(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / INDEX).is_file()


def open_mixture(
    data: Path, mixture: str | None, open_part: Callable[[Path], tuple[Samples, Samples]]
) -> tuple[Samples, Samples]:
    """Training and held-out samples of one or several folders.

    Args:
        mixture: which folders in which shares; None: all, in proportion to their tokens.
        open_part: opens one of them.
    """
    folders = data_folders(data)
    shares = None if mixture is None else parse_shares(mixture)
    for name in shares or ():
        if name not in folders:
            raise ValueError(
                f"mixture={mixture}: {data} has no shards {name!r}.{nearest(name, folders)} "
                f"There are: {', '.join(folders)}"
            )
    opened = {name: open_part(folders[name]) for name in shares or folders}
    if len(opened) == 1:
        return next(iter(opened.values()))
    training = {name: part for name, (part, _) in opened.items()}
    held_out = {name: part for name, (_, part) in opened.items()}
    if shares is None:
        shares = {name: Fraction(num_frames(part.manifest)) for name, part in training.items()}
    counts = to_counts(shares)
    return Mixture(training, counts), Mixture(held_out, counts)


def num_frames(manifest: Manifest) -> int:
    return manifest.frames or sum(entry["frames"] for entry in manifest.shards)
