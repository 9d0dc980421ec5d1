"""Which sources a task of tokenizing reads, fixed once for all workers on all machines.

    plan.jsonl    first line: the settings that decide what shards hold; then one line per task

The plan is written before any shard and never changes, so a task number means the same to everybody.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pretraining.datasets import LAYOUTS
from pretraining.sources import Kind, Source
from pretraining.video import hashed_share
from toto_robot.backbone.tokenizers import load_tokenizer
from toto_robot.backbone.weights import nearest, replace_atomically, temporary_name

PLAN = "plan.jsonl"
PER_SHARD = {"video": 100, "image": 10_000}  # 100 MB or so of codes each, if videos take a minute


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides which bytes a shard holds."""

    tokenizer: str
    tokenizer_sha256: str
    vocabulary: int
    resolution: int  # px
    tokens_per_side: int
    crops: int
    held_out: float
    layout: str
    kind: Kind
    per_shard: int
    sources: int
    sources_sha256: str
    reader: str = "pyav"
    precision: str = "float32"


@dataclass(frozen=True)
class Plan:
    out: Path
    settings: Settings

    @property
    def sha256(self) -> str:
        return hashlib.sha256(_header(self.settings).encode()).hexdigest()

    @property
    def tasks(self) -> int:
        return -(-self.settings.sources // self.settings.per_shard)

    def numbers(self, task: int) -> range:
        """Which sources of the whole data set the task reads."""
        first = task * self.settings.per_shard
        return range(first, min(first + self.settings.per_shard, self.settings.sources))

    def sources(self, task: int, root: Path) -> list[Source]:
        """Those sources, below `root`, with `held_out` decided."""
        with open(self.out / PLAN, encoding="utf-8") as file:
            return self._parse(next(islice(file, task + 1, None)), root)

    def all_sources(self, root: Path) -> Iterator[Source]:
        with open(self.out / PLAN, encoding="utf-8") as file:
            for line in islice(file, 1, None):
                yield from self._parse(line, root)

    def _parse(self, line: str, root: Path) -> list[Source]:
        return [
            Source(name, root / (path or name), self.settings.kind, size, offset, held_out, label)
            for name, path, size, offset, held_out, label in json.loads(line)
        ]


def _header(settings: Settings) -> str:
    return json.dumps(dataclasses.asdict(settings)) + "\n"


def _task_line(sources: Sequence[Source], root: Path) -> str:
    rows = []
    for s in sources:
        below = s.path.is_relative_to(root)
        path = s.path.relative_to(root).as_posix() if below else s.path.absolute().as_posix()
        rows.append(
            [s.name, "" if path == s.name else path, s.bytes, s.offset, s.held_out, s.label]
        )
    return json.dumps(rows, separators=(",", ":")) + "\n"


def list_sources(root: Path, layout: str) -> tuple[str, list[Source]]:
    """The layout's name and the sources, sorted by name.

    Args:
        layout: a name in `LAYOUTS`, or "auto": the first of videos, images, webdataset that fits.

    Raises:
        ValueError: unknown layout, videos and pictures mixed, or a name that comes twice.
        FileNotFoundError: nothing is there.
    """
    if layout not in {*LAYOUTS, "auto"}:
        raise ValueError(
            f"unknown layout {layout!r}, known: auto, {', '.join(LAYOUTS)}.{nearest(layout, LAYOUTS)}"
        )
    layout, sources = _guess(root) if layout == "auto" else (layout, LAYOUTS[layout](root))
    sources = sorted(sources, key=lambda source: source.name)
    kinds = {source.kind for source in sources if not source.broken_archive}
    if len(kinds) != 1:
        raise ValueError(
            f"{root} as {layout} holds {' and '.join(sorted(kinds)) or 'nothing'}; a folder of shards "
            "has one kind: tokenize them into two (layout=videos, layout=images)"
        )
    for one, other in zip(sources, sources[1:], strict=False):
        if one.name == other.name:
            raise ValueError(f"{layout} gives {one.name!r} twice: {one.path} and {other.path}")
    return layout, sources


def _guess(root: Path) -> tuple[str, list[Source]]:
    for layout in ("videos", "images", "webdataset"):
        try:
            return layout, LAYOUTS[layout](root)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(
        f"neither videos nor pictures nor .tar archives of them below {root.absolute()}; "
        "film the simulator first (python -m toto_robot.film), or name the data set's layout="
    )


def decide_held_out(sources: Sequence[Source], fraction: float) -> list[Source]:
    """Every source with `held_out` True or False: the data set's word, else a hash of the name."""
    if len(sources) < 2:
        raise ValueError(f"{len(sources)} source(s) cannot be split; at least 2 are needed")
    if len({source.held_out for source in sources if source.held_out is not None}) == 1:
        print(
            "the data set's own split has one side only: some are held out by a hash of their name"
        )
        sources = [replace(source, held_out=None) for source in sources]
    undecided = [source.name for source in sources if source.held_out is None]
    chosen = hashed_share(undecided, fraction) if undecided else set()
    if len(chosen) == len(sources):
        raise ValueError(f"held_out={fraction} leaves nothing to train on")
    return [
        replace(s, held_out=s.name in chosen if s.held_out is None else s.held_out) for s in sources
    ]


def make_plan(
    out: Path,
    data: Path,
    tokenizer: Path,
    *,
    layout: str = "auto",
    held_out: float = 0.05,
    resolution: int | None = None,
    crops: int = 1,
    per_shard: int = 0,
    reader: str = "pyav",
    precision: str = "float32",
    trust: bool = False,
) -> Plan:
    """Write the plan and the tokenizer into `out`, or find them there from an earlier start.

    Args:
        resolution: in px; None: what the tokenizer was trained with.
        per_shard: sources per task; 0: by their kind.
        reader: of frames, a name in `readers.READERS`.
        precision: of the encoder, float32 or float16.
        trust: do not list the data again when there is a plan.

    Raises:
        ValueError: the folder's plan has other sources or settings, or a setting is impossible.
    """
    _, about = load_tokenizer(tokenizer)
    resolution = resolution or about["resolution"]
    if resolution % about["stride"]:
        raise ValueError(
            f"resolution={resolution} is no multiple of a token's {about['stride']} px"
        )
    if precision != "float32" and about["kind"] != "dvae":
        raise ValueError(f"precision={precision} is known to work with a dVAE, not {about['kind']}")
    if crops < 1:
        raise ValueError(f"crops={crops}, at least 1 is needed")
    fixed: dict[str, Any] = {
        "tokenizer": about["kind"],
        "tokenizer_sha256": about["sha256"],
        "vocabulary": about["vocabulary"],
        "resolution": resolution,
        "tokens_per_side": resolution // about["stride"],
        "crops": crops,
        "held_out": held_out,
        "reader": reader,
        "precision": precision,
    }
    if trust and (out / PLAN).is_file():
        plan = read_plan(out)
        _refuse_change(plan, dataclasses.asdict(plan.settings) | fixed)
        return plan
    layout, sources = list_sources(data, layout)
    sources = decide_held_out(sources, held_out)
    kind: Kind = next(source.kind for source in sources if not source.broken_archive)
    size = per_shard or PER_SHARD[kind]
    lines = [_task_line(sources[i : i + size], data) for i in range(0, len(sources), size)]
    settings = Settings(
        **fixed,
        layout=layout,
        kind=kind,
        per_shard=size,
        sources=len(sources),
        sources_sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
    )
    if (out / PLAN).is_file():
        _refuse_change(read_plan(out), dataclasses.asdict(settings))
    else:
        _write(out, tokenizer, _header(settings), lines)
    return Plan(out, settings)


def _refuse_change(plan: Plan, settings: dict[str, object]) -> None:
    before = dataclasses.asdict(plan.settings)
    changed = [f"{k}: {before[k]} then, {v} now" for k, v in settings.items() if before[k] != v]
    if changed:
        raise ValueError(
            f"{plan.out} holds shards of other sources or with other settings "
            f"({'; '.join(changed)}); choose another out= or delete that folder"
        )


def _write(out: Path, tokenizer: Path, header: str, lines: list[str]) -> None:
    """The plan comes last: where it is, the tokenizer is too."""
    out.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".json"):  # the shards' folder is all that training needs
        path = out / f"tokenizer{suffix}"
        temporary = temporary_name(path)
        shutil.copyfile(tokenizer / path.name, temporary)
        replace_atomically(temporary, path)
    temporary = temporary_name(out / PLAN)
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines([header, *lines])
    replace_atomically(temporary, out / PLAN)


def read_plan(out: Path) -> Plan:
    """FileNotFoundError without one, ValueError when its first line is damaged."""
    path = out / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; start with python -m pretraining.tokenize")
    try:
        with open(path, encoding="utf-8") as file:
            return Plan(out, Settings(**json.loads(file.readline())))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder, start again") from error
