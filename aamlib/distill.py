"""The loop: act, score, query, label, train, diagnose, evaluate, record.

A student (Actor-Mimic network; Parisotto et al. 2016, arXiv:1511.06342) plays the game, ranks the newest states by its
uncertainty, asks a frozen expert about the most uncertain share and learns softmax(Q_expert / tau). Start reading at
`Distillation.run_round`.

Departures from the 2020 study: 40 environments instead of one; the T dropout masks are drawn once per scoring and
shared by all states; dropout is off in evaluation (the study left it on); evaluation has environments of its own; the
frames before a game's first are zeros; ties at the cut are broken at random; the Q-values by which the student acts,
and scores far from the cut, may be rough (see `scoring`); the bundled experts are trained by PQN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from aamlib import runs
from aamlib.acquisition import check_acquisition, choose, source_hash
from aamlib.atari import env_seeds, epsilon_greedy, evaluate, make_envs
from aamlib.checkpoints import drop_checkpoints, load_checkpoint, save_checkpoint
from aamlib.config import ExperimentConfig, available_device
from aamlib.diagnosis import load_probes, probe_metrics, record_selection
from aamlib.experts import ExpertError, check_fits, expert_path, fingerprint, label, load_expert
from aamlib.files import RunFolderError, drop_temporary, lock_run, write_csv, write_json
from aamlib.networks import FORWARD_BATCH, MCDropoutDQN, NatureDQN
from aamlib.precision import clear_moments, reduced_precision
from aamlib.replay import FramePool
from aamlib.runs import COUNTERS, EVALUATIONS, METRICS, Run
from aamlib.runtime import watching_other_work
from aamlib.scoring import rough_trunk, score_pool, way_to_compute
from aamlib.starts import check_hashes, read_starts, record_start
from aamlib.trunks import Trunk, packed_trunk


def distill(config: ExperimentConfig, run_dir: str | Path, *, expert: nn.Module | None = None) -> Run:
    """Run an experiment, or go on with an interrupted one: the same call does both.

    `expert`, a module that maps uint8 (N, 4, 84, 84) to float32 Q-values (N, A), labels in place of `config.expert`; it
    is frozen: its weights take no gradient from then on.

    A finished run goes on when the horizon (`total_steps`) or `label_budget` is raised. The stop button, or Ctrl-C,
    ends the run at the last completed round. An uninterrupted run repeats exactly for the same settings, threads,
    precision, eight bits or not, versions and instructions of the processor, all of which environment.json records; a
    resumed one starts new games (recorded as `resumed`) and need not.

    Raises
    ------
    ConfigError, ExpertError
        A setting or an expert that cannot be used. Most are found before anything is written; where Q-values or scores
        go wrong only later, the run keeps the rounds that it has done.
    RunFolderError
        The folder is in use, belongs to another configuration, or cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        distillation = Distillation(config, run_dir, expert)
        with lock_run(run_dir):
            return distillation.run()


