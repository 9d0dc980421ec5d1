"""What a robot gets out of a backbone, layer by layer (paper, Fig. 8 right).

Two commands of the robot's side are run as they are, and their JSON is collected: the read-out of the
cube's position (`python -m toto_robot.probe`, all layers at once), and a policy at each layer
(`python -m toto_robot.rl algo=dagger backbone.layer=k`). Runs are kept in `data=`; what is there
already is not run again, and a policy that was stopped goes on.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.downstream.common import EvaluateConfig, Metric, Result
from pretraining.downstream.features import layers_of
from pretraining.downstream.probes import metric_line
from pretraining.downstream.published import CURVES
from pretraining.pictures import Line, Panel, plot_panels
from toto_robot.backbone import FrozenBackbone
from toto_robot.intervals import wilson_interval

TASK = "robot"
PROBED_ENV = "franka_pick"  # the only task that `probe` films
READS = ("grid", "attention")
# Franka pick, toto-base, success in % after 1 to 12 blocks, read off Fig. 8 right.
PUBLISHED = next(curve for curve in CURVES if curve.task == "robot").values


@dataclass(frozen=True, kw_only=True)
class Config(EvaluateConfig):
    """Read-out of the cube and success of policies, by layer."""

    data: Path = Path("outputs/robot")  # runs are kept here and found again
    env: str = "franka_pick"  # of the policies
    layers: tuple[int, ...] | None = None  # None: all but the embeddings, as in the paper
    seeds: tuple[int, ...] = (0,)  # policies at each layer
    total_steps: int = 160_000  # of each policy; 0: the read-out alone. The paper's figure: 2 M
    frames: int = 3000  # that the read-out learns from; 0: policies alone
    held_out: int = 1000
    rl: str = ""  # more options of toto_robot.rl, with spaces between


def backbone_words(config: Config) -> list[str]:
    """The backbone as options of the robot's commands."""
    words = [f"backbone={config.backbone}"]
    words += [f"backbone.weights={config.weights}"] if config.weights else []
    return words + ([f"backbone.timm_name={config.timm_name}"] if config.timm_name else [])


def call(module: str, words: Sequence[str]) -> None:
    """Run a command, its output shown. ValueError if it fails."""
    command = [sys.executable, "-m", module, *words]
    if code := subprocess.run(command).returncode:
        raise ValueError(f"{' '.join(command)} ended with {code}; its own message is above")


def folder_of(config: Config, backbone: FrozenBackbone, kind: str, words: Sequence[str]) -> Path:
    """The same options and weights have the same folder."""
    key = json.dumps([backbone.weights_hash, *words])
    return config.data / f"{kind}-{backbone.name}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def read_out(config: Config, backbone: FrozenBackbone) -> list[dict[str, Any]]:
    """Scores of every layer from `toto_robot.probe`."""
    words = [*backbone_words(config), f"frames={config.frames}", f"held_out={config.held_out}",
             f"seed={config.seed}", "controls=false"]  # fmt: skip
    folder = folder_of(config, backbone, "probe", words)
    if not (folder / "probe.json").is_file():
        call("toto_robot.probe", [*words, f"out={folder}"])
    return json.loads((folder / "probe.json").read_text())["layers"]


def policy_success(config: Config, backbone: FrozenBackbone, layer: int, seed: int) -> list[bool]:
    """Whether each evaluated episode of a policy succeeded.

    Raises:
        SystemExit: the training was stopped; the same command goes on.
    """
    words = ["algo=dagger", f"env={config.env}", *backbone_words(config), f"backbone.layer={layer}",
             f"seed={seed}", f"total_steps={config.total_steps}", *config.rl.split()]  # fmt: skip
    folder = folder_of(config, backbone, f"{config.env}-layer{layer}-seed{seed}", words)
    if not (folder / "eval.json").is_file():
        begun = (folder / "checkpoints/last").exists()
        place = [f"resume={folder}"] if begun else [*words, f"hydra.run.dir={folder}"]
        call("toto_robot.rl", place)
    if not (folder / "eval.json").is_file():
        raise SystemExit(
            f"layer {layer}, seed {seed} was stopped; the same command goes on with it"
        )
    found = json.loads((folder / "eval.json").read_text())
    wins = round(found["success_rate"] * found["episodes"])
    return [i < wins for i in range(found["episodes"])]


def success(episodes: Sequence[bool]) -> Metric:
    """In percent, over the episodes of all seeds together."""
    wins, count = sum(episodes), len(episodes)
    low, high = wilson_interval(wins, count)
    return Metric(100 * wins / count, 100 * low, 100 * high, count)


def evaluate(config: Config, backbone: FrozenBackbone) -> Result:
    depth = backbone.num_layers
    layers = layers_of(backbone, config.layers or range(1, depth + 1))
    rows: dict[int, dict[str, Metric]] = {layer: {} for layer in layers}
    if config.total_steps:
        for layer in layers:
            runs = [policy_success(config, backbone, layer, seed) for seed in config.seeds]
            rows[layer]["success_%"] = success([win for run in runs for win in run])
    if config.frames:
        read = read_out(config, backbone)
        for layer in layers:
            for name in READS:
                rows[layer][f"cube_{name}_R2"] = Metric(read[layer][name]["r2_image"])
    if not all(rows.values()):
        raise ValueError("total_steps=0 and frames=0 leave nothing to do")
    first = next(iter(rows[layers[0]]))
    best = max(layers, key=lambda layer: rows[layer][first].value)
    folder = config.folder(TASK)
    folder.mkdir(parents=True, exist_ok=True)
    plot(rows, config, backbone, folder / "layers.png")
    return Result(
        task=TASK,
        metrics=rows[best],
        layers=list(rows.values()),
        best_layer=best,
        files=["layers.png"],
        notes=["untrained weights"] if backbone.untrained else [],
        extra={
            "layer_numbers": layers,
            "env": config.env,
            "probed_env": PROBED_ENV,
            "seeds": list(config.seeds),
            "total_steps": config.total_steps,
        },
    )


def plot(
    rows: dict[int, dict[str, Metric]], config: Config, backbone: FrozenBackbone, path: Path
) -> None:
    """A panel for success, with the published curve at its share of the depth, and one for R²."""
    panels, layers = [], list(rows)
    names = list(rows[layers[0]])
    if "success_%" in names:
        found = [rows[layer]["success_%"] for layer in layers]
        lines = [metric_line(backbone.name, layers, found)]
        if config.env == PROBED_ENV:
            places = [(i + 1) / len(PUBLISHED) * backbone.num_layers for i in range(len(PUBLISHED))]
            label = "published: toto-base, 12 layers, 2 M steps"
            lines.append(Line(label=label, x=places, y=PUBLISHED, style="D--C7"))
        title = f"{config.env}: success of policies, 95 %"
        panels.append(Panel(title=title, x="layer", y="success, %", lines=lines))
    if reads := [name for name in names if name.endswith("R2")]:
        lines = [
            Line(label=name, x=layers, y=[rows[layer][name].value for layer in layers], style="o-")
            for name in reads
        ]
        title = "cube in the image, linear and attentive read-out"
        panels.append(Panel(title=title, x="layer", y="R²", lines=lines))
    plot_panels(panels, path)
