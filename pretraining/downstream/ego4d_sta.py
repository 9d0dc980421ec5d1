"""Ego4D short-term anticipation: what will be touched next, where, how and when (paper, Table 9).

    python -m pretraining.evaluate task=ego4d-sta backbone=toto-large data=ego4d/v2

Trains a StillFast-style detector (sta_detector.py) on the hidden states of the annotated frame, or of
the 16 frames up to it (num_frames=16, which need videos or LMDB); then writes the challenge's result
JSON for the validation (or test) part and scores it as the challenge does (sta_metrics.py). The whole
frame is squashed to the backbone's square. Needs torchvision.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw

from pretraining.downstream.common import EvaluateConfig, Metric, Result
from pretraining.downstream.sta_data import (
    Example,
    Frames,
    Part,
    find_root,
    places,
    read_part,
    with_area,
)
from pretraining.downstream.sta_metrics import (
    CHALLENGE,
    VERSION,
    Objects,
    check_results,
    intervals,
    match_frame,
    mean_aps,
)
from pretraining.progress import settings_of
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.weights import replace_atomically, temporary_name

if TYPE_CHECKING:  # these need torchvision, which `--help` must not
    from pretraining.downstream.sta_detector import Detections
    from pretraining.downstream.sta_training import Anticipator, Clips, Recipe

TASK = "ego4d-sta"
TABLE_ORDER = {  # in METRICS' names, those of the table
    "overall": "overall_mAP_%",
    "noun": "noun_mAP_%",
    "noun_verb": "noun+verb_mAP_%",
    "noun_ttc": "noun+ttc_mAP_%",
}
SHOWN, SIDE_PX = 6, 256  # frames in detections.png, and their side


@dataclass(frozen=True, kw_only=True)
class Config(EvaluateConfig):
    """Anticipation on Ego4D. data= is the folder with annotations/ (v1 or v2)."""

    frames: Path | None = None  # object_frames, lmdb, full_scale, …; None: what is in data
    part: Literal["val", "test"] = "val"  # to run on; test has no annotations, so no scores
    mode: Literal["frozen", "finetune"] = "frozen"  # finetune: with the next-token loss
    resolution: int | None = None  # px, a multiple of the tokens' side; None: the backbone's
    num_frames: int = 1  # the annotated one and those before it; StillFast: 16
    stride: int = 1  # between them
    layers: tuple[int, ...] = ()  # (): five evenly spaced ones
    channels: int = 256
    hidden: int = 1024  # width of a box's vector
    proposals: int = 1000  # per frame; twice as many in training
    score_threshold: float = 0.05
    epochs: float = 20
    batch_size: int = 14
    lr: float = 2e-4
    trunk_lr: float = 2e-5  # with mode=finetune
    weight_decay: float = 1e-4
    warmup: int = 2000  # steps, at most a tenth of all
    flip: bool = True
    limit: int = 0  # examples of each part; 0: all
    workers: int = 0  # processes that read frames
    missing: Literal["skip", "refuse"] = "skip"  # frames that are not there
    report_every: int = 20  # steps
    checkpoint_s: float = 600
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        for name in ("num_frames", "stride", "batch_size", "report_every"):
            if getattr(self, name) < 1:
                raise SystemExit(f"{name}={getattr(self, name)}: expected at least 1")


FREE = {"data", "out", "device", "threads", "frames", "part", "label", "score_threshold"}
FREE |= {"workers", "report_every", "checkpoint_s", "resume", "missing"}


def usable(
    name: str, examples: Iterable[Example], where: list[Frames], config: Config
) -> tuple[list[Example], dict[str, str]]:
    """Examples whose file is somewhere; uids of the others, with what was looked for.

    Raises:
        FileNotFoundError: none has one, or some have not and that is to be refused.
    """
    kept, missing = [], {}
    for example in examples:
        if any(place.path(example).exists() for place in where):
            kept.append(example)
        else:
            missing[example.uid] = f"no {where[0].path(example)}"
    if missing:
        some = ", ".join(list(missing.values())[:3])
        told = (
            f"{name}: frames of {len(missing)} of {len(kept) + len(missing)} are missing ({some})"
        )
        if config.missing == "refuse" or not kept:
            raise FileNotFoundError(told + ("; missing=skip goes on without them" if kept else ""))
        print(told)
    if not kept:
        raise ValueError(f"{name}: no annotation has an object whose box is not empty")
    return kept, missing


def check_categories(train: Part, part: Part, name: str) -> None:
    """ValueError if `part` has categories that training knows nothing of."""
    for kind in ("nouns", "verbs"):
        if extra := getattr(part, kind).keys() - getattr(train, kind).keys():
            raise ValueError(f"{name} has {kind} {sorted(extra)}, which the training part has not")


def evaluate(config: Config, backbone: FrozenBackbone) -> Result:
    """Train, detect, write `<part>.json`, score.

    Raises:
        ImportError: torchvision is missing; says what to install.
        FileNotFoundError, ValueError: the data are not there, or not as expected.
    """
    from pretraining.downstream import sta_training as training  # needs torchvision

    backbone = backbone.at_resolution(config.resolution or backbone.resolution)
    folder = config.folder(TASK)
    folder.mkdir(parents=True, exist_ok=True)
    root = find_root(config.data)
    where = places(root, config.frames)
    train, part = (read_part(root, name, config.limit) for name in ("train", config.part))
    check_categories(train, part, config.part)
    to_learn = [example for example in map(with_area, train.examples) if example is not None]
    learnt, skipped = usable("train", to_learn, where, config)
    shown, not_run = usable(config.part, part.examples, where, config)

    layers = training.evenly_spaced(backbone.trunk.config.layers, config.layers)
    model = make_model(config, backbone, layers, train)
    nouns, verbs = sorted(train.nouns), sorted(train.verbs)

    def clips(examples: list[Example]) -> training.Clips:
        shape = (config.num_frames, config.stride, backbone.resolution)
        return training.Clips(examples, where, *shape)

    recipe = recipe_of(config, len(learnt))
    about = {"weights": str(backbone.weights_hash), "examples": str(len(learnt))}
    skipped |= training.train(
        model,
        clips(learnt),
        [training.target_of(e, nouns, verbs, backbone.device) for e in learnt],
        recipe,
        folder,
        settings_of(config, FREE) | about,
        resume=config.resume == "auto",
    )
    found: dict[str, Objects] = {}
    for example, what in training.run(model, clips(shown), config.batch_size, config.workers):
        if isinstance(what, str):
            not_run[example.uid] = what
        else:
            found[example.uid] = to_objects(what, example, nouns, verbs)
    write_results(folder / f"{config.part}.json", part, found)
    draw(folder / "detections.png", clips([e for e in shown if e.uid in found]), found, train)
    return result_of(config, part, found, skipped | not_run, len(not_run), recipe.steps, layers)


def make_model(
    config: Config, backbone: FrozenBackbone, layers: tuple[int, ...], train: Part
) -> "Anticipator":
    """Tower and detector on the backbone's device; the same for the same seed."""
    from pretraining.downstream import sta_training as training
    from pretraining.downstream.sta_detector import Detector, DetectorConfig

    torch.manual_seed(config.seed)
    sizes = DetectorConfig(
        len(train.nouns),
        len(train.verbs),
        config.channels,
        config.hidden,
        proposals=config.proposals,
        score_threshold=config.score_threshold,
    )
    detector = Detector(backbone.num_features, backbone.tokens_per_side, sizes)
    if config.mode == "finetune":
        tower = training.TunedTower(backbone, layers, config.weights)
    else:
        tower = training.FrozenTower(backbone, layers)
    return training.Anticipator(tower, detector).to(backbone.device)


