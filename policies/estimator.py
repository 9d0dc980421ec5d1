"""A read-out that learns to tell the state from frames and the joints, and what it learns from."""

from collections.abc import Callable, Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import Tensor, nn

from envs.spec import ORACLE
from policies.readouts import READOUT, make_pool, read_frames

HIDDEN = 256
SMALLEST_UNIT = 0.02  # m, rad, …: what moves less counts little in the error of an estimate
GUESSES = 5  # updates of the guess for one of the estimate, which takes ten times as long


class StateEstimate(BaseFeaturesExtractor):
    """The oracle vector as far as a frame (or the last few) and the joints tell it: [B, O].

    Its first P numbers are `proprio`, as sensed. The others are guessed from the joints alone (where
    the fingers are, and what is usual), then corrected by the read-out of `make_pool`. Both learn by
    `error` alone: advantages are too noisy a teacher for a read-out of thousands of numbers per
    frame, which learns the samples of a rollout by heart (`LOG.md`, 2026-11-28).
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        pool: str = "attention",
        num_queries: int = 8,
        history: int = 1,
    ):
        num_oracle = spaces.flatdim(observation_space[ORACLE])
        super().__init__(observation_space, features_dim=num_oracle)
        self.num_sensed = spaces.flatdim(observation_space["proprio"])
        self.history = history
        shape = observation_space["features"].shape or ()
        self.pool = make_pool(shape, pool, num_queries, history)
        self.by_joints = two_hidden_layers(self.num_sensed, num_oracle - self.num_sensed)
        self.correction = two_hidden_layers(
            history * READOUT + num_oracle, num_oracle - self.num_sensed
        )

    def guess(self, observations: dict[str, Tensor]) -> Float[Tensor, "B E"]:
        """From `proprio` [B, P] alone, what is not sensed of the oracle vector: E = O - P. Cheap."""
        return self.by_joints(observations["proprio"])

    def estimate(self, observations: dict[str, Tensor]) -> Float[Tensor, "B E"]:
        """The guess, which stands still here, corrected by the frame."""
        guess = self.guess(observations).detach()
        read = read_frames(self.pool, observations["features"].float(), self.history)
        return guess + self.correction(torch.cat([read, observations["proprio"], guess], dim=1))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            estimate = self.estimate(observations)
        return torch.cat([observations["proprio"], estimate], dim=1)

    def error(
        self, estimate: Float[Tensor, "B E"], oracle: Float[Tensor, "B O"]
    ) -> Float[Tensor, ""]:
        """Mean square of what is wrong, each number in its standard deviation over the batch."""
        truth = oracle[:, self.num_sensed :]
        unit = truth.std(0).clamp(min=SMALLEST_UNIT)
        return ((estimate - truth) / unit).square().mean()


def two_hidden_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*create_mlp(inputs, outputs, [HIDDEN, HIDDEN], nn.SELU))


class Replay:
    """At most `capacity` frames (a dict of tensors each). When full, new frames take the places of
    random ones, so that some of all ages stay. (stable-baselines3's `DictReplayBuffer` keeps each
    frame twice, as observation and as the next one, and drops the oldest.)"""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._columns: dict[str, Tensor] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, frames: dict[str, Tensor]) -> None:
        """B frames, on the device of the first ones. Raises ValueError if B is beyond `capacity`."""
        count = len(next(iter(frames.values())))
        if count > self._capacity:
            raise ValueError(f"{count} frames do not fit into a replay of {self._capacity}")
        if not self._columns:  # a CPU gives the memory when it is written
            self._columns = {
                key: value.new_empty((self._capacity, *value.shape[1:]))
                for key, value in frames.items()
            }
        new = min(count, self._capacity - self._length)
        old = torch.randperm(self._length)[: count - new]
        rows = torch.cat([torch.arange(self._length, self._length + new), old])
        for key, column in self._columns.items():
            column[rows.to(column.device)] = frames[key]
        self._length += new

    def sample(self, count: int, keys: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`count` frames, drawn with replacement; of `keys` alone if given."""
        rows = torch.randint(self._length, (count,))
        columns = {key: self._columns[key] for key in keys or self._columns}
        return {key: column[rows.to(column.device)] for key, column in columns.items()}


class Estimator:
    """Teaches `readout` from the frames of a run. `descend(loss)` makes one step of its optimiser."""

    def __init__(self, readout: StateEstimate, descend: Callable[[Tensor], None], capacity: int):
        self._readout, self._descend = readout, descend
        self.replay = Replay(capacity)

    def read(self, obs: dict[str, Tensor], batch: int) -> Float[Tensor, "B O"]:
        """What the actor acted on: the estimate stands still while actor and critic learn."""
        parts = torch.arange(len(obs[ORACLE]), device=obs[ORACLE].device).split(batch)
        return torch.cat([self._readout({k: v[rows] for k, v in obs.items()}) for rows in parts])

    def learn(
        self, obs: dict[str, Tensor], read: Float[Tensor, "B O"], updates: int, batch: int
    ) -> float:
        """`updates` minibatches of `batch` frames, of all that are remembered, these now among them.
        Returns the error of what was `read`, before anything was learned from these frames."""
        error = self._readout.error(read[:, self._readout.num_sensed :], obs[ORACLE])
        self.replay.add(obs)
        for _ in range(updates):
            for _ in range(GUESSES):
                seen = self.replay.sample(batch, ("proprio", ORACLE))
                self._descend(self._readout.error(self._readout.guess(seen), seen[ORACLE]))
            seen = self.replay.sample(batch)
            self._descend(self._readout.error(self._readout.estimate(seen), seen[ORACLE]))
        return error.item()
