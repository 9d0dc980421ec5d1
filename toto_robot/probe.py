"""Can the cube be read from frozen features? `python -m toto_robot.probe backbone=toto-tiny`

Fits small read-outs from one wrist-camera frame to the cube's position in the camera frame and in
the image, at every layer, for the backbone, for the same network with random weights, for raw
pixels, and for a small CNN trained end to end. Frames come from scripted and random motions; the
held-out ones from other episodes with other seeds. Writes probe.json, probe.md and probe.png.
"""

import copy
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

import envs
from envs.scripted import Motion, ScriptedMotions
from envs.vec_task import VecTask
from pretraining.probing import (
    Split,
    average_grid,
    fit_attention,
    fit_cnn,
    fit_ridge,
    r_squared,
)
from toto_robot._siblings import check_siblings
from toto_robot.backbone import FrozenBackbone, load_backbone
from toto_robot.backbone.models import make_model
from toto_robot.backbone.patches import cut
from toto_robot.cli import parse

SHARES: dict[Motion, float] = {"wander": 0.15, "look": 0.5, "pick": 0.35}
EVERY = 7  # control steps between two frames
MIN_CUBE_PX = 8  # visible pixels of the cube at 128 x 128
MAX_LIFTED = 0.15  # share of frames with the cube in the hand, where it is always at one place
GRID, ATTENTION_GRID, PATCH_PX = 4, 8, 8
TARGETS = ("u", "v", "x", "y", "z")
HELD_OUT_SEED = 9_000_001


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Fit read-outs of the cube's position from one wrist-camera frame."""

    env: str = "franka_pick"
    backbone: str = "toto-tiny"
    weights: str | None = field(default=None, metadata={"alias": "backbone.weights"})
    frames: int = 3000  # training frames
    held_out: int = 1000
    image_size: int = 128
    worlds: int = 32
    seed: int = 0
    controls: bool = True  # random weights too; slow for a large backbone
    out: Path = Path("outputs/probe")

    def __post_init__(self) -> None:
        if self.env != "franka_pick":
            raise SystemExit(
                f"env={self.env}: only in franka_pick is there a motion that looks for a cube"
            )
        whole = ATTENTION_GRID * PATCH_PX
        if self.image_size < 1 or self.image_size % whole:
            raise SystemExit(f"image_size={self.image_size}: expected a multiple of {whole} px")
        if self.backbone == "cnn":
            raise SystemExit(
                "backbone=cnn has no frozen layers to probe; a CNN trained end to end is among the rows"
            )


@dataclass(frozen=True)
class Frames:
    """Wrist-camera frames in which the cube is visible, and where it is.

    `targets` are (u, v, x, y, z): image coordinates in [-1, 1], right and down; and the cube's
    centre in the camera frame (x right, y down, z along the view), m.
    """

    images: UInt8[Tensor, "N H W 3"]
    targets: Float[Tensor, "N 5"]


def cube_in_camera(task: VecTask) -> Float[Tensor, "N 5"]:
    """Targets of every world from the simulator's own kinematics."""
    engine = task.engine
    position_w, rotation = engine.camera_pose("wrist")  # columns: right, up, backward
    cube_w = engine.read()["site_pos"][:, engine.model.site("cube_centre").id]
    right, up, back = torch.einsum("nji,nj->in", rotation, cube_w - position_w)
    x, y, z = right, -up, -back
    focal = 1 / np.tan(np.deg2rad(engine.model.camera("wrist").fovy[0]) / 2)
    return torch.stack([focal * x / z, focal * y / z, x, y, z], dim=1)


