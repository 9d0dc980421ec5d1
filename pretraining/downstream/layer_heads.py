"""Heads at every layer, of which no gradient reaches the model; several learning rates side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pretraining.downstream.features import layers_of
from pretraining.downstream.tuning import TuneConfig
from pretraining.probing import HEADS
from toto_robot.backbone import FrozenBackbone


class LayerHeads(nn.Module):
    """For each layer and each rate a head (layer by layer, rate by rate)."""

    def __init__(self, config: TuneConfig, backbone: FrozenBackbone, num_classes: int) -> None:
        super().__init__()
        if config.pooling == "linear":
            raise ValueError(
                f"mode={config.mode}: pooling=linear is of features that stay; use mean, or "
                "mode=probe, whose cache holds one token of a picture then"
            )
        self.layers, self.rates = layers_of(backbone, config.layers), config.rates
        self.heads = nn.ModuleList(
            HEADS[config.pooling](backbone.num_features, num_classes)
            for _ in self.layers
            for _ in self.rates
        )

    def groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with their peak rates as `lr_scale`."""
        groups = []
        for i, rate in enumerate(self.rates):
            heads = [self.heads[j] for j in range(i, len(self.heads), len(self.rates))]
            groups.append({"params": [p for h in heads for p in h.parameters()], "lr_scale": rate})
        return groups

    def forward(
        self, states: Mapping[int, Float[Tensor, "B N D"]] | Sequence[Float[Tensor, "B N D"]]
    ) -> Float[Tensor, "K B C"]:
        """Logits of every head. `states[layer]`: tokens after so many blocks."""
        watched = [states[layer].detach().float() for layer in self.layers]
        count = len(self.rates)
        return torch.stack([h(watched[i // count]).float() for i, h in enumerate(self.heads)])

    def choose(
        self, logits: Float[Tensor, "K M C"], classes: Int[Tensor, " M"]
    ) -> list[tuple[int, int, float]]:
        """(layer, head, rate) of the rate with the smallest error at each layer."""
        count, chosen = len(self.rates), []
        for i, layer in enumerate(self.layers):
            errors = [F.cross_entropy(each, classes).item() for each in logits[i * count :][:count]]
            best = min(range(count), key=lambda j: errors[j])
            chosen.append((layer, i * count + best, self.rates[best]))
        return chosen


def sum_of_errors(logits: Float[Tensor, "K B C"], classes: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Each head's cross-entropy, added: no head's gradient touches another."""
    return torch.stack([F.cross_entropy(each, classes) for each in logits]).sum()
