"""How far a measured share can be trusted."""

import math

Z = 1.959964  # standard normal quantile of 95 % intervals


def wilson_interval(successes: float, episodes: int, z: float = Z) -> tuple[float, float]:
    """95 % score interval of a success rate, (low, high) in [0, 1].

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), Wilson, JASA 22 (1927) 209-212.
    Unlike p ± 1.96 s it stays honest at 0 and 1. Without episodes: (0, 1).
    Raises ValueError unless 0 <= successes <= episodes.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes of {episodes} episodes is not a rate")
    if episodes == 0:
        return 0.0, 1.0
    p, zz = successes / episodes, z * z / episodes
    centre = (p + zz / 2) / (1 + zz)
    half = z * math.sqrt(p * (1 - p) / episodes + zz / (4 * episodes)) / (1 + zz)
    return max(0.0, centre - half), min(1.0, centre + half)
