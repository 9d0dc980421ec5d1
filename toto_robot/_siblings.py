"""Refuse to run beside a foreign `envs`, `policies`, `pretraining` or `real_world`.

These names are generic. A folder of the same name in the working directory, or another installed
package, would be imported silently instead of ours.
"""

import importlib.util
from pathlib import Path

SIBLINGS = ("envs", "policies", "pretraining", "real_world")


ROOT = Path(__file__).resolve().parent.parent  # of a checkout, or site-packages


def find(name: str) -> Path | None:
    """Folder that `import name` would take, without importing it; None where there is none."""
    spec = importlib.util.find_spec(name)
    places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin])
    return Path(places[0]).resolve() if places and places[0] else None


def is_ours(name: str) -> bool:
    return find(name) == ROOT / name


def check_siblings() -> None:
    """Raises ImportError if a sibling package is missing or not the one that lies beside us."""
    for name in SIBLINGS:
        if not is_ours(name):
            raise ImportError(
                f"`import {name}` finds {find(name) or 'nothing'}, but this toto_robot needs "
                f"{ROOT / name}. Run from another folder, use the console script `toto-rl` (it "
                f"does not put the current folder on the path), or uninstall the other `{name}`."
            )
