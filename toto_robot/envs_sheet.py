"""One picture of all tasks: each camera's view, with speeds (`python -m toto_robot.doctor --envs`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import envs
from envs import spec
from envs.rendering import renderer_name

CAMERAS = ("wrist", "third_person")
SHOWN_PX, MEASURED_PX = 256, 128
NUM_WORLDS = 64


def examine_tasks(per_second: Callable[[Callable[[], int]], float]) -> list[dict[str, Any]]:
    """For each task its views and speeds. `per_second` times a function that returns a count."""
    reports = []
    for name in tqdm(spec.TASK_NAMES, desc="tasks", leave=False):
        task = envs.make(name, NUM_WORLDS, seed=0)
        task.reset()

        def step(task=task) -> int:
            task.step(2 * torch.rand(task.num_envs, task.num_actions) - 1)
            return task.num_envs

        def draw(task=task) -> int:
            return len(task.render_film(range(NUM_WORLDS), "wrist", MEASURED_PX, MEASURED_PX))

        report: dict[str, Any] = {"task": name, "env_steps_per_s": round(per_second(step))}
        task.reset()
        report["views"] = {
            camera: task.render_film([0], camera, SHOWN_PX, SHOWN_PX)[0].numpy()
            for camera in CAMERAS
        }
        report["images_per_s"] = round(per_second(draw))
        task.close()
        reports.append(report)
    return reports


def draw_sheet(path: Path, reports: list[dict[str, Any]]) -> None:
    """Tasks in columns, cameras in rows; written as PNG."""
    figure = Figure(figsize=(3.2 * len(reports), 3.3 * len(CAMERAS) + 0.4), layout="constrained")
    axes = figure.subplots(len(CAMERAS), len(reports), squeeze=False)
    for column, report in enumerate(reports):
        for row, camera in enumerate(CAMERAS):
            axis = axes[row][column]
            axis.imshow(report["views"][camera])
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(camera)
        axes[0][column].set_title(
            f"{report['task']}\n{report['env_steps_per_s']:,} steps/s, "
            f"{report['images_per_s']:,} images/s",
            fontsize=9,
        )
    figure.suptitle(
        f"{NUM_WORLDS} worlds; images of {MEASURED_PX} px; {renderer_name()}", fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
