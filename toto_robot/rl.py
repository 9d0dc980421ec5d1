"""Train a policy: `python -m toto_robot.rl env=franka_pick backbone=toto-tiny`.

Camera frames (or state) -> frozen features, made once -> a learner (`algo=ppo`, `dagger`,
`dagger+ppo`, `ppo-gpu`); then evaluation and film.
`resume=<run folder>` goes on with a run; Ctrl-C saves and says how. `-m seed=0,1,2,3,4` makes many
(`sweeps.py`). All options: `conf.py`.
"""

import logging
import math
import os
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from toto_robot._siblings import check_siblings

check_siblings()
# Waiting OpenMP threads must not spin: physics, rendering and neighbours want the cores (measured
# on 2 busy cores, 2 threads: 3,600 steps/s instead of 650). Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402
from tqdm import tqdm  # noqa: E402

from envs.gl import RenderingUnavailableError  # noqa: E402
from envs.physics import check_device  # noqa: E402
from envs.rendering import renderer_name  # noqa: E402
from policies.checkpoint import load_checkpoint, load_progress, save_checkpoint  # noqa: E402
from policies.learner import Learner, Summary  # noqa: E402
from policies.policy import PolicySpec  # noqa: E402
from toto_robot.build import (  # noqa: E402
    check_learner,
    describe_policy,
    load_frozen,
    make_learner,
    make_task,
    set_threads,
)
from toto_robot.conf import ALGOS, RLConfig, as_plain, fail, register  # noqa: E402
from toto_robot.evaluate import evaluate_best  # noqa: E402
from toto_robot.overrides import complete_overrides, to_config  # noqa: E402
from toto_robot.runs import (  # noqa: E402
    Metrics,
    StopSignal,
    keep_freed_memory,
    plot_success,
    read_metrics,
    success_report,
    write_environment,
    write_text,
)
from toto_robot.subject import UNTRAINED, chosen_checkpoint, first_part  # noqa: E402
from toto_robot.sweeps import (  # noqa: E402
    complete_sweep,
    forget,
    is_begun,
    is_finished,
    is_sweep,
    run_job,
    summarise,
    sweep_dir_of,
)

CHECKPOINT_EVERY_S = 30.0
# Of these a user reads one line: a wrong option, a file or package that is not there.
MENDABLE = (
    ValueError, FileNotFoundError, FileExistsError, ImportError, RenderingUnavailableError,
)  # fmt: skip


def main() -> None:
    """Entry point of `python -m toto_robot.rl` and of `toto-rl`."""
    register()
    words = sys.argv[1:]
    sweep = is_sweep(words)
    try:
        sys.argv[1:] = complete_sweep(words) if sweep else complete_overrides(words)
    except ValueError as error:
        fail(error)
    if not sweep:
        _hydra_main()  # pyright: ignore[reportCallIssue]
        return
    with StopSignal():  # jobs in other processes get the signal as well, and save
        _hydra_main()  # pyright: ignore[reportCallIssue]
    raise SystemExit(summarise(sweep_dir_of(sys.argv[1:])))


@hydra.main(version_base=None, config_path=None, config_name="rl")
def _hydra_main(composed: DictConfig) -> None:
    keep_freed_memory()
    folder = Path(HydraConfig.get().runtime.output_dir)
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run_job(folder, to_config(composed), lambda c: train(c, folder, *prepare(c, folder)))
        return
    try:
        config = to_config(composed)
        parts = prepare(config, folder)
    except MENDABLE as error:
        fail(error)
    train(config, folder, *parts)


def prepare(config: RLConfig, folder: Path) -> tuple[Any, str]:
    """Backbone and renderer's name; whatever the user can mend is raised here, before any work."""
    check_device("env.sim_device", config.env.sim_device)
    backbone = load_frozen(config)
    check_learner(config, backbone)
    run_dir_is_free(folder, config)
    return backbone, find_renderer(config)


