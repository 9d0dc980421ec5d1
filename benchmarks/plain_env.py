"""The peer of `benchmarks/envs.py`: one world of a scene as a plain `gymnasium.Env` over MuJoCo.

What one writes first: `mujoco.MjModel`, `mj_step`, `mujoco.Renderer`. Same scene, substeps, action
rule, observation size and random resets as ours; the physics settings are the scene's own, the
visual ones are MuJoCo's defaults (4096-pixel shadow map, 4x multi-sampling, 640x480 buffer).
"""

import envs  # first: it chooses MUJOCO_GL

import gymnasium  # isort: skip
import mujoco  # isort: skip
import numpy as np  # isort: skip
from gymnasium import spaces  # isort: skip

SUBSTEPS = 4


def default_looks(scene: mujoco.MjSpec) -> mujoco.MjSpec:
    """The scene with MuJoCo's default visual settings: what our scenes change is put back."""
    plain = mujoco.MjSpec()
    for part in ("quality", "headlight", "map"):
        ours, theirs = getattr(scene.visual, part), getattr(plain.visual, part)
        for name in (n for n in dir(theirs) if not n.startswith("_")):
            setattr(ours, name, getattr(theirs, name))
    for light in scene.lights:
        light.castshadow = True
    return scene


class PlainEnv(gymnasium.Env):
    """Random resets and 4 `mj_step` per step; with `image_size` a camera image as well."""

    def __init__(self, task: str, image_size: int | None = None):
        from envs.scenes import SCENES
        from envs.spec import FRANKA, KUKA, TASK_NAMES

        names = {class_name: name for name, class_name in TASK_NAMES.items()}
        scene = SCENES[names[task]]()
        self._robot = FRANKA if task.startswith("Franka") else KUKA
        self._model = (default_looks(scene) if image_size else scene).compile()
        self._data = mujoco.MjData(self._model)
        self._step_size = np.array(self._robot.action_step)
        self._limits = np.array([self._robot.lower, self._robot.upper])
        self._renderer = None
        if image_size:
            self._renderer = mujoco.Renderer(self._model, image_size, image_size)
        n, size = self._robot.num_actions, 34 if self._robot is FRANKA else 77
        self.action_space = spaces.Box(-1, 1, (n,), np.float32)
        state = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if image_size:
            image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
            self.observation_space = spaces.Dict({"image": image, "state": state})
        else:
            self.observation_space = state
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self._model, self._data)
        n = self._robot.num_actions
        noise = self.np_random.uniform(-0.125, 0.125, n)
        self._data.qpos[:n] = np.clip(np.array(self._robot.default_pose) + noise, *self._limits)
        self._data.ctrl[:] = self._data.qpos[:n]
        mujoco.mj_forward(self._model, self._data)
        self._steps = 0
        return self._observe(), {}

    def step(self, action):
        moved = self._data.ctrl + self._step_size * np.clip(action, -1, 1)
        self._data.ctrl[:] = np.clip(moved, *self._limits)
        mujoco.mj_step(self._model, self._data, nstep=SUBSTEPS)
        self._steps += 1
        reward = -0.01 * float(np.square(action).sum())
        return self._observe(), reward, False, self._steps >= 500, {}

    def _observe(self):
        everything = [self._data.qpos, self._data.qvel, self._data.site_xpos.ravel()]
        space = self.observation_space
        shape = (space["state"] if isinstance(space, spaces.Dict) else space).shape or ()
        state = np.resize(np.concatenate(everything), shape).astype(np.float32)
        if self._renderer is None:
            return state
        self._renderer.update_scene(self._data, "wrist")
        return {"image": self._renderer.render(), "state": state}

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def make_plain(task: str, image_size: int | None = None) -> PlainEnv:
    assert envs.gl is not None
    return PlainEnv(task, image_size)
