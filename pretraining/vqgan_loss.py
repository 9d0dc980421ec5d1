"""What a VQGAN learns from (Esser et al. 2021, section 3.1): pixels, codebook, a critic of patches.

The perceptual term of the paper needs a network trained on labels, so it is there only where its
weights are given (`pretraining/perceptual.py`).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from pretraining.perceptual import PerceptualLoss
from toto_robot.backbone.vqgan import VQGAN

COMMITMENT = 0.25  # weight of pulling the encoder to the codes, against codes to the encoder
LARGEST_WEIGHT = 1e4  # of the critic's term, when it is balanced by gradients


class PatchCritic(nn.Module):
    """Real or made, patch by patch: the discriminator of pix2pix (Isola et al. 2017) with GroupNorm.

    The released models use BatchNorm, whose running statistics two kinds of batches share.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [3] + [channels * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            parts.append(nn.Conv2d(inputs, outputs, 4, 2 if i < layers else 1, 1))
            parts += [nn.GroupNorm(8, outputs)] if i > 0 else []
            parts.append(nn.LeakyReLU(0.2))
        self.parts = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        return self.parts(pixels)


class VQGANTraining(nn.Module):
    """The model, its critic, and how often each code was used since codes were last revived.

    Args:
        critic_start: step from which the critic's opinion counts (released: 250,001 and 0).
        critic_weight: of that opinion, relative to the pixels' gradient (released: 0.8 and 0.75).
        revive_every: steps after which codes that nothing was nearest to move to encoder outputs
            of the present batch; 0: never, as the released models, of which 6 to 43 % are in use.
        perceptual: weights for the perceptual term, or None to do without.
    """

    used: Tensor

    def __init__(
        self,
        model: VQGAN,
        *,
        critic_start: int,
        critic_weight: float,
        revive_every: int,
        perceptual: Path | None = None,
    ) -> None:
        super().__init__()
        self.model, self.critic = model, PatchCritic()
        self.critic_start, self.critic_weight = critic_start, critic_weight
        self.revive_every = revive_every
        self.perceptual = (
            [PerceptualLoss(perceptual)] if perceptual else []
        )  # not saved, not trained
        bound = 1 / model.config.vocabulary
        nn.init.uniform_(model.encoder.codebook.weight, -bound, bound)
        model.decoder.codebook.weight = model.encoder.codebook.weight
        self.register_buffer("used", torch.zeros(model.config.vocabulary))

    def loss(
        self, frames: UInt8[Tensor, "B R R 3"], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of model and critic together, and its terms; each is trained by its own part alone."""
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        encoder, decoder = self.model.encoder, self.model.decoder
        z = encoder.quant_conv(encoder.net(pixels)).float()
        codes = encoder.nearest(z.detach())
        self._note(codes, z.detach(), step, generator)
        quantised = encoder.codebook(codes).permute(0, 3, 1, 2)
        codebook = F.mse_loss(quantised, z.detach()) + COMMITMENT * F.mse_loss(
            z, quantised.detach()
        )
        straight_through = z + (quantised - z).detach()
        made = decoder.net(decoder.post_quant_conv(straight_through)).float()
        reconstruction = (made - pixels).abs().mean()
        if self.perceptual:
            reconstruction = reconstruction + self.perceptual[0](made, pixels)
        loss = reconstruction + codebook
        terms = {"reconstruction": reconstruction.item(), "codebook": codebook.item()}
        if step >= self.critic_start and self.critic_weight > 0:
            opinion, own = self._critic_terms(pixels, made, reconstruction)
            loss = loss + opinion + own
            terms |= {"opinion": opinion.item(), "critic": own.item()}
        return loss, terms

    def _critic_terms(
        self, pixels: Tensor, made: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The critic's opinion of the pictures (for the model), and its own hinge loss."""
        self.critic.requires_grad_(False)
        opinion = -self.critic(made).mean()
        self.critic.requires_grad_(True)
        # Balanced at the last layer: as strong a gradient as the pixels' (equation 7).
        last = self.model.decoder.net.conv_out.weight
        of_pixels = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm()
        of_opinion = torch.autograd.grad(opinion, last, retain_graph=True)[0].norm()
        balance = (of_pixels / (of_opinion + 1e-4)).clamp(0, LARGEST_WEIGHT).detach()
        own = F.relu(1 - self.critic(pixels)).mean() + F.relu(1 + self.critic(made.detach())).mean()
        return self.critic_weight * balance * opinion, 0.5 * own

    @torch.no_grad()
    def _note(
        self, codes: Int[Tensor, "B h w"], z: Tensor, step: int, generator: torch.Generator
    ) -> None:
        """Count which codes are used; now and then move the unused ones to where data is."""
        self.used += torch.bincount(codes.flatten(), minlength=len(self.used))
        if not self.revive_every or (step + 1) % self.revive_every:
            return
        dead = (self.used == 0).nonzero().squeeze(1)
        places = z.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randint(len(places), (len(dead),), generator=generator)
        self.model.encoder.codebook.weight[dead] = places[chosen]
        self.used.zero_()
