"""Scaling laws from losses: fits that outliers do not pull at, with bootstrap intervals.

    L(C) = a C^-b                        on the compute-efficient frontier (paper, section 4.9)
    L(N, D) = E + A / N^alpha + B / D^beta      (Hoffmann et al. 2022, approach 3)

Both minimise the Huber loss of log L (delta 1e-3) with L-BFGS from the best of a grid of starts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DELTA = 1e-3
REFINED = 6  # starts that are followed to the end
Numbers = Sequence[float] | Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Law:
    """Parameters by name, and the 95 % interval of each over the bootstrap samples."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def frontier(compute: Numbers, loss: Numbers) -> Int[np.ndarray, " k"]:
    """Indices of the points that no other beats with as little compute, cheapest first."""
    losses = np.asarray(loss)
    best, kept = np.inf, []
    for i in np.lexsort((losses, np.asarray(compute))):
        if losses[i] < best:
            best = losses[i]
            kept.append(i)
    return np.array(kept)


def fit_power(compute: Numbers, loss: Numbers, samples: int = 200, seed: int = 0) -> Law:
    """L(C) = a C^-b. ValueError with fewer than three points."""
    x, y = _logs(compute), _logs(loss)
    _check(len(x), 3, "L(C)")
    middle = float(x.mean())

    def predict(p_SP: Tensor, chosen: Tensor) -> Tensor:
        return p_SP[:, :1] - p_SP[:, 1:] * (x[chosen] - middle)

    level = float(y.median())
    starts = torch.tensor([(level, b) for b in (0.0, 0.05, 0.2, 0.5)], dtype=torch.float64)

    def name(p: Tensor) -> dict[str, float]:
        level, b = p.tolist()
        return {"a": float(np.exp(level + b * middle)), "b": b}

    return _fit(predict, y, starts, name, samples, seed)


def fit_parametric(
    parameters: Numbers, tokens: Numbers, loss: Numbers, samples: int = 100, seed: int = 0
) -> Law:
    """L = E + A / N^alpha + B / D^beta.

    Raises:
        ValueError: fewer than six points, or they contradict the law: losses do not fall with N or D.
    """
    n, d, y = _logs(parameters), _logs(tokens), _logs(loss)
    _check(len(y), 6, "L(N, D)")
    n_middle, d_middle = float(n.mean()), float(d.mean())

    def predict(p_SP: Tensor, chosen: Tensor) -> Tensor:
        e, a, alpha, b, beta = (p_SP[:, i : i + 1] for i in range(5))
        terms = (a - alpha * (n[chosen] - n_middle), b - beta * (d[chosen] - d_middle))
        return torch.stack([e.expand_as(terms[0]), *terms]).logsumexp(0)

    # Starts as shares of the losses at the middle of N and D, where the parts are told apart best.
    level = float(y.mean())
    shares, powers = [level + np.log(share) for share in (0.1, 0.4, 0.8)], (0.1, 0.3, 0.6, 1.0)
    grid = list(product(shares, shares, powers, shares, powers))

    def name(p: Tensor) -> dict[str, float]:
        e, a, alpha, b, beta = p.tolist()
        scale_n, scale_d = np.exp(a + alpha * n_middle), np.exp(b + beta * d_middle)
        return {"E": float(np.exp(e)), "A": float(scale_n), "alpha": alpha,
                "B": float(scale_d), "beta": beta}  # fmt: skip

    law = _fit(predict, y, torch.tensor(grid, dtype=torch.float64), name, samples, seed)
    if law.values["alpha"] <= 0 or law.values["beta"] <= 0:
        shown = ", ".join(f"{key} = {value:.3g}" for key, value in law.values.items())
        raise ValueError(f"these losses do not fall with both size and tokens: best fit {shown}")
    return law


def _logs(values: Numbers) -> Tensor:
    return torch.as_tensor(np.asarray(values, np.float64)).log()


def _check(count: int, least: int, law: str) -> None:
    if count < least:
        raise ValueError(f"{law} needs at least {least} points, got {count}; train more or longer")


def _fit(
    predict: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    starts: Tensor,
    name: Callable[[Tensor], dict[str, float]],
    samples: int,
    seed: int,
) -> Law:
    """The best fit, and the spread of fits to points drawn with replacement."""

    def losses(p_SP: Tensor, chosen: Tensor) -> Tensor:
        """Huber loss of each row of parameters."""
        error = predict(p_SP, chosen) - y[chosen]
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=DELTA).sum(1)

    def refine(start: Tensor, chosen: Tensor) -> tuple[float, Tensor]:
        return _descend(lambda p: losses(p[None], chosen)[0] / DELTA, start)

    everything = torch.arange(len(y))
    order = losses(starts, everything).argsort()[:REFINED]
    best = min((refine(starts[i], everything) for i in order), key=lambda found: found[0])[1]
    random = np.random.default_rng(seed)
    fits = []
    for _ in range(samples):
        chosen = torch.from_numpy(random.integers(0, len(y), len(y)))
        again = [refine(start, chosen) for start in (best, starts[order[0]])]
        fits.append(name(min(again, key=lambda found: found[0])[1]))
    values = name(best)
    intervals = {}
    for key in values:
        low, high = np.percentile([fit[key] for fit in fits], [2.5, 97.5])
        intervals[key] = (float(low), float(high))
    return Law(values, intervals)


def _descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """L-BFGS with strong Wolfe steps; the lowest loss and where it is."""
    p = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [p],
        max_iter=100,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(p)
        value.backward()
        return value

    optimizer.step(closure)
    final = float(loss(p.detach()))
    return (final if np.isfinite(final) else np.inf), p.detach()
