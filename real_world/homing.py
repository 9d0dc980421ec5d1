"""Slowly to a pose, through whatever limits the guard has."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from real_world.contracts import Command, RobotError
from real_world.guard import Guard
from real_world.pacing import Clock, Pacer

HOMING_RAD_S = 0.4  # of the joint that has farthest to go, on average
FASTEST = 1.875  # times that at its fastest
NEAR_RAD, STILL_RAD_S = 0.1, 0.05
SETTLE_S = 5.0  # for an arm that follows like a spring


def go_to(
    robot: Guard,
    q_rad: Float[np.ndarray, " 7"],
    gripper_m: float,
    clock: Clock,
    speed_rad_s: float = HOMING_RAD_S,
    stop_asked: Callable[[], str] = lambda: "",
    near_rad: float = NEAR_RAD,
) -> float:
    """Move along a straight line in joint space that starts and ends at rest (a quintic: speed and
    acceleration are zero at both ends), then wait until the arm is there; returns its largest error, rad.

    No joint is faster than `speed_rad_s` on average, or than the guard's limits let it be at its fastest.
    In a dry run nothing moves. Raises RobotError, the arm held: it was stopped on the way (`stop_asked`
    gave a reason), the arm is not ready, or it has not come within `near_rad` in `SETTLE_S`.
    """
    robot.hold_here()
    start = robot.target
    way = np.asarray(q_rad, float) - start.q_rad
    if robot.dry_run:
        return float(np.abs(way).max())
    fastest = np.array(robot.limits.speed_rad_s)
    seconds = float((np.abs(way) / np.minimum(speed_rad_s, fastest / FASTEST)).max())
    pacer, begin_s = Pacer(clock, robot.rate_hz), clock.now()
    while True:
        pacer.wait()
        state, passed_s = robot.read(), clock.now() - begin_s
        reason = stop_asked() or ("" if state.mode == "ready" else f"{state.mode}: {state.message}")
        error = float(np.abs(state.q_rad - q_rad).max())
        if not reason and passed_s > seconds + SETTLE_S:
            speed = float(np.abs(state.dq_rad_s).max())
            reason = (
                f"{error:.3f} rad away after homing and moving at {speed:.3f} rad/s, expected at most "
                f"{near_rad:g} and {STILL_RAD_S:g}. Is something in the way?"
            )
        if reason:
            robot.stop(f"homing: {reason}")
            raise RobotError(f"homing: {reason}")
        if passed_s > seconds and error <= near_rad and np.abs(state.dq_rad_s).max() < STILL_RAD_S:
            robot.rest()
            return error
        share = min(1.0, passed_s / seconds) if seconds else 1.0
        smooth = share**3 * (10 - 15 * share + 6 * share**2)
        robot.send(Command(start.q_rad + smooth * way, gripper_m))