def collect(config: ProbeConfig, count: int, seed: int, label: str) -> Frames:
    """Film until `count` frames show the cube."""
    task = envs.make(config.env, config.worlds, seed=seed)
    task.reset()
    motions = ScriptedMotions(task, SHARES, seed=seed)
    cube_geom = task.engine.model.geom("cube").id
    size, lifted_left = config.image_size, int(MAX_LIFTED * count)
    images, targets, have, step = [], [], 0, 0
    with tqdm(total=count, desc=label, unit="frame") as progress:
        while have < count:
            task.step(motions.act())
            step += 1
            if step % EVERY:
                continue
            where = cube_in_camera(task)
            inside = (where[:, :2].abs() <= 1).all(1) & (where[:, 4] > 0)
            seen = (task.engine.render_geom_ids("wrist", 128, 128) == cube_geom).sum((1, 2))
            height = task.engine.read()["site_pos"][:, task.engine.model.site("cube_centre").id, 2]
            lifted = height > 0.44
            keep = inside & (seen >= MIN_CUBE_PX)
            keep &= ~lifted | (torch.cumsum(lifted & keep, 0) <= lifted_left)
            lifted_left -= int((lifted & keep).sum())
            ids = keep.nonzero().squeeze(1)[: count - have]
            if len(ids):
                images.append(task.engine.render("wrist", size, size, ids))
                targets.append(where[ids])
                have += len(ids)
                progress.update(len(ids))
    task.close()
    return Frames(torch.cat(images), torch.cat(targets))


