"""Names, shapes, units and rates shared by simulation, policies and robot. No simulator in here."""

from dataclasses import dataclass

TASK_NAMES = {  # command-line name -> Isaac-Gym-style class name
    "franka_pick": "FrankaPick",
    "kuka_pick": "KukaPick",
    "franka_cabinet": "FrankaCabinet",
    "kuka_cabinet": "KukaCabinet",
}

# Keys of every observation dict (the IsaacGymEnvs convention).
OBS = "obs"  # state vector float32 [N, num_obs], or camera image uint8 [N, H, W, 3]
STATES = "states"  # proprioception float32 [N, num_states]
TARGETS = "targets"  # where the joints are being driven to: float32 [N, A], rad (fingers: m)
ORACLE = "oracle"  # with `oracle=True`: the state vector float32 [N, num_oracle], beside images

CONTROL_RATE_HZ = 60.0
EPISODE_LENGTH = 500  # control steps, 8.33 s
SUCCESS_STREAK = 10  # consecutive control steps at the goal that make an episode a success
ARM_STIFFNESS, ARM_DAMPING = 400.0, 80.0  # of the arms' drives, N m/rad and N m s/rad: PixMC
SERVO_LAG_S = ARM_DAMPING / ARM_STIFFNESS  # an arm's joint moves at (target - q) / lag


@dataclass(frozen=True)
class RobotSpec:
    """What a policy needs to know about an arm. Arrays run over the joints, arm first.

    Lower and upper limits are in rad (metres for sliding fingers); `action_step` is the largest
    change of a joint target in one control step, in the same units.
    """

    name: str
    joint_names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    default_pose: tuple[float, ...]
    action_step: tuple[float, ...]
    num_arm_joints: int

    @property
    def num_actions(self) -> int:
        return len(self.joint_names)

    @property
    def num_states(self) -> int:
        """Proprioception: scaled joint positions, then scaled joint velocities."""
        return 2 * len(self.joint_names)


# Limits, default pose and step sizes: PixMC (pixmc.md 1.2, 1.3); 7.5 * (1/60) s = 0.125 rad,
# fingers scaled by 0.1.
FRANKA = RobotSpec(
    name="franka",
    joint_names=tuple(f"panda_joint{i}" for i in range(1, 8))
    + ("panda_finger_joint1", "panda_finger_joint2"),
    lower=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0.0, 0.0),
    upper=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, 0.04, 0.04),
    default_pose=(1.157, -1.066, -0.155, -2.239, -1.841, 1.003, 0.469, 0.035, 0.035),
    action_step=(0.125,) * 7 + (0.0125,) * 2,
    num_arm_joints=7,
)

# iiwa7 + Allegro hand (pixmc.md 1.2); arm first, then index, middle, ring, thumb.
_ARM_LIMITS = (2.96706, 2.0944, 2.96706, 2.0944, 2.96706, 2.0944, 3.05433)
_FINGERS = ("index", "middle", "ring", "thumb")
KUKA = RobotSpec(
    name="kuka",
    joint_names=tuple(f"iiwa7_joint_{i}" for i in range(1, 8))
    + tuple(f"{finger}_joint_{i}" for finger in _FINGERS for i in range(4)),
    lower=tuple(-limit for limit in _ARM_LIMITS)
    + (-0.55849, -0.27924, -0.27924, -0.27924) * 3
    + (0.27924, -0.3316, -0.27924, -0.27924),
    upper=_ARM_LIMITS
    + (0.55849, 1.72783, 1.72783, 1.72783) * 3
    + (1.57075, 1.15188, 1.72783, 1.76273),
    default_pose=(0.0, -0.4, 0.0, -1.0, 0.0, 1.0, 0.0) + (0.0,) * 16,  # thumb_0 is clamped up
    action_step=(0.125,) * 23,
    num_arm_joints=7,
)


def robot_of(env: str) -> RobotSpec:
    """The arm of a task by its command-line name."""
    return FRANKA if env.startswith("franka") else KUKA
