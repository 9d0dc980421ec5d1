"""LPIPS (Zhang et al. 2018): distance of two pictures in the features of a VGG-16.

Its weights come from labels of ImageNet, so nothing here downloads them: a safetensors file with the
names of torchvision's VGG-16 (`features.0.weight`, …) and of the lpips package (`lin0.model.1.weight`,
…) is what is read. Without it, tokenizers are trained without this term.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT = (-0.030, -0.088, -0.188)  # of pixels in [-1, 1]: ImageNet's mean and deviation
SCALE = (0.458, 0.448, 0.450)


class PerceptualLoss(nn.Module):
    """Mean LPIPS distance of two batches of pixels in [-1, 1]; frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks tensors, or they have other shapes.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        self.ends = []  # layers whose output is compared: the last ReLU of each resolution
        for i, widths in enumerate(WIDTHS):
            layers += [nn.MaxPool2d(2)] if i else []
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.lins = nn.ModuleList(nn.Conv2d(w[-1], 1, 1, bias=False) for w in WIDTHS)
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} does not exist; leave perceptual= away without it")
        ours = {
            f"lin{k.removeprefix('lins.').replace('.', '.model.1.', 1)}" if k[0] == "l" else k: k
            for k in self.state_dict()
        }
        found = load_file(weights)
        if missing := sorted(ours.keys() - found.keys()):
            raise ValueError(
                f"{weights} lacks {len(missing)} of {len(ours)} tensors, such as {missing[0]}; "
                "expected the names of torchvision's VGG-16 and of lpips' linear layers"
            )
        try:
            self.load_state_dict({name: found[theirs] for theirs, name in ours.items()})
        except RuntimeError as error:
            raise ValueError(f"{weights} does not fit a VGG-16: {str(error)[:300]}") from error
        self.requires_grad_(False)

    def forward(
        self, first: Float[Tensor, "B 3 H W"], second: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, ""]:
        shift, scale = (first.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x = torch.cat([first, second]).sub(shift).div(scale)
        distance = first.new_zeros(())
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                a, b = F.normalize(x, dim=1, eps=1e-10).chunk(2)
                distance = distance + self.lins[self.ends.index(i)]((a - b).square()).mean()
        return distance
