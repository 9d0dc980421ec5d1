"""Franka arms (FR3, Panda) through franky-control: its impedance tracker runs the 1 kHz loop in C++,
and targets come from Python 10 to 60 times a second.

Nothing recovers by itself: an arm in an error stays there until a person calls `connect` with
`recover=True`.
"""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from envs.spec import SERVO_LAG_S
from real_world.contracts import ARM_JOINTS, Command, Mode, RobotError, RobotState, check_command
from real_world.gripper import GRIPPER_MAX_M, GripperThread

INSTALL_HINT = (
    "Franka arms need franky-control, which could not be imported ({error}). Type: "
    'pip install -e ".[real]" (PyPI has it for robot server 10, an FR3 of system 5.9 or newer). For '
    "another server version n (Desk shows it; 5: Panda/FER 4.2.1 or newer), afterwards: pip install "
    "--force-reinstall --no-deps franky-control --extra-index-url "
    "https://timschneider42.github.io/franky/whl/by-robot-server-version/<n>/"
)
ANSWER_S = 0.004  # that `read` waits for an arm whose controller has ended
FROZEN_S = 0.05  # without a step of the robot's clock, which runs at 1 kHz, the link is lost
STOP_S = 2.0
# N m/rad. franky damps a joint by 2 sqrt(stiffness), so that it lags behind its target by 2 / sqrt(stiffness)
# times its speed. Here as much as in the simulated tasks, which is what policies from there are used to.
STIFFNESS = (2 / SERVO_LAG_S) ** 2
GUIDED_DAMPING_NMS_RAD = 1.0  # so that an arm that is let go comes to rest
log = logging.getLogger(__name__)


def load_library() -> Any:
    """franky. Raises RobotError saying what to install."""
    try:
        import franky

        return franky
    except (ImportError, OSError) as error:
        raise RobotError(INSTALL_HINT.format(error=error)) from error


