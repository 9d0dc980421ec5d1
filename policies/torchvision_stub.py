"""robomimic imports torchvision at module level, and none of what we use of it needs it.

Where torchvision is missing, or built for another torch (its operators then fail to load), empty
modules stand in its place that raise on use. Where it works nothing is done.
"""

import sys
from types import ModuleType
from typing import Any

MODULES = ("", ".models", ".transforms", ".transforms.functional")


class Missing(ModuleType):
    """Imports as anything; raises ImportError once that is used."""

    __path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def use(*_: Any, **__: Any) -> Any:
            raise ImportError(f"{self.__name__}.{name} needs a torchvision that fits this torch")

        return use


def ensure_torchvision() -> bool:
    """Whether torchvision works; stands stubs in its place where it does not."""
    try:
        import torchvision  # noqa: F401 # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in MODULES:
            sys.modules["torchvision" + name] = Missing("torchvision" + name)
        for name in MODULES[1:]:
            parent, _, child = ("torchvision" + name).rpartition(".")
            setattr(sys.modules[parent], child, sys.modules["torchvision" + name])
        return False
    return True
