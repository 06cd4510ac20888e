"""The pool: the newest states, of which the expert may be asked.

A state is a stack of four frames, but each step brings only one new frame. The pool is a ring of single frames per
environment, and stacks are put together on read: 7 kB a state instead of 28. It keeps them in blocks (see `networks`):
so a frame is put in the networks' order once, not for each stack that it is in, each time that one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from aamlib.config import ConfigError
from aamlib.networks import depth_to_space, series_of, space_to_depth

Ask = Callable[[Int64[Tensor, " M"]], Float[Tensor, "M A"]]  # the expert's Q-values of the states with these ids

STACK = 4
BLOCKED_FRAME = (21 * 21, 4 * 4)
_BACK = torch.arange(STACK - 1, -1, -1)  # steps from a stack's frames to its last


class FramePool:
    """The newest `capacity` states of E environments that are stepped side by side.

    A state's id counts every state ever added: `step * n_envs + environment`. Those in the pool are `ids()`, a
    contiguous range. As in the vector environment, the frames before a game's first are zeros.

    Parameters
    ----------
    capacity:
        States, a multiple of n_envs. Memory: (capacity + 3 · n_envs + 1) · 7,056 bytes, and 4 · A a state for labels.
    n_envs:
        E.

    Raises
    ------
    ConfigError
        `capacity` is no positive multiple of `n_envs`.
    """

    def __init__(self, capacity: int, n_envs: int) -> None:
        if capacity < n_envs or capacity % n_envs:
            raise ConfigError(f"pool_size = {capacity} is not a multiple of n_envs = {n_envs}; give one.")
        self.n_envs = n_envs
        self.steps_kept = capacity // n_envs
        self.n_rows = self.steps_kept + STACK - 1  # the oldest state needs the three frames before it
        # One row per environment and ring position, and a last one that stays zero: what comes before a game's start.
        # NumPy's zeros take memory only as they are written to, torch's at once.
        self.frames = torch.from_numpy(np.zeros((n_envs * self.n_rows + 1, *BLOCKED_FRAME), np.uint8))
        self.rings = self.frames[:-1].view(n_envs, self.n_rows, *BLOCKED_FRAME)  # all but that one
        self.zero_row = n_envs * self.n_rows
        self.age = torch.zeros(n_envs, self.n_rows, dtype=torch.uint8)  # steps since the game's start, up to 3
        self.labels = torch.empty(n_envs, self.n_rows, 0)  # (E, rows, A) after the first; NaN: not asked about
        self.n_steps = 0  # ever added

    def __len__(self) -> int:
        return min(self.n_steps, self.steps_kept) * self.n_envs

    def ids(self) -> Int64[Tensor, " N"]:
        """Ids of the states in the pool, oldest first."""
        last = self.n_steps * self.n_envs
        return torch.arange(last - len(self), last)

    def add(self, frames: UInt8[np.ndarray, "E 84 84"], started: Bool[np.ndarray, " E"]) -> None:
        """Add the newest frame of each environment; `started` marks those whose game began with it."""
        row = self.n_steps % self.n_rows
        self.rings[:, row] = space_to_depth(torch.from_numpy(frames))
        age = (self.age[:, row - 1] + 1).clamp_max(STACK - 1)
        self.age[:, row] = torch.where(torch.from_numpy(started), 0, age)
        self.labels[:, row] = torch.nan
        self.n_steps += 1

    def read(self, ids: Int64[Tensor, " N"]) -> UInt8[Tensor, "N 4 84 84"]:
        """The stacks of the states `ids`, oldest frame first. Raises IndexError for one that is not in the pool."""
        return depth_to_space(self._frames_of(ids))

    def read_blocks(self, ids: Int64[Tensor, " N"]) -> UInt8[Tensor, "N 16 4 21 21"]:
        """The same in blocks, as networks take them too, twice as fast."""
        return series_of(self._frames_of(ids))

    def read_steps(self, first_step: int, last_step: int) -> UInt8[Tensor, "E 16 D 21 21"]:
        """All states of the steps [first, last) in blocks, those of each environment in a row: D is three steps more.

        Where a state is `at_start`, there are frames of the game before, or older ones, in place of zeros. Raises
        IndexError for steps that are not in the pool.
        """
        if not self.n_steps - len(self) // self.n_envs <= first_step <= last_step <= self.n_steps:
            raise IndexError(f"steps [{first_step}, {last_step}) are not all in the pool.")
        first_row, n_rows = (first_step - (STACK - 1)) % self.n_rows, last_step - first_step + STACK - 1
        rows = self.rings[:, first_row : first_row + n_rows]  # they may end before
        return series_of(torch.cat([rows, self.rings[:, : n_rows - rows.shape[1]]], dim=1))

    def at_start(self, ids: Int64[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Which of the states `ids` have frames from before their game's first, which are zeros.

        Raises IndexError for a state that is not in the pool.
        """
        return self._before_start(*self._locate(ids)).any(dim=1)

    def _frames_of(self, ids: Tensor) -> Tensor:
        """The frames of the states `ids`, (N, 4, 441, 16)."""
        env, row = self._locate(ids)
        rows = env[:, None] * self.n_rows + (row[:, None] - _BACK) % self.n_rows  # (N, 4)
        rows[self._before_start(env, row)] = self.zero_row
        return self.frames.index_select(0, rows.flatten()).view(-1, STACK, *BLOCKED_FRAME)

    def _before_start(self, env: Tensor, row: Tensor) -> Tensor:
        """Which of the states' frames are from before their games' first, (N, 4)."""
        return self.age[env, row][:, None] < _BACK

    def label(self, ids: Int64[Tensor, " N"], ask: Ask, *, remember: bool = True) -> tuple[Float[Tensor, "N A"], int]:
        """The labels of the (distinct) states `ids`, float32 (N, A); `ask` gives those that are not known yet.

        Returns also how many those were. They are known from then on, unless told not to `remember` them. Raises
        IndexError for a state that is not in the pool.
        """
        env, row = self._locate(ids)
        labels = self.labels[env, row]
        unknown = labels.isnan().all(dim=1)  # of the empty labels at the start all are
        if unknown.any():
            answers = ask(ids[unknown])
            if not self.labels.numel():
                self.labels = torch.full((*self.labels.shape[:2], answers.shape[1]), torch.nan)
                labels = self.labels[env, row]
            labels[unknown] = answers
            if remember:
                self.labels[env, row] = labels
        return labels, int(unknown.sum())

    def segment(self, first_step: int, last_step: int) -> dict[str, np.ndarray]:
        """What `add` was given in the steps [first, last). Raises IndexError for frames that are overwritten."""
        if not self.n_steps - self.n_rows <= first_step <= last_step <= self.n_steps:
            raise IndexError(f"steps [{first_step}, {last_step}) are not all in the ring.")
        rows = torch.arange(first_step, last_step) % self.n_rows
        return {
            "first_step": np.array(first_step),
            "frames": np.stack([depth_to_space(self.rings[:, int(row)]).numpy() for row in rows]),  # (steps, E, 84, 84)
            "started": (self.age[:, rows] == 0).T.numpy(),  # (steps, E)
        }

    def restore(self, segments: Iterable[dict[str, np.ndarray]]) -> None:
        """Refill an empty pool from consecutive segments that reach back to the oldest frame needed."""
        for segment in segments:
            if not self.n_steps:
                self.n_steps = segment["first_step"].item()
            for frames, started in zip(segment["frames"], segment["started"], strict=True):
                self.add(frames, started)

    def _locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        last = self.n_steps * self.n_envs
        if len(ids) and not (last - len(self) <= int(ids.min()) and int(ids.max()) < last):
            raise IndexError(
                f"states {int(ids.min())} to {int(ids.max())} are not all in the pool [{last - len(self)}, {last})."
            )
        return ids % self.n_envs, ids // self.n_envs % self.n_rows
