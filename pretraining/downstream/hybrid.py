"""The paper's own protocol (sections 4.2, 4.3): next-token training goes on, probes only watch.

The whole causal model is trained further on the target set's tokens; heads at every layer get the
cross-entropy of the classes on features that no gradient passes. So labels never reach the backbone.
Several learning rates of the heads run side by side, as with cached features.
"""

from typing import Any

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pretraining.downstream.layer_heads import LayerHeads, sum_of_errors
from pretraining.downstream.tuning import TuneConfig, start_of, whole_model
from pretraining.optimizer import standard_groups
from toto_robot.backbone import FrozenBackbone
from toto_robot.backbone.causal import surprise
from toto_robot.backbone.precision import fast_matmul

MODEL_LR = 3e-5  # a tenth of the pre-training's peak; ours, the paper gives none


class Hybrid(nn.Module):
    """The model, and for each layer and each rate a head."""

    def __init__(self, config: TuneConfig, backbone: FrozenBackbone, num_classes: int) -> None:
        super().__init__()
        self.heads = LayerHeads(config, backbone, num_classes)
        self.model = whole_model(config, backbone).requires_grad_(True)
        self.start, self.lr, self.decay = start_of(config), config.lr, config.weight_decay
        self.tokenize, self.precision = backbone.tokenize, backbone.precision  # frozen, no module
        self.choose = self.heads.choose

    def groups(self, clips: int) -> list[dict[str, Any]]:
        """Groups of parameters with their peak rates as `lr_scale`."""
        model = standard_groups(self.model, self.decay)
        own = [group | {"lr_scale": self.lr or MODEL_LR} for group in model]
        return own + self.heads.groups()

    def forward(
        self, codes: Int[Tensor, "B T h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "K B C"]]:
        """Next-token loss in nats, and the logits of every head (layer by layer, rate by rate)."""
        sequence = self.model.sequence(codes, self.start)
        with fast_matmul(sequence.device.type, self.precision):
            states = self.model.hidden_states(sequence)
            logits = self.model.logits(states[-1][:, :-1])
            next_token = surprise(logits, sequence[:, 1:]).mean()
            found = self.heads([state[:, 1:] for state in states])
        return next_token, found

    def losses(
        self, frames: UInt8[Tensor, "B T R R 3"], classes: Int[Tensor, " B"]
    ) -> dict[str, Float[Tensor, ""]]:
        next_token, logits = self(self.tokenize(frames))
        return {"next_token_nats": next_token, "heads_nats": sum_of_errors(logits, classes)}

    def predict(self, frames: UInt8[Tensor, "B T R R 3"]) -> Float[Tensor, "K B C"]:
        return self(self.tokenize(frames))[1]
