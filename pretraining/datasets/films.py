"""Films of our own simulator, as `python -m toto_robot.film` writes them."""

import json
from pathlib import Path

from pretraining.datasets.listing import numbered, source_of, tell_missing, unexpected
from pretraining.sources import Source

CLIPS = "clips.jsonl"


def films(root: Path) -> list[Source]:
    """`<task>/clip_00000.mp4` with `<task>/clips.jsonl`, for one task or all; no split of its own.

    Labels are positions in the sorted list of motions (wander, look, pick, open).
    """
    tables = [p for p in (root / CLIPS, *sorted(root.glob(f"*/{CLIPS}"))) if p.is_file()]
    rows = {
        table.parent / row["file"]: row["motion"]
        for table in tables
        for row in map(json.loads, table.read_text(encoding="utf-8").splitlines())
    }
    found = [path for path in rows if path.is_file()]
    if not found:
        raise unexpected("films", root, f"<task>/{CLIPS} and <task>/clip_00000.mp4, …")
    motions = numbered(rows.values())
    missing = {path.relative_to(root).as_posix() for path in rows.keys() - set(found)}
    tell_missing("films", f"clips of {CLIPS} are missing", missing)
    return [source_of(path, root, label=motions[rows[path]]) for path in found]
