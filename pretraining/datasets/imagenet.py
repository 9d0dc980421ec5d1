"""ImageNet-1k (ILSVRC 2012) and ImageNet-21k (releases of winter 2021 and fall 2011).

Facts: the development kit's readme.txt (one tar per synset, named by its WordNet id; pictures
`<wnid>_<number>.JPEG`; 50,000 validation pictures `ILSVRC2012_val_<8 digits>.JPEG`, whose synsets are
the lines of `ILSVRC2012_validation_ground_truth.txt`, as ILSVRC2012_ID of `meta.mat`); Kaggle's
"ImageNet Object Localization Challenge" for `ILSVRC/Data/CLS-LOC` and `LOC_val_solution.csv`;
image-net.org/download for `winter21_whole.tar.gz`, whose members are `n########.tar`.

Labels are positions in the sorted list of WordNet ids.
"""

import re
import tarfile
from dataclasses import replace
from pathlib import Path

from pretraining.datasets.listing import (
    numbered,
    pictures_in,
    read_table,
    source_of,
    tell_missing,
    unexpected,
)
from pretraining.sources import PICTURES, Source, tar_members

WNID = re.compile(r"n\d{8}")
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
KAGGLE = "ILSVRC/Data/CLS-LOC"
DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def imagenet1k(root: Path) -> list[Source]:
    """1,281,167 training pictures in 1,000 classes, and 50,000 for validation, which are held out.

    Of each part the first that is there: `train/<wnid>/*.JPEG`, `train/<wnid>.tar`, the untouched
    `ILSVRC2012_img_train.tar`; `val/<wnid>/*.JPEG`, `val/*.JPEG`, `ILSVRC2012_img_val.tar`. Classes of
    a flat `val/` come from `LOC_val_solution.csv` or the unpacked development kit beside it.
    """
    base = root / KAGGLE if (root / KAGGLE).is_dir() else root
    training = by_class(base / "train", root) or tar_of_tars(root / TRAIN_TAR)
    validation = by_class(base / "val", root)
    classes = numbered(filter(None, map(wnid_of, [*training, *validation])))
    labelled = [replace(s, held_out=False, label=classes[wnid_of(s) or ""]) for s in training]
    labelled += [replace(s, held_out=True, label=classes[wnid_of(s) or ""]) for s in validation]
    if not validation:
        labelled += flat_validation(base / "val", root, classes)
    if not labelled:
        raise unexpected(
            "imagenet1k", root, f"train/<wnid>/*.JPEG or {TRAIN_TAR}, and val/ or {VAL_TAR}"
        )
    return labelled


def imagenet21k(root: Path) -> list[Source]:
    """14,197,122 pictures in 21,841 classes (fall 2011) or 13,153,500 in 19,167 (winter 2021).

    `n########.tar`, one for each class, or folders `n########/`, in `root` or in a folder of it
    (`winter21_whole/`). There is no official split. A few of the JPEGs are gzipped or no pictures;
    tokenizing skips them with the reason.
    """
    found = [source for folder in [root, *subfolders(root)] for source in by_class(folder, root)]
    if not found:
        raise unexpected("imagenet21k", root, "archives n########.tar or folders n########/")
    classes = numbered(filter(None, map(wnid_of, found)))
    return [replace(source, label=classes[wnid_of(source) or ""]) for source in found]


def subfolders(root: Path) -> list[Path]:
    return [p for p in root.iterdir() if p.is_dir() and not WNID.fullmatch(p.name)]


def wnid_of(source: Source) -> str | None:
    """The class in a name such as train/n01440764/n01440764_10026.JPEG; None: not in the folders."""
    for part in source.name.split("/"):
        if WNID.fullmatch(part.removesuffix(".tar")):
            return part.removesuffix(".tar")
    return None


def by_class(folder: Path, root: Path) -> list[Source]:
    """Pictures in `<wnid>/` and in `<wnid>.tar`; empty if `folder` has neither."""
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    sources = []
    for child in children:
        if WNID.fullmatch(child.name):
            sources += [source_of(path, root) for path in pictures_in(child)]
        elif WNID.fullmatch(child.stem) and child.suffix == ".tar":
            sources += tar_members(child, child.relative_to(root).as_posix())
    return sources


def tar_of_tars(path: Path) -> list[Source]:
    """Pictures in the archives within an archive, found without unpacking either; empty without one."""
    if not path.is_file():
        return []
    sources = []
    with tarfile.open(path, "r:") as outer:
        for archive in outer:
            inner = outer.extractfile(archive) if archive.name.endswith(".tar") else None
            if inner is None:
                continue
            with tarfile.open(fileobj=inner, mode="r:") as members:
                for member in members:
                    if Path(member.name).suffix.lower() not in PICTURES:
                        continue
                    name = f"{path.name}/{archive.name.removesuffix('.tar')}/{member.name}"
                    offset = archive.offset_data + member.offset_data
                    sources.append(Source(name, path, "image", member.size, offset))
    return sources


def flat_validation(folder: Path, root: Path, classes: dict[str, int]) -> list[Source]:
    """Validation pictures that are not in folders of their class, which is then looked up."""
    sources = [source_of(path, root) for path in pictures_in(folder)]
    if not sources and (root / VAL_TAR).is_file():
        sources = tar_members(root / VAL_TAR, VAL_TAR)
    if not sources:
        return []
    truth = from_solution(root) or from_devkit(root)
    sources = [replace(source, held_out=True) for source in sources]
    if truth is None:
        print("imagenet1k: validation pictures without labels, as no ground truth is there")
        return sources
    classes = classes or numbered(truth.values())
    stems = {Path(source.name).stem for source in sources}
    tell_missing("imagenet1k", "validation pictures are missing", truth.keys() - stems)
    return [replace(s, label=classes.get(truth.get(Path(s.name).stem, ""))) for s in sources]


def from_solution(root: Path) -> dict[str, str] | None:
    """Picture -> WordNet id from Kaggle's file; its second column is "<wnid> x y x y <wnid> …"."""
    path = root / "LOC_val_solution.csv"
    if not path.is_file():
        return None
    rows = read_table(path, ("ImageId", "PredictionString"))
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def from_devkit(root: Path) -> dict[str, str] | None:
    """Picture -> WordNet id from the development kit, in `root` or in ILSVRC2012_devkit_t12/data/.

    Raises:
        ImportError: meta.mat is there, and scipy to read it is not.
    """
    truth = next((p for p in (root / DEVKIT / TRUTH, root / TRUTH) if p.is_file()), None)
    if truth is None or not truth.with_name("meta.mat").is_file():
        return None
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f"reading {truth.with_name('meta.mat')} needs scipy: pip install scipy"
        ) from error
    synsets = loadmat(truth.with_name("meta.mat"), squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = [int(line) for line in truth.read_text().split()]
    return {f"ILSVRC2012_val_{i:08d}": wnids[number] for i, number in enumerate(numbers, 1)}
