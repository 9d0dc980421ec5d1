"""What a data set consists of: videos and pictures, in files of their own or inside tar archives.

A layout is a function from a folder to its sources, sorted by name. The three here know nothing of
a particular data set.
"""

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

VIDEOS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
PICTURES = (".jpeg", ".jpg", ".png", ".webp")
Kind = Literal["video", "image"]


@dataclass(frozen=True, order=True)
class Source:
    """One video or picture of a data set.

    Attributes:
        name: unique in its data set: the path below its root; of a tar's member "<tar>/<member>".
        path: the file to open; for a member, the tar.
        bytes: size of the video or picture.
        offset: of a member's first byte in the tar; None: a file of its own.
        held_out: whether the data set itself keeps it for validation; None: it does not say.
        label: its class, where the data set has classes.
    """

    name: str
    path: Path
    kind: Kind
    bytes: int
    offset: int | None = None
    held_out: bool | None = None
    label: int | None = None

    @property
    def broken_archive(self) -> bool:
        """Whether it stands for the members that a damaged tar no longer gives."""
        return self.offset is None and self.path.suffix == ".tar"


def kind_of(name: str) -> Kind | None:
    """What the suffix of a file's name promises."""
    suffix = Path(name).suffix.lower()
    return "video" if suffix in VIDEOS else "image" if suffix in PICTURES else None


def files_below(root: Path, suffixes: Iterable[str]) -> list[Path]:
    """All files below `root` with one of the suffixes, sorted; FileNotFoundError without any."""
    known = set(suffixes)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in known and p.is_file())
    if not files:
        raise FileNotFoundError(f"no {', '.join(sorted(known))} below {root.absolute()}")
    return files


def _whole_files(root: Path, suffixes: Iterable[str], kind: Kind) -> list[Source]:
    return [
        Source(path.relative_to(root).as_posix(), path, kind, path.stat().st_size)
        for path in files_below(root, suffixes)
    ]


def videos(root: Path) -> list[Source]:
    """Any folder of videos."""
    return _whole_files(root, VIDEOS, "video")


def images(root: Path) -> list[Source]:
    """Any folder of pictures."""
    return _whole_files(root, PICTURES, "image")


def tar_members(path: Path, name: str) -> list[Source]:
    """Videos and pictures in a tar archive, found by their headers without reading their contents.

    Of a damaged archive, the members before the damage, and the archive itself as a source that
    cannot be read, so that it lands on the list of skipped ones.
    """
    found: dict[str, Source] = {}  # a name that comes twice stands for the later member, as for tar
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                kind = kind_of(member.name)
                if member.isreg() and kind:
                    whole = f"{name}/{member.name.removeprefix('./')}"
                    found[whole] = Source(whole, path, kind, member.size, member.offset_data)
    except (tarfile.TarError, OSError):
        found[name] = Source(name, path, "image", path.stat().st_size)
    return [found[key] for key in sorted(found)]


def webdataset(root: Path) -> list[Source]:
    """A folder of uncompressed .tar archives with videos, or else with pictures, as members."""
    members = [
        source
        for path in files_below(root, (".tar",))
        for source in tar_members(path, path.relative_to(root).as_posix())
    ]
    wanted = "video" if any(source.kind == "video" for source in members) else "image"
    kept = [source for source in members if source.kind == wanted or source.broken_archive]
    if len(kept) < len(members):
        print(f"{root}: {len(members) - len(kept)} pictures beside the videos are left out")
    if not any(source.offset is not None for source in kept):
        raise FileNotFoundError(
            f"no video or picture ({', '.join(VIDEOS + PICTURES)}) in the archives below "
            f"{root.absolute()}; compressed ones must be unpacked first"
        )
    return kept


BASIC = {"videos": videos, "images": images, "webdataset": webdataset}
