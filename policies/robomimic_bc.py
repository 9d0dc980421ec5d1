"""The one file that imports robomimic (0.3.0, unmodified): its configs, algorithms, checkpoints.

What is ours: the encoder core that reads frozen features, registered by robomimic's own way. Import
this module before `policy_from_checkpoint` on one of our checkpoints, or robomimic does not know it.
"""

import contextlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies.readouts import READOUT, make_pool
from policies.torchvision_stub import ensure_torchvision

INSTALL = (
    "behaviour cloning needs robomimic 0.3.0, without its own list of dependencies, which would "
    "replace torch: pip install --no-deps robomimic==0.3.0 && pip install psutil termcolor six "
    "imageio (scripts/setup.sh does both)"
)
ensure_torchvision()
try:
    with contextlib.redirect_stdout(io.StringIO()):  # robomimic greets
        import robomimic.utils.obs_utils as obs_utils
        import robomimic.utils.train_utils as train_utils
        from robomimic.algo import algo_factory
        from robomimic.config import config_factory
        from robomimic.models.obs_core import EncoderCore
        from robomimic.utils.dataset import SequenceDataset
        from robomimic.utils.file_utils import policy_from_checkpoint
except ImportError as error:
    raise ImportError(f"{INSTALL} ({error})") from error

PROPRIO = "proprioception"
MODEL = "model.pth"


class TotoReadout(EncoderCore):
    """[P] -> linear -> 128; features [T, D] or [D] -> our read-outs (`policies.networks`) -> 128;
    frames [3, R, R] in [0, 1] -> the CNN of Mnih et al. 2015 -> 128."""

    def __init__(self, input_shape: Any, pool: str = "attention", num_queries: int = 8):
        super().__init__(input_shape=input_shape)
        if len(input_shape) == 3:
            self.net: nn.Module = nature_cnn(tuple(input_shape))
        elif len(input_shape) == 2:
            self.net = make_pool(tuple(input_shape), pool, num_queries)
        else:
            self.net = nn.Linear(input_shape[0], READOUT)

    def output_shape(self, input_shape: Any = None) -> list[int]:
        return [READOUT]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def nature_cnn(shape: tuple[int, ...]) -> nn.Module:
    convs = nn.Sequential(
        nn.Conv2d(shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        width = convs(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(convs, nn.Linear(width, READOUT))


@dataclass
class BCHyper:
    """What a preset sets. Learning rate: `warmup` epochs up, then half a cosine down to 0."""

    algo: str = "bc"  # bc, bc_rnn_gmm, bc_transformer
    pool: str = "attention"
    hidden: tuple[int, ...] = (256, 256)
    chunk: int = 16  # actions that are predicted at once
    context: int = 1  # observations that are read
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 128
    embed_dim: int = 192
    num_layers: int = 4
    num_heads: int = 4


def make_config(hyper: BCHyper, cameras: list[str], raw: bool) -> Any:
    """robomimic's own BC config. `raw`: the cameras hand out frames, not features."""
    config = config_factory("bc")
    with config.values_unlocked():
        modalities = config.observation.modalities.obs
        modalities.low_dim = [PROPRIO, *([] if raw else cameras)]
        modalities.rgb = cameras if raw else []
        for modality in ("low_dim", "rgb"):
            encoder = config.observation.encoder[modality]
            encoder.core_class = TotoReadout.__name__
            encoder.core_kwargs.pool = hyper.pool
        policy = config.algo.optim_params.policy
        policy.optimizer_type = "adamw"
        policy.learning_rate.initial = hyper.learning_rate
        policy.regularization.L2 = hyper.weight_decay
        config.algo.actor_layer_dims = list(hyper.hidden)
        config.algo.rnn.enabled = config.algo.gmm.enabled = hyper.algo == "bc_rnn_gmm"
        config.algo.rnn.horizon = hyper.context
        transformer = config.algo.transformer
        transformer.enabled = hyper.algo == "bc_transformer"
        transformer.context_length = hyper.context
        transformer.embed_dim = hyper.embed_dim
        transformer.num_layers, transformer.num_heads = hyper.num_layers, hyper.num_heads
        recurrent = hyper.algo == "bc_rnn_gmm"
        config.train.seq_length = hyper.context if recurrent else 1
        config.train.frame_stack = hyper.context if transformer.enabled else 1
        config.train.batch_size = hyper.batch_size
        config.train.cuda = False
    return config


def make_algo(config: Any, shapes: Mapping[str, list[int]], num_outputs: int, device: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        obs_utils.initialize_obs_utils_with_config(config)
        return algo_factory("bc", config, dict(shapes), num_outputs, torch.device(device))


def make_dataset(path: Path, config: Any, shapes: Mapping[str, list[int]], mask: str) -> Any:
    """robomimic's SequenceDataset. Features lie in memory once, frames as it will have them."""
    raw = bool(config.observation.modalities.obs.rgb)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return SequenceDataset(
            hdf5_path=str(path), obs_keys=list(shapes), dataset_keys=["actions"],
            frame_stack=config.train.frame_stack, seq_length=config.train.seq_length,
            hdf5_cache_mode="all" if raw else "low_dim", hdf5_use_swmr=False,
            filter_by_attribute=mask, load_next_obs=False,
        )  # fmt: skip


def set_learning_rate(algo: Any, hyper: BCHyper, epoch: int, epochs: int) -> None:
    """A function of the epoch alone, so that a resumed run has the same."""
    warmup = max(1, epochs // 20)
    done = max(0.0, (epoch - warmup) / max(1, epochs - warmup))
    rate = min(1.0, (epoch + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))
    for group in algo.optimizers["policy"].param_groups:
        group["lr"] = rate * hyper.learning_rate


def train_batch(algo: Any, batch: Any, epoch: int) -> float:
    """One update through robomimic's own algorithm; returns its loss."""
    algo.set_train()
    ready = algo.process_batch_for_training(batch)
    ready = algo.postprocess_batch_for_training(ready, obs_normalization_stats=None)
    return float(algo.log_info(algo.train_on_batch(ready, epoch))["Loss"])


def predict(algo: Any, window: Mapping[str, Tensor], context: int) -> Tensor:
    """Observations [N, …], or [N, context, …], in the network's units -> outputs [N, K * A]."""
    algo.set_eval()
    with torch.no_grad():
        ready = {key: value.float().to(algo.device) for key, value in window.items()}
        out = algo.nets["policy"](ready)
    return out[:, -1] if context > 1 else out


def save_algo(path: Path, algo: Any, config: Any, env: Mapping[str, Any], shapes: Any) -> None:
    """robomimic's own checkpoint; pure Python and tensors, as weights_only wants it."""
    partial = path.with_suffix(".part")
    shape_meta = {
        "all_shapes": {key: list(shape) for key, shape in shapes.items()},
        "all_obs_keys": list(shapes), "ac_dim": int(algo.ac_dim), "use_images": False,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        train_utils.save_model(algo, config, json.loads(json.dumps(env)), shape_meta, str(partial))
    partial.replace(path)


def load_algo(path: Path, device: str = "cpu") -> Any:
    """Raises FileNotFoundError; pickles other than tensors are refused (weights_only)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the policy's weights")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    with contextlib.redirect_stdout(io.StringIO()):
        policy, _ = policy_from_checkpoint(device=torch.device(device), ckpt_dict=saved)
    return policy.policy
