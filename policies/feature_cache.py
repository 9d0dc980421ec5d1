"""Features of demonstrations, made once per frame and kept on disk, one file per demonstration.

    <cache>/<key of the encoder>/<SHA-256 of the frames>.hdf5     data [T, *feature_shape]

The names are hashes of all that the features depend on (weights, layer, read-out, resizing, frames),
so what is found is never stale, and demonstrations of several files share it. A file gets its name
when it is complete: after a kill the same command goes on.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import UInt8

FORMAT = 1  # of preprocessing and file: raise it when either changes
AT_A_TIME = 64  # frames


def encoder_key(backbone: Any) -> str:
    """Hash of everything but the frames that features depend on."""
    names = ("name", "weights_hash", "layer", "readout", "grid", "resolution", "precision")
    facts = {name: str(getattr(backbone, name, None)) for name in names}
    facts |= {"shape": str(tuple(backbone.feature_shape)), "format": str(FORMAT)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def frames_key(frames: UInt8[np.ndarray, "T H W 3"]) -> str:
    digest = hashlib.sha256(str(frames.shape).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()[:32]


class FeatureCache:
    """Features by frames. `backbone` as in `policies.feature_vec_env.Backbone`; one that is
    trainable hands out frames, which are kept as they are: robomimic moves the channels itself."""

    def __init__(self, folder: Path, backbone: Any):
        self.folder, self.backbone = folder / encoder_key(backbone), backbone
        self.folder.mkdir(parents=True, exist_ok=True)
        self.encodes = 0  # frames

    def file(self, frames: UInt8[np.ndarray, "T H W 3"]) -> Path:
        """The file that holds the features of `frames`, made if it is not there."""
        path = self.folder / f"{frames_key(frames)}.hdf5"
        if not path.exists():
            partial = path.with_name(f"{path.name}.{os.getpid()}.part")
            with h5py.File(partial, "w") as file:
                file["data"] = np.concatenate(list(self._encode(frames)))
            os.replace(partial, path)
        return path

    def _encode(self, frames: UInt8[np.ndarray, "T H W 3"]) -> Iterator[np.ndarray]:
        for part in torch.from_numpy(frames).split(AT_A_TIME):
            with torch.no_grad():
                features = self.backbone(part)
            self.encodes += len(part)
            if getattr(self.backbone, "trainable", False):
                yield features.cpu().numpy()
                continue
            half = features.to(torch.float16).cpu().numpy()
            if not np.isfinite(half).all():
                raise ValueError("features are not finite in float16 (the limit is 65504)")
            yield half


def write_training_file(
    path: Path,
    demos: Sequence[Mapping[str, np.ndarray | Path]],
    valid: Sequence[int],
    env_args: Mapping[str, Any],
) -> None:
    """A file in robomimic's layout: arrays as given, links to files of the cache as they are.

    `demos`: by path within a demonstration (`obs/wrist`, `actions`); numbers in `valid` are for
    validation, all others for training.
    """
    partial = path.with_suffix(".part")
    with h5py.File(partial, "w") as file:
        data: Any = file.create_group("data")
        for number, demo in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            group.create_group("obs")
            for key, value in demo.items():
                is_link = isinstance(value, Path)
                group[key] = h5py.ExternalLink(str(value.resolve()), "data") if is_link else value
            group.attrs["num_samples"] = len(group["actions"])
        data.attrs["total"] = sum(int(g.attrs["num_samples"]) for g in data.values())
        data.attrs["env_args"] = json.dumps(dict(env_args))
        masks = {"train": [i for i in range(len(demos)) if i not in valid], "valid": list(valid)}
        for mask, numbers in masks.items():
            file[f"mask/{mask}"] = np.array([f"demo_{i}" for i in numbers], dtype="S")
    os.replace(partial, path)
