"""Vision transformer as MAE trains it (He et al. 2021), from torch's own parts, frozen.

Pre-norm blocks, a class token in front, positions added once: the encoder of MVP's checkpoints
(Xiao et al. 2022) and of our `mae-tiny`. Tensors have the names of the MAE release and of timm.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from toto_robot.backbone.images import ImageEncoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of an encoder, and the pixels it expects: (value / 255 - mean) / std by channel."""

    dim: int
    layers: int
    heads: int  # cannot be told from a checkpoint's shapes
    mlp: int
    patch: int  # px
    resolution: int  # px
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def side(self) -> int:
        """Tokens per side."""
        return self.resolution // self.patch


VIT_SIZES = {
    # As many parameters per block, and tokens per frame, as toto-tiny; toto-tiny's default layer
    # is its fourth.
    "mae-tiny": ViTConfig(
        dim=128,
        layers=4,
        heads=4,
        mlp=768,
        patch=8,
        resolution=128,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    ),
    # MVP's three. Its small one has 12 heads where timm's vit_small_patch16_224 has 6: with those
    # the weights load without a word and the features are wrong.
    "mae-small": ViTConfig(dim=384, layers=12, heads=12, mlp=1536, patch=16, resolution=224),
    "mae-base": ViTConfig(dim=768, layers=12, heads=12, mlp=3072, patch=16, resolution=224),
    "mae-large": ViTConfig(dim=1024, layers=24, heads=16, mlp=4096, patch=16, resolution=256),
}
EPS = 1e-6  # of the layer norms; torch's default is 1e-5


class PatchEmbed(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch, config.patch)


class ViT(ImageEncoder):
    """The first `layers` blocks of an encoder; no final norm, as a policy brings its own."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config.mean, config.std)
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + config.side**2, config.dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.dim,
                config.heads,
                config.mlp,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=EPS,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )

    def states(self, frames: UInt8[Tensor, "B R R 3"], depth: int) -> list[Float[Tensor, "B N D"]]:
        x = self.patch_embed.proj(self.pixels(frames)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        states = [x]
        for block in self.blocks[:depth]:
            states.append(block(states[-1]))
        return states


# Ours is torch's TransformerEncoderLayer; theirs timm's Block.
TIMM_TO_TORCH = (
    (r"attn\.qkv\.(weight|bias)", r"self_attn.in_proj_\1"),
    (r"attn\.proj\.", "self_attn.out_proj."),
    (r"mlp\.fc([12])\.", r"linear\1."),
)


def load_timm_names(vit: ViT, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill `vit` with tensors of the MAE release's names; what lies above its blocks is left out.

    Raises:
        ValueError: a tensor is missing or of another shape, or one of the blocks' has no place here;
            says which and what was expected.
    """
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in TIMM_TO_TORCH:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor.float()
    own = vit.state_dict()
    if missing := sorted(own.keys() - renamed.keys()):
        raise ValueError(f"{where} lacks {len(missing)} tensors, such as {missing[0]}")
    built = tuple(f"blocks.{i}." for i in range(len(vit.blocks)))
    if strange := sorted(name for name in renamed.keys() - own.keys() if name.startswith(built)):
        raise ValueError(
            f"{where} holds {strange[0]}, which MAE's blocks do not have: it is another kind of model; "
            "try backbone=timm backbone.timm_name=<timm's name of it>"
        )
    for name, tensor in own.items():
        if renamed[name].shape != tensor.shape:
            raise ValueError(
                f"{where} holds {name} of shape {tuple(renamed[name].shape)}, expected "
                f"{tuple(tensor.shape)}: choose the backbone that fits the file"
            )
    vit.load_state_dict({name: renamed[name] for name in own})


# transformers' ViTMAE, by its present names and by those on the hub ("encoder.layer").
TRANSFORMERS_TO_TIMM = (
    (r"^vit\.", ""),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"attention\.(attention\.)?(q|k|v)(_proj|uery|ey|alue)\.", r"attn.\2."),
    (r"attention\.(o_proj|output\.dense)\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"(mlp\.fc1|intermediate\.dense)\.", "mlp.fc1."),
    (r"(mlp\.fc2|output\.dense)\.", "mlp.fc2."),
    (r"^layernorm\.", "norm."),
)


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of transformers' ViTMAE under the MAE release's names; its decoder is left out."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder."):
            continue
        for pattern, theirs in TRANSFORMERS_TO_TIMM:
            name = re.sub(pattern, theirs, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q." in name]:
        parts = [renamed.pop(name.replace(".q.", f".{which}.")) for which in "qkv"]
        renamed[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    return renamed