def train(config: RLConfig, folder: Path, backbone: Any, gl_renderer: str = "unknown") -> bool:
    """The whole run. `backbone`: a FrozenBackbone, None for obs=state. Writes into `folder`.
    False if a signal stopped it."""
    set_threads(config.threads)
    if config.algo != "dagger+ppo":
        return train_part(config, folder, backbone, gl_renderer)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(as_plain(config)))
    for part, place in parts_of(config, folder):
        done = is_finished(part, place)
        if not done and not train_part(part, place, backbone, gl_renderer, go_on=folder):
            return False
    return True


def parts_of(config: RLConfig, folder: Path) -> list[tuple[RLConfig, Path]]:
    """algo=dagger+ppo as two runs: DAgger in `folder/dagger`, then PPO from its policy in
    `folder/ppo`. What has a checkpoint is resumed."""
    parts = []
    for algo, more in (
        ("dagger", {"total_steps": config.dagger.first_steps}),
        ("ppo", {"init": str(folder / "dagger/checkpoints/last")}),
    ):
        place = folder / algo
        resume = str(place) if is_begun(place) else None
        if resume is None:
            forget(place)
        part = replace(deepcopy(config), algo=algo, resume=resume, **more)  # type: ignore[arg-type]
        parts.append((part, place))
    return parts


def train_part(
    config: RLConfig,
    folder: Path,
    backbone: Any,
    gl_renderer: str = "unknown",
    go_on: Path | None = None,
) -> bool:
    """One learner from beginning to evaluation. False if stopped; `go_on` is what to resume then."""
    stamp = UNTRAINED if backbone is not None and backbone.untrained else ""
    last = folder / "checkpoints/last"
    progress = load_progress(last) if config.resume else {"steps": 0, "best": [-1.0, -1e30]}

    task = make_task(config, config.seed + progress["steps"], config.num_envs or 1, training=True)
    policy_spec = describe_policy(config, task, backbone)
    learner = make_learner(config, folder, task, backbone, policy_spec)
    if config.resume:
        load_checkpoint(last, learner, backbone)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(as_plain(config)))
    write_environment(folder / "env.txt", gl_renderer=gl_renderer)

    round_steps = task.num_envs * task.max_episode_length
    finished = learn(config, folder, learner, policy_spec, progress, stamp, round_steps)
    task.close()
    title = f"{config.env.name}, {backbone.name if backbone else 'state'}, seed {config.seed}"
    plot_success(folder / "success.png", read_metrics(folder / "metrics.jsonl"), title, stamp)
    if finished:
        chosen = chosen_checkpoint(folder, config.algo)
        done = evaluate_best(config, folder, chosen, backbone, stamp)
        if not done and go_on is not None:
            print(f"or, with what comes after it:\n  python -m toto_robot.rl resume={go_on}")
        return done
    print(f"Stopped at {learner.num_timesteps:,} steps; all is saved. To go on:")
    print(f"  python -m toto_robot.rl resume={go_on or folder}")
    return False


def learn(
    config: RLConfig,
    folder: Path,
    learner: Learner,
    policy_spec: PolicySpec,
    progress: dict[str, Any],
    stamp: str,
    round_steps: int,
) -> bool:
    """Iterate the learner up to `total_steps`, reporting and saving. False if stopped by a signal.

    No checkpoint is called the best within `round_steps` of a start: short episodes end first, and
    where success cuts them they are successes all.
    """
    settled = learner.num_timesteps + round_steps
    total_steps, last = config.total_steps or 0, folder / "checkpoints/last"
    metrics = Metrics(folder / "metrics.jsonl", progress["steps"] if config.resume else None)
    board = SummaryWriter(str(folder / "tensorboard"), purge_step=learner.num_timesteps)
    bar = tqdm(
        total=total_steps,
        initial=learner.num_timesteps,
        unit="step",
        smoothing=0.05,
        mininterval=0.5,
    )
    finished, saved_s = True, -math.inf
    with StopSignal() as stop:

        def on_step() -> bool:
            bar.update(learner.num_timesteps - bar.n)
            return not stop.requested

        learner.start(total_steps, on_step)
        while learner.num_timesteps < total_steps:
            steps_before, started_s = learner.num_timesteps, time.monotonic()
            finished = learner.iterate()
            if not finished:
                break
            now_s = time.monotonic()
            rate = (learner.num_timesteps - steps_before) / (now_s - started_s)
            summary = learner.summary()
            report = make_report(learner.num_timesteps, summary, rate, stamp)
            metrics.append(report)
            write_board(board, report, summary.numbers)
            bar.set_postfix_str(describe(report))
            score = score_of(report)
            settling = learner.num_timesteps < settled
            if score is not None and not settling and score > progress["best"]:
                progress["best"] = score
                save_checkpoint(folder / "checkpoints/best", learner, policy_spec, progress)
            if now_s - saved_s > CHECKPOINT_EVERY_S:
                save_checkpoint(last, learner, policy_spec, progress)
                saved_s = now_s
    save_checkpoint(last, learner, policy_spec, progress)
    for thing in (bar, metrics, board):
        thing.close()
    return finished and not stop.requested  # asked for in the last update, say


