"""The task that every launcher runs, and the step that closes a data set.

Task i turns its sources into shard_0000i.bin and .npy and, once these have their names, writes
shard_0000i.json, the record that says so. It may be killed at any moment, run twice, or run at the
same time on two machines: a shard counts only with its record, and all writers write the same.
"""

import json
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt16

from pretraining.parallel import choose_device
from pretraining.readers import READERS, FrameReader, PyAVReader
from pretraining.shards import CodedVideo, Manifest, check_shard, write_shard
from pretraining.sources import Source
from pretraining.tokenize_plan import Plan, read_plan
from pretraining.video import CorruptSourceError, crops_of, frames_per_second
from toto_robot.backbone.tokenizers import TokenEncoder, load_tokenizer
from toto_robot.backbone.weights import write_json

Report = Callable[[str, int], None]  # (source that is being read now, frames encoded just now)


def silent(source: str, frames: int) -> None:
    """The report that nobody reads."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where a worker finds things, and how it computes."""

    out: Path
    data: Path
    batch_size: int = 64  # frames
    device: str = "auto"
    threads: int = 0  # 0: torch's choice


@lru_cache(maxsize=1)
def load_encoder(out: Path, sha256: str, device: torch.device) -> TokenEncoder:
    """The encoder of the tokenizer in `out`, once per process."""
    model, about = load_tokenizer(out)
    if about["sha256"] != sha256:
        raise ValueError(f"the tokenizer in {out} is not the one of its plan; delete that folder")
    return model.encoder.to(device)


@torch.inference_mode()
def encode(
    encoder: TokenEncoder, squares: list[np.ndarray], precision: str = "float32"
) -> UInt16[np.ndarray, "B tokens"]:
    """Codes of uint8 [R, R, 3] squares.

    float16 changes 0.2 to 0.3 % of the codes of our dVAEs, bfloat16 would change 2 %.
    """
    device = next(encoder.parameters()).device
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean it
    with torch.autocast(device.type, torch.float16, enabled=precision == "float16"):
        codes = encoder.encode(torch.from_numpy(np.stack(squares)).to(device))
    return codes.flatten(1).cpu().numpy().astype(np.uint16)


class Batches:
    """Collects squares of many sources into full batches and gives the codes back to each."""

    def __init__(self, encoder: TokenEncoder, size: int, precision: str) -> None:
        self.encoder, self.size, self.precision = encoder, size, precision
        self.waiting: list[tuple[tuple[int, int], np.ndarray]] = []
        self.codes: dict[tuple[int, int], list[np.ndarray]] = {}  # (source, crop) -> its batches

    def add(self, source: int, squares: np.ndarray) -> int:
        """Take one frame in all its crops; returns how many squares were encoded on that occasion."""
        self.waiting += [((source, crop), square) for crop, square in enumerate(squares)]
        return self.flush() if len(self.waiting) >= self.size else 0

    def flush(self) -> int:
        batch, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        if not batch:
            return 0
        codes = encode(self.encoder, [square for _, square in batch], self.precision)
        for (owner, _), code in zip(batch, codes, strict=True):
            self.codes.setdefault(owner, []).append(code)
        return len(batch)

    def finish(self) -> int:
        count = 0
        while self.waiting:
            count += self.flush()
        return count


def encode_sources(
    encoder: TokenEncoder,
    sources: list[Source],
    resolution: int,
    *,
    crops: int = 1,
    batch_size: int = 64,
    precision: str = "float32",
    reader: FrameReader | None = None,
    avoid: dict[str, str] | None = None,
    report: Report = silent,
) -> tuple[list[CodedVideo], dict[str, str]]:
    """Codes of all that decodes (numbered as in `sources`), and the reason for all that does not.

    Args:
        reader: None: PyAV.
        avoid: sources not to be touched, with the reason.
    """
    batches, rates = Batches(encoder, batch_size, precision), {}
    reader = reader or PyAVReader()
    skipped = {s.name: avoid[s.name] for s in sources if avoid and s.name in avoid}
    for number, source in enumerate(sources):
        report(source.name, 0)
        if source.name in skipped:
            continue
        try:
            for squares in reader.squares(source, resolution, crops_of(source.name, crops)):
                if encoded := batches.add(number, squares):
                    report(source.name, encoded)
            rates[number] = frames_per_second(source)
        except CorruptSourceError as error:
            skipped[source.name] = str(error)
    report("", batches.finish())
    clips = [
        CodedVideo(number, crop, rates[number], np.stack(codes))
        for (number, crop), codes in sorted(batches.codes.items())
        if number in rates
    ]
    return clips, skipped


def shard_name(task: int) -> str:
    return f"shard_{task:05d}"


def read_record(plan: Plan, task: int) -> dict[str, Any] | None:
    """The record of a finished task; None if it is not finished. Does not read the shard itself."""
    path = plan.out / f"{shard_name(task)}.json"
    try:
        record = json.loads(path.read_text())
        size = path.with_suffix(".bin").stat().st_size
        promised = record["shard"]["frames"] * plan.settings.tokens_per_side**2 * 2
        whole = size == promised and path.with_suffix(".npy").is_file()
        return record if whole and record["plan"] == plan.sha256 else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def unfinished(plan: Plan) -> list[int]:
    return [task for task in range(plan.tasks) if read_record(plan, task) is None]


