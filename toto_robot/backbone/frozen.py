"""A frozen backbone: camera frames in, features out (see `load_backbone` in names.py).

Inside: resize, pixel mapping, tokenizer, start token, the first k blocks, read-out. No gradient,
always in eval mode, weights never change.
"""

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from toto_robot.backbone.causal import VIDEO_START, CausalModel
from toto_robot.backbone.frames import Frames, check_frames, to_resolution
from toto_robot.backbone.images import Frames as FrameEncoder
from toto_robot.backbone.images import ImageEncoder
from toto_robot.backbone.int8 import to_int8
from toto_robot.backbone.lanes import side_by_side
from toto_robot.backbone.precision import Precision, fast_matmul
from toto_robot.backbone.streaming import FeatureStream
from toto_robot.backbone.tokenizers import TokenEncoder
from toto_robot.backbone.weights import nearest, tensors_sha256

Readout = Literal["grid", "mean", "last", "tokens", "cls"]
# Frames in flight, to bound memory. On a CPU few for each thread: what 8 frames need stays in the cache
# (16: an eighth longer), what 64 need is fetched from the system for every operation (a third longer).
FRAMES_ON_CPU = 8
FRAMES_ELSEWHERE = 64
SHAPES = 256  # of batches, that one process may compile


class FrozenBackbone(nn.Module):
    """Encoder and trunk behind one call. Build it with `load_backbone`.

    The trunk is a causal model of codes or patches, or an encoder of single images (then nothing is
    tokenized, and each frame is read by itself).

    Attributes:
        name: such as "toto-tiny".
        weights_hash: SHA-256 of the weights file, or of the tensors when they are random.
        untrained: True for random weights; whatever is made with them should say so.
        num_layers: depth of the full model; `layer` of them are run.
        resolution: side in pixels of what the tokenizer sees.
        context: frames per sequence in the training; 16, the paper's, where that is not known.
        precision: of the trunk, as given to `load_backbone`.
        source: what a weights file of others is known to be, such as "MVP vitb-mae-egosoup".
    """

    source = ""

    def __init__(
        self,
        encoder: TokenEncoder | FrameEncoder,
        trunk: CausalModel | ImageEncoder,
        *,
        name: str,
        layer: int,
        num_layers: int,
        resolution: int,
        readout: str = "grid",
        grid: int = 8,
        weights_hash: str | None = None,
        context: int = 16,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.trunk: Any = trunk
        self.reads_images = isinstance(trunk, ImageEncoder)
        self.name, self.layer, self.num_layers = name, layer, num_layers
        self.resolution, self.readout, self.grid = resolution, readout, grid
        self.context, self.precision = context, precision
        self._compiled: Any = None
        self.tokens_per_side = resolution // encoder.config.stride
        self.num_features = trunk.config.dim
        readouts = get_args(Readout)
        if readout not in readouts:
            known = ", ".join(readouts)
            raise ValueError(
                f"unknown readout {readout!r}, known: {known}.{nearest(readout, readouts)}"
            )
        if readout == "cls" and not (isinstance(trunk, ImageEncoder) and trunk.has_cls):
            raise ValueError(f"readout=cls: {name} has no class token; use grid, mean or tokens")
        self._check_grid()
        if precision not in (known := get_args(Precision)):
            raise ValueError(
                f"precision={precision!r}, known: {', '.join(known)}.{nearest(precision, known)}"
            )
        if precision == "int8" and self.reads_images:
            raise ValueError(f"precision=int8 is for causal models; {name} is an image encoder")
        self.untrained = weights_hash is None
        self.requires_grad_(False)
        super().train(False)
        self.weights_hash = weights_hash or self.digest()
        if precision == "int8":
            to_int8(trunk)

    def _check_grid(self) -> None:
        """Tokens must divide into the grid; cells of image encoders may overlap (14 into 8)."""
        side, grid = self.tokens_per_side, self.grid
        fits = 1 <= grid <= side and (self.reads_images or side % grid == 0)
        if self.readout == "grid" and not fits:
            fitting = ", ".join(str(g) for g in range(1, side + 1) if side % g == 0)
            raise ValueError(f"grid={grid} does not divide {side} tokens per side; use {fitting}")

    def at_resolution(self, resolution: int) -> "FrozenBackbone":
        """The same weights, shared, reading frames of another side in pixels: another grid of tokens.

        Raises:
            ValueError: its positions are of one size (image encoders), too few for so many tokens
                (GPT-2), or its patches do not divide the side.
        """
        if resolution == self.resolution:
            return self
        if self.reads_images and not self.trunk.any_size:
            raise ValueError(
                f"resolution={resolution}: {self.name} has learned positions for "
                f"{self.resolution} px and reads nothing else; causal models (toto-*) do"
            )
        stride = self.encoder.config.stride
        if resolution < stride or resolution % stride:
            raise ValueError(f"resolution={resolution}: expected a multiple of {stride} px")
        tokens = 1 + (resolution // stride) ** 2
        if tokens > (places := getattr(self.trunk.config, "context", tokens)):
            raise ValueError(
                f"resolution={resolution} makes {tokens} tokens of a frame; {self.name} has learned "
                f"positions for {places}"
            )
        other = copy.copy(self)
        other.resolution, other.tokens_per_side = resolution, resolution // stride
        other._compiled = None
        other._check_grid()
        return other

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Stays in eval mode: a policy's `.train()` must not reach the backbone."""
        return super().train(False)

    def digest(self) -> str:
        """SHA-256 of the tensors in memory now, to prove that training left them alone."""
        return tensors_sha256(self.state_dict())

    @property
    def device(self) -> torch.device:
        return next(chain(self.trunk.parameters(), self.trunk.buffers())).device

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the features of one frame."""
        tokens = {"grid": self.grid**2, "tokens": self.tokens_per_side**2}
        if self.readout in tokens:
            return (tokens[self.readout], self.num_features)
        return (self.num_features,)

    @torch.no_grad()
    def forward(self, frames: Frames) -> Float[Tensor, "B ..."]:
        """Features of camera frames.

        Args:
            frames: uint8 [B, H, W, 3], or [B, T, H, W, 3] where the T frames of a row are one
                video, later frames seeing earlier ones. Any size; resized and cropped inside.

        Returns:
            float32 [B, *feature_shape] or [B, T, *feature_shape]: the residual stream after
            `layer` blocks (not normalised) at the positions that have read each visual token.

        Raises:
            ValueError: the type, rank or number of channels is wrong.
        """
        videos = check_frames(frames)
        if self._compiled is None:
            features = self.from_codes(self.encode(videos))
        else:
            parts = videos.split(self._rows(videos.shape[1]))
            features = torch.cat([self._compiled(self._to_device(part)) for part in parts])
        return features if frames.ndim == 5 else features.squeeze(1)

    def one_pass(self, frames: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "B T *features"]:
        """`forward` for frames of the right size on the right device: tensors in, tensor out.

        Nothing but tensor operations on fixed shapes: this is what is compiled and exported.
        """
        codes = self.encoder.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self._features(codes)

    def compile_pass(self) -> None:
        """Compile tokenizer, trunk and read-out as one; each new shape is compiled when it comes.

        On CUDA the whole of it is replayed as one CUDA graph, which takes away the launch of some
        hundred kernels; the output is copied out of the graph's memory, which the next call
        overwrites. On a CPU the inductor's C++ code is used (it needs a compiler, such as g++).
        """
        on_gpu = self.device.type == "cuda"
        mode = "reduce-overhead" if on_gpu else None
        limits: Any = torch._dynamo.config  # by torch's own limit the ninth shape is an error
        limits.recompile_limit = max(limits.recompile_limit, SHAPES)
        run = torch.compile(self.one_pass, fullgraph=True, dynamic=False, mode=mode)
        self._compiled = lambda frames: run(frames).clone()

    @torch.no_grad()
    def from_codes(self, codes: Shaped[Tensor, "B T h w *P"]) -> Float[Tensor, "B T *features"]:
        """What `forward` gives for videos whose codes (`tokenize`) are there already."""
        return torch.cat(self._in_parts(self._features, codes))

    def stream(
        self, worlds: int = 1, *, context: int | None = None, cached: bool = True
    ) -> FeatureStream:
        """Features of camera streams, frame by frame (see streaming.py).

        Args:
            worlds: cameras, or environments of a batch.
            context: frames in sight, the newest included; None: as many as in the training.
            cached: read the new frame alone, with a memory of the others; exact up to `context`
                frames, near it afterwards. False: read all frames in sight again; exact always.
        """
        if self.reads_images:  # older frames change nothing
            return FeatureStream(self, worlds, context=1, cached=False)
        return FeatureStream(self, worlds, context or self.context, cached)

    @torch.no_grad()
    def hidden_states(
        self, frames: Frames, start: int = VIDEO_START, depth: int | None = None
    ) -> list[Float[Tensor, "B N D"]]:
        """States at the visual tokens after 0, 1, ... blocks, as many as were loaded (or `depth`).

        All of them with `load_backbone(..., all_layers=True)`. N is tokens per frame times T.
        `start`: the token that a causal model's sequences begin with (IMAGE_START for pictures, of
        a model that was trained on them).
        """
        codes = self.encode(frames)
        blocks: int = self.trunk.config.layers if depth is None else depth
        parts = self._in_parts(lambda part: self._states(part, blocks, start), codes)
        return [torch.cat(states).flatten(1, 2) for states in zip(*parts, strict=True)]

    @torch.no_grad()
    def tokenize(self, frames: Frames) -> Int[Tensor, "*batch h w"]:
        """Codes of the frames, int64 [B, h, w] or [B, T, h, w], each frame by itself.

        Raises:
            ValueError: as `forward`; also when it reads patches, which have no codes.
        """
        if self.reads_images or self.trunk.config.patch:
            raise ValueError(
                f"{self.name} reads patches of {self.trunk.config.patch} px, not codes"
            )
        codes = self.encode(frames)
        return codes if frames.ndim == 5 else codes.squeeze(1)

    @torch.no_grad()
    def encode(self, frames: Frames) -> Shaped[Tensor, "B T h w *P"]:
        """What the trunk reads, always with a time axis: codes, patches of pixels, or frames."""
        videos = check_frames(frames)
        # In float32: rounding would turn one code in sixty into another, machine by machine.
        singles = videos.flatten(0, 1).unsqueeze(1)
        codes = self._in_parts(
            lambda part: self.encoder.encode(self._to_device(part)[:, 0]), singles
        )
        return torch.cat(codes).unflatten(0, videos.shape[:2])

    def _rows(self, frames: int) -> int:
        """Videos of so many frames that are worked on at a time."""
        return max(1, (FRAMES_ON_CPU if self.device.type == "cpu" else FRAMES_ELSEWHERE) // frames)

    def _in_parts(
        self, work: Callable[[Tensor], Any], videos: Shaped[Tensor, "B T ..."]
    ) -> list[Any]:
        """`work` on a few videos at a time; on a CPU, if they are many, each thread on its own few."""
        rows, lanes = self._rows(videos.shape[1]), 1
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and len(videos) >= 2 * threads:
            rows, lanes = min(rows, len(videos) // threads), threads
        return side_by_side(work, videos.split(rows), lanes)

    def _to_device(self, videos: UInt8[Tensor, "B T H W 3"]) -> UInt8[Tensor, "B T R R 3"]:
        """On the trunk's device and resized."""
        frames = videos.to(self.device).flatten(0, 1)
        return to_resolution(frames, self.resolution).unflatten(0, videos.shape[:2])

    def _states(
        self, codes: Shaped[Tensor, "B T h w *P"], depth: int, start: int = VIDEO_START
    ) -> list[Float[Tensor, "B T tokens D"]]:
        """After 0 to `depth` blocks, at the visual tokens."""
        if self.reads_images:
            return [state[:, :, 1:] for state in self._image_states(codes, depth)]
        tokens = self.trunk.sequence(codes, start)
        with self.matmul():
            states = self.trunk.hidden_states(tokens, depth)
        per_frame = (codes.shape[1], self.tokens_per_side**2)
        return [state[:, 1:].float().unflatten(1, per_frame) for state in states]

    def _image_states(
        self, frames: UInt8[Tensor, "B T R R 3"], depth: int
    ) -> list[Float[Tensor, "B T 1+tokens D"]]:
        with self.matmul():
            states = self.trunk.states(frames.flatten(0, 1), depth)
        return [state.float().unflatten(0, frames.shape[:2]) for state in states]

    def _features(self, codes: Shaped[Tensor, "B T h w *P"]) -> Float[Tensor, "B T *features"]:
        if self.readout == "cls":
            return self._image_states(codes, self.layer)[-1][:, :, 0].clone()
        return self.read_out(self._states(codes, self.layer)[-1])

    def matmul(self) -> torch.autocast:
        """The precision of the trunk's matrix products, as a context."""
        return fast_matmul(self.device.type, self.precision)

    def read_out(self, x_BTND: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T *features"]:
        """Features from the states at a frame's tokens, in raster order."""
        if self.readout == "mean":
            return x_BTND.mean(dim=2)
        if self.readout == "last":
            return x_BTND[:, :, -1].clone()  # a view would keep all tokens in memory
        if self.readout == "tokens":
            return x_BTND
        B, T, _, D = x_BTND.shape
        if self.tokens_per_side % self.grid:
            square = x_BTND.flatten(0, 1).mT.unflatten(2, (self.tokens_per_side,) * 2)
            cells = F.adaptive_avg_pool2d(square, self.grid)
            return cells.flatten(2).mT.unflatten(0, (B, T))
        patch = self.tokens_per_side // self.grid
        cells = x_BTND.view(B, T, self.grid, patch, self.grid, patch, D).mean(dim=(3, 5))
        return cells.reshape(B, T, self.grid**2, D)