def recipe_of(config: Config, examples: int) -> "Recipe":
    from pretraining.downstream.sta_training import Recipe

    return Recipe(
        steps=max(1, math.ceil(config.epochs * examples / config.batch_size)),
        batch_size=config.batch_size,
        lr=config.lr,
        trunk_lr=config.trunk_lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        flip=config.flip,
        seed=config.seed,
        workers=config.workers,
        report_every=config.report_every,
        checkpoint_s=config.checkpoint_s,
    )


def to_objects(
    found: "Detections", example: Example, nouns: list[int], verbs: list[int]
) -> Objects:
    """Detections in the annotations' pixels and category ids."""
    boxes = found.boxes.double().cpu().numpy() * np.array(example.size * 2)
    return Objects(
        boxes,
        np.array(nouns)[found.nouns.cpu().numpy()],
        np.array(verbs)[found.verbs.cpu().numpy()],
        found.ttcs_s.double().cpu().numpy(),
        found.scores.double().cpu().numpy(),
    )


def write_results(path: Path, part: Part, found: dict[str, Objects]) -> None:
    """The challenge's JSON; a frame that could not be read has no detections."""
    uids = [example.uid for example in part.examples]
    rows = {uid: found[uid].to_json() if uid in found else [] for uid in uids}
    content = {"version": VERSION, "challenge": CHALLENGE, "results": rows}
    check_results(content, uids)
    temporary = temporary_name(path)
    temporary.write_text(json.dumps(content))
    replace_atomically(temporary, path)


