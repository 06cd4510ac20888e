"""Games and their evaluation: scripted games whose scores can be counted, then the emulator itself."""

import itertools
import os
import platform
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from aamlib import atari
from aamlib.atari import FRAMES_PER_STEP, env_seeds, epsilon_greedy, evaluate, make_envs, n_actions, play, sample_states
from aamlib.config import ConfigError

LENGTHS = np.array([3, 1, 6, 4])


class ScriptedEnv:
    """A vector environment of one game, the `number`-th that was made, of scripted length."""

    def __init__(self, number, settings):
        self.number, self.settings, self.seeds = number, settings, []

    def reset(self, *, seed):
        self.seeds += seed.tolist()
        self.t, self.actions = 0, []
        return self.observe(), {}

    def send(self, action):
        self.actions.append(action.item())

    def recv(self):
        self.t += 1
        over, odd = np.array([self.t >= LENGTHS[self.number]]), self.number % 2 == 1
        reward = np.array([10 * self.number + 10], dtype=np.int32)
        return self.observe(), reward, over & odd, over & (not odd), {}

    def observe(self):
        """A state that holds its game's number and time."""
        state = np.zeros((1, 4, 84, 84), dtype=np.uint8)
        state[0, 0, 0, :2] = self.number, self.t
        return state


@pytest.fixture
def no_emulators(monkeypatch):
    """None is left of earlier games, and none is left to others."""
    monkeypatch.setattr(atari, "_idle_emulators", {})


@pytest.fixture
def scripted(monkeypatch, no_emulators):
    """Scripted games instead of the emulator's; holds those that were made."""
    made = []

    def make(game, n_envs, **settings):
        assert n_envs == 1
        made.append(ScriptedEnv(len(made) % 4, settings))
        return made[-1]

    monkeypatch.setattr(atari, "make_envs", make)
    monkeypatch.setattr(atari, "n_actions", lambda game: 6)
    return made


def number_policy(states):
    """Prefers the action that is the game's number."""
    return torch.nn.functional.one_hot(states[:, 0, 0, 0].long(), 6).float()


def no_preference(states):
    return torch.zeros(len(states), 6)


def test_each_first_game_counts_whole_and_no_later_one(scripted):
    scores = evaluate(number_policy, "pong", episodes=4, epsilon=0.0)
    np.testing.assert_array_equal(scores, LENGTHS * [10, 20, 30, 40])
    assert scores.dtype == np.float64


def test_evaluation_steps_whole_unclipped_games_of_its_own(scripted):
    evaluate(number_policy, "pong", episodes=4, max_frames=1234)
    assert len(scripted) == 4
    for env, length in zip(scripted, LENGTHS, strict=True):
        assert env.settings == {"max_frames": 1234, "n_threads": 1}
        assert env.t == length, "a game that is over is not stepped"


def test_emulators_play_the_next_games_too(scripted):
    for episodes in (3, 4, 2):
        evaluate(number_policy, "pong", episodes, max_frames=1234)
    assert len(scripted) == 4
    evaluate(number_policy, "pong", episodes=4, max_frames=4321)
    assert [env.settings["max_frames"] for env in scripted] == 4 * [1234] + 4 * [4321]
    assert list(atari._idle_emulators.values()) == [scripted[4:]], "those of other games are not kept"


def test_games_under_way_share_no_emulator(scripted):
    first, second = (play(number_policy, "pong", 2, epsilon=0.0, seed=seed) for seed in (0, 1))
    next(first), next(second)
    assert len(scripted) == 4
    assert [len(env.seeds) for env in scripted] == 4 * [1]


def test_games_are_seeded_by_the_seed_of_the_evaluation(scripted):
    for seed in (0, 0, 1):
        evaluate(number_policy, "pong", episodes=4, seed=seed)
    first, again, other = np.transpose([env.seeds for env in scripted]).tolist()
    assert len(set(first)) == 4
    assert first == again
    assert not set(first) & set(other)


def test_policy_sees_and_steers_the_games_still_played(scripted):
    steps = list(play(number_policy, "pong", episodes=4, epsilon=0.0, seed=0))
    for t, step in enumerate(steps):
        assert step.games.tolist() == np.flatnonzero(t < LENGTHS).tolist()
        assert step.states[:, 0, 0, :2].tolist() == [[game, t] for game in step.games]
        np.testing.assert_array_equal(step.actions, step.games)
        torch.testing.assert_close(step.q_values, number_policy(step.states))
        np.testing.assert_array_equal(step.rewards, 10 * step.games + 10)
    for number, env in enumerate(scripted):
        assert env.actions == [number] * LENGTHS[number]