class Franka:
    """An arm that holds its joints like springs at the last target: a real_world.contracts.Robot.

    host: the robot's address. realtime: "enforce" refuses a kernel without PREEMPT_RT, "ignore" is
    for the simulated arm. stiffness_nm_rad: of the springs, 7 numbers. torque_threshold_nm and
    force_threshold_n: contacts above them stop the arm in a reflex. max_torque_step_nm: the most
    that a torque changes in 1 ms. dynamics_factor: share of the arm's limits for motions that franky
    itself plans (none in streaming). recover: clear an error when connecting. gripper: False without
    a Franka Hand; gripper_deadband_m: smaller changes are not sent.
    """

    name = "franka"

    def __init__(
        self,
        host: str,
        *,
        realtime: Literal["enforce", "ignore"] = "enforce",
        rate_hz: float = 60.0,
        stiffness_nm_rad: tuple[float, ...] = (STIFFNESS,) * ARM_JOINTS,
        torque_threshold_nm: float = 10.0,
        force_threshold_n: float = 15.0,
        max_torque_step_nm: float = 0.5,
        dynamics_factor: float = 0.05,
        recover: bool = False,
        gripper: bool = True,
        gripper_speed_m_s: float = 0.05,
        gripper_deadband_m: float = 0.005,
    ):
        if realtime not in ("enforce", "ignore"):
            raise ValueError(f"realtime={realtime!r}: expected 'enforce' or 'ignore'")
        if len(stiffness_nm_rad) != ARM_JOINTS or not min(stiffness_nm_rad) > 0:
            raise ValueError(f"stiffness_nm_rad={stiffness_nm_rad}: expected 7 positive numbers")
        self.host, self.rate_hz, self._realtime, self._recover = host, rate_hz, realtime, recover
        self._stiffness = np.array(stiffness_nm_rad)
        self._thresholds = (torque_threshold_nm, force_threshold_n)
        self._max_torque_step, self._dynamics_factor = max_torque_step_nm, dynamics_factor
        self._with_gripper = gripper
        self._gripper_options = (gripper_speed_m_s, gripper_deadband_m)
        self._robot: Any = None
        self._tracker: Any = None
        self._gripper: GripperThread | None = None
        self._lock = threading.Lock()  # between `send` and `stop`: no target after a stop
        self._asker = ThreadPoolExecutor(1, "franka-asks")
        self._answer: Future[Any] | None = None
        self._stopped, self._guided = "not connected", False

    def connect(self) -> None:
        franky = self._franky = load_library()
        self.close()
        try:
            robot = franky.Robot(
                self.host,
                relative_dynamics_factor=self._dynamics_factor,
                realtime_config=getattr(franky.RealtimeConfig, self._realtime.capitalize()),
            )
            self._clear_errors(robot)
            robot.set_collision_behavior(*self._thresholds)
            if self._with_gripper:
                self._gripper = GripperThread(franky.Gripper(self.host), *self._gripper_options)
            tracker = franky.JointImpedanceTracker(  # the last: what fails must leave none running
                robot, stiffness=self._stiffness, max_delta_tau=self._max_torque_step
            )
        except RobotError:
            raise
        except (franky.Exception, RuntimeError) as error:
            raise RobotError(
                f"no arm takes targets at {self.host}: {error}. {_advice(error)}"
            ) from error
        self._clock = (-1.0, time.monotonic())
        self._stopped, self._guided, self._answer = "", False, None
        self._seen = _unseen("nothing was heard of the arm yet")
        self._robot, self._tracker = robot, tracker  # whole or not at all: other threads `read`

    def read(self) -> RobotState:
        robot, tracker, gripper = self._robot, self._tracker, self._gripper
        if robot is None or tracker is None:
            return _unseen(self._stopped)
        try:
            state, now = self._newest(robot, tracker), time.monotonic()
        except (self._franky.Exception, RuntimeError, TimeoutError) as error:
            said = str(error) or f"no answer in {1000 * ANSWER_S:g} ms"
            return replace(self._seen, mode="lost", message=f"the arm does not answer: {said}")
        robot_time_s = state.time.to_sec()
        if robot_time_s != self._clock[0]:
            self._clock = (robot_time_s, now)
        mode, message = self._mode(robot, tracker, state, now - self._clock[1])
        self._seen = RobotState(
            q_rad=np.array(state.q, float),
            dq_rad_s=np.array(state.dq, float),
            gripper_m=gripper.width_m if gripper else 0.0,
            robot_time_s=robot_time_s,
            received_s=self._clock[1] if mode == "lost" else now,
            mode=mode,
            message=message,
        )
        return self._seen

    def _newest(self, robot: Any, tracker: Any) -> Any:
        """The arm's own state. While the controller runs it is at hand; after that franky asks the arm,
        a thousandth of a second, or a whole one where nobody answers: then TimeoutError, and the next
        call waits for the same answer. What went wrong once is raised until `connect`."""
        answer = self._answer
        if answer is None and tracker.is_running:  # which waits too while franky asks
            return robot.state
        answer = answer or self._asker.submit(lambda: robot.state)
        self._answer = answer
        state = answer.result(ANSWER_S)
        self._answer = None
        return state

    def send(self, command: Command) -> Command:
        check_command(command)
        with self._lock:
            if self._stopped:
                raise RobotError(f"the arm takes no targets ({self._stopped}): call connect()")
            state = self.read()
            if state.mode != "ready":
                raise RobotError(f"the arm takes no targets: {state.mode}, {state.message}")
            q = np.array(command.q_rad, float)
            if not self._guided:
                self._tracker.set_target(q)
            width = float(np.clip(command.gripper_m, 0.0, GRIPPER_MAX_M))
            if self._gripper:
                self._gripper.move(width)
        return Command(q, width)

    def guide(self, on: bool) -> None:
        """Springs off: the arm can be led by hand, targets have no force. Off: it holds where it is.

        Collision thresholds count the hand's force too; they are set when connecting. Raises
        RobotError when the arm takes no targets.
        """
        with self._lock:
            if self._stopped:
                raise RobotError(f"the arm cannot be led by hand ({self._stopped}): call connect()")
            self._set_springs(not on)

    def _set_springs(self, on: bool) -> None:
        """They start from where the arm is."""
        self._tracker.set_target(self.read().q_rad)
        if on:
            self._tracker.set_gains(stiffness=self._stiffness, damping=self._franky.CRITICAL)
        else:
            damping = np.full(ARM_JOINTS, GUIDED_DAMPING_NMS_RAD)
            self._tracker.set_gains(stiffness=np.zeros(ARM_JOINTS), damping=damping)
        self._guided = not on

    def stop(self, reason: str) -> None:
        with self._lock:
            if self._stopped:
                return
            self._stopped = f"stopped: {reason}"
            if self._gripper:
                self._gripper.stop()
            try:  # rest first, on the spot: the spring's end goes to where the arm is
                if self._guided:
                    self._set_springs(True)
                self._tracker.set_target(self.read().q_rad)
            except Exception as error:  # noqa: BLE001 - a stop never raises
                log.warning("holding the arm after %r failed: %s", reason, error)

    def close(self) -> None:
        self.stop("closed")
        if self._gripper:
            self._gripper.close()
        tracker, self._tracker, self._robot, self._gripper = self._tracker, None, None, None
        self._stopped = "not connected"
        if tracker is None:
            return

        def end() -> None:
            try:
                tracker.stop()  # damped until at rest; then the arm's own brakes and hold
            except (self._franky.Exception, RuntimeError) as error:
                log.warning("ending the controller failed: %s", error)

        thread = threading.Thread(target=end, name="franka-end", daemon=True)
        thread.start()
        thread.join(STOP_S)

    def _clear_errors(self, robot: Any) -> None:
        """Raises RobotError for an arm in an error, unless it may be recovered and is."""
        mode = robot.state.robot_mode
        if mode == self._franky.RobotMode.UserStopped:
            raise RobotError(
                "the arm is stopped by hand: release the stop button, then connect again"
            )
        if not robot.has_errors and mode != self._franky.RobotMode.Reflex:
            return
        errors = robot.state.current_errors
        if not self._recover:
            raise RobotError(
                f"the arm is in an error: {errors}. Look at it, free it, then connect with recover=True"
            )
        if not robot.recover_from_errors():
            raise RobotError(f"the arm does not recover: {errors}. See Desk")

    def _mode(self, robot: Any, tracker: Any, state: Any, frozen_s: float) -> tuple[Mode, str]:
        modes = self._franky.RobotMode
        if state.robot_mode == modes.UserStopped:
            return "user_stopped", "the stop button is pressed"
        if state.robot_mode == modes.Reflex:
            return "reflex", str(state.last_motion_errors or state.current_errors)
        if frozen_s > FROZEN_S:
            return "lost", f"the robot's clock has stood still for {frozen_s * 1e3:.0f} ms"
        if (errors := str(state.current_errors)) != str(self._franky.Errors()):
            return "reflex", errors
        if not tracker.is_running:
            return "lost", "the controller ended: " + str(state.last_motion_errors)
        return "ready", ""


def _unseen(message: str) -> RobotState:
    nothing = np.zeros(ARM_JOINTS)
    return RobotState(nothing, nothing, 0.0, 0.0, time.monotonic(), mode="lost", message=message)


def _advice(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "realtime" in text:
        return "Boot a PREEMPT_RT kernel; realtime='ignore' is for the simulated arm only"
    if "version" in text:
        return INSTALL_HINT[INSTALL_HINT.index("For another") :]
    return "Is it on, in execution mode (blue), its brakes open and FCI active in Desk? ping it"
