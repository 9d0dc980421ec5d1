"""HowTo100M: 1.2 million narrated videos of YouTube.

Facts: di.ens.fr/willow/research/howto100m (HowTo100M.zip holds HowTo100M_v1.csv; videos are given out
on request, or fetched from YouTube) and github.com/antoine77340/howto100m, README.md (columns
video_id, category_1, category_2, rank, task_id). Files are named by the video's id; their suffix depends
on what YouTube had.
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

TABLE = "HowTo100M_v1.csv"
COLUMNS = ("video_id", "category_1")
PLACES = (TABLE, f"data/{TABLE}", f"metadata/{TABLE}", f"HowTo100M/{TABLE}")


def howto100m(root: Path) -> list[Source]:
    """`<YouTube id>.mp4` (or .webm, .mkv), in `root` or folders below; there is no official split.

    Labels are positions in the sorted list of `category_1`. Videos that the table does not list are
    left out. Of several files with one id the first is taken.
    """
    table = next((root / place for place in PLACES if (root / place).is_file()), None)
    files: dict[str, Path] = {}
    for path in videos_in(root):
        files.setdefault(path.stem, path)
    if table is None or not files:
        raise unexpected("howto100m", root, f"{TABLE} and videos <YouTube id>.mp4")
    categories = {row["video_id"]: row["category_1"] for row in read_table(table, COLUMNS)}
    classes = numbered(categories.values())
    tell_missing("howto100m", f"of the videos in {TABLE} are missing", categories.keys() - files)
    tell_missing("howto100m", "videos left out as it lists them not", files.keys() - categories)
    return [
        source_of(files[video], root, label=classes[category])
        for video, category in categories.items()
        if video in files
    ]
