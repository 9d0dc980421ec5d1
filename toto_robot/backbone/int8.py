"""Matrix products in 8-bit integers, for frozen trunks on CPUs.

Weights have one scale per output, activations one per token, found when they are there ("dynamic");
both symmetric, the product summed exactly in int32. torch's own eager quantisation does the same
but says that it will be removed, and its packed weights are no tensors that a hash could read.
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn


def quantised(
    rows: Float[Tensor, "R C"],
) -> tuple[Int8[Tensor, "R C"], Float[Tensor, "R 1"]]:
    """Integers -127 to 127 and the scale of each row: rows = integers * scales, rounded."""
    scales = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / 127
    return (rows / scales).round_().to(torch.int8), scales


class Int8Linear(nn.Module):
    """A linear layer of int8 weights; inputs are rounded to int8, outputs have the inputs' type."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = quantised(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B R"]:
        inputs, scales = quantised(x.reshape(-1, x.shape[-1]))
        y = torch.ops.aten._int_mm(inputs, self.weight.T).float().mul_(scales).mul_(self.scales)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def to_int8(module: nn.Module) -> None:
    """Put an `Int8Linear` in the place of every linear layer below `module`.

    Not of its subclasses: what embeds patches stays in float32, as an embedding table does.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            to_int8(child)
