"""A recording is the game: frame by frame, and again in colour."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import aamlib
from aamlib import atari, games
from aamlib.atari import play
from aamlib.widgets.expert import ExpertView


@pytest.fixture(scope="module")
def recording(pong_expert):
    return games.record_game(aamlib.load_expert(pong_expert), "pong", steps=40, seed=3)


def test_states_and_q_values_are_those_of_the_game(recording, pong_expert):
    expert = aamlib.load_expert(pong_expert)
    played = list(play(expert, "pong", 1, 0.05, 3, max_frames=160))
    assert len(recording) == len(played) == 40
    np.testing.assert_array_equal(recording.stacks(), np.concatenate([step.states.numpy() for step in played]))
    np.testing.assert_array_equal(recording.actions, np.concatenate([step.actions for step in played]))
    np.testing.assert_allclose(games.watch(expert, recording), recording.q_values, rtol=1e-4, atol=1e-5)


def test_the_game_that_is_shown_first_is_a_bundled_one(monkeypatch):
    expert = aamlib.load_expert("pong")
    bundled = games.load_or_record_game(expert, "pong")
    assert len(bundled) == 600
    np.testing.assert_allclose(games.watch(expert, bundled), bundled.q_values, rtol=1e-3, atol=1e-4)
    played = games.load_or_record_game(expert, "pong", steps=40)
    assert len(played) == 40
    for name in ("frames", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(played, name), getattr(bundled, name)[:40])
    monkeypatch.setattr(games, "record_game", Mock(side_effect=LookupError))
    ExpertView("pong")
    for other in ({"seed": 1}, {"epsilon": 0.1}, {"steps": 20}):
        with pytest.raises(LookupError):
            games.load_or_record_game(expert, "pong", **other)
    with pytest.raises(LookupError):
        games.load_or_record_game(aamlib.NatureDQN(6), "pong")


@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_colours_are_of_the_same_moments(game):
    expert = aamlib.load_expert(aamlib.NatureDQN(len(atari.action_names(game))))  # one that soon loses lives
    recording = games.record_game(expert, game, steps=200, epsilon=0.5, seed=3)
    colours = games.colour_frames(recording)
    assert colours.shape == (len(recording), 210, 160, 3)
    assert len(np.unique(colours[-1].reshape(-1, 3), axis=0)) > 2
    for step in np.linspace(0, len(recording) - 1, 5, dtype=int):
        grey = Image.fromarray(colours[step]).convert("L").resize((84, 84), Image.Resampling.BILINEAR)
        apart = np.abs(np.asarray(grey, int) - recording.frames).mean(axis=(1, 2))
        assert apart[step] == apart.min() < apart.max(), "no other moment looks more alike"


def test_actions_have_names():
    assert atari.action_names("pong") == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    with pytest.raises(aamlib.ConfigError, match="did you mean 'pong'"):
        atari.action_names("pnog")


def test_another_network_may_watch(recording):
    torch.manual_seed(1)
    assert games.watch(aamlib.MCDropoutDQN(6).eval(), recording).shape == (40, 6)
