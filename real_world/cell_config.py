"""Which arm, which cameras, within which limits: options, and which of them go together.

| robot       |                                                             |
|-------------|-------------------------------------------------------------|
| sim         | the task's scene, stepped by us                             |
| franky-sim  | the driver of the real arm, over its protocol, against a simulated one; the task's scene follows that arm's joints |
| franka      | a real arm (`host=`)                                        |

| camera             |                                                      |
|--------------------|------------------------------------------------------|
| sim                | pictures of the scene                                |
| realsense-software | the same through the SDK of the real camera          |
| realsense          | real cameras (`serial=`)                             |
| recording          | .db3 files made by the SDK (`recording=`)            |
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from envs.spec import CONTROL_RATE_HZ, FRANKA
from real_world.contracts import ARM_JOINTS
from real_world.limits import FR3_LOWER, FR3_UPPER, Limits

# Of the arm's base, m: the table of the pick task and what is above it, the cabinet's front.
SIM_BOX_M = ((-0.1, -0.7, 0.0), (0.95, 0.7, 1.2))


@dataclass(kw_only=True)
class CellConfig:
    """Which arm, which cameras, within which limits."""

    looks: ClassVar[bool] = True  # false: what runs in the cell needs no camera

    robot: Literal["sim", "franky-sim", "franka"] = "sim"
    camera: Literal["sim", "realsense", "realsense-software", "recording"] = "sim"
    host: str = ""  # address of the arm, for robot=franka
    recover: bool = False  # clear an error of the arm at the start, after a person has looked
    stiffness_nm_rad: tuple[float, ...] = ()  # of the joints' springs, 7; none: the driver's
    torque_step_nm: float | None = (
        None  # the most that a torque changes in 1 ms; None: the driver's
    )
    torque_threshold_nm: float | None = None  # contacts above these stop the arm in a reflex; None:
    force_threshold_n: float | None = None  # the driver's
    serial: tuple[str, ...] = ()  # of the cameras, in the policy's order; none: the only one
    recording: tuple[Path, ...] = ()  # for camera=recording
    camera_px: tuple[int, ...] = (640, 480)  # of real cameras and recordings, width and height
    camera_hz: float | None = None  # None: the policy's rate; 30 for real cameras
    command_hz: float | None = None  # a multiple of the policy's rate; None: the same
    paced: bool = True  # false: as fast as it can on a virtual clock, the same every time
    latency_ms: float = 0.0  # of the simulated camera
    jitter_ms: float = 0.0
    drop: float = 0.0  # share of simulated frames that never come
    box_m: tuple[float, ...] = ()  # x y z low, x y z high of the hand; needed for a real arm
    limits: Literal["task", "arm"] | None = None  # of speed: the task's own (7.5 rad/s) or Franka's
    speed_share: float = 1.0  # of the speed limits
    watchdog_ms: float = 250.0
    dry_run: bool = False  # say what would be sent, send nothing
    visuals: str = "fixed"  # of the scene
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("speed_share", "watchdog_ms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.speed_share > 1:
            raise ValueError(f"speed_share={self.speed_share}: expected 1 or less")
        if self.box_m and len(self.box_m) != 6:
            raise ValueError(f"box_m={self.box_m}: expected six numbers, low and high corner")
        if problems := problems_of(self):
            raise ValueError("; ".join(problems))

    @property
    def simulated(self) -> bool:
        """Whether nothing real moves."""
        return self.robot != "franka"

    def arm_limits(self) -> Limits:
        """Those of the task let every action of a simulator's policy through, joints and box apart.

        Joints of an arm behind the driver, a Panda or an FR3, stay where both of them may be.
        """
        box = (self.box_m[:3], self.box_m[3:]) if self.box_m else SIM_BOX_M
        limits = Limits(box_m=box)
        if self.robot != "sim":
            limits = limits.within(FR3_LOWER, FR3_UPPER)
        if (self.limits or ("task" if self.robot == "sim" else "arm")) == "task":
            fastest = tuple(CONTROL_RATE_HZ * step for step in FRANKA.action_step)
            limits = replace(
                limits,
                margin_rad=0.0,
                speed_rad_s=fastest[:ARM_JOINTS],
                acceleration_rad_s2=(1e4,) * ARM_JOINTS,
                gripper_speed_m_s=sum(fastest[ARM_JOINTS:]),
            )
        return replace(limits, speed_rad_s=tuple(self.speed_share * v for v in limits.speed_rad_s))


def problems_of(config: CellConfig) -> list[str]:
    """Options that do not go together."""
    found = []
    if config.robot == "franka":
        if not config.host:
            found.append("robot=franka needs host=<address of the arm>")
        if not config.box_m:
            found.append(
                "robot=franka needs box_m=x,y,z,x,y,z: low and high corner of the room that the hand "
                "may use, m, in the frame of the arm's base"
            )
        if config.limits == "task":
            found.append("limits=task is for simulated arms: a real one keeps to limits=arm")
        if config.camera == "recording" and not config.dry_run:
            found.append("robot=franka camera=recording would act on old pictures: dry_run=true")
        if config.looks and config.camera in ("sim", "realsense-software"):
            found.append(f"robot=franka camera={config.camera}: a real arm needs a real camera")
    if not config.paced and (config.robot, config.camera) != ("sim", "sim"):
        found.append("paced=false is for robot=sim camera=sim: everything else runs in real time")
    if (config.camera == "recording") != bool(config.recording):
        found.append("camera=recording and recording=<file.db3> go together")
    if config.serial and config.camera != "realsense":
        found.append("serial= is for camera=realsense")
    if len(config.camera_px) != 2 or min(config.camera_px) < 1:
        found.append(f"camera_px={config.camera_px}: expected width,height")
    return found