def run_task(
    job: Job, task: int, report: Report = silent, avoid: dict[str, str] | None = None
) -> dict[str, Any]:
    """Do a task unless it is done; returns its record.

    Args:
        avoid: sources that are skipped unread, with the reason: they crashed the decoder before.

    Raises:
        FileNotFoundError: the data's folder is gone, as when a disk is not mounted on this machine.
    """
    plan = read_plan(job.out)
    if record := read_record(plan, task):
        return record
    if job.threads:
        torch.set_num_threads(job.threads)
    settings, device = plan.settings, choose_device(job.device)
    encoder = load_encoder(job.out, settings.tokenizer_sha256, device)
    reader = READERS[settings.reader](device)
    clips, skipped = encode_sources(
        encoder,
        plan.sources(task, job.data),
        settings.resolution,
        crops=settings.crops,
        batch_size=job.batch_size,
        precision=settings.precision,
        reader=reader,
        avoid=avoid,
        report=report,
    )
    if skipped and not job.data.is_dir():
        raise FileNotFoundError(f"{job.data} is not there on {platform.node()}")
    first = plan.numbers(task).start
    clips = [clip._replace(video=first + clip.video) for clip in clips]
    record = {
        "plan": plan.sha256,
        "skipped": skipped,
        "decoder": reader.version,
        "encoder": f"torch {torch.__version__}, {device.type}, {settings.precision}",
    }
    return write_finished(plan, task, clips, record)


def write_finished(
    plan: Plan, task: int, clips: list[CodedVideo], record: dict[str, Any]
) -> dict[str, Any]:
    """Shard, then record, unless another worker was faster; returns the record that counts."""
    if faster := read_record(plan, task):
        return faster
    try:
        record = {**record, "shard": write_shard(plan.out, shard_name(task), clips)}
        write_json(plan.out / f"{shard_name(task)}.json", record)
    except FileNotFoundError:  # `finish` has swept our temporary file away
        if faster := read_record(plan, task):
            return faster
        raise
    return record


def check_shards(plan: Plan, records: list[dict[str, Any]], threads: int = 8) -> None:
    """Compare every shard with its record's hashes; forget the records of those that differ.

    Raises:
        ValueError: some differ; the next start makes them again.
    """

    def complaint(record: dict[str, Any]) -> str:
        try:
            check_shard(plan.out, record["shard"], plan.settings.tokens_per_side**2)
        except ValueError as error:
            (plan.out / f"{record['shard']['name']}.json").unlink(missing_ok=True)
            return str(error)
        return ""

    with ThreadPoolExecutor(threads) as pool:
        complaints = [text for text in pool.map(complaint, records) if text]
    if complaints:
        raise ValueError(
            f"{len(complaints)} shards are damaged ({complaints[0]}); the same command as before "
            "makes them again"
        )


def finish(plan: Plan, data: Path) -> Manifest:
    """Check that every task is done and its shard sound, and write the manifest. Idempotent.

    Shards without frames, of which no source could be decoded, stay out of it.

    Raises:
        ValueError: a task is unfinished or a shard damaged.
        CorruptSourceError: nothing at all could be decoded.
    """
    records = [read_record(plan, task) for task in range(plan.tasks)]
    missing = [task for task, record in enumerate(records) if record is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {plan.tasks} tasks are not finished ({ranges(missing)}); the same "
            "command as before goes on with them"
        )
    done = [record for record in records if record is not None]
    check_shards(plan, done)
    shards = [record["shard"] for record in done if record["shard"]["frames"]]
    skipped = {name: reason for record in done for name, reason in record["skipped"].items()}
    if not shards:
        raise CorruptSourceError(
            f"none of the {len(skipped)} sources could be decoded, for example: "
            f"{next(iter(skipped.values()))}"
        )
    manifest = make_manifest(plan, data, done)
    manifest.shards, manifest.skipped = shards, skipped
    manifest.frames = sum(entry["frames"] for entry in shards)
    manifest.tokens = manifest.frames * manifest.tokens_per_frame
    manifest.save(plan.out)
    for leftover in plan.out.glob("shard_*.tmp"):  # of workers that were killed
        leftover.unlink(missing_ok=True)
    return manifest


def make_manifest(plan: Plan, data: Path, records: list[dict[str, Any]]) -> Manifest:
    """The manifest's entries about sources and settings."""
    settings = plan.settings
    sources = list(plan.all_sources(data))
    labels = [source.label for source in sources]
    return Manifest(
        tokenizer=settings.tokenizer,
        tokenizer_sha256=settings.tokenizer_sha256,
        vocabulary=settings.vocabulary,
        resolution=settings.resolution,
        tokens_per_side=settings.tokens_per_side,
        kind=settings.kind,
        layout=settings.layout,
        crops=settings.crops,
        decoder="; ".join(sorted({record["decoder"] for record in records})),
        encoder="; ".join(sorted({record["encoder"] for record in records})),
        videos=[source.name for source in sources],
        labels=labels if any(label is not None for label in labels) else [],
        held_out=[i for i, source in enumerate(sources) if source.held_out],
    )


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5", as SLURM writes it."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
