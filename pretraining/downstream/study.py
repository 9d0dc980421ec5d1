"""The evaluations on a small scale: a trained toto-tiny against what it has to beat, at all layers.

    python -m pretraining.downstream.study out=benchmarks/results/evaluations

Drawn shapes in ImageNet's layout and drawn motions in Kinetics' (study_data.py) go through the real
commands with toto-tiny's weights and with random ones; beside them a linear classifier of raw pixels and
a small network trained end to end, all by the same fitting (pretraining.probing.fit_classes). Each
`seeds` times, with other probes and another order of the same examples. Writes the rows, summary.json, a
plot of the layers and README.md. Rows that are there already are not made again.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pretraining import evaluate
from pretraining.datasets.imagenet import imagenet1k
from pretraining.datasets.kinetics import kinetics
from pretraining.downstream.clips import Clip, View, read_clip
from pretraining.downstream.common import EvaluateConfig, Result, write_result
from pretraining.downstream.probes import about_size, accuracies
from pretraining.downstream.rows import read_row
from pretraining.downstream.study_data import write_clips, write_pictures
from pretraining.pictures import Line, Panel, plot_panels
from pretraining.probing import SmallCNN, Split, as_pixels, fit_classes
from toto_robot.backbone.weights import write_json
from toto_robot.cli import parse
from toto_robot.intervals import wilson_interval

PX = 128  # of drawn pictures, and of toto-tiny
TASKS = {"imagenet": "eight shapes, pictures", "kinetics": "eight motions, videos"}
ROWS = {  # label -> what it is
    "toto-tiny": "toto-tiny, attention probe",
    "toto-tiny-mean": "toto-tiny, mean of the tokens, linear",
    "random": "the same network, random weights, attention probe",
    "pixels": "raw pixels, linear",
    "cnn": "small CNN, trained end to end",
}
PROBED = {  # row -> backbone and pooling
    "toto-tiny": ("toto-tiny", "attention"),
    "toto-tiny-mean": ("toto-tiny", "mean"),
    "random": ("random-tiny", "attention"),
}
CNN_RATES, PIXEL_RATES = (5e-4, 1.5e-3, 5e-3), (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run the small study of the evaluations."""

    out: Path
    work: Path = Path("outputs/study")  # drawn data and features
    seeds: int = 3
    plain: bool = True  # light shapes on dark even grounds; false: on all kinds of grounds
    pictures: int = 300  # to train on, of each class
    test_pictures: int = 100
    videos: int = 150
    test_videos: int = 75
    frames: int = 4  # of a video; all are read. As many as toto-tiny was trained on
    video_px: int = 128
    grid: int = 8  # features of a picture are kept on grid x grid, of a frame on half of that
    epochs: int = 20  # of probes
    own_epochs: int = 60  # of the CNN and the pixels' classifier
    rates: tuple[float, ...] = (3e-3, 1e-2)
    threads: int = 1


def folder_of(config: Config, task: str) -> Path:
    """A name for each drawing, so that features of it are found again and never those of another."""
    numbers = (config.pictures, config.test_pictures, PX)
    if task == "kinetics":
        numbers = (config.videos, config.test_videos, config.frames, config.video_px)
    kind = "plain" if config.plain else "varied"
    return config.work / "-".join(map(str, (task, kind, *numbers)))


def draw(config: Config) -> None:
    """The data of both tasks, where they are not there already."""
    for task in TASKS:
        folder = folder_of(config, task)
        if folder.exists():
            continue
        half = folder.with_name(folder.name + ".half")
        if task == "imagenet":
            write_pictures(half, config.pictures, config.test_pictures, PX, config.plain)
        else:
            counts = (config.videos, config.test_videos, config.frames)
            write_clips(half, *counts, config.video_px, config.plain)
        half.rename(folder)


