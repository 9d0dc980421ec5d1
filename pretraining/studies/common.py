"""What the studies share."""

from pathlib import Path


def paths_in(text: str) -> list[Path]:
    """Folders of an option like `a,b,c`; FileNotFoundError names one that is not there."""
    paths = [Path(word) for word in text.split(",") if word]
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is no folder; expected folders separated by commas")
    return paths


def names_of(paths: list[Path]) -> list[str]:
    """A short name for each folder: its last parts, as many as tell them apart."""
    depth = 1
    while len({path.absolute().parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path.absolute().parts[-depth:]) for path in paths]
