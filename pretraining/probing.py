"""Small read-outs fitted to frozen features: how much of a quantity can be read, and where.

Features are [N, T, D] (T tokens); targets are [N, K], or classes [N]. Every read-out is fitted on the training
split, its one free choice (ridge strength, epoch) is made on a tenth of that split, and it is
scored on held-out frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from toto_robot.backbone import AttentionPool

RIDGE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
VALIDATION_SHARE = 0.1
Loss = Callable[[Tensor, Tensor], Tensor]  # of what a network makes of x, and y


@dataclass(frozen=True)
class Split:
    """Inputs and targets of training and held-out frames."""

    train_x: Tensor
    train_y: Float[Tensor, "N K"] | Int[Tensor, " N"]
    test_x: Tensor
    test_y: Float[Tensor, "M K"] | Int[Tensor, " M"]


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


def descend(
    networks: Sequence[nn.Module],
    rates: Sequence[float],
    x: Tensor,
    y: Tensor,
    prepare: Callable[[Tensor], Tensor],
    *,
    loss: Loss,
    error: Loss,
    epochs: int,
    batch_size: int = 128,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> tuple[nn.Module, int]:
    """Train networks side by side on the same batches of `prepare(x)`, each at its own peak rate.

    AdamW with one-cycle rates. Preparing, which may be a frozen backbone, is done once for all.

    Returns:
        The network with the smallest validation error (on the last tenth of the rows), with the
        weights of its best epoch; and its place among `networks`.
    """
    n_fit = round(len(y) * (1 - VALIDATION_SHARE))
    batch_size = min(batch_size, n_fit)
    generator = torch.Generator().manual_seed(seed)
    groups = [
        {"params": list(network.parameters()), "lr": rate}
        for network, rate in zip(networks, rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    steps = epochs * (n_fit // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(rates), total_steps=steps)
    best_errors = [float("inf")] * len(networks)
    best_weights = [network.state_dict() for network in networks]
    for _ in range(epochs):
        for network in networks:
            network.train()
        order = torch.randperm(n_fit, generator=generator)
        for rows in order[: n_fit // batch_size * batch_size].split(batch_size):
            prepared, target = prepare(x[rows]), y[rows]
            total = torch.stack([loss(network(prepared), target) for network in networks]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            schedule.step()
        for i, predicted in enumerate(predict(networks, x[n_fit:], prepare, batch_size)):
            found = error(predicted, y[n_fit:]).item()
            if found < best_errors[i]:
                best_errors[i] = found
                best_weights[i] = {k: v.clone() for k, v in networks[i].state_dict().items()}
    best = min(range(len(networks)), key=best_errors.__getitem__)
    networks[best].load_state_dict(best_weights[best])
    return networks[best], best


def fit_by_gradient(
    network: nn.Module,
    split: Split,
    prepare: Callable[[Tensor], Tensor],
    epochs: int,
    lr: float,
    batch_size: int = 128,
    seed: int = 0,
) -> Float[Tensor, "M K"]:
    """Regression by `descend`, on standardised targets; held-out predictions."""
    mean, std = split.train_y.mean(0), split.train_y.std(0)
    network, _ = descend(
        [network],
        [lr],
        split.train_x,
        (split.train_y - mean) / std,
        prepare,
        loss=partial(F.smooth_l1_loss, beta=0.1),
        error=F.mse_loss,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    return predict([network], split.test_x, prepare)[0] * std + mean


@torch.no_grad()
def predict(
    networks: Sequence[nn.Module],
    x: Tensor,
    prepare: Callable[[Tensor], Tensor],
    batch_size: int = 512,
) -> list[Tensor]:
    """What each network makes of all rows."""
    for network in networks:
        network.eval()
    parts = []
    for rows in x.split(batch_size):
        prepared = prepare(rows)
        parts.append([network(prepared) for network in networks])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def fit_attention(split: Split, epochs: int = 25, seed: int = 0) -> Float[Tensor, "M K"]:
    """Attention pooling over tokens and a linear layer, the read-out that policies use."""
    _, tokens, width = split.train_x.shape
    torch.manual_seed(seed)
    pool = AttentionPool(width, tokens, num_queries=8, out_features=128)
    network = nn.Sequential(pool, nn.GELU(), nn.Linear(128, split.train_y.shape[1]))
    return fit_by_gradient(network, split, lambda x: x.float(), epochs, lr=3e-3, seed=seed)


class MeanHead(nn.Module):
    """Average pooling and a linear classifier (paper, section 4.1)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.out = nn.Linear(width, num_classes)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B C"]:
        return self.out(self.norm(tokens.mean(dim=1)))


