"""Features of a camera's newest frame in the light of those before it, each frame encoded once.

    stream = backbone.stream(worlds=32)
    features = stream.push(frames)        # uint8 [32, H, W, 3] -> [32, *feature_shape]
    stream.reset([3, 7])                  # these worlds begin a new episode

Two ways, of which the first is right on a CPU and the second on a GPU:

* cached=True remembers keys and values, and reads only the new frame. Equal to a full pass until
  `context` frames are there. After that it is an approximation: the window slides, but what is
  remembered of a frame was made when older frames, gone by now, were still in sight. The start token
  stays, and positions never go beyond the window's (see `Decoder.forget`).
  Measured: toto-tiny, layer 4, every 4th frame of films it had not seen, features against those of
  an exact pass over the window. With the context it was trained on, 4 frames: mean cosine 0.9994
  (1st percentile 0.9965; relative error 4 %), no worse 36 frames later. A pass over one frame fewer
  has 0.9981, the newest frame alone 0.929. With 16 frames, which it was not trained on: 0.9845
  over the first 11 frames beyond, falling (one frame fewer 0.9973, one frame alone 0.774): there
  take cached=False, or reset.
* cached=False remembers codes, and reads the window of the last `context` frames anew each time:
  exactly what the model was trained on, at `context` times the cost.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from toto_robot.backbone.frames import Frames

if TYPE_CHECKING:
    from toto_robot.backbone.frozen import FrozenBackbone


class FeatureStream:
    """What `FrozenBackbone.stream` returns; one row per world (camera), each with its own past.

    Attributes:
        seen: int64 [worlds], frames since the last reset.
    """

    def __init__(self, backbone: "FrozenBackbone", worlds: int, context: int, cached: bool) -> None:
        if worlds < 1 or context < 1:
            raise ValueError(f"worlds={worlds}, context={context}: expected 1 or more of each")
        self.backbone, self.context = backbone, context
        self.seen = torch.zeros(worlds, dtype=torch.int64)
        self._window = _Cached(backbone, worlds, context) if cached else _Codes(worlds, context)

    @property
    def approximate(self) -> Bool[Tensor, " B"]:
        """Worlds whose newest features are not exactly those of a pass over their window."""
        return (self.seen > self.context) & isinstance(self._window, _Cached)

    @torch.no_grad()
    def push(self, frames: "Frames") -> Float[Tensor, "B ..."]:
        """Features of each world's next frame, uint8 [worlds, H, W, 3], given those before.

        Raises:
            ValueError: other frames than `FrozenBackbone` takes, or not one per world; or the
                window is full and the model cannot slide it (GPT-2 with cached=True).
        """
        codes = self.backbone.encode(frames)
        if frames.ndim != 4 or len(codes) != len(self.seen):
            raise ValueError(
                f"frames of shape {tuple(frames.shape)}, expected one frame for each of the "
                f"{len(self.seen)} worlds: [{len(self.seen)}, H, W, 3]"
            )
        self.seen += 1
        return self._window.push(self.backbone, codes[:, 0])

    def reset(self, worlds: Sequence[int] | Tensor | None = None) -> None:
        """Forget all frames of these worlds (None: of all): their next frame is a first one."""
        rows = torch.arange(len(self.seen)) if worlds is None else torch.as_tensor(worlds).cpu()
        self.seen[rows] = 0
        self._window.reset(rows)


class _Cached:
    """The window as keys and values (or as the state of a state space)."""

    def __init__(self, backbone: "FrozenBackbone", worlds: int, context: int) -> None:
        tokens = 1 + context * backbone.tokens_per_side**2
        self.memory = backbone.trunk.remember(worlds, tokens, backbone.layer)
        self.started = False

    def push(self, backbone: "FrozenBackbone", codes: Shaped[Tensor, "B h w *P"]) -> Tensor:
        trunk, sequence = backbone.trunk, backbone.trunk.sequence(codes)
        with backbone.matmul():
            if not self.started:
                trunk.extend(sequence[:, :1], self.memory)
                self.memory.mark()  # a new episode goes on from the start token
                self.started = True
            if (full := self.memory.full(sequence.shape[1] - 1)).any():
                trunk.forget(self.memory, full, sequence.shape[1] - 1)
            states = trunk.extend(sequence[:, 1:], self.memory)
        return backbone.read_out(states[:, None].float()).squeeze(1)

    def reset(self, rows: Tensor) -> None:
        if self.started:
            self.memory.reset(rows)


class _Codes:
    """The window as codes (or patches), left-aligned; what stands after a row's last frame is seen by no one."""

    def __init__(self, worlds: int, context: int) -> None:
        self.codes = torch.empty(0)
        self.worlds, self.context = worlds, context
        self.held = torch.zeros(worlds, dtype=torch.int64)

    def push(self, backbone: "FrozenBackbone", codes: Shaped[Tensor, "B h w *P"]) -> Tensor:
        if self.codes.numel() == 0:
            self.codes = codes.new_zeros(self.worlds, self.context, *codes.shape[1:])
        full = self.held == self.context
        self.codes[full] = self.codes[full].roll(-1, dims=1)
        self.held = (self.held + 1).clamp_max(self.context)
        rows = torch.arange(self.worlds)
        self.codes[rows, self.held - 1] = codes
        features = backbone.from_codes(self.codes[:, : int(self.held.max())])
        return features[rows, self.held - 1]

    def reset(self, rows: Tensor) -> None:
        self.held[rows] = 0
