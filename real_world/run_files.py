"""The folder of a run of `run_bc`, read back; also of one that a fault ended, was killed, or goes on.

options.json      what it was started with
episodes.jsonl    a line for each episode that ended
episodes/         episode_NNNN.hdf5; ….hdf5.part of an episode that runs or was killed
report.json       once the run has ended by itself
verdicts.jsonl    what people said of episodes afterwards; nothing else is ever changed
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped

from policies.demonstrations import END
from real_world.episode_file import KILLED, PART, SMALLEST_BYTES, whole_steps
from real_world.limits import EVENTS
from real_world.measures import NOT_MEASURED, STAGES
from toto_robot.runs import describe_machine, read_metrics, write_json

OPTIONS, EPISODES, REPORT, VERDICTS = (
    "options.json",
    "episodes.jsonl",
    "report.json",
    "verdicts.jsonl",
)
RUNNING = "running"
WORDS = {"true": True, "false": False, "none": None}
Columns = dict[str, Shaped[np.ndarray, "T ..."]]


@dataclass
class Episode:
    """One episode. `success` is what was recorded, `by_hand` what a person said afterwards; None: nobody said."""

    number: int
    success: bool | None
    end_reason: str
    fault: bool
    steps: int
    seconds: float
    limit_events: dict[str, int]
    film: str | None = None
    file: str | None = None
    recording: str = ""  # why the file is not complete
    by_hand: bool | None = None
    columns: Columns = field(default_factory=dict)  # of its steps, without pictures

    @property
    def missed(self) -> int:
        return int(self.columns["missed"].sum()) if "missed" in self.columns else 0


@dataclass
class RunFolder:
    """What a run left. `report` and `options` are empty where it did not come to write them."""

    folder: Path
    episodes: list[Episode]
    report: dict[str, Any]
    options: dict[str, Any]
    running: bool

    def period_s(self, kind: str) -> float | None:
        """Of `policy_hz` or `command_hz`."""
        return 1 / self.options[kind] if self.options else None

    def latencies_ms(self) -> dict[str, Shaped[np.ndarray, " N"]]:
        """Stage -> of every recorded step in which it was measured."""
        rows = [e.columns["latency_ms"] for e in self.episodes if "latency_ms" in e.columns]
        if not rows:
            return {}
        table = np.concatenate(rows)
        stages = {name: table[:, i] for i, name in enumerate(STAGES)}
        return {name: ms[ms != NOT_MEASURED] for name, ms in stages.items()}


def write_options(out: Path, config: Any, policy_hz: float, command_hz: float) -> None:
    """`config` is a dataclass; called before the first episode."""
    options = {key: _plain(value) for key, value in asdict(config).items()}
    rates = {"policy_hz": policy_hz, "command_hz": command_hz}
    write_json(out / OPTIONS, {**rates, "options": options, "machine": describe_machine()})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def load_run(folder: Path) -> RunFolder:
    """Raises ValueError for a folder without episodes."""
    rows = read_metrics(folder / EPISODES) if (folder / EPISODES).exists() else []
    files = sorted(p.relative_to(folder).as_posix() for p in folder.glob("episodes/*.hdf5*"))
    files = [f for f in files if f.endswith((".hdf5", ".hdf5" + PART))]
    if not rows and not files:
        raise ValueError(f"run={folder} holds no episodes: give the out= of a run_bc")
    running = _is_running(folder / "episodes/.lock")
    listed = {row["file"] for row in rows}
    episodes: list[tuple[str, Episode]] = []
    for row in rows:  # one without a file stays behind the one before it
        key = row["file"] or (episodes[-1][0] if episodes else "")
        episodes.append((key, _listed(folder, row)))
    for file in set(files) - listed:
        if (found := _unlisted(folder, file, running)) is not None:
            episodes.append((file, found))
    ordered = [episode for _, episode in sorted(episodes, key=lambda pair: pair[0])]
    for number, episode in enumerate(ordered):
        episode.number = number
    run = RunFolder(folder, ordered, _json(folder / REPORT), _json(folder / OPTIONS), running)
    _add_verdicts(run)
    return run


def _listed(folder: Path, row: Mapping[str, Any]) -> Episode:
    path = folder / row["file"] if row["file"] else None
    columns = read_steps(path)[0] if path and path.exists() else {}
    lost = "" if path is None or path.exists() else f"{row['file']} is not there"
    return Episode(**{**row, "recording": row["recording"] or lost}, columns=columns)


def _unlisted(folder: Path, file: str, running: bool) -> Episode | None:
    """An episode that the run did not come to list. None without a whole step."""
    columns, facts = read_steps(folder / file)
    if not columns:
        return None
    part, reason = file.endswith(PART), str(facts.get("end_reason", KILLED))
    if part and running:
        reason = RUNNING
    success = None if reason in (KILLED, RUNNING) else bool(facts["success"])
    sent_s = columns.get("t_sent_s", np.zeros(1))
    counts = columns.get("limit_events", np.zeros((1, len(EVENTS)), int)).sum(0)
    return Episode(
        number=-1,
        success=success,
        end_reason=reason,
        fault=False,
        steps=len(columns["actions"]),
        seconds=float(sent_s[-1] - sent_s[0]),
        limit_events={name: int(n) for name, n in zip(EVENTS, counts, strict=True) if n},
        film=None,
        file=file,
        recording="the file is not complete yet" if part else str(facts.get("recording", "")),
        columns=columns,
    )


def read_steps(path: Path) -> tuple[Columns, dict[str, Any]]:
    """An episode's columns without its pictures, and what it says of itself; a part's whole steps.

    Both empty for a file that was killed before its first step. Nothing is changed or repaired.
    """
    part = path.name.endswith(PART)
    if path.stat().st_size < SMALLEST_BYTES:
        return {}, {}
    try:
        file = h5py.File(path, "r", **({"libver": "latest", "swmr": True} if part else {}))
    except OSError:
        return {}, {}
    with file:
        group: Any = file.get("data/demo_0", {})
        columns = {key: column for key, column in group.items() if hasattr(column, "shape")}
        if "actions" not in columns:
            return {}, {}
        steps = whole_steps(list(columns.values()))
        facts = {**group.attrs, **json.loads(group.attrs.get(END, b"{}"))}
        return {key: column[:steps] for key, column in columns.items()} if steps else {}, facts


def _is_running(lock: Path) -> bool:
    """Whether a recorder holds its folder."""
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def parse_verdicts(words: Sequence[str]) -> dict[int, bool | None]:
    """`["0:true", "3:false", "4:none"]`; none takes a verdict back. Raises ValueError."""
    verdicts = {}
    for word in words:
        number, _, said = word.partition(":")
        if not number.isdigit() or said.lower() not in WORDS:
            raise ValueError(
                f"success={word!r}: expected <episode>:true, :false or :none, as in success=0:true,3:false"
            )
        verdicts[int(number)] = WORDS[said.lower()]
    return verdicts


def add_verdicts(run: RunFolder, verdicts: Mapping[int, bool | None]) -> None:
    """Write down what a person says of episodes, beside what was recorded. ValueError: no such one."""
    unknown = [n for n in verdicts if n >= len(run.episodes)]
    if unknown:
        raise ValueError(
            f"no episode {unknown[0]}: {run.folder} has episodes 0 to {len(run.episodes) - 1}"
        )
    with (run.folder / VERDICTS).open("a") as file:
        for number, success in verdicts.items():
            name = run.episodes[number].file
            said = {"episode": number, "file": _stem(name), "success": success}
            file.write(json.dumps({**said, "when": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}) + "\n")
    _add_verdicts(run)


def _add_verdicts(run: RunFolder) -> None:
    """The last word on each episode counts; numbers may change when a killed run goes on, files not."""
    path = run.folder / VERDICTS
    said = {
        row["file"] or row["episode"]: row["success"]
        for row in (read_metrics(path) if path.exists() else [])
    }
    for episode in run.episodes:
        episode.by_hand = said.get(_stem(episode.file) or episode.number)


def _stem(file: str | None) -> str | None:
    """A repaired part keeps its verdict."""
    return file.removesuffix(PART) if file else None
