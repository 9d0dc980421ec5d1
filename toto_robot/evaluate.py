"""Test trained policies: `python -m toto_robot.evaluate run=<run folder> shift=none,light,colour`.

Deterministic policy, fresh seeds, 200 episodes by default; success once (PixMC's) and at the end,
with Wilson intervals, for each evaluation seed too; a film and a contact sheet of some successes
and some failures. `shift=` tests under changes of looks that named suites make (`envs.levels`; `none`:
the looks of the training; `fixed`: plain ones): the same episodes, other looks, one row each. Finished episodes are kept at once in
`eval_episodes.jsonl`: after Ctrl-C the same command goes on.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_robot._siblings import check_siblings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `toto_robot.rl`

from tqdm import tqdm

from envs.levels import ALL, SHIFTS, VISUAL_LEVELS
from policies.evaluation import Episode, Name, evaluate
from policies.film import EpisodeFilm, picture_grid
from policies.policy import load_policy
from toto_robot.build import pick_device
from toto_robot.cli import parse
from toto_robot.conf import (
    RLConfig,
    check_choice,
    fail,
    register,
)
from toto_robot.episodes import (
    EpisodeLog,
    choose_filmed,
    episode_names,
    summarise,
)
from toto_robot.runs import StopSignal, write_json
from toto_robot.subject import NONE, Subject, subject_of_policy, subject_of_run

EVERY = "every"
SUITES = (NONE, *SHIFTS, ALL)
LOOKS = ("fixed", *VISUAL_LEVELS)  # whatever those of the training were
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} episodes [{elapsed}<{remaining}{postfix}]"
REFRESH_EVERY = 20  # control steps
CHECKPOINTS = ("auto", "best", "last")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Test trained policies on fresh episodes. Several runs, policies, shifts: joined by commas."""

    run: tuple[str, ...] = ()  # run folders
    policy: tuple[str, ...] = ()  # policy folders, for example <run>/checkpoints/best
    # none, light, colour, camera, distractors, all; or every. Also fixed, mild, strong.
    shift: tuple[str, ...] = (NONE,)
    episodes: int = 200
    seeds: int = 4  # evaluation seeds that the episodes are spread over
    num_envs: int | None = (
        None  # worlds at a time; None: 64 from state, 16 from pixels, 256 on a GPU
    )
    stop_at_success: bool = False  # end an episode there: a third of the time, same success once
    film_episodes: int = 4  # 0: neither film nor contact sheet
    out: Path | None = None  # where results go; None: into the run or policy folder
    checkpoint: str = "auto"  # of a run: best or last; auto: as at the end of its training
    device: str = "auto"
    sim_device: str | None = None  # cpu or cuda; None: as in the training, cpu for policy=
    fresh: bool = False  # play episodes again that are there already

    def __post_init__(self) -> None:
        for shift in self.shift:
            valid = (*SUITES, *LOOKS, EVERY)
            if shift not in valid and not set(shift.split("+")) <= set(SHIFTS):
                check_choice("shift", shift, valid)
        check_choice("checkpoint", self.checkpoint, CHECKPOINTS)
        for name, least in (("episodes", 1), ("seeds", 1), ("num_envs", 1), ("film_episodes", 0)):
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(f"{name}={given}: expected at least {least}")
        given = len(self.run) + len(self.policy)
        if not given:
            raise ValueError("give run=<run folder>, or policy=<policy folder>")
        if self.out is not None and given > 1:
            raise ValueError(f"out={self.out} takes the results of one policy, {given} are given")

    @property
    def shifts(self) -> tuple[str, ...]:
        """In order; `every` stands for all suites."""
        named = [SUITES if shift == EVERY else (shift,) for shift in self.shift]
        return tuple(dict.fromkeys(itertools.chain(*named)))


def evaluate_best(
    config: RLConfig, folder: Path, checkpoint: Path, backbone: Any, stamp: str
) -> bool:
    """`eval.json`, `eval.mp4`, `eval.png`: the deterministic policy of `checkpoint`, fresh seeds.
    False if a signal stopped it."""
    policy = load_policy(checkpoint, backbone, pick_device(config))
    subject = Subject(
        folder, checkpoint, policy, config.env.name, config.task_options(),
        config.env.sim_device, config.seed,
    )  # fmt: skip
    plan = EvaluateConfig(
        policy=(str(checkpoint),),
        episodes=config.eval_episodes or 1,
        stop_at_success=bool(config.eval_stop_at_success),
        film_episodes=config.film_episodes,
    )
    print(f"Evaluating {checkpoint} for {plan.episodes} episodes on fresh seeds …")
    with StopSignal() as stop:
        row = run_suite(subject, NONE, plan, lambda: not stop.requested)
    if row is None:
        print(f"Stopped; finished episodes are kept. To go on:\n"
              f"  python -m toto_robot.evaluate run={folder} episodes={plan.episodes}"
              f" stop_at_success={str(plan.stop_at_success).lower()}")  # fmt: skip
        return False
    print(describe(row))
    print(f"All results: {folder}")
    return True


