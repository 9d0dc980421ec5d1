"""A simulated Franka arm (franky-sim, MuJoCo) that speaks the robot's protocol on the loopback.

`Franka(twin.host, realtime="ignore")` is then the driver of the real arm, unchanged. The server is a
process of its own: libfranka's client holds Python's lock while it connects, and a killed process is
what a dead robot looks like.
"""

import multiprocessing
from typing import Any

from envs.spec import FRANKA
from real_world.contracts import ARM_JOINTS, RobotError

START_S = 30.0


class FrankaTwin:
    """`with FrankaTwin() as twin: twin.host`. q_rad: the pose at the start; gripper_m: its width."""

    def __init__(
        self,
        q_rad: tuple[float, ...] = FRANKA.default_pose[:ARM_JOINTS],
        gripper_m: float = 0.07,
    ):
        self._start = (q_rad, gripper_m)
        self.host = ""

    def __enter__(self) -> "FrankaTwin":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._start), daemon=True)
        self._process.start()
        theirs.close()
        try:
            said = ours.recv() if ours.poll(START_S) else f"nothing in {START_S:.0f} s"
        except EOFError:
            said = "its process ended"
        if not said.startswith("127."):
            self.kill()
            raise RobotError(
                f'the simulated Franka did not start: {said}. Type: pip install -e ".[dev]"'
            )
        self.host, self._pipe = said, ours  # the server ends when this end closes
        return self

    def kill(self) -> None:
        """Take the power away, as a fault."""
        self._process.kill()
        self._process.join()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _serve(pipe: Any, q_rad: tuple[float, ...], gripper_m: float) -> None:
    try:
        from franky_sim.mujoco_simulator import MujocoSimulator
        from franky_sim.simulation_server import SimulationServer

        _answer_what_is_stopped()
        with MujocoSimulator() as simulator:
            robot = simulator.add_robot(initial_q=q_rad, initial_hand_width=gripper_m)
            with SimulationServer(simulator) as server:
                server.run_async()
                pipe.send(str(robot.hostname))
                try:
                    pipe.recv()
                except EOFError:
                    return
    except ImportError as error:
        pipe.send(str(error))


def _answer_what_is_stopped() -> None:
    """A real hand answers a call that a stop ends: "aborted". franky-sim leaves it waiting for ever."""
    from franky_sim.franka_gripper_protocol import GripperCommandStatus
    from franky_sim.franka_gripper_server import FrankaGripperServer
    from franky_sim.franka_server import BaseCommand

    stop = FrankaGripperServer.stop

    def stop_and_answer(self: Any, command_id: int, tcp_socket: Any) -> None:
        running = self._pending_tcp_socket, self._pending_command_type, self._pending_command_id
        stop(self, command_id, tcp_socket)
        if running[0] is not None:
            aborted = GripperCommandStatus.kAborted
            BaseCommand.send_response(
                *running, aborted, command_type_struct="H", status_type_struct="H"
            )

    FrankaGripperServer.stop = stop_and_answer
