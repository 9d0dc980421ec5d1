"""Many runs by one command: `python -m toto_robot.rl -m seed=0,1,2,3,4` (Hydra's multirun).

Every job has a folder of its own under the sweep's, named by what is swept: `s0`, `toto-tiny_s0`. A
job that fails says why in its `error.txt` and does not stop the others. The same command with the
same `hydra.sweep.dir` skips what is finished and goes on with what is half done. See
docs/many_seeds.md.
"""

import hashlib
import itertools
import json
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from policies.checkpoint import load_progress
from toto_robot.conf import INCIDENTAL, RLConfig, as_plain
from toto_robot.overrides import check_config, check_overrides, presumed_preset, quote
from toto_robot.runs import StopSignal, read_metrics, write_text
from toto_robot.subject import first_part, last_part

CHECKED_JOBS = 64  # composed beforehand, to tell of a wrong value before anything runs
NAMES = {"env": "${env.name}", "backbone": "${backbone.name}", "algo": "${algo}", "obs": "${obs}"}


def file_name(value: object) -> str:
    """An option's value as part of a folder's name: as it is if plain, else its last plain letters and
    a hash. The same value has the same name in any sweep."""
    text = str(value)
    if re.fullmatch(r"[\w.+-]+", text):
        return text
    letters = re.sub(r"[^\w.+-]+", "-", text).strip("-.")[-24:]
    return f"{letters}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


OmegaConf.register_new_resolver("file_name", file_name, replace=True)

_stopped = False  # of this process: after Ctrl-C its further jobs are not begun


def is_sweep(argv: Sequence[str]) -> bool:
    """Whether a command line asks for many runs (and for nothing else of Hydra's, like --help)."""
    flags = {word for word in argv if word.startswith("-")}
    return bool(flags) and flags <= {"-m", "--multirun"}


def sweep_dir_of(argv: Sequence[str]) -> Path:
    """`hydra.sweep.dir` of a completed command line."""
    words = [word for word in argv if not word.startswith("-")]
    by_key = {override.key_or_group: override for override in check_overrides(words)}
    return Path(str(by_key["hydra.sweep.dir"].value()))


def complete_sweep(argv: Sequence[str], now: datetime | None = None) -> list[str]:
    """The command line of a sweep with its folders. Raises ValueError for what one of its jobs
    would."""
    now = now or datetime.now()
    parsed = check_overrides([word for word in argv if not word.startswith("-")])
    keys = {override.key_or_group: override for override in parsed}
    if "resume" in keys:
        raise ValueError(
            "resume= goes on with one run; a sweep goes on by the same command with its "
            "hydra.sweep.dir"
        )
    swept = [override for override in parsed if override.is_sweep_override()]
    preset = check_overrides(presumed_preset(keys))
    single = [override for override in parsed if not override.is_sweep_override()] + preset
    words = [override.input_line or "" for override in [*parsed, *preset]]
    config = _check_jobs(swept, single)
    if "hydra.sweep.dir" not in keys:
        words.append(f"hydra.sweep.dir={quote(_sweep_dir(config, swept, now))}")
    if "hydra.sweep.subdir" not in keys:
        words.append(f"hydra.sweep.subdir={quote(_subdir(swept))}")
    return ["-m", *words]


def _check_jobs(swept: Sequence[Override], single: Sequence[Override]) -> RLConfig:
    """Compose the first jobs; the first one's config."""
    lines = [o.input_line or "" for o in single if not o.key_or_group.startswith("hydra")]
    own = [o for o in swept if not o.key_or_group.startswith("hydra")]
    values = [[f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] for o in own]
    jobs = itertools.islice(itertools.product(*values), CHECKED_JOBS)
    return [check_config([*lines, *job]) for job in jobs][0]


def _sweep_dir(config: RLConfig, swept: Sequence[Override], now: datetime) -> str:
    keys = {override.key_or_group for override in swept}
    parts = [f"{now:%H-%M-%S}"]
    parts += [] if "env" in keys else [config.env.name]
    features = "state" if config.obs == "state" else config.backbone.name
    parts += [] if keys & {"backbone", "obs"} else [features]
    return f"outputs/{now:%Y-%m-%d}/{'_'.join(parts)}_sweep"


