"""Training of experts by PQN, parallelised Q-learning (Gallici et al. 2024, arXiv:2407.04811).

No replay buffer and no target network: many environments side by side, Q(lambda) returns, normalised layers.
Departures from the paper: Adam with a linear warm-up instead of RAdam (fused on the CPU), normalisation per channel
(see `NatureDQN`), a head that begins with zeros, and the expert is a moving average of the weights.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from aamlib.atari import env_seeds, epsilon_greedy, evaluate, make_envs, n_actions
from aamlib.config import MAX_SEED, Config, ConfigError, available_device, check_device, check_game, first_line, setting
from aamlib.experts import ExpertError, check_fits, fingerprint, load_expert
from aamlib.files import RunFolderError, drop_temporary, lock_run, read_torch, write_csv, write_json, write_torch
from aamlib.networks import STACK_SHAPE, NatureDQN
from aamlib.precision import bfloat16_works, clear_moments, fastest_precision, reduced_precision
from aamlib.runs import check_settings
from aamlib.runtime import watching_other_work


@dataclass(frozen=True)
class PQNConfig(Config):
    """Every hyper-parameter of the training of an expert."""

    game: str = setting("pong", "ROM name as ale-py spells it")
    seed: int = setting(0, "seeds weights, games, exploration and minibatches", minimum=0, maximum=MAX_SEED)
    start_from: str | None = setting(None, "expert or weights' file to start from; None: random weights")
    total_steps: int = setting(2_000_000, "agent steps, all environments together", minimum=1)
    n_envs: int = setting(64, "environments side by side", minimum=1)
    rollout_steps: int = setting(32, "steps of each environment between two updates", minimum=1)
    epochs: int = setting(2, "passes over a rollout", minimum=1)
    minibatch_size: int = setting(64, "states per gradient step", minimum=1)
    learning_rate: float = setting(2.5e-4, "peak of Adam's rate; falls linearly to 0", above=0)
    warmup_share: float = setting(0.01, "share of the training in which the rate rises from 0", minimum=0, below=1)
    gamma: float = setting(0.99, "discount per agent step", minimum=0, maximum=1)
    td_lambda: float = setting(0.65, "lambda of the Q(lambda) returns", minimum=0, maximum=1)
    epsilon_initial: float = setting(1.0, "exploration at the start", minimum=0, maximum=1)
    epsilon_final: float = setting(0.01, "exploration after its fall", minimum=0, maximum=1)
    exploration_share: float = setting(0.1, "share of the training in which epsilon falls", above=0, maximum=1)
    max_grad_norm: float = setting(10.0, "gradient norm above which it is scaled down", above=0)
    ema_decay: float = setting(0.98, "weight of the old average, once per rollout", minimum=0, below=1)
    evaluate_every: int = setting(200_000, "agent steps between evaluations and checkpoints", minimum=1)
    evaluation_episodes: int = setting(15, "whole games per evaluation", minimum=1)
    precision: str = setting("auto", "auto takes the fastest", choices=("auto", "float32", "bfloat16"))
    device: str = setting("auto", "torch device; auto takes CUDA where there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_game(self.game)
        check_device(self.device)
        if self.total_steps <= self.rollout_size:
            raise ConfigError(
                f"total_steps = {self.total_steps} is no more than one rollout, of n_envs · rollout_steps = "
                f"{self.rollout_size}, from which nothing is learned: the rate is then 0; give more."
            )

    @property
    def rollout_size(self) -> int:
        """Agent steps per rollout."""
        return self.n_envs * self.rollout_steps


def train_expert(config: PQNConfig, run_dir: str | Path) -> NatureDQN:
    """Train an expert, or go on with an interrupted training; the same call does both.

    Returns the moving average at the end, when the learning rate has fallen to 0, on the CPU. No checkpoint is chosen
    by its score: the best of many noisy evaluations need not be the best network. `run_dir` keeps config.json,
    curve.csv (agent_steps, training score, evaluation score, loss, mean target, seconds) and checkpoint.pt. A resumed
    training starts new games.

    Raises
    ------
    ConfigError, ExpertError
        A setting that cannot be used; config.json has not been written then.
    RunFolderError
        The folder is in use, belongs to another configuration, or cannot be written. (A higher `total_steps` is
        another one, in which rate and exploration fall more slowly; for more steps go on by `start_from`.)
    """
    with torch.random.fork_rng(devices=[]), lock_run(run_dir) as run_dir:
        check_settings(run_dir, config.asdict(), may_raise=())
        drop_temporary(run_dir)
        with watching_other_work():
            training = Training(config, run_dir)
        write_json(run_dir / "config.json", training.config.asdict())
        return training.run()


class Training:
    """The state of a training: act, learn, average, and now and then evaluate and save."""

    def __init__(self, config: PQNConfig, run_dir: Path) -> None:
        config = replace(config, device=available_device(config.device))
        self.config, self.checkpoint, self.curve_path = config, run_dir / "checkpoint.pt", run_dir / "curve.csv"
        torch.manual_seed(config.seed)
        self.precision = fastest_precision(config.device) if config.precision == "auto" else config.precision
        self.network = NatureDQN(n_actions(config.game), normalise=True).to(config.device)
        self.started_from = ""
        if config.start_from is not None:
            expert = load_expert(config.start_from)
            self.start_from(expert)
            self.started_from = fingerprint(expert)
        else:  # a maximum over random Q-values would start the returns far too high
            nn.init.zeros_(self.network.head.weight)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
        self.rollout = _Rollout(config)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        if self.checkpoint.exists():
            self.load()
        self.envs = make_envs(config.game, config.n_envs, clip_rewards=True, life_loss_ends=True)
        self.states, info = self.envs.reset(seed=env_seeds(config.seed, f"train {self.step}", config.n_envs))
        self.game_frames = info["episode_frame_number"]
        self.game_scores = np.zeros(config.n_envs)
        self.last_scores: deque[float] = deque(maxlen=50)

    def start_from(self, expert: nn.Module) -> None:
        """Take the weights of an expert. Raises ExpertError unless a training of this game like this one made it."""
        check_fits(expert, self.config.game, str(self.config.start_from))
        try:
            self.network.load_state_dict(expert.state_dict())
        except RuntimeError as error:
            raise ExpertError(
                f"training for {self.config.game} ({self.network.n_actions} actions) cannot start from "
                f"{self.config.start_from!r}: it is another network; give one that train_expert made for this game."
            ) from error

    def run(self) -> NatureDQN:
        """Do what is left of the training; returns the moving average."""
        config = self.config
        started = time.perf_counter() - self.seconds
        bar = tqdm(total=config.total_steps, initial=self.step, unit="step", unit_scale=True, desc=config.game)
        with bar, reduced_precision(self.precision, config.device):
            while self.step < config.total_steps:
                self.act()
                targets, loss = self.learn()
                clear_moments(self.optimiser)
                self.average.update_parameters(self.network)
                bar.set_postfix(score=f"{self.training_score():.1f}", refresh=False)
                bar.update(config.rollout_size)
                if self.step % config.evaluate_every < config.rollout_size or self.step >= config.total_steps:
                    score = self.evaluate()
                    self.seconds = time.perf_counter() - started
                    self.curve.append(
                        {
                            "agent_steps": self.step,
                            "training_score": self.training_score(),
                            "evaluation_score": score,
                            "loss": loss,
                            "mean_target": float(targets.mean()),
                            "seconds": self.seconds,
                        }
                    )
                    tqdm.write(
                        f"{self.step:>11,} steps: evaluation {score:7.1f}, training {self.training_score():7.1f}"
                    )
                    self.save()
        write_csv(self.curve_path, pd.DataFrame(self.curve))  # what was last saved may have been the checkpoint alone
        self.envs.close()
        self.network.load_state_dict(self.average.module.state_dict())
        return self.network.cpu().eval()

    def act(self) -> None:
        """Fill the rollout: every environment steps epsilon-greedily."""
        config = self.config
        for t in range(config.rollout_steps):
            self.rollout.states[t] = torch.from_numpy(self.states)
            fallen = min(1, self.step / (config.exploration_share * config.total_steps))
            epsilon = config.epsilon_initial + (config.epsilon_final - config.epsilon_initial) * fallen
            with torch.no_grad():
                q_values = self.network(self.rollout.states[t].to(config.device)).cpu()
            actions = epsilon_greedy(q_values, epsilon)
            self.states, rewards, terminated, truncated, info = self.envs.step(actions)
            self.rollout.record(t, actions, rewards, terminated | truncated, q_values)
            self.step += config.n_envs
            self.game_scores += rewards
            over = info["episode_frame_number"] < self.game_frames  # a lost life leaves the counter running
            self.game_frames = info["episode_frame_number"]
            self.last_scores.extend(self.game_scores[over])
            self.game_scores[over] = 0

    def learn(self) -> tuple[Tensor, float]:
        """Epochs of minibatches towards the rollout's Q(lambda) returns; gives them and the mean squared error."""
        config = self.config
        with torch.no_grad():
            next_q = self.network(torch.from_numpy(self.states).to(config.device)).cpu()
        states, actions, targets = self.rollout.batch(next_q)
        progress = self.step / config.total_steps
        share_of_peak = min(1, progress / config.warmup_share if config.warmup_share else 1, 1 - progress)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * max(0, share_of_peak)
        losses = []
        for _ in range(config.epochs):
            for chosen in torch.randperm(config.rollout_size).split(config.minibatch_size):
                q_values = self.network(states[chosen].to(config.device))
                q_taken = q_values.gather(1, actions[chosen, None].to(config.device)).squeeze(1)
                loss = F.mse_loss(q_taken, targets[chosen].to(config.device))
                self.optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
                self.optimiser.step()
                losses.append(loss.item())
        return targets, float(np.mean(losses))

    def evaluate(self) -> float:
        """Mean score of the moving average over whole games."""
        config = self.config
        scores = evaluate(self.average, config.game, config.evaluation_episodes, seed=config.seed, device=config.device)
        return float(scores.mean())

    def training_score(self) -> float:
        """Mean clipped score of the last 50 training games; NaN before the first."""
        return float(np.mean(self.last_scores)) if self.last_scores else float("nan")

    def save(self) -> None:
        """Write the checkpoint and the learning curve."""
        content = {name: getattr(self, name) for name in ("step", "seconds", "curve", "precision", "started_from")}
        for name in ("network", "average", "optimiser"):
            content[name] = getattr(self, name).state_dict()
        write_torch(self.checkpoint, {**content, "random_state": torch.get_rng_state()})
        write_csv(self.curve_path, pd.DataFrame(self.curve))

    def load(self) -> None:
        """Go on from the checkpoint. Raises RunFolderError if it cannot be read."""
        saved = read_torch(self.checkpoint)
        try:
            for name in ("step", "seconds", "curve"):
                setattr(self, name, saved[name])
            for name in ("network", "average", "optimiser"):
                getattr(self, name).load_state_dict(saved[name])
            torch.set_rng_state(saved["random_state"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{self.checkpoint} is no checkpoint of this training ({first_line(error)}); remove it to start again."
            ) from error
        if saved.get("started_from", self.started_from) != self.started_from:
            raise RunFolderError(
                f"{self.checkpoint.parent} was begun from other weights than {self.config.start_from} has now; put "
                "those back, or choose another folder."
            )
        if bfloat16_works(self.config.device):  # else it goes on as this machine can
            self.precision = saved.get("precision", self.precision)


class _Rollout:
    """What one rollout of T steps in E environments saw, and its Q(lambda) returns."""

    def __init__(self, config: PQNConfig) -> None:
        shape = (config.rollout_steps, config.n_envs)
        self.gamma, self.td_lambda = config.gamma, config.td_lambda
        self.states = torch.empty(*shape, *STACK_SHAPE, dtype=torch.uint8)
        self.actions = torch.empty(shape, dtype=torch.int64)
        self.rewards, self.ended, self.best_q = (torch.empty(shape) for _ in range(3))

    def record(self, t: int, actions: np.ndarray, rewards: np.ndarray, ended: np.ndarray, q_values: Tensor) -> None:
        """Keep step t of every environment."""
        self.actions[t] = torch.from_numpy(actions)
        self.rewards[t] = torch.from_numpy(rewards)
        self.ended[t] = torch.from_numpy(ended)
        self.best_q[t] = q_values.amax(dim=1)

    def batch(self, next_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (T·E, 4, 84, 84), actions (T·E,) and targets (T·E,); `next_q` (E, A) are of the states that follow."""
        targets = torch.empty_like(self.rewards)
        following = next_best = next_q.amax(dim=1)
        for t in reversed(range(len(self.rewards))):
            bootstrap = self.td_lambda * following + (1 - self.td_lambda) * next_best
            following = targets[t] = self.rewards[t] + self.gamma * (1 - self.ended[t]) * bootstrap
            next_best = self.best_q[t]
        return self.states.flatten(0, 1), self.actions.flatten(), targets.flatten()
