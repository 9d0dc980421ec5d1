"""Weights on disk: a safetensors file and, beside it, a JSON file that says what is in it.

The JSON holds the configuration and the SHA-256 of the safetensors file, so that truncation, a
mixed-up pair or an edited file are found when loading and not in the middle of an experiment.
"""

import difflib
import hashlib
import json
import os
import pickle
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toto_robot.backbone.packing import unpack_all


def nearest(name: str, valid: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for an error message, or nothing when no valid name is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process, on whichever machine, uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def replace_atomically(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name; whoever is killed here leaves old or new, no half."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = temporary_name(path)
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    replace_atomically(temporary, path)


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """Write `path` (.safetensors) and its JSON; return the SHA-256 of the weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    save_file(
        # Copies: the file format refuses tensors that share memory, as a tied pair does.
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
        temporary,
    )
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    replace_atomically(temporary, path)
    digest = sha256_of(path)
    write_json(path.with_suffix(".json"), {**about, "sha256": digest})
    return digest


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint of others: safetensors, or a pickle read by torch's safe loader.

    What lies under "model" or "state_dict" is taken, as MAE, timm and many others wrap it.

    Raises:
        ValueError: it is no checkpoint, or holds more than tensors and numbers.
    """
    path = path.expanduser()
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint that is safe to read ({error})") from error
    for key in ("model", "state_dict"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(t, torch.Tensor) for t in content.values()
    ):
        raise ValueError(f"{path} holds no tensors by name, alone or under 'model' or 'state_dict'")
    return content


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a weights file and its JSON, checking one against the other; packed matrices as float32.

    Raises:
        FileNotFoundError: the file or its JSON is missing.
        ValueError: the JSON is no JSON, the hash differs, or the safetensors file is damaged.
    """
    about_path = path.with_suffix(".json")
    for needed in (path, about_path):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} does not exist; weights are a .safetensors file with its .json beside it"
            )
    try:
        about = json.loads(about_path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{about_path} is not valid JSON ({error}); copy it again") from error
    digest, expected = sha256_of(path), about.get("sha256")
    if digest != expected:
        raise ValueError(
            f"{path} has SHA-256 {digest}, but {about_path.name} expects {expected}: the file is "
            "truncated, edited, or belongs to another JSON; copy both again"
        )
    try:
        return unpack_all(load_file(path), about.get("packed", {})), about
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); copy it again"
        ) from error