def result_of(
    config: Config,
    part: Part,
    found: dict[str, Objects],
    skipped: dict[str, str],
    not_run: int,
    steps: int,
    layers: tuple[int, ...],
) -> Result:
    """The row: four scores with intervals over videos, where there are annotations."""
    counted = [example for example in part.examples if example.uid in found]
    empty = sum(len(found[example.uid]) == 0 for example in counted)
    result = Result(
        TASK,
        {"detections_per_frame": Metric(sum(map(len, found.values())) / max(1, len(found)))},
        files=[f"{config.part}.json", "detections.png", "metrics.jsonl"],
        skipped=skipped,
        notes=[
            f"{config.mode}, layers {', '.join(map(str, layers))}, {steps} steps; the paper's "
            "pyramid, layers, resolution and recipe are not published"
        ],
        extra={"frames": len(part.examples), "without_detections": empty, "unread": not_run},
    )
    if empty or not_run:
        result.notes.append(
            f"{empty + not_run} of {len(part.examples)} frames have no detections; the challenge's "
            "program leaves such frames out, and so do these scores"
        )
    if all(example.objects is not None for example in counted):
        rows = [match_frame(found[e.uid], e.objects) for e in counted if e.objects is not None]
        scores = mean_aps(rows)
        low, high = intervals(rows, [example.video for example in counted], config.seed)
        result.metrics = {
            name: Metric(scores[key], low[key], high[key], len(rows))
            for key, name in TABLE_ORDER.items()
        }
    return result


def draw(path: Path, clips: "Clips", found: dict[str, Objects], train: Part) -> None:
    """A few frames: objects in green, the best detection in orange with what it says."""
    pictures = []
    for number in range(min(SHOWN, len(clips))):
        example, frames = clips.examples[number], clips[number][1]
        if isinstance(frames, str):
            continue
        picture = Image.fromarray(frames[-1]).resize((SIDE_PX, SIDE_PX))
        scale = SIDE_PX / np.array(example.size * 2)
        if example.objects is not None:
            for i in range(len(example.objects)):
                frame_in(picture, example.objects, i, scale, "lime", train)
        if len(found[example.uid]):
            frame_in(picture, found[example.uid], 0, scale, "orange", train)
        pictures.append(picture)
    sheet = Image.new("RGB", (SIDE_PX * max(1, len(pictures)), SIDE_PX))
    for column, picture in enumerate(pictures):
        sheet.paste(picture, (column * SIDE_PX, 0))
    sheet.save(path)


def frame_in(
    picture: Image.Image, objects: Objects, i: int, scale: np.ndarray, colour: str, train: Part
) -> None:
    """Draw object `i` with its verb, noun and time."""
    pen, box = ImageDraw.Draw(picture), (objects.boxes[i] * scale).tolist()
    verb, noun = train.verbs[int(objects.verbs[i])], train.nouns[int(objects.nouns[i])]
    pen.rectangle(box, outline=colour, width=2)
    top = box[1] + 2 if objects.scores is None else box[3] - 13
    pen.text((box[0] + 3, top), f"{verb} {noun} {objects.ttcs_s[i]:.2f} s", fill=colour)
