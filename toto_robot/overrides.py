"""The command line of `python -m toto_robot.rl` as Hydra's overrides: checked, completed, resumed."""

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from policies.ppo_config import FINETUNE, PRESETS
from toto_robot.conf import GROUPS, PRESET_ENVS, RLConfig, check_choice, hint


def config_keys(cls: type = RLConfig, prefix: str = "") -> list[str]:
    """All keys that can be overridden: `seed`, `backbone.weights`, `ppo.epochs`, …"""
    keys = []
    for option in fields(cls):
        key = prefix + option.name
        if isinstance(option.type, type) and is_dataclass(option.type):
            keys += [key, *config_keys(option.type, key + ".")]
        elif key != "defaults":
            keys.append(key)
    return keys


def check_overrides(overrides: list[str]) -> list[Override]:
    """Parse `key=value` words. Raises ValueError with the nearest valid key or option."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise ValueError(
            f"cannot read {error.override!r}: expected key=value, for example seed=1"
        ) from error
    keys = config_keys()
    for override in parsed:
        key = override.key_or_group
        if key.split(".")[0] in ("hydra", "hydra/launcher", "hydra/sweeper"):
            continue
        if key not in keys:
            raise ValueError(f"option {key!r} does not exist{_nearest_key(key, keys)}")
        value = override.value()
        if key in GROUPS and isinstance(value, str) and not override.is_sweep_override():
            check_choice(key, value, GROUPS[key])
    return parsed


def _nearest_key(key: str, keys: list[str]) -> str:
    """As `hint`, listing only the keys of the same level ("ppo.epoch" -> ppo.*)."""
    level = key.rpartition(".")[0]
    siblings = [k for k in keys if k.rpartition(".")[0] == level]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    listed = hint(key, siblings or [k for k in keys if "." not in k])
    return f"; did you mean {close[0]!r}?{listed[listed.index(' Valid') :]}" if close else listed


def check_config(overrides: list[str]) -> RLConfig:
    """Compose and check. Raises ValueError, one line, for whatever is wrong."""
    parsed = check_overrides(overrides)
    # A sweep (`seed=0,1,2 -m`) has no single value yet: Hydra composes each job and checks then.
    single = [o for o in parsed if not o.is_sweep_override()]
    words = [
        o.input_line for o in single if o.input_line and not o.key_or_group.startswith("hydra")
    ]
    try:
        with initialize(version_base=None, config_path=None):
            return to_config(compose("rl", overrides=words))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_first_line(error)) from error


def to_config(composed: Any) -> RLConfig:
    """Hydra's DictConfig as plain dataclasses, checked. Raises ValueError."""
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RLConfig)
    return config


def _first_line(error: BaseException) -> str:
    """The informative line of a Hydra error: the deepest cause, which names key and value."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), ""
    )
    return f"{key}: {lines[0]}" if key else lines[0]


def complete_overrides(argv: list[str], now: datetime | None = None) -> list[str]:
    """The command line with what the user may leave out: a run folder, and when resuming the
    options of the run that goes on (what the user gives again wins)."""
    if any(word.startswith("-") for word in argv):  # --help, --cfg job, …: Hydra's own business
        return argv
    words = list(argv)
    given = {o.key_or_group: o for o in check_overrides(words)}
    words += presumed_preset(given)
    if "resume" in given and given["resume"].value() is not None:
        folder = Path(str(given["resume"].value()))
        words = [w for w in saved_overrides(folder) if not replaced(w, given)] + words
        words += [] if _has_run_dir(words) else [f"hydra.run.dir={quote(str(folder))}"]
    config = check_config(words)
    if not _has_run_dir(words):
        words.append(f"hydra.run.dir={quote(default_run_dir(config, now or datetime.now()))}")
    return words


def replaced(saved: str, given: Mapping[str, Override]) -> bool:
    """Whether a saved option gives way to what the user gives: the same option, or a preset that has
    it. Raises ValueError for another task or backbone, which make another run."""
    key, _, value = saved.partition("=")
    if key in ("env", "backbone") and key in given and given[key].value() != value:
        raise ValueError(
            f"resume= goes on with {saved}, got {given[key].input_line}: begin another run; "
            "init=<policy folder> starts from the weights of this one"
        )
    preset = given["preset"].value() if "preset" in given else None
    part, _, option = key.partition(".")
    of_preset = {"ppo": PRESETS.get(str(preset), {}), "env": PRESET_ENVS.get(str(preset), {})}
    return key in given or option in of_preset.get(part, {})


def presumed_preset(given: Mapping[str, Override]) -> list[str]:
    """`preset=finetune` for PPO from a trained policy, unless a preset is given (`preset=default` has
    no values). Not for algo=ppo-gpu, which has one learning rate for all.

    Raises ValueError for a sweep of which only some jobs would have it."""
    if given.keys() & {"preset", "resume"}:
        return []
    jobs = itertools.product(_values(given, "algo", "ppo"), _values(given, "init", "null"))
    trained = {
        algo == "dagger+ppo" or (algo == "ppo" and init != "null")
        for algo, init in jobs
        if algo != "dagger"  # to which a preset makes no difference
    }
    if len(trained) > 1:
        raise ValueError(
            "some of these jobs are PPO from a trained policy and would take preset="
            f"{FINETUNE}, others not: give a preset= for all of them, or make two sweeps"
        )
    return [f"preset={FINETUNE}"] if trained == {True} else []


def _values(given: Mapping[str, Override], key: str, usual: str) -> list[str]:
    """All values of an option in a sweep; one without."""
    if key not in given:
        return [usual]
    override = given[key]
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    value = override.value()
    return ["null" if value is None else str(value)]


def default_run_dir(config: RLConfig, now: datetime) -> str:
    features = "state" if config.obs == "state" else config.backbone.name
    return f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}_{config.env.name}_{features}_s{config.seed}"


def _has_run_dir(words: list[str]) -> bool:
    return any(word.startswith("hydra.run.dir=") for word in words)


def saved_overrides(folder: Path) -> list[str]:
    """`config.yaml` of a run folder as overrides. Raises ValueError if it is not one."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"resume={folder} is not a run folder: {path} is missing")
    saved = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(saved, dict)
    words = [f"{group}={saved[group]['name']}" for group in ("env", "backbone")]
    # A preset needs no repeating: its values are among the saved ones. Null chooses none in Hydra.
    left_out = ("resume",) if saved.get("preset") else ("resume", "preset")
    kept = {k: v for k, v in saved.items() if k not in left_out}
    return words + [f"{key}={quote(value)}" for key, value in flatten(kept).items()]


def flatten(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """`{"ppo": {"epochs": 3}}` -> `{"ppo.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def quote(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(quote(v) for v in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value)
