"""Inverse kinematics of an arm by damped least squares on MuJoCo's Jacobians."""

import mujoco
import numpy as np
from jaxtyping import Float


class ArmKinematics:
    """Joint angles for a pose of the point between the fingers of `body`.

    Args:
        model: a compiled scene whose first `num_joints` degrees of freedom are the arm.
        body: the hand.
        tool_m: the point's position in the hand frame, m.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        body: str = "panda_hand",
        tool_m: tuple[float, float, float] = (0.0, 0.0, 0.1034),
        num_joints: int = 7,
    ):
        self._model, self._data = model, mujoco.MjData(model)
        self._body, self._tool_m, self._n = model.body(body).id, np.array(tool_m), num_joints
        self._lower, self._upper = model.jnt_range[:num_joints].T

    def pose(
        self, joints: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position of the point (world, m) and rotation of the hand (columns: its axes)."""
        self._data.qpos[: self._n] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        rotation = self._data.xmat[self._body].reshape(3, 3).copy()
        return self._data.xpos[self._body] + rotation @ self._tool_m, rotation

    def solve(
        self,
        point_w: Float[np.ndarray, "3"],
        rotation_w: Float[np.ndarray, "3 3"],
        start: Float[np.ndarray, " n"],
        iterations: int = 60,
        damping: float = 0.05,
    ) -> tuple[Float[np.ndarray, " n"], float]:
        """Joint angles within limits, and what is left of the position error, m.

        One iteration is q += J^T (J J^T + damping^2 I)^-1 e, e = (position, rotation vector).
        """
        q, error = np.array(start, float), np.zeros(6)
        jac_pos, jac_rot = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        for _ in range(iterations):
            point, rotation = self.pose(q)
            error[:3] = point_w - point
            error[3:] = _rotation_vector(rotation_w @ rotation.T)
            if np.abs(error).max() < 1e-3:
                break
            mujoco.mj_jac(self._model, self._data, jac_pos, jac_rot, point, self._body)
            jacobian = np.vstack([jac_pos, jac_rot])[:, : self._n]
            step = jacobian.T @ np.linalg.solve(
                jacobian @ jacobian.T + damping**2 * np.eye(6), error
            )
            q = np.clip(q + step.clip(-0.3, 0.3), self._lower, self._upper)
        return q, float(np.linalg.norm(point_w - self.pose(q)[0]))


def _rotation_vector(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, rotation.flatten())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def looking_along(
    forward: Float[np.ndarray, "3"], spin_rad: float = 0.0
) -> Float[np.ndarray, "3 3"]:
    """Hand rotation with +z along `forward`; spin 0 keeps +x near world -x (away from the base)."""
    z = forward / np.linalg.norm(forward)
    x = np.array([-1.0, 0.0, 0.0])
    x = x - (x @ z) * z
    if np.linalg.norm(x) < 0.1:  # forward is along world x
        x = np.array([0.0, 0.0, 1.0]) - z[2] * z
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    x, y = np.cos(spin_rad) * x + np.sin(spin_rad) * y, np.cos(spin_rad) * y - np.sin(spin_rad) * x
    return np.stack([x, y, z], axis=1)
