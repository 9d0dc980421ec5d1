"""Encode once, measured: features in the rollout buffer against plain stable-baselines3.

    python -m benchmarks.encode_once --num-envs 16 --rollouts 2
    python -m benchmarks.encode_once --backbone toto-base --num-envs 4 --num-steps 8 --rollouts 1

Both sides run the same frozen backbone, task, seed and PPO settings (epochs, minibatches, horizon,
networks, read-out). "plain" is what one writes first: the backbone inside stable-baselines3's
`features_extractor`, images in the rollout buffer, `ortho_init=False` (the default would overwrite
the backbone's weights). The sides take turns, `--repeats` times. Prints the ratio of steps/s, and of
steps per second of CPU, which other work on the machine changes little; appends a line to
results/encode_once.jsonl.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as toto_robot.rl does

import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

import envs
from policies.feature_vec_env import feature_space, feature_vec_env
from policies.networks import policy_kwargs
from policies.ppo import PPOConfig, cosine_schedule, make_ppo
from policies.readouts import FeatureReadout
from policies.vec_env import PixelObserver, TaskVecEnv
from toto_robot.backbone import load_backbone
from toto_robot.runs import describe_machine

RESULTS = Path(__file__).parent / "results" / "encode_once.jsonl"


class Counted(nn.Module):
    """A backbone that counts the frames it encodes."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone, self.encodes = backbone, 0
        self.feature_shape = backbone.feature_shape

    def forward(self, frames: Tensor) -> Tensor:
        self.encodes += len(frames)
        return self.backbone(frames)


class BackboneInside(BaseFeaturesExtractor):
    """The plain way: images in, backbone in the extractor, then the same trainable read-out."""

    def __init__(self, observation_space: spaces.Dict, backbone: Counted, num_queries: int):
        super().__init__(observation_space, features_dim=256)
        self.backbone = backbone
        proprio = observation_space["proprio"].shape
        assert proprio is not None
        space = feature_space(backbone.feature_shape, proprio[0])
        self.readout = FeatureReadout(space, num_queries=num_queries)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        # Channels first, and stable-baselines3 made them floats (not normalised, as asked).
        frames = observations["image"].permute(0, 2, 3, 1).to(torch.uint8)
        with torch.no_grad():
            features = self.backbone(frames)
        return self.readout({"features": features, "proprio": observations["proprio"]})


@dataclass(frozen=True)
class Measured:
    encodes_per_step: float
    steps_per_s: float
    steps_per_cpu_s: float


def measure(env: TaskVecEnv, ppo: Any, backbone: Counted, total_steps: int) -> Measured:
    """Train for `total_steps` (rollouts and updates), from a reset task."""
    backbone.encodes = 0
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    ppo.learn(total_steps)
    elapsed_s, cpu_s = time.monotonic() - started_s, time.process_time() - started_cpu_s
    env.close()
    steps = env.env_steps
    return Measured(backbone.encodes / steps, steps / elapsed_s, steps / cpu_s)


def median(repeats: list[Measured]) -> Measured:
    fields = zip(*(vars(m).values() for m in repeats), strict=True)
    return Measured(*(statistics.median(values) for values in fields))


def ours(task: Any, backbone: Counted, config: PPOConfig, total_steps: int) -> Measured:
    env = feature_vec_env(task, backbone)
    return measure(env, make_ppo(env, config, seed=0), backbone, total_steps)


def plain(task: Any, backbone: Counted, config: PPOConfig, total_steps: int) -> Measured:
    size = task.image_size
    env = TaskVecEnv(task, PixelObserver((3, size, size), task.num_states))
    kwargs = policy_kwargs(env.observation_space, config)
    for ours_alone in ("std_power", "asymmetric"):  # options of our network, not of SB3's
        del kwargs[ours_alone]
    kwargs |= {
        "features_extractor_class": BackboneInside,
        "features_extractor_kwargs": {"backbone": backbone, "num_queries": config.num_queries},
        "ortho_init": False,
        "normalize_images": False,
    }
    ppo = stable_baselines3.PPO(
        "MultiInputPolicy",
        env,
        learning_rate=cosine_schedule(config.learning_rate),
        n_steps=config.num_steps,
        batch_size=env.num_envs * config.num_steps // config.minibatches,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
    )
    return measure(env, ppo, backbone, total_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--backbone", default="toto-tiny")
    parser.add_argument("--weights", default=None, help="file, hub repository or random")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-append", action="store_true")
    args = parser.parse_args()

    config = PPOConfig(num_steps=args.num_steps, epochs=args.epochs)
    total_steps = args.num_envs * args.num_steps * args.rollouts
    repeats: dict[str, list[Measured]] = {"ours": [], "plain": []}
    for _ in range(args.repeats):
        for name, side in (("ours", ours), ("plain", plain)):
            backbone = Counted(load_backbone(args.backbone, weights=args.weights))
            task = envs.make(
                "FrankaPick", args.num_envs, seed=0, obs="pixels", image_size=args.image_size
            )
            repeats[name].append(side(task, backbone, config, total_steps))
            print(f"{name:>6}: {describe(repeats[name][-1])}")
    results = {name: median(measured) for name, measured in repeats.items()}
    ratio = results["ours"].steps_per_s / results["plain"].steps_per_s
    cpu_ratio = results["ours"].steps_per_cpu_s / results["plain"].steps_per_cpu_s
    print(
        f" ratio: {ratio:.1f}x steps/s, {cpu_ratio:.1f}x steps per CPU second "
        f"({total_steps} steps, rollouts and updates)"
    )
    if not args.no_append:
        append(args, results, ratio, cpu_ratio)


def describe(measured: Measured) -> str:
    return (
        f"{measured.encodes_per_step:6.3f} encodes per step, {measured.steps_per_s:7.1f} steps/s, "
        f"{measured.steps_per_cpu_s:7.1f} per CPU second"
    )


def append(
    args: argparse.Namespace, results: dict[str, Measured], ratio: float, cpu_ratio: float
) -> None:
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{f"{name}_{k}": round(v, 4) for name, m in results.items() for k, v in vars(m).items()},
        "ratio": round(ratio, 3),
        "cpu_ratio": round(cpu_ratio, 3),
        **{k: v for k, v in vars(args).items() if k != "no_append"},
        "load_average": round(os.getloadavg()[0], 2),
        "machine": describe_machine(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