def _subdir(swept: Sequence[Override]) -> str:
    """Name of a job's folder, in Hydra's interpolation: nothing that a path would have to escape."""
    parts = []
    for override in swept:
        key = override.key_or_group
        if key == "seed":
            continue
        name = key.rpartition(".")[2]
        parts.append(NAMES.get(key, f"{name}_${{file_name:${{{key}}}}}"))
    return "_".join([*parts, "s${seed}"])


def run_job(folder: Path, config: RLConfig, job: Callable[[RLConfig], bool]) -> None:
    """Run one job of a sweep unless its folder holds a finished one. Never raises: what goes wrong
    is in `error.txt`. `job(config)` returns False if it was stopped by a signal."""
    global _stopped
    if _stopped:
        return
    (folder / "error.txt").unlink(missing_ok=True)
    with StopSignal() as stop:
        try:
            config = continued(config, folder)
            if is_finished(config, folder):
                print(f"{folder} is finished already")
                return
            finished = job(config)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the other jobs must go on
            write_text(folder / "error.txt", traceback.format_exc())
            print(f"{folder} failed: {type(error).__name__}: {error}")
            finished = True
    _stopped = not finished or stop.requested


def is_finished(config: RLConfig, folder: Path) -> bool:
    """Trained to the end and evaluated (a half-done run may have been evaluated as well)."""
    folder = last_part(folder)
    last = folder / "checkpoints/last"
    if not (last.exists() and (folder / "eval.json").exists()):
        return False
    return load_progress(last)["steps"] >= (config.total_steps or 0)


def is_begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from (`last.old`: killed while it was replaced)."""
    return any((folder / "checkpoints" / name).exists() for name in ("last", "last.old"))


def continued(config: RLConfig, folder: Path) -> RLConfig:
    """`config`, resuming if `folder` holds a run that can go on.

    Raises ValueError if it holds another run.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return config
    saved = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(saved, dict)
    differing = _differences(saved, as_plain(config))
    if differing:
        raise ValueError(f"{folder} holds another run: {'; '.join(differing)}")
    first = first_part(folder, config.algo)
    if is_begun(first):
        return replace(config, resume=str(folder))
    forget(first)
    return config


def forget(folder: Path) -> None:
    """What a run left that was killed before its first checkpoint: it begins again."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)


def _differences(saved: dict[Any, Any], own: dict[str, Any], prefix: str = "") -> list[str]:
    """Options that both have and that differ (an option that `saved` lacks is newer than it)."""
    found = []
    for key in saved.keys() & own.keys() - set(INCIDENTAL):
        there, here = saved[key], own[key]
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key} is {there} there, {here} here")
    return sorted(found)


def summarise(sweep: Path) -> int:
    """Print how each job ended; the exit code: 0, 1 if some failed, 130 if some were stopped."""
    rows = [_row(folder) for folder in sorted(p for p in sweep.iterdir() if _is_job(p))]
    print(f"\n{sweep}")
    for name, state, text in rows:
        print(f"  {name:<24} {state:<9} {text}")
    states = [state for _, state, _ in rows]
    counts = {s: states.count(s) for s in ("finished", "failed", "stopped")}
    print(
        ", ".join(
            f"{count} {state}" for state, count in counts.items() if count or state == "finished"
        )
    )
    print(f"One page about them: python -m toto_robot.report runs={sweep} out={sweep}/report")
    if counts["failed"] or counts["stopped"]:
        print(f"To go on: the same command with hydra.sweep.dir={sweep}")
    return 1 if counts["failed"] else 130 if counts["stopped"] else 0


def _is_job(folder: Path) -> bool:
    return folder.is_dir() and (folder / ".hydra").exists()


def _row(folder: Path) -> tuple[str, str, str]:
    if (folder / "error.txt").exists():
        last = (folder / "error.txt").read_text().strip().splitlines()[-1]
        return folder.name, "failed", last
    name, folder = folder.name, last_part(folder)
    metrics = folder / "metrics.jsonl"
    reports = read_metrics(metrics) if metrics.exists() else []
    steps = f"{reports[-1]['steps']:,} steps" if reports else "not begun"
    if not (folder / "eval.json").exists():
        return name, "stopped", steps
    e = json.loads((folder / "eval.json").read_text())
    rate = f"{e['success_rate']:.1%} [{e['success_low']:.1%}, {e['success_high']:.1%}]"
    return name, "finished", f"success {rate} of {e['episodes']} episodes, {steps}"
