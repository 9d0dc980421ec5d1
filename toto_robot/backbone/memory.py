"""What a model keeps of the tokens it has read, so that further ones need not read them again.

`model.remember(batch, capacity)` makes it, `model.extend(tokens, memory)` reads on. A row is one
sequence of the batch; each may be at a length of its own, and start anew on its own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

EMPTY = -1


class KeyValues:
    """Keys and values of all attention layers, for up to `capacity` tokens per row.

    Attributes:
        positions: int64 [B, S] on the CPU: where in its sequence the token stands whose key is in
            slot s; -1 where there is none.
        layers: one `LayerKeyValues` per block.
    """

    def __init__(self, layers: int, batch: int, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.positions = torch.full((batch, capacity), EMPTY)
        self.layers = [LayerKeyValues(self) for _ in range(layers)]
        self.marked = self.positions.clone()

    def lengths(self) -> Int[Tensor, " B"]:
        """How many tokens each row holds."""
        return (self.positions != EMPTY).sum(dim=1)

    def full(self, count: int) -> Bool[Tensor, " B"]:
        """Rows that have no room for `count` more tokens."""
        return self.lengths() + count > self.capacity

    def place(self, count: int) -> Int[Tensor, "B n"]:
        """Make room for `count` more tokens in every row; their positions.

        Raises:
            ValueError: a row has no room for them.
        """
        longest = int(self.lengths().max())
        if longest + count > self.capacity:
            raise ValueError(
                f"{count} more tokens after {longest} do not fit into a memory for {self.capacity}; "
                "make a larger one, or forget the oldest"
            )
        steps = torch.arange(count)
        first_free = (self.positions == EMPTY).int().argmax(dim=1)
        slots = first_free[:, None] + steps  # in one piece: whole frames come and go
        new = self.positions.amax(dim=1)[:, None] + 1 + steps
        self.positions.scatter_(1, slots, new)
        filled = (self.positions != EMPTY).any(dim=0)
        self.used = int(filled.nonzero().max()) + 1
        held = self.positions[:, None, None, : self.used]
        seen = (held != EMPTY) & (held <= new[:, None, :, None])
        self.slots, self.mask = slots.to(self.device), None if seen.all() else seen.to(self.device)
        return new.to(self.device)

    def forget(self, rows: Bool[Tensor, " B"], count: int) -> None:
        """Drop the `count` oldest tokens of some rows, except the first one of all.

        That one, the start token, moves up to just before the oldest that is left; who rotates keys
        has to turn its key by `count` positions.
        """
        age = self.positions - self.positions[:, :1]
        self.positions[rows[:, None] & (age > 0) & (age <= count)] = EMPTY
        self.positions[rows, 0] += count

    def mark(self) -> None:
        """Remember this moment as the one that `reset` goes back to."""
        self.marked = self.positions.clone()
        for layer in self.layers:
            layer.mark(self.used)

    def reset(self, rows: Sequence[int] | Tensor) -> None:
        """Take rows back to the marked moment (without one: to the empty beginning)."""
        rows = torch.as_tensor(rows)
        self.positions[rows] = self.marked[rows]
        for layer in self.layers:
            layer.reset(rows)


class LayerKeyValues:
    """Keys and values of one layer, made at the first use, in the type they come in."""

    def __init__(self, memory: KeyValues) -> None:
        self.memory = memory
        self.keys_BHSK = self.values_BHSK = torch.empty(0)
        self.marked: Tensor | None = None

    def attend(
        self,
        q_BHNK: Float[Tensor, "B H n K"],
        k_BHNK: Float[Tensor, "B H n K"],
        v_BHNK: Float[Tensor, "B H n K"],
        scale: float | None = None,
    ) -> Float[Tensor, "B H n K"]:
        """Keep keys and values of the placed tokens; what these tokens see in all of their row."""
        memory = self.memory
        if self.keys_BHSK.numel() == 0:
            shape = (*k_BHNK.shape[:2], memory.capacity, k_BHNK.shape[3])
            self.keys_BHSK, self.values_BHSK = k_BHNK.new_zeros(shape), v_BHNK.new_zeros(shape)
        slots = memory.slots[:, None, :, None].expand_as(k_BHNK)
        self.keys_BHSK.scatter_(2, slots, k_BHNK)
        self.values_BHSK.scatter_(2, slots, v_BHNK)
        keys, values = self.keys_BHSK[:, :, : memory.used], self.values_BHSK[:, :, : memory.used]
        return F.scaled_dot_product_attention(
            q_BHNK, keys, values, attn_mask=memory.mask, scale=scale
        )

    def mark(self, used: int) -> None:
        self.marked = self.keys_BHSK[:, :, :used].clone()

    def reset(self, rows: Tensor) -> None:
        if self.marked is not None:  # a forgetting may have turned these
            self.keys_BHSK[rows, :, : self.marked.shape[2]] = self.marked[rows]


class States:
    """States of all state-space layers: all that they need of the past, however long it was."""

    def __init__(self, layers: int) -> None:
        self.layers = [LayerState() for _ in range(layers)]

    def full(self, count: int) -> Bool[Tensor, ""]:
        """There is always room, in every row."""
        return torch.tensor(False)

    def place(self, count: int) -> None:
        """Positions mean nothing here."""

    def mark(self) -> None:
        """Remember this moment as the one that `reset` goes back to."""
        for layer in self.layers:
            layer.marked = [tensor.clone() for tensor in layer.tensors]

    def reset(self, rows: Sequence[int] | Tensor) -> None:
        """Take rows back to the marked moment (without one: to the empty beginning)."""
        for layer in self.layers:
            for i, tensor in enumerate(layer.tensors):
                tensor[rows] = layer.marked[i][rows] if layer.marked else 0.0


class LayerState:
    """Of one layer: the last inputs of its convolution, and its recurrent state."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.marked: list[Tensor] = []


Memory = KeyValues | States
