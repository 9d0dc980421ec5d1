"""Small read-outs fitted to frozen features: how much of a quantity can be read, and where.

Features are [N, T, D] (T tokens); targets are [N, K]. Every read-out is fitted on the training
split, its one free choice (ridge strength, epoch) is made on a tenth of that split, and it is
scored on held-out frames.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from toto_robot.backbone import AttentionPool

RIDGE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Split:
    """Inputs and targets of training and held-out frames."""

    train_x: Tensor
    train_y: Float[Tensor, "N K"]
    test_x: Tensor
    test_y: Float[Tensor, "M K"]


def r_squared(predicted: Float[Tensor, "M K"], target: Float[Tensor, "M K"]) -> Float[Tensor, " K"]:
    """1 - residual / variance for each target column; 0 is as good as the held-out mean."""
    residual = (predicted - target).square().sum(0)
    return 1 - residual / (target - target.mean(0)).square().sum(0)


def fit_ridge(split: Split) -> Float[Tensor, "M K"]:
    """Linear read-out of flattened features; returns held-out predictions.

    Solved in the dual, (X X^T + s n I)^-1 y, so that width does not matter; s is relative to the
    mean diagonal of X X^T.
    """
    x, test_x = split.train_x.flatten(1).float(), split.test_x.flatten(1).float()
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, test_x = (x - mean) / std, (test_x - mean) / std
    y_mean = split.train_y.mean(0)
    y = split.train_y - y_mean
    n_fit = round(len(x) * (1 - VALIDATION_SHARE))
    gram = x @ x.T
    scale = gram.diagonal().mean()

    def solve(rows: int, strength: float) -> Tensor:
        ridge = strength * scale * torch.eye(rows)
        return torch.linalg.solve(gram[:rows, :rows] + ridge, y[:rows])

    def validation_error(strength: float) -> float:
        predicted = gram[n_fit:, :n_fit] @ solve(n_fit, strength)
        return (predicted - y[n_fit:]).square().mean().item()

    best = min(RIDGE_STRENGTHS, key=validation_error)
    return (test_x @ x.T) @ solve(len(x), best) + y_mean


def fit_by_gradient(
    network: nn.Module,
    split: Split,
    prepare: Callable[[Tensor], Tensor],
    epochs: int,
    lr: float,
    batch_size: int = 128,
    seed: int = 0,
) -> Float[Tensor, "M K"]:
    """Train `network(prepare(x))` with AdamW and a one-cycle rate; held-out predictions.

    The weights of the epoch with the smallest validation error are used.
    """
    mean, std = split.train_y.mean(0), split.train_y.std(0)
    y = (split.train_y - mean) / std
    n_fit = round(len(y) * (1 - VALIDATION_SHARE))
    batch_size = min(batch_size, n_fit)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * (n_fit // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    best_error, best_weights = float("inf"), network.state_dict()
    for _ in range(epochs):
        network.train()
        order = torch.randperm(n_fit, generator=generator)
        for rows in order[: n_fit // batch_size * batch_size].split(batch_size):
            loss = F.smooth_l1_loss(network(prepare(split.train_x[rows])), y[rows], beta=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        error = (
            (predict(network, split.train_x[n_fit:], prepare) - y[n_fit:]).square().mean().item()
        )
        if error < best_error:
            best_error = error
            best_weights = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(best_weights)
    return predict(network, split.test_x, prepare) * std + mean


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    network.eval()
    return torch.cat([network(prepare(rows)) for rows in x.split(512)])


def fit_attention(split: Split, epochs: int = 25, seed: int = 0) -> Float[Tensor, "M K"]:
    """Attention pooling over tokens and a linear layer, the read-out that policies use."""
    _, tokens, width = split.train_x.shape
    torch.manual_seed(seed)
    pool = AttentionPool(width, tokens, num_queries=8, out_features=128)
    network = nn.Sequential(pool, nn.GELU(), nn.Linear(128, split.train_y.shape[1]))
    return fit_by_gradient(network, split, lambda x: x.float(), epochs, lr=3e-3, seed=seed)


class SmallCNN(nn.Module):
    """Five strided convolutions and two linear layers; the end-to-end reference."""

    def __init__(self, num_targets: int):
        super().__init__()
        widths = (3, 16, 32, 64, 64, 64)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [nn.Conv2d(inputs, outputs, 5 if i == 0 else 3, 2, 1 + (i == 0)), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(nn.LazyLinear(256), nn.ReLU(), nn.Linear(256, num_targets))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        return self.head(self.body(x))


def as_pixels(frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def fit_cnn(split: Split, epochs: int = 30, seed: int = 0) -> Float[Tensor, "M K"]:
    """A small CNN trained end to end on the frames themselves (uint8 [N, H, W, 3])."""
    torch.manual_seed(seed)
    network = SmallCNN(split.train_y.shape[1])
    network(as_pixels(split.train_x[:2]))  # sizes the lazy layer
    return fit_by_gradient(network, split, as_pixels, epochs, lr=1.5e-3, batch_size=64, seed=seed)


def average_grid(tokens: Tensor, side: int) -> Tensor:
    """[N, h*h, D] averaged down to [N, side*side, D]."""
    n, count, width = tokens.shape
    h = round(count**0.5)
    if h * h != count or h % side:
        raise ValueError(f"{count} tokens do not average down to a {side} x {side} grid")
    blocks = tokens.reshape(n, side, h // side, side, h // side, width)
    return blocks.mean(dim=(2, 4)).reshape(n, side * side, width)
