"""Run folders: what lies in them, how it is written safely, and how it is read back as tidy DataFrames.

| file                        | holds                                                                            |
| --------------------------- | -------------------------------------------------------------------------------- |
| config.json                 | every setting                                                                    |
| environment.json            | versions, threads, precision and expert, one entry per start of the run          |
| metrics.csv                 | one row per round, columns as in `METRICS`                                        |
| evaluations.csv             | one row per evaluated game                                                       |
| selections/NNNNNN.parquet   | per round: queried and random states with scores, expert's Q-values and frames   |
| checkpoints/NNNNNN.*        | weights, optimiser and counters after round NNNNNN; the last two are kept        |
| pool/NNNNNNNN.zst           | frames, one segment per round, dropped when no longer in the pool                |
| student.safetensors         | the student after the last round                                                 |
| progress.json               | where the run stands, rewritten each round                                       |
| run.lock                    | held while a process works on the run                                            |
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aamlib.files import RunFolderError, replacing, write_json

# What metrics.csv records per round, with units.
METRICS = {
    "round": "number of the round; 0 is the warm-up",
    "agent_steps": "steps of all environments so far (4 emulator frames each)",
    "labels_used": "queries so far, a state asked about twice counting twice",
    "unique_labels": "different states among them",
    "pool_states": "states in the pool",
    "epsilon": "exploration at the end of the round",
    "loss": "cross-entropy from the expert's policy to the student's, summed over the round's queries, nats",
    "loss_per_label": "the same per query, nats",
    "query_agreement": "share with the same greedy action, by the student (dropout on) just before the gradient step",
    "score": "mean unclipped score of the evaluation's games; empty in rounds without one",
    "probe_expert_kl": "KL(expert || student) on states that the expert visits, mean, nats",
    "probe_expert_agreement": "share of those with the same greedy action",
    "probe_expert_regret": "the expert's best Q-value minus its Q-value of the student's action, mean",
    "probe_random_kl": "the same on states of random play",
    "probe_random_agreement": "the same on states of random play",
    "probe_random_regret": "the same on states of random play",
    "seconds_act": "wall time of collecting states",
    "seconds_score": "wall time of scoring the pool and choosing",
    "seconds_label": "wall time of the expert",
    "seconds_train": "wall time of the gradient steps",
    "seconds_diagnose": "wall time of probe sets and recorded selection",
    "seconds_evaluate": "wall time of the evaluation",
    "seconds_save": "wall time of writing the checkpoint of the round before",
    "resumed": "1 in the first round after a resume, which starts new games",
}

# What evaluations.csv records per evaluated game.
EVALUATIONS = {
    "round": "round after which the evaluation was made",
    "agent_steps": "as in METRICS",
    "labels_used": "as in METRICS",
    "episode": "number of the game, from 0",
    "score": "unclipped score of the whole game",
}


def open_run(run_dir: Path, settings: Mapping[str, Any], *, may_raise: Collection[str]) -> None:
    """Record the settings in config.json, or check that they are those the folder was made with.

    Settings named in `may_raise` may be higher than before. Raises RunFolderError, naming each setting that differs.
    """
    path = run_dir / "config.json"
    if path.exists():
        before = read_config(run_dir)
        differing = [
            f"{name} = {settings.get(name)!r} (the folder has {before.get(name)!r})"
            for name in sorted({*settings, *before})
            if settings.get(name) != before.get(name)
            and not (name in may_raise and name in before and settings[name] > before[name])
        ]
        if differing:
            raise RunFolderError(
                f"{run_dir} belongs to another configuration: {', '.join(differing)}; give the folder's own settings "
                f"(only {', '.join(may_raise)} may be raised) or choose another folder."
            )
    write_json(path, dict(settings))


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The settings of a run. Raises RunFolderError if the folder holds no readable config.json."""
    path = Path(run_dir) / "config.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{run_dir} is no run folder: config.json cannot be read ({error}).") from error
    return settings


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, as `distill` returns it."""

    dir: Path

    @property
    def config(self) -> dict[str, Any]:
        """Every setting."""
        return read_config(self.dir)

    @property
    def status(self) -> str:
        """One of running, finished, label budget used, interrupted."""
        return json.loads((self.dir / "progress.json").read_text())["status"]

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per round, columns as in `METRICS`."""
        return pd.read_csv(self.dir / "metrics.csv")

    @property
    def evaluations(self) -> pd.DataFrame:
        """One row per evaluated game, columns as in `EVALUATIONS`."""
        return pd.read_csv(self.dir / "evaluations.csv")

    def selection(self, number: int) -> pd.DataFrame:
        """The recorded states of a round, one row each.

        Columns: kind ("queried" or "random"), state_id, one `score_...` per acquisition function (float, its unit),
        expert_q (A Q-values), student_action (the best by its mean Q-value over the T passes), and for the first
        `recorded_stacks` of each kind frames (uint8 (4, 84, 84)) and q_samples (float32 (T, A)); None for the rest.
        Raises RunFolderError if the round recorded none.
        """
        path = self.dir / "selections" / f"{number:06d}.parquet"
        if not path.exists():
            rounds = sorted(int(p.stem) for p in path.parent.glob("*.parquet"))
            known = f"rounds {rounds[0]} to {rounds[-1]}" if rounds else "no round"
            raise RunFolderError(f"{self.dir} has no selection of round {number}; it has {known}.")
        table = pd.read_parquet(path)
        n_actions = len(table["expert_q"].iloc[0])
        table["frames"] = table["frames"].map(
            lambda frames: np.frombuffer(frames, np.uint8).reshape(4, 84, 84), na_action="ignore"
        )
        table["q_samples"] = table["q_samples"].map(
            lambda q: np.asarray(q, np.float32).reshape(-1, n_actions), na_action="ignore"
        )
        return table