def test_sampled_states_are_distinct_and_as_many_of_each_game(scripted):
    states = sample_states(number_policy, "pong", 9, games=4, epsilon=0.0, seed=0)
    games, times = states[:, 0, 0, 0].tolist(), states[:, 0, 0, 1].tolist()
    assert games == [0, 0, 1, 2, 2, 3, 3, 3]  # game 1 has one state only; 9 = 2 + 2 + 2 + 3
    assert len(set(zip(games, times, strict=True))) == 8


def test_sampled_states_are_played_at_the_given_epsilon(scripted):
    for epsilon, follows in ((0.0, True), (1.0, False)):
        sample_states(number_policy, "pong", 9, games=4, epsilon=epsilon, seed=0)
        assert all(env.actions == [env.number] * LENGTHS[env.number] for env in scripted) == follows


def test_sampled_states_are_uniform_over_a_game(scripted):
    draws, times = 400, []
    for seed in range(draws):
        states = sample_states(number_policy, "pong", 3, 3, 0.0, seed)
        times.append(states[2, 0, 0, 1].item())
    shares = np.bincount(times, minlength=6) / draws  # of the 6 states of game 2
    np.testing.assert_allclose(shares, 1 / 6, atol=0.093)  # five standard errors


# Exploration and seeds.


def test_without_epsilon_the_best_action_is_taken():
    q_values = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(epsilon_greedy(q_values, 0.0), q_values.argmax(dim=1).numpy())


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0])
def test_epsilon_is_the_share_of_uniformly_random_actions(epsilon):
    q_values = torch.tensor([[0.0, 0.0, 9.0, 0.0]]).expand(20_000, 4)
    actions = epsilon_greedy(q_values, epsilon, torch.Generator().manual_seed(0))
    expected = epsilon / 4 + (1 - epsilon) * np.array([0, 0, 1, 0])
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / 20_000, expected, atol=0.018)  # 5 standard errors
    np.testing.assert_array_equal(epsilon_greedy(q_values, epsilon, torch.Generator().manual_seed(0)), actions)


def test_env_seeds_are_distinct_between_seeds_and_streams_and_fit_31_bits():
    series = [env_seeds(seed, stream, 16) for seed in range(20) for stream in ("train", "play", "act", "probe", "")]
    drawn = np.concatenate(series)
    assert len(np.unique(drawn)) == len(drawn)
    assert drawn.min() >= 0
    assert drawn.max() < 2**31
    np.testing.assert_array_equal(env_seeds(0, "train", 16), series[0])


# The emulator.


@pytest.mark.parametrize(("game", "n"), [("pong", 6), ("breakout", 4)])
def test_actions_are_the_minimal_set(game, n):
    assert n_actions(game) == n


@pytest.mark.parametrize(
    "use", [n_actions, lambda game: make_envs(game, 2), lambda game: evaluate(no_preference, game)]
)
def test_unknown_game_is_told_the_nearest(use):
    with pytest.raises(ConfigError, match="unknown game 'Ponng'; did you mean 'pong'"):
        use("Ponng")


@pytest.mark.parametrize(("episodes", "epsilon"), [(0, 0.05), (2, -0.1), (2, 1.5), (2, float("nan"))])
def test_what_cannot_be_played_is_refused(episodes, epsilon):
    with pytest.raises(ConfigError, match=f"episodes = {episodes} and epsilon = {epsilon} cannot be played"):
        evaluate(number_policy, "pong", episodes, epsilon)


@pytest.mark.parametrize("actions", [4, 18])
def test_policy_with_another_number_of_actions_is_refused(actions):
    with pytest.raises(ConfigError, match=rf"the shape \(2, {actions}\) where pong needs \(2, 6\)"):
        evaluate(lambda states: torch.zeros(len(states), actions), "pong", 2)


def test_policy_whose_training_diverged_has_no_score():
    with pytest.raises(ConfigError, match="Q-values are not finite: its weights are damaged, or its training diverged"):
        evaluate(lambda states: torch.full((len(states), 6), torch.nan), "pong", 2)


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_each_step_pushes_one_new_frame_onto_the_stack(game):
    envs = make_envs(game, 3)
    first, info = envs.reset(seed=np.arange(3))
    states, random = first, np.random.default_rng(0)
    for _ in range(20):
        before, frames_before = states.copy(), info["episode_frame_number"].copy()
        states, _, terminated, truncated, info = envs.step(random.integers(envs.single_action_space.n, size=3))
        assert not (terminated | truncated).any()
        np.testing.assert_array_equal(states[:, :3], before[:, 1:])
        np.testing.assert_array_equal(info["episode_frame_number"] - frames_before, FRAMES_PER_STEP)
    envs.close()
    assert (states[:, 3] != first[:, 3]).any(axis=(1, 2)).all()
    assert states.shape == (3, 4, 84, 84)
    assert states.dtype == np.uint8


