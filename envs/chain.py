"""Kinematics of a serial arm over batched joint angles, in torch.

Forward kinematics, the geometric Jacobian, and damped least squares for a batch of poses at once,
on any device. The chain is read from a compiled MuJoCo model; joints are hinges, as an arm's are.
"""

from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Chain:
    """The bodies from the world to `body`, moved by the model's first `num_joints` hinges.

    Args:
        model: a compiled scene.
        body: the last body, for example the hand.
        num_joints: how many hinges lead to it; they must be the model's first joints.
        tool_m: the point of interest in the frame of `body`, m.
        device: where all results are.
    Raises:
        ValueError: the joints to `body` are not the first `num_joints` hinges.
    """

    def __init__(
        self, model: Any, body: str, num_joints: int, tool_m: tuple[float, float, float],
        device: str = "cpu",
    ):  # fmt: skip
        frames, rotation, offset = [], np.eye(3), np.zeros(3)
        for link in _ancestry(model, model.body(body).id):
            offset = offset + rotation @ model.body_pos[link]
            rotation = rotation @ _matrix(model.body_quat[link])
            if model.body_jntnum[link]:
                joint = int(model.body_jntadr[link])
                if joint != len(frames) or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE:
                    raise ValueError(f"joint {model.joint(joint).name!r} on the way to {body!r}")
                turn = _to_z(model.jnt_axis[joint])
                frames.append((offset + rotation @ model.jnt_pos[joint], rotation @ turn))
                offset, rotation = turn.T @ -model.jnt_pos[joint], turn.T
        if len(frames) != num_joints:
            raise ValueError(f"{len(frames)} joints lead to {body!r}, expected {num_joints}")

        def tensor(value) -> Tensor:
            return torch.tensor(np.array(value), dtype=torch.float32, device=device)

        self._offsets = tensor([frame[0] for frame in frames])  # of a joint in the one before
        self._turns = tensor([frame[1] for frame in frames])
        self._hand = tensor(rotation)
        self._tool = tensor(offset + rotation @ np.array(tool_m))
        self.lower, self.upper = tensor(model.jnt_range[:num_joints]).T

    def forward(
        self, joints: Float[Tensor, "N J"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"], Float[Tensor, "N 6 J"]]:
        """Tool point (world, m), rotation of the body (columns: its axes), Jacobian of both
        (rows: linear, then angular velocity in the world frame)."""
        cos, sin = joints.cos()[..., None], joints.sin()[..., None]
        a, b, c = self._turns.unbind(-1)
        local = torch.stack(
            [cos * a + sin * b, cos * b - sin * a, c.expand(len(joints), -1, -1)], -1
        )
        point = self._offsets[0].expand(len(joints), 3)
        rotation = local[:, 0]
        points, axes = [point], [rotation[..., 2]]
        for j in range(1, joints.shape[1]):
            point = point + rotation @ self._offsets[j]
            rotation = rotation @ local[:, j]
            points.append(point)
            axes.append(rotation[..., 2])
        tool = point + rotation @ self._tool
        axis = torch.stack(axes, -1)
        arm = tool[..., None] - torch.stack(points, -1)
        jacobian = torch.cat([torch.linalg.cross(axis, arm, dim=1), axis], 1)
        return tool, rotation @ self._hand, jacobian

    def solve(
        self,
        point_w: Float[Tensor, "N 3"],
        rotation_w: Float[Tensor, "*N 3 3"],
        start: Float[Tensor, "N J"],
        iterations: int = 8,
        damping: float = 0.05,
    ) -> Float[Tensor, "N J"]:
        """Joint angles within limits that bring the tool to a pose, as far as it can be reached.

        One iteration is q += J^T (J J^T + damping^2 I)^-1 e, e = (position, rotation vector).
        """
        joints, eye = start, torch.eye(6, device=point_w.device) * damping**2
        for _ in range(iterations):
            point, rotation, jacobian = self.forward(joints)
            error = torch.cat([point_w - point, turn_between(rotation, rotation_w)], 1)
            square = jacobian @ jacobian.mT + eye
            step = jacobian.mT @ torch.linalg.solve(square, error[..., None])
            joints = (joints + step[..., 0].clamp(-0.4, 0.4)).clamp(self.lower, self.upper)
        return joints


def turn_between(
    rotation: Float[Tensor, "N 3 3"], goal: Float[Tensor, "*N 3 3"]
) -> Float[Tensor, "N 3"]:
    """A vector along the axis of the rotation from `rotation` to `goal`, both seen from the world.

    Its length is sin(angle) up to a right angle and grows on to 2 at a half turn, rad nearby: half
    the sum of the axes' cross products, which is smooth everywhere, rescaled beyond a right angle.
    """
    across = torch.linalg.cross(rotation, goal.expand_as(rotation), dim=-2).sum(-1) / 2
    cos = ((rotation * goal).sum((-2, -1)) - 1) / 2
    sin = across.norm(dim=-1).clamp(min=1e-6)
    return across * torch.where(cos < 0, (1 - cos) / sin, 1.0)[:, None]


def _ancestry(model: Any, body: int) -> list[int]:
    bodies = []
    while body:
        bodies.append(body)
        body = int(model.body_parentid[body])
    return bodies[::-1]


def _matrix(quat: np.ndarray) -> np.ndarray:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def _to_z(axis: np.ndarray) -> np.ndarray:
    """A rotation whose third column is `axis`."""
    quat = np.zeros(4)
    mujoco.mju_quatZ2Vec(quat, axis)
    return _matrix(quat)