def command(config: Config, task: str, row: str, seed: int) -> list[str]:
    """The evaluation of a backbone."""
    video = task == "kinetics"
    backbone, pooling = PROBED[row]
    words = [
        f"task={task}",
        f"backbone={backbone}",
        f"pooling={pooling}",
        f"data={folder_of(config, task)}",
        f"out={config.out}",
        f"label={row}_s{seed}",
        f"seed={seed}",
        f"threads={config.threads}",
        f"grid={config.grid // 2 if video else config.grid}",
        f"epochs={config.epochs}",
        f"rates={','.join(map(str, config.rates))}",
        f"cache={config.work / 'features'}",
        "workers=1",
        "device=cpu",
    ]
    if video:
        words += [f"frames={config.frames}", f"resolution={config.video_px}"]
        words += ["stride=1", "views=1", "crops=1"]
    return words


@dataclass(frozen=True)
class Frames:
    """All clips of a part, as pixels, with their classes."""

    pixels: UInt8[Tensor, "N T R R 3"]
    classes: Tensor


def read_part(config: Config, task: str, held_out: bool) -> Frames:
    """The same frames as the probes', at half the size."""
    video = task == "kinetics"
    sources = (kinetics if video else imagenet1k)(folder_of(config, task))
    chosen = [source for source in sources if source.held_out == held_out]
    view = View(frames=config.frames, stride=1) if video else View()
    side = (config.video_px if video else PX) // 2
    clips = np.stack([read_clip(Clip(source, view), side) for source in chosen])
    return Frames(torch.from_numpy(clips), torch.tensor([source.label for source in chosen]))


def as_one_token(clips: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "B 1 D"]:
    return (clips.float() / 127.5 - 1).flatten(1)[:, None]


def as_one_picture(clips: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "B 3 H W"]:
    """Frames side by side in two rows (one frame as it is), which a CNN can compare."""
    rows = 2 if clips.shape[1] > 1 else 1
    tiled = torch.cat(clips.unflatten(1, (rows, -1)).unbind(1), dim=2)  # rows below each other
    return as_pixels(torch.cat(tiled.unbind(1), dim=2))


def cnn_for(example: Tensor) -> Callable[[int, int], nn.Module]:
    def make(_width: int, num_classes: int) -> nn.Module:
        network = SmallCNN(num_classes)
        network(example)  # sizes the lazy layer
        return network

    return make


def own_words(config: Config, task: str, row: str, seed: int) -> list[str]:
    """What says how the CNN or the pixels' classifier was fitted, in the place of a command."""
    study = ["python", "-m", "pretraining.downstream.study"]
    return [
        *study,
        f"data={folder_of(config, task)}",
        row,
        f"seed={seed}",
        f"epochs={config.own_epochs}",
    ]


def is_done(config: Config, task: str, row: str, seed: int, words: list[str]) -> bool:
    """Whether the row was made, by the same words."""
    path = config.out / task / f"{row}_s{seed}" / "result.json"
    return path.is_file() and read_row(path).command[-len(words) :] == words


