"""The pool against a plain list of every stack that was ever seen."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from aamlib.atari import make_envs
from aamlib.config import ConfigError
from aamlib.networks import as_blocks
from aamlib.replay import FramePool

BLANK = np.zeros((84, 84), dtype=np.uint8)


class ScriptedGames:
    """Games side by side whose every frame carries its own number; `seen[id]` is the stack of a state (the oracle)."""

    def __init__(self, n_envs):
        self.n_envs = n_envs
        self.stacks = [[BLANK] * 4 for _ in range(n_envs)]
        self.seen = []

    def step(self, started):
        """Go on, or start anew where `started`; returns what `FramePool.add` takes."""
        for env in range(self.n_envs):
            frame = np.full((84, 84), 7, dtype=np.uint8)
            frame[0, :8] = np.frombuffer(np.int64(len(self.seen)).tobytes(), dtype=np.uint8)
            past = [BLANK] * 3 if started[env] else self.stacks[env][1:]
            self.stacks[env] = [*past, frame]
            self.seen.append(np.stack(self.stacks[env]))
        return np.stack([stack[-1] for stack in self.stacks]), np.array(started)


@st.composite
def scripts(draw, max_steps=40):
    """Environments, steps that the pool keeps, and at each step the environments whose game starts with it."""
    n_envs, steps_kept = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    starts = draw(st.lists(st.lists(st.booleans(), min_size=n_envs, max_size=n_envs), max_size=max_steps))
    return n_envs, steps_kept, starts


def fill(pool, games, starts):
    for started in starts:
        pool.add(*games.step(started))


def assert_reads(pool, seen, ids):
    expected = np.stack([seen[i] for i in ids.tolist()]) if len(ids) else np.empty((0, 4, 84, 84), np.uint8)
    np.testing.assert_array_equal(pool.read(ids).numpy(), expected)
    assert torch.equal(pool.read_blocks(ids), as_blocks(pool.read(ids)))
    began = ids >= 3 * pool.n_envs  # a script need not say that its first frames are a game's
    assert pool.at_start(ids)[began].tolist() == [not stack[0].any() for stack in expected[began.numpy()]]


@given(scripts(), st.randoms(use_true_random=False))
def test_what_is_read_is_what_was_seen(script, random):
    n_envs, steps_kept, starts = script
    pool, games = FramePool(steps_kept * n_envs, n_envs), ScriptedGames(n_envs)
    fill(pool, games, starts)
    newest = list(range(len(games.seen)))[-steps_kept * n_envs :]
    assert pool.ids().tolist() == newest
    assert len(pool) == len(newest)
    random.shuffle(newest)
    assert_reads(pool, games.seen, torch.tensor(newest + newest[:2], dtype=torch.int64))


def test_every_state_is_read_right_after_each_of_many_steps():
    pool, games = FramePool(12, 2), ScriptedGames(2)
    random = np.random.default_rng(0)
    for _ in range(60):
        fill(pool, games, [random.random(2) < 0.25])
        assert_reads(pool, games.seen, pool.ids())


@pytest.mark.parametrize("n_steps", range(3, 22))  # the ring has 11 rows: it ends among the frames here and there
def test_steps_are_read_whole_but_for_the_zeros_before_a_game(n_steps):
    pool, games = FramePool(16, 2), ScriptedGames(2)
    starts = np.random.default_rng(n_steps).random((n_steps, 2)) < 0.2
    starts[0] = True
    fill(pool, games, starts.tolist())
    for first, last in itertools.combinations_with_replacement(range(max(0, n_steps - 8), n_steps + 1), 2):
        series = pool.read_steps(first, last)
        assert series.shape == (2, 16, last - first + 3, 21, 21)
        ids = torch.arange(first * 2, last * 2)
        if len(ids):
            states = series.unfold(2, 4, 1).permute(2, 0, 1, 5, 3, 4).flatten(0, 1)
            assert torch.equal(states[~pool.at_start(ids)], pool.read_blocks(ids)[~pool.at_start(ids)])
    for first, last in ((n_steps - 9, n_steps), (n_steps, n_steps + 1), (n_steps, n_steps - 1)):
        with pytest.raises(IndexError, match="are not all in the pool"):
            pool.read_steps(first, last)


@pytest.mark.parametrize("n_steps", [0, 1, 5, 30])
def test_states_outside_the_pool_are_refused(n_steps):
    pool, games = FramePool(12, 2), ScriptedGames(2)  # keeps 6 steps
    fill(pool, games, [[False, False]] * n_steps)
    first, last = max(0, n_steps - 6) * 2, n_steps * 2
    for outside in (first - 1, last):
        for use in (pool.read, pool.at_start, lambda ids, pool=pool: pool.label(ids, answers)):
            with pytest.raises(IndexError, match="not all in the pool"):
                use(torch.tensor([*range(first, last), outside]))


def answers(ids):
    """Labels (N, 2) that tell whose they are."""
    return torch.stack([ids, -ids], dim=1).float()


@given(scripts(), st.data())
def test_each_state_is_asked_about_once_and_keeps_its_label(script, data):
    n_envs, steps_kept, starts = script
    pool, games, labelled = FramePool(steps_kept * n_envs, n_envs), ScriptedGames(n_envs), set()
    for started in starts:
        fill(pool, games, [started])
        ids = data.draw(st.lists(st.sampled_from(pool.ids().tolist()), unique=True, max_size=4))
        remember = data.draw(st.booleans())
        labels, n_new = pool.label(torch.tensor(ids, dtype=torch.int64), answers, remember=remember)
        assert labels.tolist() == [[i, -i] for i in ids]
        assert n_new == len(set(ids) - labelled)
        labelled.update(ids if remember else [])


def test_label_of_an_overwritten_state_does_not_pass_to_its_successor():
    pool, games = FramePool(2, 2), ScriptedGames(2)
    for _ in range(3 * pool.n_rows):
        fill(pool, games, [[False, False]])
        labels, n_new = pool.label(pool.ids(), answers)
        assert n_new == 2
        assert labels[:, 0].tolist() == pool.ids().tolist()


@given(scripts(), st.data())
@settings(max_examples=30)
def test_pool_restored_from_segments_reads_and_goes_on_alike(script, data):
    n_envs, steps_kept, starts = script
    pool, games, segments = FramePool(steps_kept * n_envs, n_envs), ScriptedGames(n_envs), []
    while (saved := pool.n_steps) < len(starts):
        fill(pool, games, starts[saved : saved + data.draw(st.integers(1, 2 * pool.n_rows))])
        first = max(saved, pool.n_steps - pool.n_rows)  # what is older has been overwritten
        segments.append((pool.n_steps, pool.segment(first, pool.n_steps)))
    needed = [segment for end, segment in segments if end > pool.n_steps - pool.n_rows]

    restored = FramePool(steps_kept * n_envs, n_envs)
    if needed:
        restored.restore(needed)
    assert restored.ids().tolist() == pool.ids().tolist()
    assert_reads(restored, games.seen, restored.ids())

    more = data.draw(st.lists(st.lists(st.booleans(), min_size=n_envs, max_size=n_envs), max_size=6))
    for started in more:
        restored.add(*games.step(started))
    assert_reads(restored, games.seen, restored.ids())


def test_steps_that_are_overwritten_or_to_come_are_no_segment():
    pool, games = FramePool(4, 2), ScriptedGames(2)  # of 2 steps, and 3 before them
    fill(pool, games, [[False, False]] * 9)
    assert len(pool.segment(4, 9)["frames"]) == 5
    for first, last in ((3, 9), (4, 10), (8, 7)):
        with pytest.raises(IndexError, match=rf"steps \[{first}, {last}\) are not all in the ring"):
            pool.segment(first, last)


def test_segment_is_a_copy():
    pool, games = FramePool(4, 2), ScriptedGames(2)
    fill(pool, games, [[True, True]] * 3)
    segment = pool.segment(0, 3)
    before = segment["frames"].copy()
    fill(pool, games, [[False, False]] * 20)
    np.testing.assert_array_equal(segment["frames"], before)


@pytest.mark.parametrize("capacity", [0, 3, 10])
def test_capacity_must_be_a_multiple_of_the_environments(capacity):
    with pytest.raises(ConfigError, match=f"pool_size = {capacity} is not a multiple of n_envs = 4"):
        FramePool(capacity, 4)


def test_pool_of_the_study_fits_in_three_quarters_of_a_gigabyte():
    pool = FramePool(100_000, 16)
    tensors = [value for value in vars(pool).values() if isinstance(value, torch.Tensor) and value._base is None]
    assert len(pool.frames) >= 100_000
    labels = 4 * 18 * pool.labels.shape[0] * pool.labels.shape[1]  # made when the first are known; at most 18 actions
    assert sum(tensor.nbytes for tensor in tensors) + labels <= 0.75e9


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_pool_holds_the_stacks_of_the_vector_environment(game):
    n_envs, n_steps = 3, 250
    envs, pool = make_envs(game, n_envs, max_frames=300), FramePool(n_envs * 50, n_envs)
    random = np.random.default_rng(0)
    stacks, _ = envs.reset(seed=np.arange(n_envs))
    started, seen, games = np.ones(n_envs, dtype=bool), [], 0
    for _ in range(n_steps):
        pool.add(stacks[:, -1], started)
        seen.extend(stacks.copy())
        games += started.sum()
        assert_reads(pool, seen, pool.ids()[-n_envs:])
        stacks, _, terminated, truncated, _ = envs.step(random.integers(envs.single_action_space.n, size=n_envs))
        started = terminated | truncated
    envs.close()
    assert games >= 3 * n_envs
    assert_reads(pool, seen, pool.ids())
