"""Scripted motions for films and probes: wander, look around the cube, pick it up, open the drawer."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.furniture import TABLE_TOP_M
from envs.kinematics import ArmKinematics, looking_along
from envs.scenes import CUBE_EDGE_M
from envs.vec_task import VecTask

Motion = Literal["wander", "look", "pick", "open"]
MOTIONS: dict[str, tuple[Motion, ...]] = {  # of each task
    "FrankaPick": ("wander", "look", "pick"),
    "KukaPick": ("wander",),
    "FrankaCabinet": ("wander", "open"),
    "KukaCabinet": ("wander",),
}
READY = np.array([0.0, -0.6, 0.0, -2.4, 0.0, 1.9, 0.785])
AT_DRAWER = np.array([1.8, -1.6, -0.6, -2.3, -2.2, 1.85, 0.0])  # a bend that reaches the handle
OPEN_M, CLOSED_M = 0.04, 0.0


class ScriptedMotions:
    """Actions for every world of a task; worlds follow different motions.

    Args:
        task: the batched task.
        shares: probability of each motion, drawn anew for each episode.
        seed: seeds all choices.
    """

    def __init__(self, task: VecTask, shares: dict[Motion, float], seed: int):
        motions = MOTIONS[task.task.name]
        if unknown := set(shares) - set(motions):
            raise ValueError(f"{task.task.name} has no motions {sorted(unknown)}; it has {motions}")
        self._task, self._rng = task, np.random.default_rng(seed)
        if set(shares) != {"wander"}:
            self._kinematics = ArmKinematics(task.engine.model)
        self._names = list(shares)
        self._shares = np.array([shares[name] for name in self._names])
        self._shares /= self._shares.sum()
        n = task.num_envs
        self.motion: list[Motion] = ["wander"] * n
        self._waypoints: list[list[np.ndarray]] = [[] for _ in range(n)]
        self._speed = np.ones(n)
        self._drift = np.zeros((n, task.num_actions))

    def act(self) -> Float[Tensor, "N A"]:
        """Actions for the present state; plans anew wherever an episode has just begun."""
        for world in np.flatnonzero(self._task.progress_buf.numpy() == 0):
            self._begin(int(world))
        self._drift = 0.95 * self._drift + 0.3 * self._rng.standard_normal(self._drift.shape)
        actions = [self._act(world) for world in range(self._task.num_envs)]
        return torch.from_numpy(np.stack(actions)).float()

    def _act(self, world: int) -> np.ndarray:
        if self.motion[world] == "wander":
            return 0.12 * self._drift[world]
        waypoints, target = self._waypoints[world], self._task.targets[world].numpy()
        while waypoints and np.abs(waypoints[0][:9] - target).max() < 2e-3:
            waypoints[0][9] -= 1  # hold the pose for a number of steps
            if waypoints[0][9] > 0:
                break
            waypoints.pop(0)
        if waypoints:
            gap = (waypoints[0][:9] - target) / np.array(self._task.task.robot.action_step)
            # All joints arrive together, the fastest at the episode's speed; fingers may be quicker.
            limit = self._speed[world] * np.array([1.0] * 7 + [4.0] * 2)
            return gap / max(1.0, (np.abs(gap) / limit).max())
        if self.motion[world] == "look":
            waypoints.append(self._look_waypoint(world))
        return np.zeros(self._task.num_actions)

    def _begin(self, world: int) -> None:
        self.motion[world] = self._names[self._rng.choice(len(self._names), p=self._shares)]
        self._speed[world] = self._rng.uniform(0.1, 0.3)
        self._drift[world] = 0.0
        plans = {
            "wander": lambda _: [],
            "look": self._plan_look,
            "pick": self._plan_pick,
            "open": self._plan_open,
        }
        self._waypoints[world] = plans[self.motion[world]](world)

    def _cube(self, world: int) -> np.ndarray:
        return self._task.engine.read()["qpos"][world, 9:12].numpy().astype(float)

    def _waypoint(self, point, rotation, fingers_m: float, hold: int, start=READY) -> np.ndarray:
        joints, _ = self._kinematics.solve(point, rotation, start, iterations=200)
        return np.concatenate([joints, [fingers_m, fingers_m, hold]])

    def _look_waypoint(self, world: int) -> np.ndarray:
        """A pose 0.1 to 0.45 m above the table, looking at a place near the cube."""
        rng, cube = self._rng, self._cube(world)
        aim = cube + rng.uniform([-0.15, -0.15, 0], [0.15, 0.15, 0.02])
        height = rng.uniform(0.1, 0.45)
        point = aim + np.array([*rng.normal(0, 0.35 * height, 2), height])
        point[2] = max(point[2], TABLE_TOP_M + 0.05)
        rotation = looking_along(aim - point, rng.uniform(-1.2, 1.2))
        return self._waypoint(point, rotation, rng.choice([OPEN_M, CLOSED_M, 0.02]), 5)

    def _plan_look(self, world: int) -> list[np.ndarray]:
        return [self._look_waypoint(world) for _ in range(3)]

    def _plan_pick(self, world: int) -> list[np.ndarray]:
        """Above the cube, down, close, up to the goal height; with the errors of a human."""
        rng, cube = self._rng, self._cube(world)
        rotation = looking_along(
            np.array([*rng.normal(0, 0.05, 2), -1.0]), rng.choice([0, np.pi / 2]) * rng.integers(2)
        )
        grasp = cube + np.array([*rng.normal(0, 0.003, 2), rng.uniform(-0.01, 0.005)])
        above = grasp + [0, 0, rng.uniform(0.1, 0.22)]
        lifted = grasp + [0, 0, 0.8 - TABLE_TOP_M - CUBE_EDGE_M / 2]
        return [
            self._waypoint(above, rotation, OPEN_M, 5),
            self._waypoint(grasp, rotation, OPEN_M, 15),
            self._waypoint(grasp, rotation, CLOSED_M, 20),
            self._waypoint(lifted, rotation, CLOSED_M, 10_000),
        ]

    def _plan_open(self, world: int) -> list[np.ndarray]:
        """Before the handle, fingers around it, close, pull; the arm lags, so it waits in between."""
        rng = self._rng
        handle = self._task.engine.model.site("handle").id
        handle_w = self._task.engine.read()["site_pos"][world, handle].numpy().astype(float)
        handle_w += [0.0, rng.uniform(-0.015, 0.015), rng.normal(0, 0.003)]
        rotation = looking_along(
            np.array([-1.0, 0.0, 0.0]), -np.pi / 2
        )  # fingers one above the other
        waypoints, start = [], AT_DRAWER
        for out_m, fingers_m, hold in (
            (rng.uniform(0.12, 0.18), OPEN_M, 30),
            (0.0, OPEN_M, 45),
            (0.0, CLOSED_M, 25),
            (rng.uniform(0.34, 0.38), CLOSED_M, 10_000),
        ):
            point = handle_w + [out_m, 0.0, 0.0]
            waypoints.append(self._waypoint(point, rotation, fingers_m, hold, start))
            start = waypoints[-1][:7]
        return waypoints
