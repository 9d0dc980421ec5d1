"""One process or many: ranks from torchrun, FSDP2 within a node, replicas across nodes (HSDP)."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from toto_robot.backbone.causal import CausalModel


@dataclass(frozen=True)
class World:
    """Who this process is among all; `mesh` is None when it is alone."""

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float | Tensor) -> list[float]:
        """Sums over all ranks; every rank gets the same numbers."""
        total = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=self.device).detach() for v in values]
        )
        if self.mesh is not None:
            dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        if self.mesh is not None:
            dist.barrier()


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where it is; under torchrun each process takes the GPU of its local rank."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("device=cuda: this PyTorch sees no CUDA device; use device=cpu")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


@contextmanager
def join_world(device: str, replicas: int = 0) -> Iterator[World]:
    """The ranks that torchrun or Ray Train started, or this process alone.

    Args:
        replicas: groups of ranks that each hold a whole model, sharded within; 0: one per node.
    """
    chosen = choose_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(chosen)
        return
    replicas = replicas or size // int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    if size % replicas:
        raise SystemExit(f"replicas={replicas} does not divide {size} processes")
    ours = not dist.is_initialized()  # Ray Train has joined the ranks already, and parts them
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        if replicas > 1:
            shape, names = (replicas, size // replicas), ("replicate", "shard")
        else:
            shape, names = (size,), ("shard",)
        mesh = init_device_mesh(chosen.type, shape, mesh_dim_names=names)
        yield World(chosen, dist.get_rank(), size, mesh)
    finally:
        if ours:
            dist.destroy_process_group()


def distribute(model: CausalModel, world: World, *, bfloat16: bool, compile: bool) -> None:
    """Move to the device; compile each block; shard over the ranks. In place.

    Parameters stay whole after the forward pass (ZeRO-2): the largest model is 1.1 B, so that
    memory is cheaper than gathering twice.
    """
    model.to(world.device)
    if compile:
        model.compile_parts()
    if world.mesh is None:
        return
    types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if bfloat16 else {}
    policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=world.mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=world.mesh, mp_policy=policy, reshard_after_forward=False)
    for name in ("clip_losses", "token_losses", "hidden_states"):
        register_fsdp_forward_method(model, name)


@contextmanager
def fast_math(world: World, bfloat16: bool) -> Iterator[None]:
    """bfloat16 where asked for, and on Hopper cuDNN's attention before FlashAttention 2."""
    with ExitStack() as stack:
        if world.device.type == "cuda" and torch.cuda.get_device_capability()[0] == 9:
            order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                     SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # fmt: skip
            stack.enter_context(sdpa_kernel(order, set_priority=True))
        stack.enter_context(torch.autocast(world.device.type, torch.bfloat16, enabled=bfloat16))
        yield


def sync_gradients(model: nn.Module, last: bool) -> None:
    """Reduce gradients over the ranks only with the last of the accumulated micro-batches."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor's full value (the same on every rank), any other as it is."""
    full = getattr(value, "full_tensor", None)
    return full() if full is not None else value
