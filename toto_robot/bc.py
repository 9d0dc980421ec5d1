"""Behaviour cloning: `python -m toto_robot.bc data=demos.hdf5 backbone=toto-tiny algo=bc`.

Features of the demonstrations are made once per frame and kept beside the file; robomimic trains on
them. The same command goes on after Ctrl-C or a kill, from the last finished epoch, with the same
numbers as if it had not been stopped.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `toto_robot.rl`

import numpy as np
import torch
from tqdm import tqdm

import envs
from envs.spec import TARGETS, robot_of
from policies.bc_policy import (
    BCPolicy,
    action_range,
    action_step,
    future_targets,
    measured,
    normalise,
)
from policies.demonstrations import DemonstrationFile
from policies.evaluation import evaluate
from policies.feature_cache import FeatureCache, write_training_file
from policies.policy import BackboneRecord, BCRecord, PolicySpec
from policies.robomimic_bc import (
    MODEL,
    PROPRIO,
    BCHyper,
    make_algo,
    make_config,
    make_dataset,
    save_algo,
    set_learning_rate,
    train_batch,
)
from toto_robot._siblings import check_siblings
from toto_robot.backbone import load_backbone
from toto_robot.backbone.weights import nearest
from toto_robot.cli import parse
from toto_robot.episodes import episode_names
from toto_robot.runs import (
    Metrics,
    StopSignal,
    plot_success,
    read_metrics,
    success_report,
    write_environment,
    write_json,
    write_text,
)

# mvp-real: pixmc.md section 5. rpt: paper.md 9.7; robomimic's transformer is causal and its MLP ratio
# is 4, not 2, so it has about twice the parameters.
PRESETS = {
    "chunk": BCHyper(),
    "mvp-real": BCHyper(pool="mean", hidden=(256, 128, 64), chunk=1),
    "rpt": BCHyper(
        algo="bc_transformer", pool="mean", context=16, hidden=(), learning_rate=4e-4
    ),
}  # fmt: skip
ALGOS = {"bc": {"context": 1}, "bc_rnn_gmm": {"context": 10, "chunk": 1},
         "bc_transformer": {"context": 16}}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """Behaviour cloning from demonstrations, on frozen features."""

    data: Path
    out: Path | None = None  # None: runs/bc/<data>_<backbone>_<preset>_<seed>
    preset: str = "chunk"  # chunk, mvp-real, rpt
    algo: str | None = None  # bc, bc_rnn_gmm, bc_transformer; None: the preset's
    backbone: str = "toto-tiny"  # pixels: of the frames themselves; cnn: end to end
    weights: str | None = field(default=None, metadata={"alias": "backbone.weights"})
    layer: int | None = field(default=None, metadata={"alias": "backbone.layer"})
    readout: str = field(default="grid", metadata={"alias": "backbone.readout"})
    grid: int = field(default=8, metadata={"alias": "backbone.grid"})
    predicts: Literal["targets", "actions"] = (
        "targets"  # joint targets ahead, or the actions' steps
    )
    n: int | None = None  # demonstrations, the first of the file; None: all
    cache: Path | None = None  # None: <data>.features
    epochs: int = 50
    steps_per_epoch: int = 200
    replan_every: int = 2  # control steps that are played of a plan
    eval_every: int = 10  # epochs between evaluations in the simulator; 0: none
    eval_episodes: int = 16
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, given, known in (("preset", self.preset, PRESETS), ("algo", self.algo, ALGOS)):
            if given is not None and given not in known:
                raise SystemExit(f"{name}={given}: expected one of {', '.join(known)}."
                                 f"{nearest(given, known)}")  # fmt: skip
        for name in ("epochs", "steps_per_epoch", "replan_every", "eval_episodes"):
            if getattr(self, name) < 1:
                raise SystemExit(f"{name}={getattr(self, name)}: expected at least 1")

    @property
    def hyper(self) -> BCHyper:
        preset = PRESETS[self.preset]
        if self.algo is None or self.algo == preset.algo:
            return preset
        return replace(preset, algo=self.algo, **ALGOS[self.algo])

    @property
    def folder(self) -> Path:
        name = f"{self.data.stem}_{self.backbone}_{self.preset}_{self.seed}"
        return self.out or Path("runs/bc") / name


def chunks(actions: np.ndarray, length: int) -> np.ndarray:
    """[T, A] -> the next `length` actions at each step, [T, length * A]; the last one repeats."""
    steps = np.arange(len(actions))[:, None] + np.arange(length)
    return actions[steps.clip(max=len(actions) - 1)].reshape(len(actions), -1)


def labels_of(config: BCConfig, demo: Any, options: Mapping[str, Any]) -> np.ndarray:
    """What the network learns to say at each step, in the units of the task: [T, A] or [T, K * A]."""
    if config.predicts == "actions":
        return demo.actions
    if TARGETS not in demo.columns:
        raise ValueError(
            f"{config.data} holds no joint targets, which predicts=targets learns from: record it "
            "again, or use predicts=actions"
        )
    env = options["env"]
    joints = measured(demo.vectors[PROPRIO], robot_of(env))
    step = action_step(env, options["control_rate_hz"])
    return future_targets(demo.columns[TARGETS], demo.actions, joints, step, config.hyper.chunk)


def prepare(config: BCConfig, backbone: Any) -> tuple[PolicySpec, Path, dict[str, Any]]:
    """The training file in the run folder, and what the policy will say of itself."""
    cache = FeatureCache(
        config.cache or config.data.with_name(config.data.name + ".features"), backbone
    )
    hyper, rows = config.hyper, []
    with DemonstrationFile(config.data) as file:
        names, options, env_args = file.names()[: config.n], file.about["options"], file.env_args
        for name in tqdm(names, desc="features", unit="demo"):
            demo = file.read(name)
            rows.append((demo, {c: cache.file(image) for c, image in demo.images.items()}))
    labels = [labels_of(config, demo, options) for demo, _ in rows]
    low, high = action_range(np.concatenate(labels))
    inner = [normalise(label, *map(np.array, (low, high))) for label in labels]
    if config.predicts == "actions":
        inner = [chunks(label, hyper.chunk) for label in inner]
    demos: list[Mapping[str, Any]] = [
        {
            "actions": label.clip(-1, 1).astype(np.float32),
            f"obs/{PROPRIO}": demo.vectors[PROPRIO],
            **{f"obs/{camera}": path for camera, path in files.items()},
        }
        for label, (demo, files) in zip(inner, rows, strict=True)
    ]  # fmt: skip
    path = config.folder / "train.hdf5"
    write_training_file(path, demos, range(9, len(demos), 10), env_args)
    cameras, (first, _) = list(rows[0][1]), rows[0]
    policy = PolicySpec(
        env=options["env"], obs="pixels", num_obs=0,
        num_states=first.vectors[PROPRIO].shape[1], num_actions=first.actions.shape[1],
        feature_shape=list(backbone.feature_shape), image_size=options["image_size"],
        camera=cameras[0], backbone=record_of(config, backbone), algo=hyper.algo,
        env_steps=sum(len(demo) for demo, _ in rows), control_rate_hz=options["control_rate_hz"],
        task={"visuals": options.get("visuals", "fixed")},
        bc=BCRecord(cameras, hyper.chunk, hyper.context,
                    min(config.replan_every, hyper.chunk), low, high, config.predicts,
                    largest_action=float(max(abs(demo.actions).max() for demo, _ in rows))),
    )  # fmt: skip
    return policy, path, env_args


def record_of(config: BCConfig, backbone: Any) -> BackboneRecord:
    return BackboneRecord(
        name=backbone.name, weights_hash=backbone.weights_hash, weights=config.weights,
        layer=getattr(backbone, "layer", None), readout=config.readout, grid=config.grid,
        untrained=bool(backbone.untrained), trainable=bool(getattr(backbone, "trainable", False)),
    )  # fmt: skip


class Run:
    """The run folder: `checkpoints/last` after each epoch, `best` by success in the simulator."""

    def __init__(self, config: BCConfig, backbone: Any):
        self.config, self.folder = config, config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check_same()
        self.spec, path, self.env_args = prepare(config, backbone)
        assert self.spec.bc is not None
        raw = bool(getattr(backbone, "trainable", False))
        self.shapes = {PROPRIO: [self.spec.num_states]} | {
            camera: list(backbone.feature_shape) for camera in self.spec.bc.cameras
        }
        torch.manual_seed(config.seed)
        self.robomimic = make_config(config.hyper, self.spec.bc.cameras, raw)
        outputs = self.spec.bc.chunk * self.spec.num_actions
        self.algo = make_algo(self.robomimic, self.shapes, outputs, config.device)
        self.dataset = make_dataset(path, self.robomimic, self.shapes, "train")
        self.policy = BCPolicy(self.algo, self.spec, backbone)
        self.epoch, self.best = 0, -1.0
        self.resume()

    def check_same(self) -> None:
        """SystemExit if the folder holds a run with other options."""
        path = self.folder / "config.yaml"  # JSON is YAML
        free = ("out", "device", "cache")
        text = json.dumps({k: str(v) for k, v in asdict(self.config).items() if k not in free},
                          indent=2) + "\n"  # fmt: skip
        if path.exists() and path.read_text() != text:
            raise SystemExit(f"{self.folder} holds a run with other options; choose another out=")
        write_text(path, text)
        write_environment(self.folder / "env.txt")

    def resume(self) -> None:
        state = self.folder / "checkpoints/last/training.pt"
        if state.exists():
            saved = torch.load(state, weights_only=True)
            self.algo.deserialize(saved["nets"])
            self.algo.optimizers["policy"].load_state_dict(saved["optimizer"])
            self.epoch, self.best = saved["epoch"], saved["best"]
            print(f"going on after epoch {self.epoch}")

    def save(self, name: str) -> None:
        folder = self.folder / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_algo(folder / MODEL, self.algo, self.robomimic, self.env_args, self.shapes)
        write_json(folder / "policy.json", asdict(self.spec))

    def save_training(self) -> None:
        self.save("last")
        path = self.folder / "checkpoints/last/training.pt"
        torch.save(
            {"nets": self.algo.serialize(), "epoch": self.epoch, "best": self.best,
             "optimizer": self.algo.optimizers["policy"].state_dict()},
            path.with_suffix(".part"),
        )  # fmt: skip
        path.with_suffix(".part").replace(path)

    def train_epoch(self) -> float:
        """Mean loss. Batches and dropout depend on (seed, epoch) alone."""
        config = self.config
        torch.manual_seed(config.seed * 100_003 + self.epoch)
        count = config.steps_per_epoch * config.hyper.batch_size
        sampler = torch.utils.data.RandomSampler(self.dataset, replacement=True, num_samples=count)
        loader = torch.utils.data.DataLoader(
            self.dataset, batch_size=config.hyper.batch_size, sampler=sampler
        )
        set_learning_rate(self.algo, config.hyper, self.epoch, config.epochs)
        losses = [train_batch(self.algo, batch, self.epoch) for batch in loader]
        self.epoch += 1
        return float(np.mean(losses))

    def try_out(self, keep_going: Callable[[], bool]) -> list[Any]:
        """A few episodes in the simulator, each time the same."""
        assert self.spec.bc is not None
        cameras = self.spec.bc.cameras
        task = envs.make(
            task=self.spec.env, num_envs=min(16, self.config.eval_episodes), sim_device="cpu",
            seed=0, obs="pixels", image_size=self.spec.image_size,
            control_rate_hz=self.spec.control_rate_hz,
            camera=cameras[0] if len(cameras) == 1 else tuple(cameras), **self.spec.task,
        )  # fmt: skip
        try:
            # Names that `evaluate` never plays, or the choice of the best would be by the test.
            names = episode_names(500_009 + self.config.seed, self.config.eval_episodes, 1)
            return evaluate(self.policy, task, names, keep_going=keep_going)
        finally:
            task.close()


def train(run: Run, stop: StopSignal) -> None:
    config, path = run.config, run.folder / "metrics.jsonl"
    metrics = Metrics(path, run.epoch * config.steps_per_epoch if path.exists() else None)
    bar = tqdm(total=config.epochs, initial=run.epoch, unit="epoch", desc="training")
    while run.epoch < config.epochs and not stop.requested:
        began = time.perf_counter()
        loss = run.train_epoch()
        speed = config.steps_per_epoch / (time.perf_counter() - began)
        row: dict[str, Any] = {"steps": run.epoch * config.steps_per_epoch, "loss": loss,
                               "steps_per_s": speed, "encodes_per_step": 0.0,
                               "episode_return": None, **success_report([])}  # fmt: skip
        last = run.epoch == config.epochs
        if config.eval_every and (last or run.epoch % config.eval_every == 0):
            episodes = run.try_out(lambda: not stop.requested)
            if len(episodes) < config.eval_episodes:
                run.epoch -= 1  # stopped: going on learns this epoch again and tries it out
                break
            row |= success_report([float(e.success) for e in episodes])
            row["episode_return"] = float(np.mean([e.episode_return for e in episodes]))
            score = float(np.mean([e.success + e.at_end for e in episodes]))
            if score >= run.best:
                run.best = score
                run.save("best")
        elif last:
            run.save("best")
        run.save_training()
        metrics.append(row)
        bar.update()
        bar.set_postfix(loss=f"{loss:.4f}", success=row["success_rate"])
    bar.close()
    metrics.close()
    plot_success(run.folder / "success.png", read_metrics(path), f"{run.spec.env}, {run.spec.algo}")


def main() -> None:
    """Entry point of `python -m toto_robot.bc`."""
    check_siblings()
    config = parse(BCConfig, sys.argv[1:])
    try:
        backbone = load_backbone(
            config.backbone, weights=config.weights, layer=config.layer, readout=config.readout,
            grid=config.grid, device=config.device,
        )  # fmt: skip
        run = Run(config, backbone)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from None
    with StopSignal() as stop:
        train(run, stop)
    if run.epoch < config.epochs:
        raise SystemExit(f"stopped after epoch {run.epoch}; the same command goes on")
    print(f"{run.folder}: python -m toto_robot.evaluate run={run.folder}")


if __name__ == "__main__":
    main()
