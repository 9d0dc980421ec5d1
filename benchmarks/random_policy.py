"""What a policy that has learned nothing gets: `python -m benchmarks.random_policy [episodes]`

The first episode of each world, so that short ones are not counted more often. `uniform` draws
actions from [-1, 1]; `gaussian` from N(0, 1), clipped, which is how PPO begins.
"""

import json
import sys
from pathlib import Path

import torch

import envs
from toto_robot.runs import success_report

RESULTS = Path(__file__).parent / "results" / "random_policy.json"
KINDS = ("uniform", "gaussian")


def first_episodes(kind: str, episodes: int, seed: int) -> dict:
    task = envs.make("FrankaPick", episodes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    task.reset()
    running = torch.ones(episodes, dtype=torch.bool)
    returns, lengths = torch.zeros(episodes), torch.zeros(episodes)
    successes = torch.zeros(episodes)
    while running.any():
        if kind == "uniform":
            actions = torch.rand(episodes, task.num_actions, generator=generator) * 2 - 1
        else:
            actions = torch.randn(episodes, task.num_actions, generator=generator)
        _, _, reset, extras = task.step(actions)
        ended = running & reset.bool()
        returns[ended] = extras["episode_return"][ended]
        lengths[ended] = extras["episode_length"][ended].float()
        successes[ended] = extras["successes"][ended]
        running &= ~ended
    task.close()
    return {
        **success_report(successes.tolist()),
        "episode_return": returns.mean().item(),
        "episode_return_standard_error": (returns.std() / episodes**0.5).item(),
        "episode_length": lengths.mean().item(),
        "seed": seed,
    }


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    report = {kind: first_episodes(kind, count, seed=1_000_003) for kind in KINDS}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
