"""Any vision transformer of timm as a frozen encoder: pip install "toto-robot[compare]"."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from toto_robot.backbone.images import ImageEncoder
from toto_robot.backbone.torchvision_ops import declare_missing
from toto_robot.backbone.weights import nearest, read_state_dict

# Our short names. timm's own, of any other, by backbone=timm backbone.timm_name=<timm's name>.
TIMM_NAMES = {
    "dinov2-small": "vit_small_patch14_dinov2",
    "dinov2-base": "vit_base_patch14_dinov2",
    "dinov3-small": "vit_small_patch16_dinov3",
    "dinov3-base": "vit_base_patch16_dinov3",
    "clip-base": "vit_base_patch16_clip_224",
    "siglip-base": "vit_base_patch16_siglip_224",
}
LARGEST_PX, INSTEAD_PX = 256, 224  # DINOv2's default is 518: 1,369 patches per frame


@dataclass(frozen=True)
class TimmConfig:
    dim: int
    layers: int
    patch: int  # px
    resolution: int  # px


class TimmEncoder(ImageEncoder):
    """Blocks of a timm model; register tokens are read by its blocks and then left out.

    The states after 0 blocks are the patch embeddings, without positions and class token.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        self.model = model.requires_grad_(False).eval()
        self.has_cls = bool(getattr(model, "cls_token", None) is not None)
        patch, side = model.patch_embed.patch_size, model.patch_embed.img_size
        self.config = TimmConfig(model.embed_dim, len(model.blocks), patch[0], side[0])

    def truncate(self, depth: int) -> None:
        """Leave the first `depth` blocks alone."""
        del self.model.blocks[depth:]
        self.config = replace(self.config, layers=len(self.model.blocks))

    def states(self, frames: UInt8[Tensor, "B R R 3"], depth: int) -> list[Float[Tensor, "B N D"]]:
        x = self.pixels(frames)
        tokens = self.model.patch_embed(x)
        tokens = tokens if tokens.ndim == 3 else tokens.flatten(1, 2)  # channels last in some
        states = [(tokens, torch.zeros_like(tokens[:, :1]))]
        if depth:
            states += self.model.forward_intermediates(
                x,
                indices=list(range(depth)),
                return_prefix_tokens=self.model.num_prefix_tokens > 0,
                output_fmt="NLC",
                intermediates_only=True,
            )
        whole = []
        for state in states:
            tokens, prefix = state if isinstance(state, tuple) else (state, states[0][1])
            whole.append(torch.cat([prefix[:, :1], tokens], dim=1))
        return whole


def make_timm(timm_name: str, weights: str | None) -> TimmEncoder:
    """A timm model of this name.

    `weights`: a file in timm's layout, "random", or None for the ones that timm downloads.

    Raises:
        ImportError: timm is not installed, or its torchvision does not fit torch.
        ValueError: timm has no such model, or not a vision transformer of this kind.
        OSError: the weights could not be read, or downloaded.
    """
    try:
        declare_missing()
        import timm
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: torchvision built for another torch
        raise ImportError(
            f'timm cannot be imported ({error}); pip install "toto-robot[compare]", with a '
            "torchvision of the same build as torch (pip install torchvision --index-url <where "
            "torch came from>)"
        ) from error
    if not timm.is_model(timm_name):
        known = timm.list_models("vit*")
        raise ValueError(
            f"timm has no model {timm_name!r}.{nearest(timm_name, known)} "
            "All of them: timm.list_models()"
        )
    options: dict[str, Any] = {"num_classes": 0}
    input_size: Any = timm.models.get_pretrained_cfg_value(timm_name, "input_size")
    if input_size[-1] > LARGEST_PX:
        options["img_size"] = INSTEAD_PX
    if weights is not None and weights != "random":
        options["pretrained_cfg_overlay"] = {"state_dict": read_state_dict(Path(weights))}
    try:
        model: Any = timm.create_model(timm_name, pretrained=weights != "random", **options)
    except (OSError, RuntimeError, KeyError) as error:
        source = f"timm's hub ({timm_name})" if weights is None else weights
        reason = f"{type(error).__name__}: {str(error)[:400]}"
        raise OSError(f"no weights from {source}: {reason}") from error
    if not hasattr(model, "blocks") or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{timm_name} has no list of blocks: only vision transformers are read")
    return TimmEncoder(model)
