"""What the paper reports (arXiv 2501.05453), to print beside our own rows. Nothing here was measured by us.

Values are the tables' own, in percent. Curves and peaks are read off the authors' figures, to about
half a point. Layers count blocks: 0 is the embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PAPER = "arXiv 2501.05453"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a table.

    Attributes:
        task: as in `task=` of pretraining.evaluate; "real-robot" for the real arm.
        setting: whatever tells rows of one name apart: input, pooling, frames, resolution.
        size: architecture and parameters as the paper gives them, "" where it does not.
    """

    task: str
    table: str
    name: str
    size: str = ""
    setting: str = ""
    metrics: Mapping[str, float]
    note: str = ""

    @property
    def is_toto(self) -> bool:
        return self.name.startswith("Toto")


def _rows(task: str, table: str, metric: str, rows: tuple[tuple, ...]) -> list[Published]:
    """Rows of (name, size, setting, value) and perhaps a note."""
    return [
        Published(
            task=task,
            table=table,
            name=name,
            size=size,
            setting=setting,
            metrics={metric: value},
            note=note[0] if note else "",
        )
        for name, size, setting, value, *note in rows
    ]


LINEAR = "linear probe"
BASE, LARGE, ONE_B = "base 120M", "large 280M", "1b 1.1B"

IMAGENET = [
    *_rows(
        "imagenet",
        "Table 3",
        "top1_%",
        (
            ("Toto VQGAN-VQGAN", LARGE, "16x16 tokens, 16k codes, average pooling", 61.3),
            ("Toto VQGAN-VQGAN", LARGE, "16x16 tokens, 1k codes, average pooling", 61.1),
            ("Toto dVAE-dVAE", LARGE, "32x32 tokens, 8k codes, average pooling", 61.2),
            ("Toto dVAE-dVAE", LARGE, "16x16 tokens, 8k codes, average pooling", 53.2),
            ("Toto patch-patch", LARGE, "16x16 tokens, average pooling", 60.6),
            ("Toto patch-dVAE", LARGE, "16x16 tokens, 8k codes, average pooling", 58.5),
        ),
    ),
    *_rows(
        "imagenet",
        "Table 5",
        "top1_%",
        (
            ("Toto dVAE-dVAE", LARGE, "16x16 tokens, average pooling", 53.2),
            ("Toto dVAE-dVAE", LARGE, "16x16 tokens, attention pooling", 61.1),
        ),
    ),
    *_rows(
        "imagenet",
        "Table 7",
        "top1_%",
        (
            ("SimCLR", "RN50x2 94M", LINEAR, 74.2),
            ("BYOL", "RN50x2 94M", LINEAR, 77.4),
            ("SwAV", "RN50x2 94M", LINEAR, 73.5),
            ("DINO", "ViT-B/8 86M", "", 80.1),
            ("DINOv2", "ViT-g/14 1011M", "", 86.4),
            ("BEiT-L", "ViT-L/14 307M", "", 62.2),
            ("AIM", "ViT-1B/14 1200M", "", 80.6),
            ("MAE", "ViT-H/14 632M", "", 80.9),
            ("iGPT-L", "1386M", LINEAR, 65.2),
            ("iGPT-XL", "6801M", LINEAR, 72.0),
            ("Toto-base", BASE, "attention pooling, 256 px", 64.7),
            ("Toto-large", LARGE, "attention pooling, 256 px", 71.1),
            ("Toto-1b", ONE_B, "attention pooling, 256 px", 75.3),
        ),
    ),
    *_rows(
        "imagenet",
        "Table 13",
        "top1_%",
        (
            ("DINO", "", "full fine-tuning", 82.8),
            ("MoCo v3", "", "full fine-tuning", 83.2),
            ("BEiT", "", "full fine-tuning", 83.2),
            ("MAE", "", "full fine-tuning", 83.6),
            (
                "Toto",
                "",
                "full fine-tuning, bidirectional",
                82.6,
                "size not stated; base by its peers",
            ),
        ),
    ),
    *_rows(
        "imagenet",
        "Table 14",
        "top1_%",
        (("iGPT-L", "1386M", LINEAR, 65.2), ("Toto-1b", ONE_B, LINEAR, 66.2)),
    ),
]

KINETICS = [
    *_rows(
        "kinetics",
        "Table 8",
        "top1_%",
        (
            ("I-JEPA", "ViT-H/16", "", 74.5),
            ("OpenCLIP", "ViT-G/14", "", 83.3),
            ("DINOv2", "", "", 84.4),
            ("InternVideo", "", "", 73.7),
            ("Hiera", "Hiera-H/14", "", 77.0),
            ("MVD", "ViT-H/14", "", 79.4),
            ("VideoMAE", "ViT-L/14", "", 79.8),
            ("Toto-base", BASE, "attention pooling, 16 frames, 128 px", 59.3),
            ("Toto-large", LARGE, "attention pooling, 16 frames, 128 px", 65.3),
            ("Toto-1b", ONE_B, "attention pooling, 16 frames, 128 px", 74.4),
        ),
    ),
    *_rows(
        "kinetics",
        "Table 16",
        "top1_%",
        (
            ("Toto-base", BASE, "cross-attention and MLP", 61.2),
            ("Toto-large", LARGE, "cross-attention and MLP", 65.8),
            ("Toto-1b", ONE_B, "cross-attention and MLP", 74.8),
        ),
    ),
]

