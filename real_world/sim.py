"""A task's scene under the robot's and the camera's contracts: what the loop runs on without hardware.

The world advances by ticks of 1/60 s, driven by a virtual clock (the same every time, as fast as it
can) or by its own thread in real time, where it goes on when the loop hangs, as an arm does.
"""

import threading
from collections import deque

import numpy as np
import torch

import envs
from envs.spec import FRANKA, TASK_NAMES
from real_world.contracts import (
    ARM_JOINTS,
    CameraError,
    Command,
    Frame,
    Intrinsics,
    RobotError,
    RobotState,
    check_command,
)
from real_world.pacing import Clock, Pacer, VirtualClock

TICK_HZ = 60
STILL_M_S = 0.005  # of a finger
FOREVER = 10**9  # steps: here the loop ends an episode, not the task


class SimWorld:
    """One world of a Franka task. On a `VirtualClock` it follows it; else `start` runs it.

    Raises ValueError for a task of another robot.
    """

    def __init__(self, env: str, clock: Clock, seed: int = 0, visuals: str = "fixed"):
        self.task = envs.make(
            task=env, num_envs=1, sim_device="cpu", seed=seed, obs="proprioception",
            control_rate_hz=TICK_HZ, episode_length=FOREVER, visuals=visuals, threads=1, oracle=True,
        )  # fmt: skip
        if self.task.task.robot is not FRANKA:
            self.task.close()
            known = [name for name in TASK_NAMES if name.startswith("franka")]
            raise ValueError(f"env={env} has no Franka arm; these have: {', '.join(known)}")
        self.clock, self.ticks = clock, 0
        self.lock = threading.RLock()  # the world's thread, the camera's and the loop's
        self._running: threading.Thread | None = None
        self._failure = ""
        self._closed = threading.Event()
        self._step = torch.tensor(FRANKA.action_step)
        self.reset()
        if isinstance(clock, VirtualClock):
            self._start_s = clock.now()
            clock.on_advance = self._follow

    def reset(self) -> None:
        """Begin a new episode: the arm at its start, the thing somewhere else."""
        with self.lock:
            self.obs = self.task.reset()
            self.target = self.task.targets[0].clone()
            self.success = self.failed = False

    def start(self) -> None:
        """Run in real time until `close`."""
        if self._running is None and not isinstance(self.clock, VirtualClock):
            self._running = threading.Thread(target=self._run, name="world", daemon=True)
            self._running.start()

    def _run(self) -> None:
        pacer = Pacer(self.clock, TICK_HZ)
        try:
            while not self._closed.is_set():
                tick = pacer.wait()
                for _ in range(min(1 + tick.skipped, 6)):
                    self.tick()
        except BaseException as error:  # a world that stands still must not pass for one that lives
            self._failure = f"{type(error).__name__}: {error}"
            raise

    def _follow(self, now_s: float) -> None:
        while self.ticks < int((now_s - self._start_s) * TICK_HZ + 1e-6):
            self.tick()

    def tick(self) -> None:
        """Move on by 1/60 s. `failed`: the arm hit something, or the thing fell (the task began anew)."""
        with self.lock:
            moves = (self.target - self.task.targets[0]) / self._step
            self.obs, _, resets, extras = self.task.step(moves[None])
            self.ticks += 1
            self.success |= bool(extras["successes"][0] > 0)
            if resets[0]:
                self.failed, self.target = True, self.task.targets[0].clone()

    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and speeds of arm and fingers, rad and m. Raises RobotError if the world's thread
        failed."""
        if self._failure:
            raise RobotError(f"the simulated world stands still: {self._failure}")
        with self.lock:
            fields = self.task.engine.read()
            return tuple(
                fields[k][0, : FRANKA.num_actions].double().numpy() for k in ("qpos", "qvel")
            )  # type: ignore[return-value]

    def picture(self, camera: str, size_px: int) -> np.ndarray:
        """uint8 [size, size, 3] of the present state."""
        with self.lock:
            return self.task.engine.render(camera, size_px, size_px)[0].numpy()

    def close(self) -> None:
        self._closed.set()
        if self._running is not None:
            self._running.join(timeout=2.0)
            self._running = None
        self.task.close()


class SimRobot:
    """The arm of a `SimWorld`. A target takes effect `latency_s` after it was sent."""

    name = "sim"

    def __init__(self, world: SimWorld, rate_hz: float = TICK_HZ, latency_s: float = 0.0):
        self.world, self.rate_hz, self._latency_s = world, rate_hz, latency_s
        self._open, self._stopped = False, ""
        self._waiting: deque[tuple[float, torch.Tensor]] = deque()

    def connect(self) -> None:
        self.world.start()
        self._open, self._stopped = True, ""

    def read(self) -> RobotState:
        q, dq = self.world.joints()
        now_s = self.world.clock.now()
        self._deliver(now_s)
        return RobotState(
            q_rad=q[:ARM_JOINTS],
            dq_rad_s=dq[:ARM_JOINTS],
            gripper_m=float(q[ARM_JOINTS:].sum()),
            robot_time_s=self.world.ticks / TICK_HZ,
            received_s=now_s,
            gripper_m_s=float(dq[ARM_JOINTS:].sum()),
            mode="ready" if self._open else "lost",
            message="" if self._open else "not connected",
        )

    def send(self, command: Command) -> Command:
        check_command(command)
        if self._stopped or not self._open:
            raise RobotError(f"the arm takes no targets: {self._stopped or 'not connected'}")
        fingers = [command.gripper_m / 2] * 2
        target = torch.tensor([*command.q_rad, *fingers], dtype=torch.float32)
        now_s = self.world.clock.now()
        self._waiting.append((now_s + self._latency_s, target))
        self._deliver(now_s)
        return command

    def _deliver(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= now_s:
            self.world.target = self._waiting.popleft()[1]  # without the lock: a tick may take long

    def stop(self, reason: str) -> None:
        if not self._open or self._stopped:
            return
        self._stopped = reason
        q, dq = self.world.joints()
        with self.world.lock:
            self._waiting.clear()
            held = np.abs(dq[ARM_JOINTS:]).max() < STILL_M_S  # fingers at rest may hold something
            if held:
                q[ARM_JOINTS:] = self.world.target[ARM_JOINTS:]
            self.world.target = torch.tensor(q, dtype=torch.float32)

    def close(self) -> None:
        self.stop("closed")
        self._open = False


class SimCamera:
    """A camera of a `SimWorld`: frames at `rate_hz`, handed out `latency_s` (and up to `jitter_s`
    more) after they were taken, of which a share `drop` never comes."""

    def __init__(
        self,
        world: SimWorld,
        camera: str = "wrist",
        size_px: int = 128,
        rate_hz: float = 30.0,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        drop: float = 0.0,
        seed: int = 0,
    ):
        self.name, self.rate_hz = camera, rate_hz
        self._world, self._size_px = world, size_px
        self._latency_s, self._jitter_s, self._drop = latency_s, jitter_s, drop
        self._rng = np.random.default_rng(seed)
        self._on_the_way: deque[Frame] = deque()
        self._newest: Frame | None = None
        self._taken = -1
        self._open = False

    def connect(self) -> None:
        self._world.start()
        self._open, self._start_s = True, self._world.clock.now()
        self._take()

    def _take(self) -> None:
        """Take the frame that is due by now, if it has not been taken; those before it are missed.

        Drawn when someone looks: a frame that nobody looks at costs nothing.
        """
        now_s = self._world.clock.now()
        number = int((now_s - self._start_s) * self.rate_hz + 1e-6)
        if number > self._taken:
            self._taken = number
            if self._rng.random() >= self._drop:
                delay_s = self._latency_s + self._jitter_s * self._rng.random()
                picture = self._world.picture(self.name, self._size_px)
                self._on_the_way.append(Frame(picture, number, now_s + delay_s, now_s))
        while self._on_the_way and self._on_the_way[0].received_s <= now_s:
            self._newest = self._on_the_way.popleft()

    def latest(self, newer_than: int = -1, timeout_s: float = 0.0) -> Frame | None:
        if not self._open:
            raise CameraError(f"camera {self.name} is not connected")
        clock = self._world.clock
        end_s = clock.now() + timeout_s
        while True:
            self._take()
            if self._newest is not None and self._newest.number > newer_than:
                return self._newest
            if clock.now() >= end_s:
                return None
            clock.sleep_until(min(end_s, clock.now() + 0.25 / self.rate_hz))

    def intrinsics(self) -> Intrinsics:
        """A square picture whose vertical field of view is the scene camera's."""
        fovy = np.deg2rad(self._world.task.engine.model.camera(self.name).fovy[0])
        focal = self._size_px / 2 / np.tan(fovy / 2)
        return Intrinsics(self._size_px, self._size_px, focal, focal, *[self._size_px / 2] * 2)

    def close(self) -> None:
        self._open = False
