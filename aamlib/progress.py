"""The progress of a batch, in a terminal or a notebook: read from the run folders, wherever the cells run."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import display
from tqdm import tqdm

from aamlib.grids import Cell

_SHARE = 0.05  # of the time that may go into reading the folders: thousands, perhaps on a network share


def read_progress(run_dir: Path) -> dict[str, Any]:
    """What progress.json says; empty if there is none, or none that can be read."""
    try:
        return dict(json.loads((run_dir / "progress.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


class BatchView:
    """A bar over the rounds of all cells, with the time left; below it the score of each, as it comes.

    In a notebook the scores are a table that is kept up to date; in a terminal, a line for each new one.
    """

    def __init__(self, cells: list[Cell], dashboard: str | None) -> None:
        self.cells = cells
        self.begun = {cell.name: read_progress(cell.run_dir) for cell in cells}
        self.progress = dict(self.begun)
        self.next = 0.0
        shell = get_ipython()
        self.table = display(display_id=True) if shell is not None and hasattr(shell, "kernel") else None
        rounds = sum(cell.n_rounds for cell in cells)
        self.bar = tqdm(total=rounds, initial=self.rounds(), unit="round", smoothing=0, dynamic_ncols=True)
        if dashboard:
            self.say(f"Dask dashboard: {dashboard}")

    def __enter__(self) -> BatchView:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.close()

    def rounds(self, ended: Collection[str] = ()) -> int:
        """Rounds of all cells that nobody waits for any more."""
        done = {cell.name: self.progress[cell.name].get("round", 0) for cell in self.cells}
        return sum(cell.n_rounds if cell.name in ended else min(done[cell.name], cell.n_rounds) for cell in self.cells)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(line)

    def update(self, states: Mapping[str, str], *, last: bool = False) -> None:
        """Show where the cells stand, reading the folders only as often as is cheap; `states`: of those that ended."""
        start = time.monotonic()
        if start < self.next and not last:
            return
        rows = []
        for cell in self.cells:
            before = self.progress[cell.name]
            if states.get(cell.name) != "done" or before.get("status") not in ("finished", "label budget used"):
                self.progress[cell.name] = read_progress(cell.run_dir)
            now = self.progress[cell.name]
            running = now.get("status") in ("starting", "running") and now != self.begun[cell.name]
            state = states.get(cell.name) or ("running" if running else "waiting")
            rows.append({"cell": cell.name, "state": state, "rounds": f"{now.get('round', 0)} of {cell.n_rounds}"})
            rows[-1] |= {"labels": now.get("labels_used", 0), "score": now.get("score")}
            if now.get("score") != before.get("score") and self.table is None:
                self.say(f"{cell.name}: score {now['score']:.2f} after {now['agent_steps']:,} agent steps")
        table = pd.DataFrame(rows).set_index("cell")
        counts = table["state"].value_counts()
        self.bar.n = self.rounds(states)
        self.bar.set_description(", ".join(f"{counts.get(s, 0)} {s}" for s in ("done", "running", "failed", "waiting")))
        if self.table is not None:
            self.table.update(table[table["state"] != "waiting"])
        self.next = time.monotonic() + max(1.0, (time.monotonic() - start) / _SHARE)
