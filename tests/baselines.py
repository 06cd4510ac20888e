"""What notebook 8 compares aamlib with: the study's way, baal's, and two DQNs to train an expert by.

    python tests/baselines.py "scoring, 2 T passes" pong --states 1000 --repeats 3

prints a rate per second. Written as plainly as can be, and each timed in a process of its own without aamlib, for what
aamlib sets of the C runtime speeds up all of torch.
"""

import argparse
import logging
import time

import ale_py
import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MEASURED = (
    "acting", "scoring, 2 T passes", "scoring, T passes", "labels", "training", "baal", "baal, caching",
    "Stable-Baselines3", "CleanRL",
)  # fmt: skip
TEMPERATURE = 0.1
SCORED_AT_ONCE, TRAINED_AT_ONCE = 128, 32


class PlainDQN(nn.Module):
    """The study's network, dropout before the last layer."""

    def __init__(self, n_actions, dropout=0.3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4, bias=False), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, bias=False), nn.ReLU(),
            nn.Conv2d(64, 64, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(512, n_actions),
        )  # fmt: skip

    def forward(self, states):
        return self.layers(states.float() / 255)


def rom_name(game):
    """The game in Gymnasium's spelling."""
    return "".join(word.capitalize() for word in game.split("_"))


def plain_game(game):
    """One game as Gymnasium preprocesses it."""
    env = gymnasium.make(f"ALE/{rom_name(game)}-v5", frameskip=1, repeat_action_probability=0.0)
    return gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(env), 4)


def study_act(network, env, steps):
    """One game, the network asked about one state at a time; gives the states (steps, 4, 84, 84)."""
    states = []
    observation, _ = env.reset(seed=0)
    for _ in range(steps):
        states.append(torch.from_numpy(np.asarray(observation)))
        with torch.no_grad():
            action = network(states[-1][None]).argmax().item()
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    return torch.stack(states)


def softmax_policies(network, states, passes):
    """The whole network once per pass: policies (N, passes, A)."""
    return torch.stack([torch.softmax(network(states) / TEMPERATURE, 1) for _ in range(passes)], 1)


@torch.no_grad()
def full_passes(network, states, n_samples=10):
    """T full passes over all states."""
    return [softmax_policies(network, batch, n_samples) for batch in states.split(SCORED_AT_ONCE)]


@torch.no_grad()
def study_bald(network, states, n_samples=10):
    """The study's BALD: entropy and expected entropy from passes of their own."""
    scores = []
    for batch in states.split(SCORED_AT_ONCE):
        mean = softmax_policies(network, batch, n_samples).mean(1)
        entropy = -(mean * (mean + 1e-8).log()).sum(1)
        policies = softmax_policies(network, batch, n_samples)
        scores.append(entropy + (policies * (policies + 1e-8).log()).sum(2).mean(1))
    return torch.cat(scores)


@torch.no_grad()
def study_label(network, states):
    """The expert's Q-values in batches as they are trained on."""
    return torch.cat([network(batch) for batch in states.split(TRAINED_AT_ONCE)])


def study_train(network, optimiser, states, targets):
    """One pass over the labelled states."""
    for batch, target in zip(states.split(TRAINED_AT_ONCE), targets.split(TRAINED_AT_ONCE), strict=True):
        optimiser.zero_grad()
        F.cross_entropy(network(batch) / TEMPERATURE, target, reduction="sum").backward()
        optimiser.step()