def run_suite(
    subject: Subject, shift: str, plan: EvaluateConfig, keep_going: Callable[[], bool]
) -> dict[str, Any] | None:
    """Play what is missing of one suite and write it up. None if stopped before it was complete."""
    log = EpisodeLog(subject.folder / "eval_episodes.jsonl")
    suite = subject.suite(shift, plan.stop_at_success)
    names = episode_names(subject.seed, plan.episodes, plan.seeds)
    if plan.fresh:
        log.forget(suite)
    kept = log.finished(suite, names)
    if kept:
        print(f"{len(kept)} of {len(names)} episodes are there already (fresh=true plays anew)")
    missing = [name for name in names if name not in {e.name for e in kept}]
    if missing:
        play(subject, shift, plan, missing, keep_going, lambda e: log.add(suite, e), kept)
    episodes = log.finished(suite, names)
    if len(episodes) < len(names):
        return None
    row = write_up(subject, shift, plan, episodes)
    film = subject.folder / f"eval{suffix(shift)}.mp4"
    if plan.film_episodes and (missing or not film.exists()):
        film_episodes(subject, shift, film, choose_filmed(episodes, plan.film_episodes), keep_going)
    return row


def play(
    subject: Subject,
    shift: str,
    plan: EvaluateConfig,
    names: list[Name],
    keep_going: Callable[[], bool],
    on_episode: Callable[[Episode], object],
    kept: list[Episode],
) -> None:
    """Play `names`, with a progress bar over all episodes of the suite."""
    num_envs = min(plan.num_envs or subject.num_envs, len(names))
    task = subject.make_task(shift, num_envs, plan.stop_at_success)
    wins, steps, ended = sum(e.success for e in kept), 0, len(kept)
    title, total = f"{subject.env}, {shift}", len(kept) + len(names)
    with tqdm(total=total, initial=ended, desc=title, bar_format=BAR) as bar:

        def watch(_: object) -> None:
            nonlocal steps
            steps += task.num_envs
            if steps // task.num_envs % REFRESH_EVERY == 0:
                # Parts of episodes count too, or the bar would stand still for a whole one.
                parts = (task.progress_buf / task.max_episode_length).sort(descending=True)[0]
                bar.n = ended + float(parts[: total - ended].sum())
                speed = steps / max(bar.format_dict["elapsed"], 1e-3)
                bar.set_postfix_str(f"success {wins} of {ended}, {speed:,.0f} steps/s")

        def on_end(episode: Episode) -> None:
            nonlocal wins, ended
            wins, ended = wins + episode.success, ended + 1
            on_episode(episode)

        try:
            evaluate(subject.policy, task, names, watch, on_end, keep_going)
            bar.n = ended
            bar.set_postfix_str(f"success {wins} of {ended}")
        finally:
            task.close()


def write_up(
    subject: Subject, shift: str, plan: EvaluateConfig, episodes: list[Episode]
) -> dict[str, Any]:
    """One row of `eval_shifts.json`; without a shift `eval.json`, and a row only beside others."""
    spec = subject.policy.spec
    record = spec.backbone
    row = {
        "shift": shift,
        **summarise(episodes, spec.control_rate_hz, plan.stop_at_success),
        "seed": episodes[0].seed,
        "env_steps": spec.env_steps,
        "env": subject.env,
        "algo": spec.algo,
        "obs": spec.obs,
        "backbone": record.name if record else None,
        "weights_hash": record.weights_hash if record else None,
        "untrained_backbone": bool(subject.stamp),
        "checkpoint": os.path.relpath(subject.checkpoint, subject.folder),
        "policy_hash": subject.policy_hash,
    }
    if shift == NONE:
        write_json(subject.folder / "eval.json", row)
    rows = {r["shift"]: r for r in earlier_rows(subject)} | {shift: row}
    order = {name: i for i, name in enumerate(SUITES)}
    if len(rows) > 1 or shift != NONE:
        ordered = sorted(rows.values(), key=lambda r: order.get(r["shift"], len(order)))
        write_json(subject.folder / "eval_shifts.json", {"rows": ordered})
    return row


