"""What the layouts have in common: files found, annotations read, differences told."""

import csv
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pretraining.sources import PICTURES, VIDEOS, Source

SHOWN = 3  # names in a message


def files_in(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Files at any depth, sorted; none if there is no such folder.

    Names that begin with a dot are no data: macOS leaves `._clip.mp4` beside `clip.mp4` in archives,
    Kinetics-600's "mountain climber (exercise)" among them (cvdfoundation/kinetics-dataset, issue 5).
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
            yield path


def videos_in(folder: Path) -> Iterator[Path]:
    return files_in(folder, VIDEOS)


def pictures_in(folder: Path) -> Iterator[Path]:
    return files_in(folder, PICTURES)


def source_of(
    path: Path, root: Path, *, held_out: bool | None = None, label: int | None = None
) -> Source:
    """A file of its own, named by its path below `root`."""
    kind = "video" if path.suffix.lower() in VIDEOS else "image"
    name = path.relative_to(root).as_posix()
    return Source(name, path, kind, path.stat().st_size, held_out=held_out, label=label)


def read_table(path: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """Rows of a CSV with a header; ValueError when one of the columns is not there."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if not set(columns) <= set(header):
            raise ValueError(
                f"{path} has the columns {', '.join(header) or 'none'}; expected {', '.join(columns)}"
            )
        return list(reader)


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Classes in alphabetical order, counted from 0."""
    return {name: number for number, name in enumerate(sorted(set(names)))}


def tell_missing(layout: str, what: str, names: Collection[str]) -> None:
    """Data sets are rarely whole, so that is said, and is no error."""
    if names:
        shown = ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        print(f"{layout}: {len(names)} {what}: {shown}")


def unexpected(layout: str, root: Path, expected: str) -> FileNotFoundError:
    """The error for a folder that does not hold the data set."""
    there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    shown = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
    return FileNotFoundError(
        f"layout={layout} expects {expected} in {root.absolute()}; there is "
        f"{shown or 'nothing' if root.is_dir() else 'no such folder'}"
    )