def test_breakout_begins_with_the_ball_in_play():
    """Without FIRE nothing would ever move on the screen."""
    envs = make_envs("breakout", 2)
    envs.reset(seed=np.arange(2))
    frames = [envs.step(np.zeros(2, np.int64))[0][:, -1].copy() for _ in range(6)]
    envs.close()
    assert all((frame != after).any(axis=(1, 2)).all() for frame, after in itertools.pairwise(frames))


@pytest.mark.skipif(platform.system() != "Linux", reason="torch is linked to GNU OpenMP on Linux alone")
def test_threads_of_torch_do_not_keep_the_emulator_from_the_processors():
    def product():
        torch.set_num_threads(2)
        result = torch.ones(300, 300) @ torch.ones(300, 300)
        torch.set_num_threads(1)
        return result

    envs, process, actions = make_envs("pong", 2), psutil.Process(), np.zeros(2, np.int64)
    envs.reset(seed=np.arange(2))
    envs.step(actions)
    before, first = process.num_threads(), product()
    assert process.num_threads() == before + 1
    envs.step(actions)
    assert process.num_threads() == before
    assert torch.equal(product(), first)
    envs.close()


FORKED = """
import os, torch
import numpy as np
from aamlib.atari import evaluate, make_envs
policy = lambda states: torch.zeros(len(states), 6)
torch.set_num_threads(2)
evaluate(policy, "pong", 2, max_frames=100)
torch.ones(300, 300) @ torch.ones(300, 300)
child = os.fork()
if not child:
    torch.set_num_threads(1)  # as workers of a DataLoader do
    envs = make_envs("pong", 2, n_threads=1)
    envs.reset(seed=np.arange(2))
    envs.step(np.zeros(2, np.int64))
    os._exit(7 * (len(evaluate(policy, "pong", 2, max_frames=100)) == 2))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_plays_too():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert subprocess.check_output(command, text=True, timeout=60).split()[-1] == "7"


def rollout(game, n_steps, **settings):
    """Rewards, ends and frame counters (steps, 2) of random play on fixed seeds."""
    envs, random = make_envs(game, 2, **settings), np.random.default_rng(0)
    envs.reset(seed=np.arange(2))
    steps = [envs.step(random.integers(envs.single_action_space.n, size=2)) for _ in range(n_steps)]
    envs.close()
    rewards, terminated, truncated = (np.array([step[k] for step in steps]) for k in (1, 2, 3))
    return rewards, terminated, truncated, np.array([step[4]["episode_frame_number"] for step in steps])


def test_rewards_are_clipped_only_on_demand():
    rewards, *_ = rollout("ms_pacman", 120)  # 10 points a pellet
    clipped, *_ = rollout("ms_pacman", 120, clip_rewards=True)
    assert rewards.max() >= 10
    np.testing.assert_array_equal(clipped, np.sign(rewards))


def test_lost_life_ends_a_game_only_on_demand_and_never_restarts_it():
    _, whole, _, frames = rollout("breakout", 60)
    _, lives, _, frames_by_life = rollout("breakout", 60, life_loss_ends=True)
    assert lives.any()
    assert not whole.any()
    np.testing.assert_array_equal(frames_by_life, frames)


def test_game_is_truncated_after_max_frames_and_a_new_one_begins():
    _, terminated, truncated, frames = rollout("pong", 60, max_frames=120)
    assert np.flatnonzero(truncated.all(axis=1)).tolist() == [29, 59]  # 4 frames a step; no-ops do not count
    assert truncated.any(axis=1).sum() == 2
    assert not terminated.any()
    assert (frames[29] < frames[28]).all()


def test_real_scores_are_unclipped():
    scores = evaluate(lambda states: torch.zeros(len(states), 9), "ms_pacman", 2, epsilon=1.0, max_frames=400)
    assert (scores >= 10).all()
    np.testing.assert_array_equal(scores % 10, 0)


def test_evaluation_repeats_exactly_and_depends_on_its_seed(no_emulators):
    def trace(seed, global_seed):
        """What the policy saw, and the scores."""
        torch.manual_seed(global_seed)  # must not matter
        seen = []

        def policy(states):
            seen.append(states.clone())
            return no_preference(states)

        scores = evaluate(policy, "pong", episodes=3, epsilon=0.5, seed=seed, max_frames=400)
        return torch.cat(seen), scores

    (first, scores), (other, _), (again, scores_again) = trace(0, 1), trace(1, 1), trace(0, 2)
    assert torch.equal(first, again)
    np.testing.assert_array_equal(scores, scores_again)
    assert not torch.equal(first, other)
