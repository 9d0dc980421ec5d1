"""Evaluate a trained policy on fresh seeds, and film it."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from policies.evaluation import evaluate
from policies.film import EpisodeFilm
from policies.policy import load_policy
from toto_robot.build import make_task, pick_device
from toto_robot.conf import RLConfig
from toto_robot.runs import success_report, write_json

EVAL_SEED_OFFSET = 1_000_003  # evaluation never sees the training seeds


def evaluate_best(
    config: RLConfig, folder: Path, checkpoint: Path, backbone: Any, stamp: str
) -> None:
    """`eval.json` and `eval.mp4`: the deterministic policy of `checkpoint` on fresh seeds."""
    policy = load_policy(checkpoint, backbone, pick_device(config))
    seed = config.seed + EVAL_SEED_OFFSET
    count = config.eval_episodes or 1
    task = make_task(config, seed, min(config.num_envs or 1, count))
    print(f"Evaluating {checkpoint} for {count} episodes on fresh seeds …")
    with tqdm(total=count, unit="episode", mininterval=0.5) as bar:
        episodes = evaluate(policy, task, count, on_episode=lambda _: bar.update())
    task.close()
    report = success_report([float(e.success) for e in episodes])
    write_json(
        folder / "eval.json",
        {
            **report,
            "episode_return": sum(e.episode_return for e in episodes) / len(episodes),
            "episode_length": sum(e.episode_length for e in episodes) / len(episodes),
            "seed": seed,
            "env_steps": policy.spec.env_steps,
            "env": config.env.name,
            "obs": config.obs,
            "backbone": backbone.name if backbone else None,
            "weights_hash": backbone.weights_hash if backbone else None,
            "untrained_backbone": bool(stamp),
        },
    )
    print(f"success {report['success_rate']:.1%} [{report['success_low']:.1%}, "
          f"{report['success_high']:.1%}] of {len(episodes)} episodes")  # fmt: skip
    if config.film_episodes:
        film_policy(config, folder / "eval.mp4", policy, stamp)
    print(f"All results: {folder}")


def film_policy(config: RLConfig, path: Path, policy: Any, stamp: str) -> None:
    """A few evaluation episodes, third person and wrist camera side by side."""
    task = make_task(config, config.seed + EVAL_SEED_OFFSET, config.film_episodes)
    try:
        with EpisodeFilm(path, task, config.film_episodes, stamp=stamp) as film:
            finished = evaluate(policy, task, config.film_episodes, watch=film)
            film.finish({e.world: e for e in finished})
    finally:
        task.close()