def earlier_rows(subject: Subject) -> list[dict[str, Any]]:
    """Results of the same policy that are there already."""
    alone, table = (subject.folder / name for name in ("eval.json", "eval_shifts.json"))
    rows = json.loads(table.read_text())["rows"] if table.exists() else []
    if alone.exists() and "policy_hash" in (row := json.loads(alone.read_text())):
        rows.append(row)
    return [r for r in rows if r["policy_hash"] == subject.policy_hash]


def suffix(shift: str) -> str:
    return "" if shift == NONE else f"_{shift.replace('+', '_')}"


def film_episodes(
    subject: Subject, shift: str, path: Path, names: list[Name], keep_going: Callable[[], bool]
) -> None:
    """The named episodes again, third person and wrist camera side by side; film and stills."""
    print(f"Filming {len(names)} of them …")
    task = subject.make_task(shift, len(names))
    partial = path.with_suffix(".part.mp4")
    rate_hz = subject.policy.spec.control_rate_hz
    try:
        with EpisodeFilm(partial, task, len(names), rate_hz=rate_hz, stamp=subject.stamp) as film:
            finished = evaluate(subject.policy, task, names, film, keep_going=keep_going)
            if len(finished) == len(names):
                by_name = {e.name: e for e in finished}
                film.finish({slot: by_name[name] for slot, name in enumerate(names)})
                film.contact_sheet(path.with_suffix(".png"))
        if len(finished) == len(names):
            partial.replace(path)
    finally:
        task.close()
        partial.unlink(missing_ok=True)


def picture_shifts(subject: Subject, shifts: tuple[str, ...], plan: EvaluateConfig) -> None:
    """`eval_shifts.png`: how the first episodes begin under each shift, a row each."""
    names, rows = episode_names(subject.seed, 4, plan.seeds), []
    for shift in shifts:
        task = subject.make_task(shift, len(names))
        task.line_up(names)
        task.reset()
        views = [
            task.render_film(range(len(names)), camera, 160, 160).numpy()
            for camera in ("wrist", "third_person")
        ]
        rows.append((shift, [image for view in views for image in view]))
        task.close()
    picture_grid(subject.folder / "eval_shifts.png", rows)


def describe(row: dict[str, Any]) -> str:
    """A result in one line."""

    def rate(key: str) -> str:
        low, high = (row[f"{key}_{end}"] for end in ("low", "high"))
        return f"{row[f'{key}_rate']:.1%} [{low:.1%}, {high:.1%}]"

    text = f"{row['shift']:<12} success {rate('success')} of {row['episodes']} episodes"
    if not row["stop_at_success"]:
        text += f", at the end {rate('success_at_end')}"
    time_s = row["time_to_success_s"]
    return text + (f", after {time_s['median']:.1f} s (median)" if time_s else "")


def run_all(plan: EvaluateConfig, subjects: list[Subject]) -> bool:
    """Every suite of every subject, then the table. False if stopped."""
    with StopSignal() as stop:
        for subject in subjects:
            for shift in plan.shifts:
                row = run_suite(subject, shift, plan, lambda: not stop.requested)
                if row is None or stop.requested:
                    return False
                subject.rows.append(row)
            if len(plan.shifts) > 1 and plan.film_episodes:
                picture_shifts(subject, plan.shifts, plan)
    for subject in subjects:
        print(subject.folder)
        for row in subject.rows:
            print("  " + describe(row))
    return True


def main() -> None:
    """Entry point of `python -m toto_robot.evaluate`."""
    check_siblings()
    register()
    try:
        plan = parse(EvaluateConfig, sys.argv[1:])
        subjects = [
            subject_of_run(Path(folder), plan.device, plan.checkpoint, plan.sim_device)
            for folder in plan.run
        ]
        subjects += [
            subject_of_policy(Path(folder), plan.device, plan.sim_device) for folder in plan.policy
        ]
        if plan.out is not None:
            plan.out.mkdir(parents=True, exist_ok=True)
            subjects[0].folder = plan.out
    except (ValueError, FileNotFoundError, ImportError) as error:
        fail(error)
    if not run_all(plan, subjects):
        print("Stopped; finished episodes are kept, the same command goes on.")
        raise SystemExit(130)


if __name__ == "__main__":
    main()