STA_METRICS = ("noun_mAP_%", "noun+verb_mAP_%", "noun+ttc_mAP_%", "overall_mAP_%")  # top-5
STA = [
    Published(
        task="ego4d-sta",
        table="Table 9",
        name=name,
        size=size,
        metrics=dict(zip(STA_METRICS, values, strict=True)),
    )
    for name, size, values in (
        ("FRCNN+Rnd", "", (17.55, 1.56, 3.21, 0.34)),
        ("FRCNN+SF", "", (17.55, 5.19, 5.37, 2.07)),
        ("Hiera-L", "", (14.05, 6.03, 4.53, 2.12)),
        ("StillFast", "", (16.20, 7.47, 4.94, 2.48)),
        ("VideoMAE-L", "", (15.16, 6.72, 5.26, 2.55)),
        ("MAE-ST-L", "", (13.71, 6.63, 4.94, 2.60)),
        ("Toto-large", LARGE, (15.20, 6.75, 5.41, 2.70)),
    )
]

DAVIS = [
    Published(
        task="davis",
        table="Table 10",
        name=name,
        size=size,
        setting=setting,
        metrics=dict(zip(("J&F_%", "J_%", "F_%"), values, strict=True)),
    )
    for name, size, setting, values in (
        ("DINO", "ViT-B", "224 px, stride 8", (54.3, 52.5, 56.1)),
        ("DINO", "ViT-B", "224 px, stride 16", (33.1, 36.2, 30.1)),
        ("MAE", "ViT-B", "224 px, stride 16", (31.5, 34.1, 28.9)),
        ("Toto-base", BASE, "256 px, stride 8", (42.0, 41.2, 43.1)),
        ("Toto-large", LARGE, "256 px, stride 8", (44.8, 44.4, 45.1)),
        ("Toto-1b", ONE_B, "256 px, stride 8", (46.1, 45.8, 46.4)),
        ("Toto-large", LARGE, "512 px, stride 8", (62.4, 59.2, 65.6)),
    )
]

CATER = _rows(
    "cater",
    "Table 12",
    "top1_%",
    (
        ("V3D", "ResNet", "16 frames", 55.2),
        ("V3D", "ResNet", "32 frames", 69.7),
        ("TFC V3D", "ResNet", "16 frames", 54.6),
        ("TFC V3D", "ResNet", "32 frames", 70.2),
        ("Toto-large", LARGE, "16 frames", 62.8),
        ("Toto-large", LARGE, "32 frames", 72.9, "the paper's text says 70.9"),
    ),
)

ROBOT = _rows(
    "real-robot",
    "Table 11",
    "success_%",
    (
        ("MVP", "", "Franka cube picking, 240 demonstrations", 75),
        ("Toto-base", BASE, "Franka cube picking, 240 demonstrations", 63),
    ),
)

ROWS = [*IMAGENET, *KINETICS, *STA, *DAVIS, *CATER, *ROBOT]


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The best layer of a curve over layers."""

    task: str
    name: str
    layers: int  # blocks of the model
    layer: int
    metric: str
    value: float
    figure: str
    setting: str = ""


def _peaks(task: str, metric: str, figure: str, *peaks: tuple[int, float]) -> list[Peak]:
    sizes = (("Toto-base", 12), ("Toto-large", 16), ("Toto-1b", 22))
    return [
        Peak(
            task=task,
            name=name,
            layers=layers,
            layer=at,
            metric=metric,
            value=value,
            figure=figure,
        )
        for (name, layers), (at, value) in zip(sizes, peaks, strict=True)
    ]


PEAKS = [
    *_peaks("imagenet", "top1_%", "Fig. 8", (7, 64.8), (8, 70.2), (11, 75.5)),
    *_peaks("kinetics", "top1_%", "Fig. 8", (7, 58.3), (9, 64.5), (11, 73.8)),
    *_peaks("davis", "J&F_%", "Fig. 8", (7, 42.0), (9, 44.8), (11, 46.1)),
    Peak(
        task="davis",
        name="Toto-large",
        layers=16,
        layer=9,
        metric="J&F_%",
        value=62.4,
        figure="Fig. 5",
        setting="512 px",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over layers; `values` start at layer `first`."""

    task: str
    name: str
    layers: int
    first: int
    metric: str
    values: tuple[float, ...]
    figure: str = "Fig. 8"


_IMAGENET = {
    ("Toto-base", 12): "10 29 42 50 57 62 64 64.8 63.5 62 61 59.7",
    ("Toto-large", 16): "10 29 43 52 58.5 63 66.5 69 70.2 69.7 68.7 67.2 66 65 63.7 62",
    ("Toto-1b", 22): (
        "10 27 41 51.5 58 62 66.7 70 72.5 74.2 75.3 75.5 75.2 74.8 74 73.2 72.3 71.6 70.8 69.7 68.7 "
        "67.2"
    ),
}
CURVES = [
    *(
        Curve(
            task="imagenet",
            name=name,
            layers=layers,
            first=0,
            metric="top1_%",
            values=tuple(map(float, text.split())),
        )
        for (name, layers), text in _IMAGENET.items()
    ),
    Curve(
        task="robot",
        name="Toto-base",
        layers=12,
        first=1,
        metric="success_%",
        values=(51, 58.5, 66.4, 66.4, 66.5, 68, 67.7, 64.7, 63.8, 65, 65.6, 69),
    ),
]


def rows_of(task: str) -> list[Published]:
    return [row for row in ROWS if row.task == task]
