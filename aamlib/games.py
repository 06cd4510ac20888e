"""A game played once and kept, to look at it frame by frame, with the Q-values of who played and who watched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from aamlib.atari import FRAMES_PER_STEP, env_seeds, make_envs, play
from aamlib.experts import fingerprint, label
from aamlib.files import DATA_DIR, load_arrays
from aamlib.networks import STACK_SHAPE


@dataclass(frozen=True)
class Recording:
    """The first N steps of a game: frames, what was done, and the player's Q-values."""

    game: str
    seed: int
    frames: UInt8[np.ndarray, "N 84 84"]
    q_values: Float32[np.ndarray, "N A"]
    actions: Int64[np.ndarray, " N"]
    rewards: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.frames)

    def stacks(self) -> UInt8[np.ndarray, "N 4 84 84"]:
        """The states, a view: each step's frame with the three before it, zeros before the game's start."""
        padded = np.pad(self.frames, ((STACK_SHAPE[0] - 1, 0), (0, 0), (0, 0)))
        series = sliding_window_view(padded, STACK_SHAPE[0], axis=0, writeable=True)  # torch warns of others
        return np.moveaxis(series, -1, 1)


def record_game(policy: nn.Module, game: str, *, steps: int = 600, epsilon: float = 0.05, seed: int = 0) -> Recording:
    """Play the first `steps` agent steps of a game, epsilon-greedily.

    Raises ConfigError for an unknown game.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a single state is too little for two: on a busy machine, the second is waited for
    try:
        played = [  # without the states, of which each frame is in four
            (step.states[0, -1].numpy().copy(), step.q_values.numpy()[0], step.actions[0], step.rewards[0])
            for step in play(policy, game, 1, epsilon, seed, max_frames=steps * FRAMES_PER_STEP)
        ]
    finally:
        torch.set_num_threads(threads)
    frames, q_values, actions, rewards = map(np.stack, zip(*played, strict=True))
    return Recording(game, seed, frames, q_values, actions, rewards.astype(np.int64))


def sample_game_path(expert: nn.Module, game: str, *, steps: int = 600, epsilon: float = 0.05, seed: int = 0) -> Path:
    """Where this game of this expert lies, if it is among those that `make sample` recorded."""
    return DATA_DIR / "sample" / "games" / f"{game}-{fingerprint(expert)[:12]}-{steps}-{epsilon:g}-{seed}.zst"


def load_or_record_game(
    expert: nn.Module, game: str, *, steps: int = 600, epsilon: float = 0.05, seed: int = 0
) -> Recording:
    """As `record_game`, but a game of the sample is read instead of played again: the notebook opens sooner."""
    path = sample_game_path(expert, game, steps=steps, epsilon=epsilon, seed=seed)
    if not path.exists():
        return record_game(expert, game, steps=steps, epsilon=epsilon, seed=seed)
    return Recording(game, seed, **load_arrays(path))


def watch(policy: nn.Module, recording: Recording) -> Float32[np.ndarray, "N A"]:
    """The Q-values of another network on the states of the recording, (N, A)."""
    return label(policy, torch.from_numpy(recording.stacks())).numpy()


def colour_frames(recording: Recording) -> UInt8[np.ndarray, "N 210 160 3"]:
    """The game as the console showed it: the same seed and actions once more, in colour, (N, 210, 160, 3)."""
    envs = make_envs(
        recording.game,
        1,
        max_frames=FRAMES_PER_STEP * (len(recording) + 1),
        grayscale=False,
        img_height=210,
        img_width=160,
        stack_num=1,
    )
    observations, _ = envs.reset(seed=env_seeds(recording.seed, "play", 1))
    frames = np.empty((len(recording), 210, 160, 3), np.uint8)
    for frame, action in zip(frames, recording.actions, strict=True):
        frame[:] = observations[0, 0]
        observations, *_ = envs.step(np.array([action]))
    envs.close()
    return frames