def fit_own(config: Config, task: str, row: str, seed: int, train: Frames, test: Frames) -> None:
    """Fit the CNN or the pixels' classifier and write its row."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train.classes)))
    split = Split(train.pixels[order], train.classes[order], test.pixels, test.classes)
    prepare = as_one_token if row == "pixels" else as_one_picture
    example = prepare(train.pixels[:2])
    logits, rate = fit_classes(
        split,
        int(train.classes.max()) + 1,
        "mean",
        prepare,
        example.shape[-1],
        epochs=config.own_epochs,
        seed=seed,
        rates=PIXEL_RATES if row == "pixels" else CNN_RATES,
        head=None if row == "pixels" else cnn_for(example),
    )
    about = EvaluateConfig(
        data=folder_of(config, task), out=config.out, label=f"{row}_s{seed}", seed=seed
    )
    notes = [ROWS[row], *about_size(task, logits.shape[1])]
    result = Result(task, accuracies(logits, test.classes, ranks=(1,)), notes=notes)
    result.extra = {"rate": rate, "epochs": config.own_epochs, "input": list(example.shape[1:])}
    write_result(result, about, None, own_words(config, task, row, seed))


def summarise(config: Config) -> dict[str, dict[str, list[dict[str, float]]]]:
    """task -> row -> layers, of each the mean over seeds, Wilson's interval of the test examples for
    that mean, and the lowest and highest seed. Rows without layers have one."""
    summary: dict[str, dict[str, list[dict[str, float]]]] = {}
    for task in TASKS:
        for row in ROWS:
            folders = [config.out / task / f"{row}_s{seed}" for seed in range(config.seeds)]
            rows = [read_row(folder / "result.json") for folder in folders]
            layers = zip(*(r.layers or [r.metrics] for r in rows), strict=True)
            summary.setdefault(task, {})[row] = [
                layer_of([metrics["top1_%"].value for metrics in each], each[0]["top1_%"].count)
                for each in layers
            ]
    return summary


def layer_of(values: list[float], count: int | None) -> dict[str, float]:
    mean = statistics.mean(values)
    low, high = wilson_interval(mean / 100 * (count or 1), count or 1)
    ends = {"low": 100 * low, "high": 100 * high, "least": min(values), "most": max(values)}
    return {"mean": mean, **ends, "test_examples": count or 0}


def plot(summary: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    panels = []
    for task, rows in summary.items():
        depth = max(map(len, rows.values())) - 1
        lines = []
        for colour, (row, layers) in enumerate(rows.items()):
            x = list(range(len(layers))) if len(layers) > 1 else [0, depth]
            values = [[layer[key] for layer in layers] for key in ("mean", "low", "high")]
            mean, low, high = (v if len(v) > 1 else v * 2 for v in values)
            style = f"o-C{colour}" if len(layers) > 1 else f"-C{colour}"
            lines.append(Line(label=ROWS[row], x=x, y=mean, style=style, low=low, high=high))
        lines.append(Line(label="chance", x=[0, depth], y=[12.5, 12.5], style="--k"))
        title = f"{TASKS[task]} (bands: 95 %)"
        panels.append(Panel(title=title, x="layer (0: embeddings)", y="top-1, %", lines=lines))
    plot_panels(panels, path)


def as_table(summary: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The best layer of each row, and the last one."""
    lines = [
        "| task | row | layer | top-1, % [95 %] | seeds | last layer |",
        "|---|---|---|---|---|---|",
    ]
    for task, rows in summary.items():
        for row, layers in rows.items():
            best = max(range(len(layers)), key=lambda i: layers[i]["mean"])
            found, last = layers[best], layers[-1]
            layer = f"{best} of {len(layers) - 1}" if len(layers) > 1 else ""
            lines.append(
                f"| {TASKS[task]} | {ROWS[row]} | {layer} | {found['mean']:.1f} "
                f"[{found['low']:.1f}, {found['high']:.1f}] | {found['least']:.1f} to "
                f"{found['most']:.1f} | {f'''{last['mean']:.1f}''' if layer else ''} |"
            )
    return "\n".join(lines)


def readme(config: Config, table: str) -> str:
    return f"""# A small study of the evaluations

`python -m pretraining.downstream.study out=benchmarks/results/evaluations` made all of this folder, on
{config.threads} thread(s) of a CPU.

Data ({"plain grounds" if config.plain else "varied grounds"}): {config.pictures} drawn shapes of each of eight classes to train on and {config.test_pictures} to test, in ImageNet's layout;
{config.videos} and {config.test_videos} videos of {config.frames} frames of {config.video_px} px of each of eight motions, in Kinetics' layout (single frames tell
next to nothing of the class). {config.seeds} seeds, which are other probes and another order of the same examples.

{table}

Means over the seeds; the interval is Wilson's for the test examples, which all seeds share; the best layer is
chosen on the test examples, as in the paper, which favours rows with layers. Probes: on frozen features,
{config.epochs} epochs; pixels and CNN: {config.own_epochs} epochs at half the size. `summary.json` has every layer, `layers.png` the
curves, and each row its `result.json` with the command.
"""


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    draw(config)
    for task in TASKS:
        train, test = (read_part(config, task, held_out) for held_out in (False, True))
        for seed in range(config.seeds):
            for row in ROWS:
                probed = row in PROBED
                words = (command if probed else own_words)(config, task, row, seed)
                if is_done(config, task, row, seed, words):
                    continue
                if probed:
                    evaluate.main(words)
                else:
                    fit_own(config, task, row, seed, train, test)
    summary = summarise(config)
    write_json(config.out / "summary.json", summary)
    plot(summary, config.out / "layers.png")
    table = as_table(summary)
    (config.out / "README.md").write_text(readme(config, table))
    print(table)


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:]))
