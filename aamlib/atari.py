"""Atari games: vector environments for collecting states, and evaluation over whole games.

Preprocessing is the usual one (Machado et al. 2018, without sticky actions): frame-skip 4 with max-pooling over the
last two frames, 84×84 grey, stacks of 4 frames, up to 30 no-ops and FIRE, where the game has it, at a game's start, at
most 108,000 emulator frames a game (Hessel et al. 2018). One agent step is 4 emulator frames.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from jaxtyping import Float, Float64, Int32, Int64, UInt8
from torch import Tensor

from aamlib.config import MAX_GAME_FRAMES, ConfigError, check_game
from aamlib.runtime import end_idle_threads

FRAMES_PER_STEP = 4

Policy = Callable[[UInt8[Tensor, "N 4 84 84"]], Float[Tensor, "N A"]]

# Of the last games played, by game and max_frames, for the next ones: to make one takes as long as hundreds of steps.
_idle_emulators: dict[tuple[str, int], list[AtariVectorEnv]] = {}
atexit.register(_idle_emulators.clear)  # or ale-py reports them as leaks
_parents_emulators: list[list[AtariVectorEnv]] = []


def _leave_to_parent() -> None:
    """A forked process has not their threads, for which to use them, or end them, it would wait for ever."""
    _parents_emulators.extend(_idle_emulators.values())
    _idle_emulators.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def make_envs(
    game: str,
    n_envs: int,
    *,
    clip_rewards: bool = False,
    life_loss_ends: bool = False,
    max_frames: int = MAX_GAME_FRAMES,
    n_threads: int = 0,
    **more: Any,
) -> AtariVectorEnv:
    """Step `n_envs` games side by side; a game that ends is followed by a new one within the same step.

    Parameters
    ----------
    game:
        Any ROM of ale-py, in its spelling: "pong", "breakout", "ms_pacman".
    clip_rewards:
        Clip each reward to [-1, 1].
    life_loss_ends:
        Report `terminated` also when a life is lost; the game itself goes on.
    max_frames:
        Emulator frames after which a game is truncated.
    n_threads:
        Emulator threads; 0 takes one per processor.
    more:
        Other arguments of ale-py's AtariVectorEnv.

    Raises
    ------
    ConfigError
        Unknown game.
    """
    return _Emulators(
        check_game(game),
        n_envs,
        num_threads=n_threads,
        max_num_frames_per_episode=max_frames,
        autoreset_mode=AutoresetMode.SAME_STEP,
        use_fire_reset=True,
        life_loss_info=life_loss_ends,
        reward_clipping=clip_rewards,
        **more,
    )


class _Emulators(AtariVectorEnv):
    """Emulators whose threads need not share the processors with torch's, which wait for the next forward pass."""

    def send(self, actions: Int64[np.ndarray, " E"]) -> None:
        end_idle_threads()
        super().send(actions)


@functools.cache
def action_names(game: str) -> tuple[str, ...]:
    """What the A actions of a game do, such as "NOOP" or "RIGHTFIRE". Raises ConfigError for an unknown game."""
    ALEInterface.setLoggerMode(LoggerMode.Error)  # it would greet on stderr
    rom = roms.get_rom_path(check_game(game))
    assert rom is not None
    ale = ALEInterface()
    ale.loadROM(rom)
    return tuple(action.name for action in ale.getMinimalActionSet())


def n_actions(game: str) -> int:
    """Number of actions, A, of the game's minimal action set. Raises ConfigError for an unknown game."""
    return len(action_names(game))


def env_seeds(seed: int, stream: str, n: int) -> np.ndarray:
    """Seeds for `n` environments; every (seed, stream) is a series of its own, so that uses never share games."""
    entropy = [seed, *stream.encode()]
    return (np.random.SeedSequence(entropy).generate_state(n) >> 1).astype(np.int64)  # the emulator takes 31 bits


def epsilon_greedy(
    q_values: Float[Tensor, "N A"], epsilon: float, generator: torch.Generator | None = None
) -> np.ndarray:
    """Actions, int64 (N,): the best by Q-value, or with probability epsilon a uniformly random one."""
    n, a = q_values.shape
    explore = torch.rand(n, generator=generator) < epsilon
    random = torch.randint(a, (n,), generator=generator)
    return torch.where(explore, random, q_values.argmax(dim=1).cpu()).numpy()


@dataclass(frozen=True)
class Step:
    """One step of E games played side by side: what was seen, thought and done, and what it brought."""

    states: UInt8[Tensor, "E 4 84 84"]
    q_values: Float[Tensor, "E A"]
    actions: Int64[np.ndarray, " E"]
    rewards: Int32[np.ndarray, " E"]
    games: Int64[np.ndarray, " E"]


