"""What a data set consists of: videos and pictures, in files of their own or inside tar archives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
    kind: Literal["video", "image"]
    bytes: int
    offset: int | None = None
    held_out: bool | None = None
    label: int | None = None
