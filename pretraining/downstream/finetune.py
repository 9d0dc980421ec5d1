"""Full fine-tuning with attention in both directions (paper, Table 13 and appendix A.3).

The paper gives no recipe, so MAE's of ViT-B is the default (He et al. 2022, Table 9): AdamW, 5e-4 per
256 pictures, weight decay 0.05, layer-wise decay 0.65, drop path 0.1, mixup 0.8, cutmix 1.0, label
smoothing 0.1, warm-up and cosine, mean of the last states, norm, linear layer. RandAugment (its 9, 0.5)
is torchvision's, without the noise of the magnitude, where it is asked for; no random scales; a block is
dropped as a whole.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pretraining.downstream.tuning import TuneConfig, start_of, whole_model
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.decoder import Attention
from toto_robot.backbone.precision import fast_matmul
from toto_robot.backbone.torchvision_ops import need_torchvision

LR_PER_256 = 5e-4


class FineTuned(nn.Module):
    """Embedding and blocks that see the whole clip, and a classifier."""

    def __init__(self, config: TuneConfig, backbone: FrozenBackbone, num_classes: int) -> None:
        super().__init__()
        model: Any = whole_model(config, backbone)
        self.options, self.num_classes, self.lr = config, num_classes, 0.0
        self.trunk = model.truncate(model.config.layers).requires_grad_(True)
        attentions = [m for m in self.trunk.modules() if isinstance(m, Attention)]
        if len(attentions) != model.config.layers:
            raise ValueError(
                f"mode=finetune makes LLaMA-style attention see both ways; {backbone.name} has none"
            )
        for attention in attentions:
            attention.causal = False
        self.start, self.precision = start_of(config), backbone.precision
        self.tokenize = backbone.tokenize  # frozen, no module of this one
        self.augment = rand_augment(config.randaugment)
        self.norm = nn.LayerNorm(model.config.dim)
        self.head = nn.Linear(model.config.dim, num_classes)
        nn.init.normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def groups(self, clips: int) -> list[dict[str, Any]]:
        """Peak rates fall by `layer_decay` with each block away from the head; vectors do not decay."""
        size = self.options.tuning_batch(clips)
        self.lr = self.options.lr or LR_PER_256 * size / 256
        parts = [self.trunk.embedding, *self.trunk.blocks, nn.ModuleList([self.norm, self.head])]
        groups = []
        for place, part in enumerate(reversed(parts)):
            for matrix in (True, False):
                chosen = [p for p in part.parameters() if (p.ndim >= 2) == matrix]
                if chosen:
                    decay = self.options.weight_decay if matrix else 0.0
                    rate = self.lr * self.options.layer_decay**place
                    groups.append({"params": chosen, "lr_scale": rate, "weight_decay": decay})
        return groups

    def forward(self, codes: Int[Tensor, "B T h w"]) -> Float[Tensor, "B C"]:
        sequence = self.trunk.sequence(codes, self.start)
        with fast_matmul(sequence.device.type, self.precision):
            x_BND, more = self.trunk.begin(sequence)
            last = max(1, len(self.trunk.blocks) - 1)
            for i, block in enumerate(self.trunk.blocks):
                share = self.options.drop_path * i / last if self.training else 0.0
                x_BND = x_BND + kept(block(x_BND, *more) - x_BND, share)
            return self.head(self.norm(x_BND[:, 1:].float().mean(dim=1))).float()

    def losses(
        self, frames: UInt8[Tensor, "B T R R 3"], classes: Int[Tensor, " B"]
    ) -> dict[str, Float[Tensor, ""]]:
        frames, target = mixed(
            self.augment(frames).to(classes.device),
            smooth(classes, self.num_classes, self.options.smoothing),
            self.options.mixup,
            self.options.cutmix,
        )
        return {"class_nats": F.cross_entropy(self(self.tokenize(frames)), target)}

    def predict(self, frames: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "1 B C"]:
        return self(self.tokenize(frames))[None]

    def choose(
        self, logits: Float[Tensor, "1 M C"], classes: Int[Tensor, " M"]
    ) -> list[tuple[int, int, float]]:
        """There is one head, after the last block."""
        return [(len(self.trunk.blocks), 0, self.lr)]


def rand_augment(magnitude: int) -> Callable[[UInt8[Tensor, "B T R R 3"]], Tensor]:
    """Two operations of RandAugment (Cubuk et al. 2020), alike for all frames of a clip; 0: none.

    Raises:
        ImportError: torchvision is not there.
    """
    if not magnitude:
        return lambda frames: frames
    need_torchvision()
    from torchvision.transforms.v2 import RandAugment

    operations = RandAugment(num_ops=2, magnitude=magnitude)

    def augment(frames: UInt8[Tensor, "B T R R 3"]) -> UInt8[Tensor, "B T R R 3"]:
        clips = frames.permute(0, 1, 4, 2, 3)  # torchvision wants channels before rows
        return torch.stack([operations(clip) for clip in clips]).permute(0, 1, 3, 4, 2)

    return augment


def kept(added: Float[Tensor, "B N D"], drop: float) -> Float[Tensor, "B N D"]:
    """What a block adds, dropped for some rows and scaled for the others (Huang et al. 2016)."""
    if not drop:
        return added
    keep = torch.rand(len(added), 1, 1, device=added.device) >= drop
    return added * keep / (1 - drop)


def smooth(classes: Int[Tensor, " B"], num_classes: int, smoothing: float) -> Float[Tensor, "B C"]:
    """One-hot rows with `smoothing` of their weight spread over all classes."""
    return F.one_hot(classes, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mixed(
    frames: UInt8[Tensor, "B T R R 3"], target: Float[Tensor, "B C"], mixup: float, cutmix: float
) -> tuple[UInt8[Tensor, "B T R R 3"], Float[Tensor, "B C"]]:
    """Each clip with another of the batch: blended (mixup, Zhang et al. 2018) or with a rectangle of
    it (CutMix, Yun et al. 2019), either as often; targets by the shares.

    `mixup`, `cutmix`: parameters of the Beta distribution of the share; 0 turns it off.
    """
    other = torch.randperm(len(frames), device=frames.device)
    use_cut = bool(cutmix) and (not mixup or torch.rand(()).item() < 0.5)
    alpha = cutmix if use_cut else mixup
    if not alpha:
        return frames, target
    share = torch.distributions.Beta(alpha, alpha).sample().item()  # of the clip itself
    if use_cut:
        height, width = frames.shape[2:4]
        cut = (1 - share) ** 0.5
        down, right = (int(torch.randint(side, ()).item()) for side in (height, width))
        half_height, half_width = int(height * cut) // 2, int(width * cut) // 2
        rows = slice(max(0, down - half_height), down + half_height)
        columns = slice(max(0, right - half_width), right + half_width)
        out = frames.clone()
        out[:, :, rows, columns] = frames[other][:, :, rows, columns]
        area = out[0, 0, rows, columns].shape[:2].numel()
        share = 1 - area / (height * width)
    else:
        blend = share * frames.float() + (1 - share) * frames[other].float()
        out = blend.round().to(torch.uint8)
    return out, share * target + (1 - share) * target[other]
