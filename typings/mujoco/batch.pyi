# MuJoCo's compiled module has no type information; the checker is told so once.
from typing import Any

def __getattr__(name: str) -> Any: ...
