"""The paper's own protocol (sections 4.2, 4.3): next-token training goes on, probes only watch.

The whole causal model is trained further on the target set's tokens; heads at every layer get the
cross-entropy of the classes on features that no gradient passes. So labels never reach the backbone.
Several learning rates of the heads run side by side, as with cached features.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pretraining.downstream.features import layers_of
from pretraining.downstream.tuning import TuneConfig, start_of, whole_model
from pretraining.optimizer import standard_groups
from pretraining.probing import HEADS
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.causal import surprise
from toto_robot.backbone.precision import fast_matmul

MODEL_LR = 3e-5  # a tenth of the pre-training's peak; ours, the paper gives none


class Hybrid(nn.Module):
    """The model, and for each layer and each rate a head."""

    def __init__(self, config: TuneConfig, backbone: FrozenBackbone, num_classes: int) -> None:
        super().__init__()
        if config.pooling == "linear":
            raise ValueError("mode=hybrid: pooling=linear is of features that stay; use mean")
        self.layers, self.rates = layers_of(backbone, config.layers), config.rates
        self.model = whole_model(config, backbone).requires_grad_(True)
        self.start, self.lr, self.decay = start_of(config), config.lr, config.weight_decay
        self.tokenize, self.precision = backbone.tokenize, backbone.precision  # frozen, no module
        width = self.model.config.dim
        self.heads = nn.ModuleList(
            HEADS[config.pooling](width, num_classes) for _ in self.layers for _ in self.rates
        )

    def groups(self, clips: int) -> list[dict]:
        """Groups of parameters with their peak rates as `lr_scale`."""
        model = standard_groups(self.model, self.decay)
        groups = [group | {"lr_scale": self.lr or MODEL_LR} for group in model]
        for i, rate in enumerate(self.rates):
            heads = [self.heads[j] for j in range(i, len(self.heads), len(self.rates))]
            groups.append({"params": [p for h in heads for p in h.parameters()], "lr_scale": rate})
        return groups

    def forward(
        self, codes: Int[Tensor, "B T h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "K B C"]]:
        """Next-token loss in nats, and the logits of every head (layer by layer, rate by rate)."""
        sequence = self.model.sequence(codes, self.start)
        with fast_matmul(sequence.device.type, self.precision):
            states = self.model.hidden_states(sequence)
            logits = self.model.logits(states[-1][:, :-1])
            next_token = surprise(logits, sequence[:, 1:]).mean()
            watched = [states[layer][:, 1:].detach().float() for layer in self.layers]
            found = [
                head(watched[i // len(self.rates)]).float() for i, head in enumerate(self.heads)
            ]
        return next_token, torch.stack(found)

    def losses(
        self, frames: UInt8[Tensor, "B T R R 3"], classes: Int[Tensor, " B"]
    ) -> dict[str, Float[Tensor, ""]]:
        next_token, logits = self(self.tokenize(frames))
        errors = torch.stack([F.cross_entropy(each, classes) for each in logits])
        return {"next_token_nats": next_token, "heads_nats": errors.sum()}

    def predict(self, frames: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "K B C"]:
        return self(self.tokenize(frames))[1]

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
