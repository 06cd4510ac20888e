"""What the cells of a grid will take, in time and on disk: by finished runs, or by one that was measured before."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aamlib.files import not_hidden
from aamlib.grids import Cell
from aamlib.runs import ENDED, Run, count_recorded, find_runs, load_runs

# Seconds and bytes per unit of work: of a run of the preset "quick" (Pong, BALD, 10 rounds) on two idle cores with two
# threads, torch 2.13, float32 and int8.
SECONDS = {
    "agent_step": 4.3e-4,
    "pool_state": 5.4e-5,  # scored, T = 10
    "query": 4.3e-4,  # labelled and trained on
    "round": 1.6,  # probe sets, recorded selection, checkpoint
    "game": 1.36,  # evaluated
}
BYTES = {"run": 20.7e6, "pool_state": 72.0, "recorded_state": 58.0}  # checkpoint and figures; frames; selections


def measured_costs(root: str | Path) -> dict[str, dict[str, float]]:
    """Seconds and bytes per unit of work, as `SECONDS` and `BYTES`, over the run folders below `root`.

    A cost that the runs do not tell, such as that of a game where none was evaluated, or the bytes of published runs,
    which have lost most of their files, keeps its default. Raises RunFolderError if there are no runs.
    """
    table = load_runs(root)
    rounds = table[table["round"] > 0]
    games = rounds.loc[rounds["score"].notna(), "evaluation_episodes"].sum()
    queries = table.groupby("run")["labels_used"].max().sum()
    scored = rounds[(rounds["acquisition"] != "random") & (rounds["query_fraction"] < 1)]
    seconds = {
        "agent_step": (rounds["seconds_act"].sum(), rounds["round_steps"].sum()),
        "pool_state": (scored["seconds_score"].sum(), scored["pool_states"].sum()),
        "query": (rounds[["seconds_label", "seconds_train"]].sum().sum(), queries),
        "round": (rounds[["seconds_diagnose", "seconds_save"]].sum().sum(), len(rounds)),
        "game": (rounds["seconds_evaluate"].sum(), games),
    }
    sizes, recorded = {"selections": 0, "pool": 0, "": 0}, 0
    folders = [folder for folder in find_runs(root).values() if (folder / "pool").exists()]
    run_dirs = [folder for folder in folders if Run(folder).status in ENDED]  # of the others files come and go
    for path in itertools.chain.from_iterable(not_hidden(run_dir, "*") for run_dir in run_dirs):
        part = path.parent.name if path.parent.name in sizes else ""
        sizes[part] += path.stat().st_size
        recorded += count_recorded(path) if part == "selections" else 0
    pool_states = sum(Run(run_dir).metrics["pool_states"].iloc[-1] for run_dir in run_dirs)
    volumes = {
        "run": (sizes[""], len(run_dirs)),
        "pool_state": (sizes["pool"], pool_states),
        "recorded_state": (sizes["selections"], recorded),
    }
    return {
        "seconds": SECONDS | {unit: float(total / n) for unit, (total, n) in seconds.items() if n and total},
        "n_bytes": BYTES | {unit: float(total / n) for unit, (total, n) in volumes.items() if n and total},
    }


def estimate(cells: list[Cell], measured: str | Path | None = None) -> pd.DataFrame:
    """What the cells should take when they run one by one, with the threads of the measured runs.

    One row per cell: rounds, labels, hours, megabytes (on disk when it has finished; a second checkpoint, 20 MB, while
    it runs). `measured`: a folder of finished runs to go by instead of the defaults, best with the same settings.
    """
    costs = measured_costs(measured) if measured else {"seconds": SECONDS, "n_bytes": BYTES}
    return pd.DataFrame([{"cell": cell.name, **_estimate(cell, **costs)} for cell in cells]).set_index("cell")


def _estimate(cell: Cell, seconds: Mapping[str, float], n_bytes: Mapping[str, float]) -> dict[str, Any]:
    config = cell.config
    steps = config.warmup_steps + config.round_steps * np.arange(1, config.n_rounds + 1)
    pool = np.minimum(config.pool_size, steps)
    queries = np.rint(config.query_fraction * pool)
    if config.label_budget is not None:
        left = config.label_budget - (queries.cumsum() - queries)
        steps, pool, queries = (array[left > 0] for array in (steps, pool, np.minimum(queries, left)))
    due = [config.evaluation_is_due(step) for step in steps.tolist()]
    due[-1] = True
    scored = pool.sum() if config.acquisition != "random" and config.query_fraction < 1 else 0
    work = {
        "agent_step": config.warmup_steps + config.round_steps * len(steps),
        "pool_state": scored,
        "query": queries.sum(),
        "round": len(steps),
        "game": sum(due) * config.evaluation_episodes,
    }
    recorded = sum(np.minimum(config.recording[0], states).sum() for states in (queries, pool))
    disk = n_bytes["run"] + n_bytes["pool_state"] * pool[-1:].sum() + n_bytes["recorded_state"] * recorded
    return {
        "rounds": len(steps),
        "labels": int(queries.sum()),
        "hours": round(float(sum(seconds[unit] * n for unit, n in work.items())) / 3600, 3),
        "megabytes": round(disk / 1e6),
    }


def describe_total(table: pd.DataFrame) -> str:
    """One sentence on an `estimate`."""
    hours, gigabytes = table["hours"].sum(), table["megabytes"].sum() / 1000
    time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"{len(table)} cells, about {time} one after the other and {gigabytes:.1f} GB"