def as_cleanrl(env, n_actions, steps):
    """CleanRL's `dqn_atari`, of which the package does not install beside today's Gymnasium: a batch every 4 steps."""
    online, target = PlainDQN(n_actions, 0.0), PlainDQN(n_actions, 0.0)
    optimiser = torch.optim.Adam(online.parameters(), lr=1e-4)
    states = torch.zeros(steps + 1, 4, 84, 84, dtype=torch.uint8)
    actions, rewards, going_on = torch.zeros(steps, 1, dtype=torch.int64), torch.zeros(steps), torch.ones(steps)
    states[0] = torch.from_numpy(env.reset(seed=0)[0])
    for t in range(steps):
        with torch.no_grad():
            actions[t] = online(states[t][None]).argmax()
        observation, rewards[t], terminated, truncated, _ = env.step(actions[t].item())
        if terminated or truncated:
            going_on[t] = 0
            observation, _ = env.reset()
        states[t + 1] = torch.from_numpy(observation)
        if t % 4 == 0:
            chosen = torch.randint(t + 1, (32,))
            with torch.no_grad():
                targets = rewards[chosen] + 0.99 * going_on[chosen] * target(states[chosen + 1]).amax(1)
            q_taken = online(states[chosen]).gather(1, actions[chosen]).squeeze(1)
            optimiser.zero_grad()
            F.mse_loss(q_taken, targets).backward()
            optimiser.step()


def baal_scoring(n_actions, states, *, caching):
    """A call that has baal predict T = 10 times."""
    from baal import ModelWrapper
    from baal.bayesian.caching_utils import MCCachingModule
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import TrainingArgs

    logging.getLogger("baal").setLevel(logging.WARNING)
    dataset = torch.utils.data.TensorDataset(states, torch.zeros(len(states)))
    arguments = TrainingArgs(batch_size=SCORED_AT_ONCE, workers=0, use_cuda=False, replicate_in_memory=False)
    model = MCDropoutModule(PlainDQN(n_actions).eval())
    wrapper = ModelWrapper(MCCachingModule(model) if caching else model, arguments)
    return lambda: wrapper.predict_on_dataset(dataset, 10, verbose=False)


def stable_baselines3(game, steps):
    """A call that trains Stable-Baselines3's DQN with its defaults, but for a smaller memory: its speed is the same."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    envs = VecFrameStack(make_atari_env(f"{rom_name(game)}NoFrameskip-v4", seed=0), 4)
    dqn = DQN("CnnPolicy", envs, buffer_size=10_000, learning_starts=100, verbose=0)
    dqn.learn(200)
    return lambda: dqn.learn(steps, reset_num_timesteps=False)


def prepare(what, game, n_states):
    """The call to be timed."""
    env = plain_game(game)
    n_actions = int(env.action_space.n)
    network = PlainDQN(n_actions).train()  # the study never left the training mode
    if what == "acting":
        return lambda: study_act(network, env, n_states)
    if what == "Stable-Baselines3":
        return stable_baselines3(game, n_states)
    if what == "CleanRL":
        return lambda: as_cleanrl(env, n_actions, n_states)
    states = study_act(network, env, n_states)
    if what == "training":
        optimiser = torch.optim.Adam(network.parameters(), lr=6.25e-5, eps=1.5e-4)
        targets = torch.softmax(study_label(PlainDQN(n_actions), states) / TEMPERATURE, 1)
        return lambda: study_train(network, optimiser, states, targets)
    if what.startswith("baal"):
        return baal_scoring(n_actions, states, caching=what == "baal, caching")
    return {
        "scoring, 2 T passes": lambda: study_bald(network, states),
        "scoring, T passes": lambda: full_passes(network, states),
        "labels": lambda: study_label(network, states),
    }[what]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=MEASURED)
    parser.add_argument("game", help="in ale-py's spelling")
    parser.add_argument("--states", type=int, default=1_000, help="states or steps to time")
    parser.add_argument("--repeats", type=int, default=3, help="of which the best counts")
    arguments = parser.parse_args()
    gymnasium.register_envs(ale_py)
    call = prepare(arguments.what, arguments.game, arguments.states)
    lengths = []
    for _ in range(1 + arguments.repeats):  # the first warms up
        start = time.perf_counter()
        call()
        lengths.append(time.perf_counter() - start)
    print(arguments.states / min(lengths[1:]))