class Distillation:
    """The state of a run, and its rounds."""

    def __init__(self, config: ExperimentConfig, run_dir: str | Path, expert: nn.Module | None = None) -> None:
        config = dataclasses.replace(config, device=available_device(config.device))
        self.config, self.run_dir = config, Path(run_dir).expanduser().absolute()
        if expert is None:
            path = expert_path(config.expert or config.game)
            expert, self.probes_dir, expert_name = load_expert(path), path.parent, str(path)
        elif isinstance(expert, nn.Module):
            expert, self.probes_dir, expert_name = load_expert(expert), self.run_dir, type(expert).__name__
        else:
            raise ExpertError(f"expert = {expert!r} is no torch.nn.Module; a name or a file is given as config.expert.")
        self.expert = expert.to(config.device)
        self.states: np.ndarray  # (E, 4, 84, 84), what the environments show
        self.started: np.ndarray  # (E,), whether that is a game's first state
        n_actions = check_fits(self.expert, config.game, expert_name)
        check_acquisition(config.acquisition, config.n_samples, n_actions, config.device)
        self.envs = make_envs(config.game, config.n_envs, max_frames=config.max_game_frames)
        torch.manual_seed(config.seed)
        self.student = MCDropoutDQN(n_actions, dropout=config.dropout).to(config.device)
        self.pool = FramePool(config.pool_size, config.n_envs)
        self.round = self.agent_steps = self.labels_used = self.unique_labels = 0
        self.metrics: list[dict[str, Any]] = []
        self.n_saved = 0  # of their rows
        self.evaluations: list[dict[str, Any]] = []
        self.resumed = self.use_int8 = False
        self.seconds: dict[str, float] = defaultdict(float)

    @functools.cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, made when first needed: torch then imports its compiler, which takes a second."""
        config = self.config
        return torch.optim.Adam(self.student.parameters(), config.learning_rate, eps=config.adam_epsilon, fused=True)

    # The loop

    def run(self) -> Run:
        """Do all rounds that are left."""
        with watching_other_work():
            self.open()
        total = self.config.total_steps
        try:
            bar = tqdm(total=total, initial=self.agent_steps, unit="step", unit_scale=True, desc=self.run_dir.name)
            with bar, reduced_precision(self.precision, self.config.device):
                while not self.is_over:
                    self.report("running")
                    if self.metrics:
                        self.run_round()
                    else:
                        self.warm_up()
                    bar.set_postfix(score=self.last_evaluation()[0], labels=f"{self.labels_used:,}", refresh=False)
                    bar.update(self.agent_steps - bar.n)
            drop_checkpoints(self.run_dir, keep=1)
            self.write_tables()
            status = "finished" if self.agent_steps >= total else "label budget used"
            self.report(status)
        except KeyboardInterrupt:
            self.report_interrupted()
            if not self.n_saved:  # there is nothing to return
                raise
            print(f"Stopped; the same call goes on after round {self.n_saved - 1}.")
        except Exception:
            with contextlib.suppress(RunFolderError):  # which would hide the first error
                self.report_interrupted()
            raise
        return Run(self.run_dir)

    def warm_up(self) -> None:
        """Round 0: random play, until there is something to ask about."""
        with self.timed("act"):
            self.collect(self.config.warmup_steps)
        with self.timed("diagnose"):
            row = probe_metrics(self.student, self.probes, self.config)
        self.record(row)

    def run_round(self) -> None:
        """One round: everything that the study's loop does, and what we measure beside it."""
        self.round += 1
        torch.manual_seed(self.seed("dropout"))  # torch's own generator drops units while acting and training
        with self.timed("act"):
            rough = self.rough_trunk()
            self.collect(self.config.round_steps, rough or packed_trunk(self.student))
        with self.timed("score"):
            heads = self.student.sample_heads(self.config.n_samples, self.generator("masks"))
            queried = self.query(heads, rough)
        with self.timed("label"):
            labels = self.ask(queried)
        exact = "float32" if rough else self.precision  # as the states near the cut were scored
        with self.timed("diagnose"), reduced_precision(exact, self.config.device):
            selection = record_selection(
                self.student, self.expert_q, self.pool, queried, heads, self.config, self.generator("record"),
            )  # fmt: skip
            runs.write_selection(self.run_dir, self.round, selection)
        with self.timed("train"):
            row: dict[str, Any] = self.train(queried, labels)
        with self.timed("diagnose"):
            row |= probe_metrics(self.student, self.probes, self.config)
        with self.timed("evaluate"):
            row["score"] = self.evaluate()
        self.record(row)

    def rough_trunk(self) -> Trunk | None:
        """What stands in for the student's trunk until its weights change, where a run may compute roughly."""
        return rough_trunk(self.student, self.pool, self.generator("calibration")) if self.use_int8 else None

    def collect(self, steps: int, trunk: Trunk | None = None) -> None:
        """Let the student play epsilon-greedily, and add what it sees to the pool. `trunk` stands in for its own."""
        self.student.train(self.config.acting_dropout)
        generator = self.generator("explore")
        for _ in range(steps // self.config.n_envs):
            self.pool.add(self.states[:, -1], self.started)
            epsilon = self.config.epsilon(self.agent_steps)
            if epsilon < 1:
                with torch.no_grad():
                    q = self.student(torch.from_numpy(self.states).to(self.config.device), trunk).cpu()
            else:
                q = torch.zeros(self.config.n_envs, self.student.n_actions)
            self.states, _, terminated, truncated, _ = self.envs.step(epsilon_greedy(q, epsilon, generator))
            self.started = terminated | truncated
            self.agent_steps += self.config.n_envs

    def query(self, heads: Float[Tensor, "T A F"], rough: Trunk | None = None) -> Int64[Tensor, " K"]:
        """Score every state of the pool, unless all are wanted; return the ids of the most uncertain share."""
        ids = self.pool.ids()
        query_size = int(min(self.config.query_size(len(ids)), self.labels_left()))
        if query_size == len(ids):
            return ids
        generator = self.generator("acquisition")
        scores = score_pool(self.student, self.pool, heads, query_size, self.config, generator, rough)
        return ids[choose(scores, query_size, self.generator("ties"))]

    def ask(self, queried: Int64[Tensor, " K"]) -> Float[Tensor, "K A"]:
        """The expert's Q-values of the queried states, those of earlier rounds from memory; counts the labels."""
        labels, n_new = self.pool.label(queried, self.expert_q)
        self.labels_used += len(queried)
        self.unique_labels += n_new
        return labels

    def expert_q(self, ids: Int64[Tensor, " M"]) -> Float[Tensor, "M A"]:
        """The expert's Q-values of states in the pool; one that is not ours, or changes ours, need not know blocks."""
        read = self.pool.read_blocks if type(self.expert) in (NatureDQN, MCDropoutDQN) else self.pool.read
        batches = ids.split(FORWARD_BATCH)
        return torch.cat([label(self.expert, read(batch), self.config.device) for batch in batches])

    def train(self, queried: Int64[Tensor, " K"], labels: Float[Tensor, "K A"]) -> dict[str, float]:
        """One shuffled pass over the labelled states: cross-entropy to softmax(Q_expert / tau), summed over a batch."""
        self.student.train()
        loss_sum = agreed = 0.0
        targets = torch.softmax(labels / self.config.temperature, dim=1).to(self.config.device)
        order = torch.randperm(len(queried), generator=self.generator("shuffle"))
        for step, batch in enumerate(order.split(self.config.batch_size)):
            if step % 250 == 0:
                clear_moments(self.optimiser)
            states = self.pool.read_blocks(queried[batch]).to(self.config.device)
            q = self.student(states)
            loss = F.cross_entropy(q / self.config.temperature, targets[batch], reduction="sum")
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            loss_sum += loss.item()
            agreed += (q.argmax(dim=1).cpu() == labels[batch].argmax(dim=1)).sum().item()
        return {"loss": loss_sum, "loss_per_label": loss_sum / len(queried), "query_agreement": agreed / len(queried)}

    def evaluate(self) -> float | None:
        """Mean score of whole games, if an evaluation is due or the run ends; every game's score is kept."""
        config = self.config
        if not config.evaluation_is_due(self.agent_steps) and not self.is_over:
            return None
        self.student.train(config.evaluation_dropout)
        policy = functools.partial(self.student, trunk=packed_trunk(self.student))
        scores = evaluate(
            policy, config.game, config.evaluation_episodes, config.evaluation_epsilon, self.seed("evaluate"),
            max_frames=config.max_game_frames, device=config.device,
        )  # fmt: skip
        where = {"round": self.round, "agent_steps": self.agent_steps, "labels_used": self.labels_used}
        self.evaluations += [{**where, "episode": i, "score": score} for i, score in enumerate(scores.tolist())]
        return float(scores.mean())

    @property
    def is_over(self) -> bool:
        """Whether all steps are done or the label budget is used."""
        return self.agent_steps >= self.config.total_steps or self.labels_left() <= 0

    def labels_left(self) -> float:
        """Queries that the budget still allows; infinite without one."""
        budget = self.config.label_budget
        return math.inf if budget is None else float(budget - self.labels_used)

    # Randomness: every round and purpose has a series of its own, so nothing of it needs to be saved.

    def seed(self, purpose: str) -> int:
        """The seed of a purpose in this round."""
        return int(env_seeds(self.config.seed, f"{purpose} {self.round}", 1)[0])

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for a purpose in this round."""
        return torch.Generator().manual_seed(self.seed(purpose))

    # Records

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to the phase."""
        start = time.perf_counter()
        yield
        self.seconds[f"seconds_{phase}"] += time.perf_counter() - start

    def record(self, row: dict[str, Any]) -> None:
        """Append the round's metrics and save: from here on the round cannot be lost."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        epsilon = self.config.epsilon(self.agent_steps)
        memory_mb = psutil.Process().memory_info().rss / 2**20
        row = {**counters, "pool_states": len(self.pool), "epsilon": epsilon, "memory_mb": memory_mb, **row}
        self.metrics.append({**row, **self.seconds, "resumed": int(self.resumed)})
        self.resumed = False
        self.seconds.clear()
        with self.timed("save"):
            self.save()

    def save(self) -> None:
        """Write the checkpoint, which holds the tables too, and then the tables as CSV."""
        content = {
            "optimiser": self.optimiser.state_dict(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "metrics": self.metrics,
            "evaluations": self.evaluations,
        }
        save_checkpoint(self.run_dir, self.round, self.student.state_dict(), content, self.pool)
        self.n_saved = len(self.metrics)
        drop_checkpoints(self.run_dir, keep=2)
        self.write_tables()

    def write_tables(self) -> None:
        """Write metrics.csv and evaluations.csv."""
        write_csv(self.run_dir / "metrics.csv", pd.DataFrame(self.metrics, columns=list(METRICS)))
        write_csv(self.run_dir / "evaluations.csv", pd.DataFrame(self.evaluations, columns=list(EVALUATIONS)))

    def open(self) -> None:
        """Check that the folder is this run's, take up its newest checkpoint, and start games."""
        function = source_hash(self.config.acquisition)
        hashes = {"expert_sha256": fingerprint(self.expert), "acquisition_sha256": function}
        runs.check_settings(self.run_dir, self.config.asdict())
        check_hashes(self.run_dir, **hashes)
        for name in ("checkpoints", "pool", "selections"):
            drop_temporary(self.run_dir / name)
        if checkpoint := load_checkpoint(self.run_dir, self.pool):
            student, saved = checkpoint
            self.student.load_state_dict(student)
            self.optimiser.load_state_dict(saved["optimiser"])
            for name, value in saved["counters"].items():
                setattr(self, name, value)
            self.metrics, self.evaluations = saved["metrics"], saved["evaluations"]
            self.n_saved = len(self.metrics)
            self.resumed = True
        self.probes = load_probes(self.probes_dir, self.expert, self.config, spare=self.run_dir)
        write_json(self.run_dir / "config.json", self.config.asdict())  # not before it is sure that the run can go on
        self.precision, self.use_int8 = way_to_compute(self.config, read_starts(self.run_dir))
        if not self.is_over:
            record_start(
                self.run_dir, threads=torch.get_num_threads(), round=self.round, **hashes,
                precision=self.precision, int8=self.use_int8,
            )  # fmt: skip
        games = f"games after {self.round}" if self.resumed else "games 0"  # others than the pool has already
        self.states, _ = self.envs.reset(seed=env_seeds(self.config.seed, games, self.config.n_envs))
        self.started = np.ones(self.config.n_envs, dtype=bool)

    def report(self, status: str) -> None:
        """Write progress.json, which whoever waits for the run may read at any time."""
        score, score_agent_steps = self.last_evaluation()
        progress = {
            "status": status,
            **{name: self.metrics[-1][name] if self.metrics else 0 for name in COUNTERS},
            "total_steps": self.config.total_steps,
            "score": score,
            "score_agent_steps": score_agent_steps,
        }
        write_json(self.run_dir / "progress.json", progress)

    def report_interrupted(self) -> None:
        """Report the last round that was saved: one that could not be is not done."""
        self.metrics = self.metrics[: self.n_saved]
        self.report("interrupted")

    def last_evaluation(self) -> tuple[float | None, int | None]:
        """The newest evaluation's mean score, and after how many agent steps it was made."""
        evaluated = (row for row in reversed(self.metrics) if row.get("score") is not None)
        return next(((row["score"], row["agent_steps"]) for row in evaluated), (None, None))