def load_runs(root: str | Path) -> pd.DataFrame:
    """Metrics of every run folder below `root` (or of `root` itself), tidy: one row per run and round.

    Columns: run (path below root), all settings, then `METRICS`. Raises RunFolderError if there is no run.
    """
    table = _load(root, "metrics")
    settings = [str(name) for name in table if name not in METRICS and name != "run"]
    return table[["run", *settings, *METRICS]]


def load_evaluations(root: str | Path) -> pd.DataFrame:
    """Evaluated games of every run folder below `root` (or of `root` itself), tidy: one row per run and game.

    Columns: run, `EVALUATIONS`, then all settings. Raises RunFolderError if there is no run.
    """
    return _load(root, "evaluations")


def _load(root: str | Path, table: str) -> pd.DataFrame:
    root = Path(root)
    runs = sorted(path.parent for path in root.rglob("metrics.csv"))
    if not runs:
        raise RunFolderError(f"no runs below {root}; give a folder that holds run folders (with metrics.csv in each).")
    tables: list[pd.DataFrame] = []
    for run_dir in runs:
        run = Run(run_dir)
        tables.append(getattr(run, table).assign(run=str(run_dir.relative_to(root)), **run.config))
    return pd.concat(tables, ignore_index=True)


def read_starts(run_dir: str | Path) -> list[dict[str, Any]]:
    """The entries of environment.json: versions, threads, precision and expert at each start of the run; [] if none."""
    path = Path(run_dir) / "environment.json"
    return json.loads(path.read_text()) if path.exists() else []


def record_start(run_dir: Path, **facts: Any) -> None:
    """Add an entry to environment.json: the given facts, the time, and the versions that a repetition would need."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "ale-py", "numpy")}
    machine = {"python": platform.python_version(), "processor": platform.machine()}
    entry = {**facts, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **versions, **machine}
    write_json(run_dir / "environment.json", [*read_starts(run_dir), entry])


def write_selection(run_dir: Path, number: int, table: pd.DataFrame) -> None:
    """Write a round's recorded states; see `Run.selection`. Frames of neighbouring states compress well together."""
    folder = run_dir / "selections"
    folder.mkdir(exist_ok=True)
    floats = [name for name in table.columns.astype(str) if name.startswith("score_")]
    with replacing(folder / f"{number:06d}.parquet") as temporary:
        table.to_parquet(
            temporary,
            index=False,
            compression="zstd",
            compression_level=9,
            data_page_size=64 * 2**20,  # one page: zstd sees all stacks at once
            use_dictionary=["kind"],
            use_byte_stream_split=floats,
        )