def score(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """R^2 of image coordinates (mean of u, v) and of the position; mean distance in cm."""
    r2 = r_squared(predicted, target)
    distance_cm = 100 * (predicted[:, 2:] - target[:, 2:]).norm(dim=1).mean()
    return {
        "r2_image": r2[:2].mean().item(),
        "r2_position": r2[2:].mean().item(),
        "error_cm": distance_cm.item(),
        **{f"r2_{name}": value for name, value in zip(TARGETS, r2.tolist(), strict=True)},
    }


def score_tokens(train_x: Tensor, test_x: Tensor, train: Frames, test: Frames) -> dict:
    """All read-outs of token features [N, 256, D]."""
    reads = {
        "mean": (fit_ridge, 1),
        "grid": (fit_ridge, GRID),
        "attention": (fit_attention, ATTENTION_GRID),
    }
    scores = {}
    for name, (fit, side) in reads.items():
        x, held_out = average_grid(train_x, side), average_grid(test_x, side)
        split = Split(x, train.targets, held_out, test.targets)
        scores[name] = score(fit(split), test.targets)
    return scores


def probe_layers(backbone: FrozenBackbone, train: Frames, test: Frames, label: str) -> list[dict]:
    """Scores of every layer, 0 (embeddings) to the last."""
    train_layers = hidden_states(backbone, train.images, f"{label}: encode")
    test_layers = hidden_states(backbone, test.images, f"{label}: encode held-out")
    layers = zip(train_layers, test_layers, strict=True)
    return [
        score_tokens(train_x, test_x, train, test)
        for train_x, test_x in tqdm(layers, total=len(train_layers), desc=f"{label}: fit")
    ]


def hidden_states(backbone: FrozenBackbone, images: Tensor, label: str) -> list[Tensor]:
    """Float16 token features of each layer, averaged to the finest grid that is read."""
    layers: list[list[Tensor]] = []
    for batch in tqdm(images.split(64), desc=label, leave=False):
        for i, state in enumerate(backbone.hidden_states(batch)):
            if i == len(layers):
                layers.append([])
            layers[i].append(backbone.read_out(state[:, None]).squeeze(1).half())
    return [torch.cat(parts) for parts in layers]


def with_random_trunk(backbone: FrozenBackbone) -> FrozenBackbone:
    """The same backbone, its blocks untrained."""
    torch.manual_seed(0)
    trunk = backbone.trunk.config
    random = copy.deepcopy(backbone)
    random.trunk = make_model(trunk).truncate(trunk.layers).requires_grad_(False).eval()
    return random


def patches(images: UInt8[Tensor, "N R R 3"]) -> Float[Tensor, "N T D"]:
    """Raw pixels as tokens of 8 x 8 px, in the place of features."""
    return cut(images, PATCH_PX).flatten(1, 2).float() / 255


def run(config: ProbeConfig) -> dict:
    """Everything that goes into probe.json."""
    backbone = load_backbone(
        config.backbone, weights=config.weights, all_layers=True, grid=ATTENTION_GRID
    )
    controls = config.controls and config.backbone != "pixels"  # which has no weights
    train = collect(config, config.frames, config.seed, "frames")
    test = collect(config, config.held_out, config.seed + HELD_OUT_SEED, "held-out frames")
    cnn = fit_cnn(Split(train.images, train.targets, test.images, test.targets))
    pixel_scores = score_tokens(patches(train.images), patches(test.images), train, test)
    result = {
        "backbone": backbone.name,
        "weights_hash": backbone.weights_hash,
        "config": {key: str(value) for key, value in asdict(config).items()},
        "default_layer": backbone.layer,
        "layers": probe_layers(backbone, train, test, backbone.name),
        "random_decoder": [],
        "random": [],
        "pixels": pixel_scores,
        "cnn": score(cnn, test.targets),
    }
    if controls and backbone.reads_images:  # no tokenizer, no decoder
        random = load_backbone(config.backbone, weights="random", all_layers=True)
        result["random"] = probe_layers(random, train, test, "random weights")
    elif controls and backbone.trunk.config.patch:  # there is no tokenizer to be random
        random = with_random_trunk(backbone)
        result["random_decoder"] = probe_layers(random, train, test, "random decoder")
    elif controls:
        random = load_backbone(config.backbone, weights="random", all_layers=True)
        result["random"] = probe_layers(random, train, test, "random weights")
        random.encoder = backbone.encoder  # the trained tokenizer's codes
        result["random_decoder"] = probe_layers(random, train, test, "random decoder")
    best = max(row[read]["r2_image"] for row in result["layers"] for read in row)
    result["best_r2_image"] = best
    return result


def table(result: dict) -> str:
    """Markdown: R^2 of image coordinates, and position error in cm, by layer and read-out."""
    reads = ("mean", "grid", "attention")
    lines = [
        "| features | " + " | ".join(f"{r}: R² image · error" for r in reads) + " |",
        "|---|" + "---|" * len(reads),
    ]

    def row(label: str, scores: dict) -> str:
        cells = [f"{scores[r]['r2_image']:.3f} · {scores[r]['error_cm']:.2f} cm" for r in reads]
        return f"| {label} | " + " | ".join(cells) + " |"

    rows = (
        (result["backbone"], "layers"),
        ("random decoder on its tokens", "random_decoder"),
        ("all weights random", "random"),
    )
    for name, key in rows:
        for i, scores in enumerate(result[key]):
            lines.append(row(f"{name}, layer {i}", scores))
    lines.append(row("raw pixels", result["pixels"]))
    cnn = result["cnn"]
    lines.append(f"| CNN end to end | {cnn['r2_image']:.3f} · {cnn['error_cm']:.2f} cm | | |")
    return "\n".join(lines) + "\n"


def plot(result: dict, path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    panels = (
        ("r2_image", "R² of the cube's image coordinates"),
        ("error_cm", "position error, cm"),
    )
    for axis, (key, title) in zip(axes, panels, strict=True):
        for read, colour in (("attention", "C0"), ("grid", "C1"), ("mean", "C2")):
            for source, style in (("layers", "-o"), ("random_decoder", ":x")):
                if not (values := [row[read][key] for row in result[source]]):
                    continue  # no controls
                name = result["backbone"] if source == "layers" else "random decoder"
                axis.plot(values, style, color=colour, label=f"{name}, {read}", markersize=4)
        axis.axhline(result["cnn"][key], color="black", label="CNN end to end")
        pixels = result["pixels"]["attention"][key]
        axis.axhline(pixels, color="grey", linestyle="--", label="raw pixels, attention")
        axis.set(xlabel="layer (0: token embeddings)", title=title)
    axes[0].set_ylim(-0.1, 1.02)
    axes[0].legend(fontsize=7, ncol=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    check_siblings()
    config = parse(ProbeConfig, sys.argv[1:])
    result = run(config)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "probe.json").write_text(json.dumps(result, indent=1) + "\n")
    (config.out / "probe.md").write_text(table(result))
    plot(result, config.out / "probe.png")
    print(table(result))
    print(f"best R² of image coordinates {result['best_r2_image']:.3f}, CNN "
          f"{result['cnn']['r2_image']:.3f}; written to {config.out}")  # fmt: skip


if __name__ == "__main__":
    main()