class LinearHead(nn.Module):
    """Average pooling and one linear layer: the linear probe of Table 14, nothing learned beside it.

    Features are brought to mean 0 and variance 1 by constants of the training rows, a linear map too,
    so that one learning rate suits every layer (`standardise`).
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.out = nn.Linear(width, num_classes)
        nn.init.zeros_(self.out.weight)

    def standardise(self, tokens: Float[Tensor, "B N D"]) -> None:
        pooled = tokens.mean(dim=1)
        self.mean.copy_(pooled.mean(0))
        self.scale.copy_(1 / (pooled.std(0) + 1e-6))

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B C"]:
        return self.out((tokens.mean(dim=1) - self.mean) * self.scale)


def heads_of(width: int, head_width: int) -> int:
    """Attention heads of about `head_width`; ValueError where they do not divide the width."""
    heads = max(1, width // head_width)
    if width % heads:
        raise ValueError(f"width {width} does not divide into {heads} heads")
    return heads


class AttentiveHead(nn.Module):
    """Attention pooling and a linear classifier (paper, section 3.5).

    z = softmax(q K^T / sqrt(d)) V with a learned query q, K = H W_k, V = H W_v. Heads of 64, the
    norm before and the missing biases are AIM's (El-Nouby et al. 2024), on which the paper builds.
    """

    def __init__(self, width: int, num_classes: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = heads_of(width, head_width)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.out = nn.Linear(width, num_classes)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B C"]:
        x_BND = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        k_BHNK, v_BHNK = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.key(x_BND), self.value(x_BND))
        )
        q_BH1K = self.query.view(self.heads, 1, -1).expand(len(tokens), -1, -1, -1)
        z_BH1K = F.scaled_dot_product_attention(q_BH1K, k_BHNK, v_BHNK)
        return self.out(z_BH1K.flatten(1))


class CrossHead(nn.Module):
    """Cross-attention and an MLP, then a linear classifier (paper, Table 16).

    z = q + attention(q, H); z + MLP(LayerNorm(z)), the MLP four times as wide, with GELU. The paper
    gives no more than its name; one learned query q, heads of 64 and biases are as in V-JEPA's
    attentive probe (Bardes et al. 2024), the norm of H as in `AttentiveHead`.
    """

    def __init__(self, width: int, num_classes: int, head_width: int = 64) -> None:
        super().__init__()
        heads = heads_of(width, head_width)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.out = nn.Linear(width, num_classes)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B C"]:
        x_BND = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        q_B1D = self.query.expand(len(tokens), 1, -1)
        z_B1D = q_B1D + self.attention(q_B1D, x_BND, x_BND, need_weights=False)[0]
        return self.out((z_B1D + self.mlp(z_B1D)).squeeze(1))


HEADS: dict[str, type[nn.Module]] = {
    "mean": MeanHead,
    "attention": AttentiveHead,
    "linear": LinearHead,
    "cross": CrossHead,
}
MEASURED = 2048  # rows whose mean and variance a LinearHead takes
CLASS_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # peaks, for features of unit variance


def fit_classes(
    split: Split,
    num_classes: int,
    pooling: str,
    prepare: Callable[[Tensor], Tensor],
    width: int,
    *,
    epochs: int,
    seed: int = 0,
    batch_size: int = 32,
    rates: Sequence[float] = CLASS_RATES,
    head: Callable[[int, int], nn.Module] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "M C"], float]:
    """A classifier on frozen token features; held-out logits and the rate that was chosen.

    Args:
        split: its targets are classes 0, 1, …, int64 [N]; rows in random order, as the last tenth
            chooses between `rates` and epochs (by its cross-entropy).
        pooling: one of `HEADS`.
        prepare: rows of x -> features [B, T, D = width] on `device`.
        head: another one than `pooling` names, of (width, number of classes).
    """
    torch.manual_seed(seed)
    heads = [(head or HEADS[pooling])(width, num_classes).to(device) for _ in rates]
    if isinstance(heads[0], LinearHead):
        sample = torch.cat([prepare(x).mean(1, True) for x in split.train_x[:MEASURED].split(256)])
        for each in heads:
            assert isinstance(each, LinearHead)
            each.standardise(sample)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target.to(logits.device))

    chosen, best = descend(
        heads,
        rates,
        split.train_x,
        split.train_y,
        prepare,
        loss=loss,
        error=loss,
        epochs=epochs,
        batch_size=batch_size,
        weight_decay=0.05,
        seed=seed,
    )
    return predict([chosen], split.test_x, prepare, batch_size)[0].cpu(), rates[best]


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
