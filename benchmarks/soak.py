"""Do the worlds stay sane? Random actions for 10,000 control steps in 256 worlds of every task.

    python -m benchmarks.soak --steps 10000 --worlds 256

Counts worlds that diverged, and samples penetration and energy. Writes results/soak.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import envs  # first: it chooses MUJOCO_GL

import mujoco  # isort: skip
import torch  # isort: skip
from tqdm import tqdm  # isort: skip

from envs import spec  # isort: skip
from toto_robot.runs import describe_machine  # isort: skip

RESULTS = Path(__file__).parent / "results" / "soak.json"
SAMPLED_WORLDS, SAMPLE_EVERY = 8, 50


def look(engine: Any, world: int, worst: dict[str, float]) -> None:
    """Deepest penetration (m), kinetic energy (J) and height of free bodies (m) of one world."""
    data = engine._batch.get_data(world)
    mujoco.mj_forward(engine.model, data)
    mujoco.mj_energyVel(engine.model, data)
    worst["penetration_m"] = max(worst["penetration_m"], *(-c.dist for c in data.contact), 0.0)
    worst["kinetic_j"] = max(worst["kinetic_j"], float(data.energy[1]))
    worst["highest_body_m"] = max(worst["highest_body_m"], float(data.xpos[:, 2].max()))


def soak(task: str, worlds: int, steps: int) -> dict[str, Any]:
    env = envs.make(task, worlds, seed=0)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    worst = {"penetration_m": 0.0, "kinetic_j": 0.0, "highest_body_m": 0.0}
    fastest, episodes, successes, unfinite, started = 0.0, 0, 0.0, 0, time.perf_counter()
    for step in tqdm(range(steps), desc=task, unit="step", mininterval=5):
        actions = 2 * torch.rand(worlds, env.num_actions, generator=generator) - 1
        obs, reward, reset, extras = env.step(actions)
        unfinite += int((~obs["obs"].isfinite()).any(1).sum() + (~reward.isfinite()).sum())
        episodes += int(reset.sum())
        successes += float(extras["successes"][extras["terminal_ids"]].sum())
        if step % SAMPLE_EVERY == 0:
            fastest = max(fastest, env.engine.read()["qvel"].abs().max().item())
            for world in range(SAMPLED_WORLDS):
                look(env.engine, world, worst)
    env.close()
    return {
        "task": task, "worlds": worlds, "steps": steps, "bad_worlds": env.bad_worlds,
        "unfinite_observations": unfinite, "episodes": episodes, "successes": successes,
        "fastest_joint_or_body": round(fastest, 1),
        "seconds": round(time.perf_counter() - started),
        **{name: round(value, 4) for name, value in worst.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--worlds", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for task in spec.TASK_NAMES.values():
        rows.append(soak(task, args.worlds, args.steps))
        print(rows[-1])
        args.out.write_text(json.dumps({"machine": describe_machine(), "tasks": rows}, indent=1))


if __name__ == "__main__":
    main()
