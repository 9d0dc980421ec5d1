"""Kinetics-400, -600 and -700 as hosted by the Common Visual Data Foundation.

Facts: github.com/cvdfoundation/kinetics-dataset: README.md and k400_extractor.sh (train/, val/, test/
and replacement/ beside annotations/), arrange_by_classes.py (a replacement has the video's YouTube id;
not every annotated video exists), k600_downloader.sh (train.txt and val.txt instead of .csv), issues 5
and 21 (some archives hold folders of their own), 31 (test.csv of Kinetics-600 has no labels).
"""

from pathlib import Path

from pretraining.datasets.listing import (
    numbered,
    read_table,
    source_of,
    tell_missing,
    unexpected,
    videos_in,
)
from pretraining.sources import Source

SPLITS = ("train", "val", "test")
ID = 11  # characters of a YouTube id
COLUMNS = ("youtube_id", "time_start", "time_end")
REPLACEMENTS = "replacement"


def kinetics(root: Path) -> list[Source]:
    """Clips `<split>/…/<YouTube id>_<start s, 6 digits>_<end s, 6 digits>.mp4`; val and test held out.

    Labels are positions in the sorted list of labels in `annotations/train.csv` (and val, test).
    A clip that is in `replacement/` too is read from there: the original is corrupted.
    """
    tables = {split: annotations(root, split) for split in SPLITS}
    labels = {stem: label for table in tables.values() for stem, label in table.items() if label}
    classes = numbered(labels.values())
    replacements = {path.stem[:ID]: path for path in videos_in(root / REPLACEMENTS)}
    sources, stems = [], set()
    for split in SPLITS:
        for path in videos_in(root / split):
            label = classes[labels[path.stem]] if path.stem in labels else None
            source = source_of(path, root, held_out=split != "train", label=label)
            sources.append(replaced(source, replacements.get(path.stem[:ID])))
            stems.add(path.stem)
    if not sources:
        raise unexpected(
            "kinetics", root, "train/, val/ or test/ with <id>_<start>_<end>.mp4, and annotations/"
        )
    annotated = {stem for table in tables.values() for stem in table}
    tell_missing("kinetics", "annotated clips are missing", annotated - stems)
    tell_missing("kinetics", "clips are in no annotation", stems - annotated if annotated else ())
    return sources


def replaced(source: Source, path: Path | None) -> Source:
    """The same clip, read from another file."""
    if path is None:
        return source
    size = path.stat().st_size
    return Source(source.name, path, source.kind, size, None, source.held_out, source.label)


def annotations(root: Path, split: str) -> dict[str, str]:
    """File stem -> label ("" where it is withheld) of the annotated clips; empty without a file."""
    folders = (root / "annotations", root)
    paths = [folder / f"{split}{suffix}" for folder in folders for suffix in (".csv", ".txt")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        print(f"kinetics: no annotations/{split}.csv, so nothing can be said about missing clips")
        return {}
    return {stem_of(row): row.get("label") or "" for row in read_table(path, COLUMNS)}


def stem_of(row: dict[str, str]) -> str:
    start, end = (round(float(row[key])) for key in ("time_start", "time_end"))
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"
