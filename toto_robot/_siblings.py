"""Refuse to run beside a foreign `envs`, `policies`, `pretraining` or `real_world`.

These names are generic. A folder of the same name in the working directory, or another installed
package, would be imported silently instead of ours.
"""

import importlib.util
from pathlib import Path

SIBLINGS = ("envs", "policies", "pretraining", "real_world")


def check_siblings() -> None:
    """Raises ImportError if a sibling package is missing or lies outside our own root: the folder
    that holds `toto_robot`, be it a checkout (editable install) or site-packages (wheel)."""
    root = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin])
        found = Path(places[0]).resolve() if places and places[0] else None
        if found != root / name:
            raise ImportError(
                f"`import {name}` finds {found or 'nothing'}, but this toto_robot needs "
                f"{root / name}. Run from another folder, use the console script `toto-rl` (it "
                f"does not put the current folder on the path), or uninstall the other `{name}`."
            )