@torch.no_grad()
def play(
    policy: Policy,
    game: str,
    episodes: int,
    epsilon: float,
    seed: int,
    *,
    max_frames: int = MAX_GAME_FRAMES,
    device: str = "cpu",
) -> Iterator[Step]:
    """Play whole games epsilon-greedily, side by side, step by step.

    Each of `episodes` environments plays exactly its first game: taking whichever games end first would favour short
    ones. A step holds the games still being played, named in `games` (0 to episodes − 1); rewards are not clipped.
    """
    # An emulator for each game: in one vector environment, games that are over would be stepped until the last one is.
    envs = _idle_emulators.pop((game, max_frames), [])
    envs += [make_envs(game, 1, max_frames=max_frames, n_threads=1) for _ in range(episodes - len(envs))]
    generator = torch.Generator().manual_seed(seed)
    seeds = np.split(env_seeds(seed, "play", episodes), episodes)
    with ThreadPoolExecutor() as threads:  # to seed an emulator takes 0.1 s
        observations = np.concatenate(list(threads.map(lambda env, one: env.reset(seed=one)[0], envs, seeds)))
    games = np.arange(episodes)
    while len(games):
        states = torch.from_numpy(observations[games])
        q_values = policy(states.to(device)).cpu()
        if q_values.shape != (needed := (len(games), n_actions(game))):  # of other actions emulators wait for ever
            raise ConfigError(
                f"the policy's Q-values have the shape {tuple(q_values.shape)} where {game} needs {needed}; give a "
                "policy of this game."
            )
        actions = epsilon_greedy(q_values, epsilon, generator)
        for i, action in zip(games, np.split(actions, len(games)), strict=True):
            envs[i].send(action)
        frames, rewards, terminated, truncated = map(
            np.concatenate, zip(*(envs[i].recv()[:4] for i in games), strict=True)
        )
        yield Step(states, q_values, actions, rewards, games)
        observations[games] = frames
        games = games[~(terminated | truncated)]
    _idle_emulators.clear()  # others may never be asked for again
    _idle_emulators[game, max_frames] = envs


def evaluate(
    policy: Policy,
    game: str,
    episodes: int = 15,
    epsilon: float = 0.05,
    seed: int = 0,
    *,
    max_frames: int = MAX_GAME_FRAMES,
    device: str = "cpu",
) -> Float64[np.ndarray, " episodes"]:
    """Unclipped scores of whole games, float64 (episodes,).

    Call `eval()` on a network with dropout before, unless dropout is meant to act.

    Parameters
    ----------
    policy:
        uint8 stacks (N, 4, 84, 84) -> Q-values (N, A), played epsilon-greedily.
    game:
        Any ROM of ale-py, in its spelling.
    episodes:
        Games, all played side by side; each counts, however long it takes.
    epsilon:
        Probability of a random action, in [0, 1].
    seed:
        Seeds the games and the random actions.
    max_frames:
        Emulator frames after which a game is cut and its score so far is taken.
    device:
        Where the policy computes.

    Raises
    ------
    ConfigError
        Unknown game, no episodes, an epsilon outside of [0, 1], or a policy of another number of actions, or whose
        Q-values are not finite.
    """
    if episodes < 1 or not 0 <= epsilon <= 1:
        raise ConfigError(
            f"episodes = {episodes} and epsilon = {epsilon} cannot be played; give at least one game and a probability."
        )
    scores = np.zeros(episodes)
    for step in play(policy, game, episodes, epsilon, seed, max_frames=max_frames, device=device):
        if not step.q_values.isfinite().all():
            raise ConfigError(
                "the policy's Q-values are not finite: its weights are damaged, or its training diverged."
            )
        scores[step.games] += step.rewards
    return scores


def sample_states(
    policy: Policy,
    game: str,
    n_states: int,
    games: int,
    epsilon: float,
    seed: int,
    *,
    max_frames: int = MAX_GAME_FRAMES,
    device: str = "cpu",
) -> UInt8[Tensor, "N 4 84 84"]:
    """States drawn evenly from whole games: the same number of each game, uniformly over its length.

    Returns uint8 (n_states, 4, 84, 84), game by game. A game shorter than its share gives all its states.
    """
    generator = np.random.default_rng(seed)
    shares = np.diff(np.linspace(0, n_states, games + 1).astype(int))
    drawn: list[list[Tensor]] = [[] for _ in range(games)]
    for t, step in enumerate(play(policy, game, games, epsilon, seed, max_frames=max_frames, device=device)):
        for state, number in zip(step.states, step.games, strict=True):  # reservoir sampling: each state equally likely
            if t < shares[number]:
                drawn[number].append(state.clone())
            elif (slot := generator.integers(t + 1)) < shares[number]:
                drawn[number][slot] = state.clone()
    return torch.stack([state for states in drawn for state in states])