def find_renderer(config: RLConfig) -> str:
    """What draws, for the record. Raises RenderingUnavailableError now rather than at the film."""
    if config.obs == "state" and not config.film_episodes:
        return "not used"
    return renderer_name()


def run_dir_is_free(folder: Path, config: RLConfig) -> None:
    """Raises FileExistsError / FileNotFoundError unless the folder suits a new or resumed run."""
    if config.resume is None:
        parts = {first_part(folder, algo) for algo in ALGOS}
        if any((part / "metrics.jsonl").exists() for part in parts):
            raise FileExistsError(
                f"{folder} holds a run already: continue it with resume={folder}, or choose "
                "another hydra.run.dir"
            )
        return
    if Path(config.resume).resolve() != folder.resolve():
        raise ValueError(
            f"a resumed run goes on in its own folder: leave out hydra.run.dir (got {folder})"
        )
    saved = OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "algo", default=config.algo)
    if saved != config.algo:
        raise ValueError(
            f"{folder} is a run of algo={saved}: resume= goes on with that; algo={config.algo} from "
            f"its policy is init={folder / 'checkpoints/last'}"
        )
    first = first_part(folder, config.algo)
    if not is_begun(first):
        raise FileNotFoundError(f"nothing to resume: {first / 'checkpoints/last'} is missing")


def make_report(steps: int, summary: Summary, rate: float, stamp: str) -> dict[str, Any]:
    """One line of metrics.jsonl; success and return over the last 200 finished episodes."""
    returns = summary.returns
    return {
        "steps": steps,
        **success_report(summary.successes),
        "episode_return": sum(returns) / len(returns) if returns else None,
        "steps_per_s": round(rate, 1),
        "encodes_per_step": round(summary.encodes_per_step, 4),
        "time_s": round(time.time(), 1),
        **({"note": stamp} if stamp else {}),
    }


def score_of(report: dict[str, Any]) -> list[float] | None:
    """What `best` is chosen by: success rate in steps of 5 %, then return. None before 20
    episodes have ended. Finer steps would crown one lucky episode in 200 (seen: it kept a policy
    with a quarter of the later return)."""
    if report["episodes"] < 20:
        return None
    return [round(report["success_rate"] * 20) / 20, report["episode_return"]]


def describe(report: dict[str, Any]) -> str:
    """The words of the progress bar."""
    if report["success_rate"] is None:
        return "no episode finished yet"
    return (
        f"success {report['success_rate']:.0%} [{report['success_low']:.0%}, "
        f"{report['success_high']:.0%}], return {report['episode_return']:.1f}"
    )


def write_board(board: SummaryWriter, report: dict[str, Any], losses: dict[str, float]) -> None:
    numbers = {f"rollout/{k}": v for k, v in report.items() if isinstance(v, (int, float))}
    for name, value in {**numbers, **losses}.items():
        board.add_scalar(name, value, report["steps"])


if __name__ == "__main__":
    main()
