"""Made up for tests: run folders as a run writes them, but from a formula instead of a student; and games of noise."""

import json

import gymnasium
import numpy as np
import pandas as pd

import aamlib
from aamlib.runs import EVALUATIONS, METRICS

REFERENCES = {"pong": {"expert": 16.0, "random play": -20.0}, "breakout": {"expert": 300.0, "random play": 2.0}}
ROUNDS = 40
QUALITY = {"bald": 8.0, "variation_ratio": 11.0, "random": 14.0, "entropy": 60.0}  # rounds until half of the score


def write_run(folder, *, rounds=ROUNDS, environment=True, **settings):
    """A run folder with one evaluation every second round; returns it."""
    config = aamlib.ExperimentConfig(**{"total_steps": 50_000 + rounds * 10_000, **settings}).asdict()
    known = REFERENCES[config["game"]]
    rng = np.random.default_rng([config["seed"], len(config["acquisition"]), round(config["query_fraction"] * 100)])
    speed = QUALITY.get(config["acquisition"], 20.0) * rng.uniform(0.8, 1.25) * (0.1 / config["query_fraction"]) ** 0.3
    number = np.arange(rounds + 1)
    skill = number**2 / (number**2 + speed**2)
    pool = np.minimum(50_000 + 10_000 * number, config["pool_size"])
    queries = np.round(config["query_fraction"] * pool) * (number > 0)
    metrics = pd.DataFrame({name: np.nan for name in METRICS}, index=number).assign(
        round=number,
        agent_steps=50_000 + 10_000 * number,
        labels_used=queries.cumsum().astype(int),
        unique_labels=(queries * rng.uniform(0.5, 0.9, rounds + 1)).cumsum().astype(int),
        pool_states=pool,
        epsilon=0.1,
        loss=np.where(number, queries * (1.2 + 0.6 * (1 - skill) + rng.normal(0, 0.01, rounds + 1)), np.nan),
        resumed=0,
    )
    metrics["loss_per_label"] = metrics["loss"] / queries
    for probe in ("expert", "random"):
        metrics[f"probe_{probe}_kl"] = 0.05 + 2 * (1 - skill) * rng.uniform(0.9, 1.1, rounds + 1)
        metrics[f"probe_{probe}_agreement"] = 0.2 + 0.7 * skill
        metrics[f"probe_{probe}_regret"] = 0.2 * (1 - skill)
    for phase, seconds in {
        "act": 7,
        "score": 9,
        "label": 1,
        "train": 7,
        "diagnose": 2,
        "evaluate": 20,
        "save": 1,
    }.items():
        metrics[f"seconds_{phase}"] = seconds * rng.uniform(0.9, 1.1, rounds + 1)
    games = []
    for row in metrics[(number > 0) & (number % 2 == 0)].itertuples():
        level = known["random play"] + skill[row.round] * (known["expert"] - known["random play"])
        spread = 0.08 * (known["expert"] - known["random play"])
        scores = np.round(level + spread * rng.standard_normal() + spread * rng.standard_normal(15))
        games += [(row.round, row.agent_steps, row.labels_used, game, score) for game, score in enumerate(scores)]
    evaluations = pd.DataFrame(games, columns=list(EVALUATIONS))
    metrics["score"] = evaluations.groupby("round")["score"].mean().reindex(number)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if environment:
        start = {"expert_sha256": "e" * 64, "precision": "float32", "time": "2026-01-01T00:00:00+0000"}
        (folder / "environment.json").write_text(json.dumps([start]))
    metrics.to_csv(folder / "metrics.csv", index=False)
    evaluations.to_csv(folder / "evaluations.csv", index=False)
    return folder


def write_runs(root, games=("pong",), shares=(0.1,), acquisitions=tuple(QUALITY), seeds=1, **more):
    """A grid of run folders below `root`; returns it."""
    for game in games:
        for share in shares:
            for acquisition in acquisitions:
                for seed in range(seeds):
                    settings = {"game": game, "query_fraction": share, "acquisition": acquisition, "seed": seed, **more}
                    write_run(root / f"{game}-{acquisition}-{share:g}-{seed}", **settings)
    return root


def choices_of(run, asked, pool, auroc):
    """Three rounds of a run: shares of indifferent states among the asked and in the pool, and AUROCs of BALD.

    In the first, in which nothing has been learned, all are 1. It is a run of BALD, unless its name is one of random.
    """
    rows = [
        {"score": score, "round": number, "indifferent": share, "costly": share / 2, "q_gap": 1 - share}
        for number in (1, 2, 3)
        for score, share in {"asked": asked, "pool": pool, "bald": asked, "entropy": pool}.items()
    ]
    for row in rows[:4]:
        row |= dict.fromkeys(("indifferent", "costly", "q_gap"), 1.0)
    right = [(auroc if row["round"] > 1 else 1.0) if row["score"] == "bald" else np.nan for row in rows]
    table = pd.DataFrame(rows).assign(run=run, auroc=right, auroc_decided=right)
    table["reliability"] = table["auroc"] / 2
    return table.assign(own=(table["score"] == "bald") & ("random" not in run))


class Screens(gymnasium.Env):
    """Games that show noise: just enough to make a model of Stable-Baselines3."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def __init__(self, n_actions=6):
        self.action_space = gymnasium.spaces.Discrete(n_actions)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}
