"""What all tests share."""

import dataclasses
import os

import jaxtyping
import pytest
import torch
from hypothesis import settings
from synthetic import write_runs

import aamlib

settings.register_profile("aamlib", deadline=None, derandomize=True, max_examples=50)  # the same examples on every run
settings.load_profile("aamlib")
# Tensors are small here: on a busy machine, a second thread is only waited for. Kernels and other processes inherit it.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Python 3.11 can stop for good in what Dask's profiler calls (CPython issue 106883).
os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"


@pytest.fixture(autouse=True)
def seed_torch():
    """Networks without weights of their own are the same ones on every run."""
    torch.manual_seed(0)


@pytest.fixture
def as_users(monkeypatch):
    """Run without the shape checks of the test command, which would reject bad shapes before aamlib itself does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def pong_expert(tmp_path_factory):
    """The weights' file of an untrained network with Pong's six actions: labels like any other, made in no time."""
    torch.manual_seed(0)
    network = aamlib.NatureDQN(6, normalise=True)
    with torch.no_grad():
        network.head.weight *= (
            0.1  # Q-values of the size of the temperature: neither a certain nor an indifferent expert
        )
    path = tmp_path_factory.mktemp("experts") / "pong.safetensors"
    return aamlib.save_expert(path, network, {"game": "pong"})


@pytest.fixture(scope="session")
def tiny(pong_expert):
    """A run of four rounds on the real game, small enough for a test of a few seconds.

    Above all few games: the emulator takes 0.1 s to make one, and as long again to seed it.
    """
    return aamlib.ExperimentConfig(
        expert=str(pong_expert),
        total_steps=800,
        warmup_steps=160,
        round_steps=160,
        n_envs=4,
        pool_size=320,
        epsilon_decay_steps=160,
        max_game_frames=120,
        evaluate_every=480,
        evaluation_episodes=2,
        probe_states=4,
        recorded_states=500,
        recorded_stacks=4,
        precision="float32",
    )


@pytest.fixture(scope="session")
def with_settings(tiny):
    """The tiny configuration with other values."""
    return lambda **settings: dataclasses.replace(tiny, **settings)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The tiny run, done once for all tests that only look at it."""
    return aamlib.distill(tiny, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def two_runs(tmp_path):
    """A folder with two made-up runs of 12 rounds on Pong, one of BALD and one of entropy, seed 0."""
    return write_runs(tmp_path / "runs", acquisitions=("bald", "entropy"), rounds=12)


@pytest.fixture
def metrics(two_runs):
    """Their metrics."""
    return aamlib.load_runs(two_runs)
