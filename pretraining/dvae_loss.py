"""What a dVAE learns from: reconstruction weighted by colour rarity, use of the codebook, KL.

And what its decoder learns from alone, when the codes are those of a frozen encoder.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pretraining.colours import pixel_weights
from toto_robot.backbone.dvae import DVAE, map_pixels


@dataclass(frozen=True, kw_only=True)
class DVAELossOptions:
    """See `pretraining.train_tokenizer.Config`."""

    loss: Literal["l1", "l2"]
    temperature: float
    final_temperature: float
    annealing_steps: float
    usage: float
    kl: float


def weighted_error(
    error: Float[Tensor, "B 3 H W"],
    pixel_weight: Float[Tensor, "B 1 H W"],
    whitening: Float[Tensor, "3 3"],
    loss: Literal["l1", "l2"],
) -> Float[Tensor, ""]:
    """Mean error of a reconstruction, in whitened colours, rare ones weighing more."""
    error = torch.einsum("ij,bjhw->bihw", whitening, error)
    return ((error.abs() if loss == "l1" else error.square()) * pixel_weight).mean()


class DVAETraining(nn.Module):
    """The model and its loss. `weights` and `whitening` are those of `pretraining.colours`."""

    def __init__(
        self,
        model: DVAE,
        options: DVAELossOptions,
        weights: Float[Tensor, " colours"],
        whitening: Float[Tensor, "3 3"],
    ) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.weights, self.whitening = weights, whitening

    def temperature_at(self, step: int) -> float:
        """Exponential annealing, then constant."""
        o, share = self.options, min(1.0, step / self.options.annealing_steps)
        return o.temperature * (o.final_temperature / o.temperature) ** share

    def loss(
        self, frames: UInt8[Tensor, "B R R 3"], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted reconstruction, codebook usage and KL; returns the loss and its terms.

        The usage term is the mutual information of patch and code, as a share of ln V: high when a
        patch's code is certain and the codes are used evenly. (The entropy of the mean posterior
        alone is as high when every patch's posterior is uniform, and that is what it then trains.)
        """
        pixels = map_pixels(frames)
        output, logits = self.model(pixels, self.temperature_at(step), generator)
        pixel_weight = pixel_weights(frames, self.weights)
        reconstruction = weighted_error(
            output - pixels, pixel_weight, self.whitening, self.options.loss
        )

        log_vocabulary = math.log(self.model.config.vocabulary)
        # Weighted like the pixels: else codes are spread over the noise of the commonest patches.
        patch_weight = F.avg_pool2d(pixel_weight, self.model.config.stride)
        patch_weight = patch_weight / patch_weight.sum()
        information, divergence = pixels.new_zeros(()), pixels.new_zeros(())
        for part in logits.split(self.model.config.choices, dim=1):
            log_posterior = part.log_softmax(dim=1)
            posterior = log_posterior.exp()
            mean_posterior = (posterior * patch_weight).sum(dim=(0, 2, 3))
            mean_entropy = -(mean_posterior * (mean_posterior + 1e-10).log()).sum()
            negative_entropy = (posterior * log_posterior).sum(dim=1, keepdim=True)
            information = information + mean_entropy + (negative_entropy * patch_weight).sum()
            divergence = divergence + (negative_entropy + math.log(part.shape[1])).mean()
        loss = reconstruction + self.options.usage * (1 - information / log_vocabulary)
        if self.options.kl > 0:
            loss = loss + self.options.kl * divergence
        terms = {"reconstruction": reconstruction.item(), "information": information.item()}
        terms["temperature"] = self.temperature_at(step)
        return loss, terms


class DecoderTraining(nn.Module):
    """A decoder for the hard codes of a frozen encoder: reconstruction is all there is to learn."""

    def __init__(
        self,
        model: DVAE,
        loss: Literal["l1", "l2"],
        weights: Float[Tensor, " colours"],
        whitening: Float[Tensor, "3 3"],
    ) -> None:
        super().__init__()
        self.model = model
        self.kind: Literal["l1", "l2"] = loss
        self.weights, self.whitening = weights, whitening
        model.encoder.requires_grad_(False)

    def loss(
        self, frames: UInt8[Tensor, "B R R 3"], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted reconstruction; the encoder runs in float32, as it does when tokenizing."""
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            codes = self.model.encoder.encode(frames)
        output = self.model.decoder(self.model.decoder.one_hot(codes))
        pixel_weight = pixel_weights(frames, self.weights)
        loss = weighted_error(output - map_pixels(frames), pixel_weight, self.whitening, self.kind)
        return loss, {"reconstruction": loss.item()}
