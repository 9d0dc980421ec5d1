"""Ego4D, versions 1 and 2.

Facts: github.com/facebookresearch/Ego4d, ego4d/cli/README.md (<output>/v2/{full_scale,video_540ss,
clips,annotations}/ and <output>/v2/ego4d.json); github.com/EGO4D/docs, docs/data/annotations-schemas.md
(ego4d.json: videos with video_uid and split_em, split_av, split_fho, which are train, val, test, null, or
multi where a video's clips differ; clips with clip_uid and video_uid; fho_sta_<set>.json: annotations
with video_id). That a video which any benchmark has in val or test is kept out of training is what the
research code of the official repository does too.
"""

import json
from pathlib import Path
from typing import Any

from pretraining.datasets.listing import source_of, tell_missing, unexpected, videos_in
from pretraining.sources import Source

METADATA = "ego4d.json"
# The smallest first: 540 px on the short side are plenty to make 128 or 256 of.
FOLDERS = ("video_540ss", "full_scale", "clips")
EVALUATED = ("val", "test")


def ego4d(root: Path) -> list[Source]:
    """Videos `<uid>.mp4`; what a benchmark validates or tests on is held out.

    `root` is a version's folder or the one above (then the newest version). Videos are taken from
    `video_540ss/`, else `full_scale/`, else `clips/`, which then are sources of their own.
    """
    base = next((p for p in (root, root / "v2", root / "v1") if (p / METADATA).is_file()), None)
    folder = next((base / f for f in FOLDERS if base and any(videos_in(base / f))), None)
    if base is None or folder is None:
        raise unexpected("ego4d", root, f"{METADATA} beside {', '.join(FOLDERS)}, maybe in v2/")
    metadata = json.loads((base / METADATA).read_text(encoding="utf-8"))
    held_out = held_out_videos(metadata, base / "annotations")
    if folder.name == "clips":
        parents = {clip["clip_uid"]: clip["video_uid"] for clip in metadata["clips"]}
    else:
        parents = {video["video_uid"]: video["video_uid"] for video in metadata["videos"]}
    sources = [
        source_of(path, root, held_out=held_out.get(parents.get(path.stem, "")))
        for path in videos_in(folder)
    ]
    print(f"ego4d: {len(sources)} videos in {folder}")
    stems = {Path(source.name).stem for source in sources}
    tell_missing("ego4d", f"of {METADATA}'s videos are missing", parents.keys() - stems)
    tell_missing("ego4d", f"videos are not in {METADATA}", stems - parents.keys())
    return sources


def held_out_videos(metadata: dict[str, Any], annotations: Path) -> dict[str, bool]:
    """video_uid -> whether some benchmark's validation or test part has it, by all that says so."""
    held_out = {
        video["video_uid"]: any(video.get(key) in EVALUATED for key in video if key[:6] == "split_")
        for video in metadata["videos"]
    }
    for part in ("val", "test_unannotated"):  # tells the halves of "multi" apart
        path = annotations / f"fho_sta_{part}.json"
        if path.is_file():
            rows = json.loads(path.read_text(encoding="utf-8"))["annotations"]
            held_out |= {row.get("video_uid") or row["video_id"]: True for row in rows}
    return held_out
