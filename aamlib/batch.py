"""Batches: every cell of a grid is the experiment notebook, executed by papermill in a run folder of its own.

Start reading at `run_batch`; `aamlib/workers.py` holds what happens to a single cell. From a shell:
`python -m aamlib.batch GRID.toml FOLDER`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import display
from tqdm import tqdm

from aamlib.acquisition import source_hash
from aamlib.config import Config, ConfigError, available_device, preset, setting
from aamlib.costs import describe_total, estimate
from aamlib.experts import ExpertError, fingerprint, load_expert
from aamlib.files import RunFolderError
from aamlib.grids import Cell, plan
from aamlib.runs import ENDED, check_settings, load_runs
from aamlib.starts import check_hashes
from aamlib.workers import Outcome, is_done, open_pool, read_progress

_MEASURED = ("game", "expert", "acquisition", "query_fraction", "n_samples", "batch_size", "precision", "device")
_SHARE = 0.05  # of the time that may go into reading the folders: thousands, perhaps on a network share


def run_batch(
    grid: str | Path | Mapping[str, Any] | list[Cell],
    out: str | Path,
    *,
    side_by_side: int | None = None,
    threads: int | None = None,
    measure_first: bool = False,
    scheduler: str | None = None,
    retries: int = 2,
) -> pd.DataFrame:
    """Run every cell of a grid that is not done yet; the same call finishes an interrupted batch.

    A cell whose notebook raises keeps the notebook with its error, and the others go on. A cell whose kernel or worker
    is lost is resumed, until it is lost `retries` + 1 times in a row without having completed a round. Ctrl-C, or
    the stop button, ends all kernels; their run folders go on with the same call.

    Parameters
    ----------
    grid:
        TOML file or dict, see `aamlib.grids`; or the cells that `plan` returned.
    out:
        Folder of the run folders; on a cluster, one that all workers see under the same path.
    side_by_side, threads:
        Cells at a time on this machine, and threads of torch for each (the emulator has one per processor). None: as
        many cells as there are processors, and an equal share of these for each. With a scheduler give threads alone,
        or None for one.
    measure_first:
        Choose both by `measure_layouts`, with the game, expert and function of the first cell to run. Takes
        a few minutes of a machine that should have no other work.
    scheduler:
        Address of a Dask scheduler, such as tcp://head:8786, or None for this machine. Its workers set how many cells
        run at a time: start each with one thread (`dask worker --nthreads 1`).

    Returns one row per cell: state (done, failed, interrupted), rounds, agent_steps, score, attempts in this call,
    error, notebook. Raises, before anything has started, ConfigError for an unusable grid or a scheduler that does not
    answer, ExpertError for a game without an expert, RunFolderError for a folder made with other settings, with an
    expert of other weights, or with another source of the function.
    """
    cells = grid if isinstance(grid, list) else plan(grid, out)
    if not cells:
        raise ConfigError("there are no cells; give at least one of those that plan() returned.")
    if measure_first and (side_by_side or threads or scheduler):
        raise ConfigError(
            "measure_first chooses side_by_side and threads on this machine; give neither, nor a scheduler."
        )
    if scheduler and side_by_side:
        raise ConfigError("a scheduler's workers set how many cells run side by side; leave side_by_side out.")
    side_by_side, threads, retries = _Numbers(side_by_side, threads, retries).asdict().values()
    if elsewhere := [cell for cell in cells if cell.run_dir.parent != Path(out).expanduser().absolute()]:
        raise ConfigError(f"{elsewhere[0].name} was planned in {elsewhere[0].run_dir.parent}, not in {out}; give that.")
    if not scheduler:  # whose workers may have others
        for device in {cell.config.device for cell in cells}:
            available_device(device)
    unfinished = {cell.name: cell for cell in cells if not is_done(cell)}
    _check_folders(cells, unfinished)
    if measure_first and unfinished:
        side_by_side, threads = _fastest_layout([*unfinished.values()])
    processors = 1 if scheduler else _processors()  # its workers' machines may have others than this one
    side_by_side = side_by_side or max(1, min(len(unfinished), processors // (threads or 1)))
    threads = threads or max(1, processors // side_by_side)

    outcomes = {cell.name: Outcome("done") for cell in cells if cell.name not in unfinished}
    attempts = dict.fromkeys((cell.name for cell in cells), 0)
    losses: dict[str, tuple[int, int]] = {}  # per cell: losses in a row, and the round at which they began
    with open_pool(scheduler, side_by_side) as pool, BatchView(cells, pool.dashboard) as view:
        try:
            for cell in unfinished.values():
                pool.submit(cell, threads)
            while unfinished:
                view.update({name: outcome.state for name, outcome in outcomes.items()})
                if (ended := pool.wait(seconds=1.0)) is None:
                    continue
                cell, outcome = ended
                attempts[cell.name] += 1
                if outcome.state == "lost":
                    reached = read_progress(cell.run_dir).get("round", 0)
                    times, began = losses.get(cell.name, (0, view.begun[cell.name].get("round", 0)))
                    losses[cell.name] = times, began = (times + 1, began) if reached == began else (0, reached)
                    if times <= retries:
                        view.say(f"{cell.name}: {outcome.error}; it goes on after round {reached}")
                        pool.submit(cell, threads)
                        continue
                    reason = outcome.error.rstrip(".")
                    outcome = Outcome("failed", f"{reason}; lost {times} times without completing a round")
                outcomes[cell.name] = outcome
                del unfinished[cell.name]
                view.say(f"{cell.name}: {outcome.state} {outcome.error}".rstrip())
        except (KeyboardInterrupt, ConnectionError) as reason:
            view.say("Stopping ...")
            pool.stop()
            outcomes |= dict.fromkeys(unfinished, Outcome("interrupted"))
            view.say(f"Stopped. {reason} The same call goes on with {len(unfinished)} cells.".replace("  ", " "))
        view.update({name: outcome.state for name, outcome in outcomes.items()}, last=True)
    return _summary(cells, outcomes, attempts)


def _check_folders(cells: list[Cell], unfinished: Collection[str]) -> None:
    """Raise RunFolderError if cells cannot go on: how it is with the first, and the names of all others."""
    fingerprint_of = functools.cache(lambda expert: fingerprint(load_expert(expert)))
    refused: dict[str, RunFolderError] = {}
    for cell in cells:  # of done ones too an expert or a function may have been mended since
        expert, function = cell.config.expert or cell.config.game, cell.config.acquisition
        hashes = {"expert_sha256": fingerprint_of(expert), "acquisition_sha256": source_hash(function)}
        try:
            if cell.name in unfinished:
                check_settings(cell.run_dir, cell.config.asdict())
            check_hashes(cell.run_dir, **hashes)
        except RunFolderError as error:
            refused[cell.name] = error
    if refused:
        first, *others = refused
        more = f" Nor can {', '.join(others)} go on." if others else ""
        raise RunFolderError(f"{refused[first]}{more}") from refused[first]


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fastest_layout(cells: list[Cell]) -> tuple[int, int]:
    """The layout in which most rounds of the first cell's kind are done in an hour, by no more cells than there are."""
    config = cells[0].config
    alike = {name: getattr(config, name) for name in _MEASURED if getattr(config, name) is not None}
    with tempfile.TemporaryDirectory() as folder:
        table = measure_layouts(folder, **alike)
    table["rounds_per_hour"] *= table["side_by_side"].clip(upper=len(cells)) / table["side_by_side"]
    ranked = table.sort_values("rounds_per_hour", ascending=False)
    side_by_side, threads = ranked[["side_by_side", "threads"]].to_numpy()[0].tolist()
    print(f"{ranked.round(1).to_string(index=False)}\nCells run {side_by_side} side by side, {threads} threads each.")
    return side_by_side, threads


def _summary(cells: list[Cell], outcomes: dict[str, Outcome], attempts: dict[str, int]) -> pd.DataFrame:
    rows = []
    for cell in cells:
        progress, outcome = read_progress(cell.run_dir), outcomes[cell.name]
        rows.append(
            {
                "cell": cell.name,
                "state": outcome.state,
                "rounds": progress.get("round", 0),
                "agent_steps": progress.get("agent_steps", 0),
                "score": progress.get("score"),
                "attempts": attempts[cell.name],
                "error": outcome.error,
                "notebook": str(cell.run_dir / "notebook.ipynb"),
            }
        )
    return pd.DataFrame(rows).set_index("cell")


@dataclasses.dataclass(frozen=True)
class _Numbers(Config):
    side_by_side: int | None = setting(None, "cells at a time", minimum=1)
    threads: int | None = setting(None, "threads of each", minimum=1)
    retries: int = setting(2, "of a cell that is lost", minimum=0)


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
        self.table = (
            display(pd.DataFrame(), display_id=True) if shell is not None and hasattr(shell, "kernel") else None
        )
        every = 1 if self.table is not None or sys.stderr.isatty() else 60  # seconds; a log keeps each of the bars
        self.bar = tqdm(
            total=sum(cell.config.n_rounds for cell in cells), initial=self.rounds(), unit="round", smoothing=0,
            dynamic_ncols=True, mininterval=every, miniters=0,
        )  # fmt: skip
        if dashboard:
            self.say(f"Dask dashboard: {dashboard}")

    def __enter__(self) -> BatchView:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.bar.close()

    def rounds(self, ended: Collection[str] = ()) -> int:
        """Rounds of all cells that nobody waits for any more."""
        done = {cell.name: self.progress[cell.name].get("round", 0) for cell in self.cells}
        all_rounds = {cell.name: cell.config.n_rounds for cell in self.cells}
        return sum(n if name in ended else min(done[name], n) for name, n in all_rounds.items())

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
            if states.get(cell.name) != "done" or before.get("status") not in ENDED:
                self.progress[cell.name] = read_progress(cell.run_dir)
            now = self.progress[cell.name]
            running = now.get("status") not in (None, "interrupted") and now != self.begun[cell.name]
            state = states.get(cell.name) or ("running" if running else "waiting")
            row = {"cell": cell.name, "state": state, "rounds": f"{now.get('round', 0)} of {cell.config.n_rounds}"}
            rows.append({**row, "labels": now.get("labels_used", 0), "score": now.get("score")})
            if now.get("score") not in (None, before.get("score")) and self.table is None:
                self.say(f"{cell.name}: score {now['score']:.2f} after {now['score_agent_steps']:,} agent steps")
        table = pd.DataFrame(rows).set_index("cell")
        counts = table["state"].value_counts()
        description = ", ".join(f"{counts.get(s, 0)} {s}" for s in ("done", "running", "failed", "waiting"))
        self.bar.set_description(description, refresh=False)
        self.bar.update(self.rounds([name for name, state in states.items() if state != "interrupted"]) - self.bar.n)
        if self.table is not None:
            self.table.update(table[table["state"] != "waiting"])
        self.next = time.monotonic() + min(max(1.0, (time.monotonic() - start) / _SHARE), 60.0)


def measure_layouts(
    out: str | Path, layouts: list[tuple[int, int]] | None = None, rounds: int = 4, **settings: Any
) -> pd.DataFrame:
    """How many runs side by side, with how many threads each, get the most done here: measure on an idle machine.

    For each layout (side_by_side, threads), runs a few rounds of the preset "quick" with `settings` on top, in `out`.
    None: every layout that uses all processors. Returns per layout seconds_per_round (without evaluation) and
    rounds_per_hour of all runs together. Raises RunFolderError if a run does not get to its end, or `out` has been
    measured in before.
    """
    processors = _processors()
    divisors = [n for n in range(1, processors + 1) if processors % n == 0]
    rows = []
    for side_by_side, threads in layouts or [(processors // n, n) for n in divisors]:
        folder = Path(out) / f"{side_by_side}x{threads}"
        if folder.exists():
            raise RunFolderError(f"{folder} is there, and its runs would not be measured anew; give another folder.")
        shortest = preset("quick") | {"evaluation_episodes": 1} | settings
        shortest["total_steps"] = shortest["warmup_steps"] + rounds * shortest["round_steps"]
        grid = {"seeds": list(range(side_by_side)), "constants": shortest}
        summary = run_batch(grid, folder, side_by_side=side_by_side, threads=threads)
        if "interrupted" in summary["state"].values:
            raise KeyboardInterrupt
        if len(ended := summary[summary["state"] != "done"]):
            reason = ended["error"].iloc[0] or ended["state"].iloc[0]
            raise RunFolderError(f"{side_by_side} runs with {threads} threads could not be measured: {reason}.")
        metrics = load_runs(folder).query("round > 0")
        phases = metrics.filter(like="seconds_").drop(columns="seconds_evaluate")
        seconds = float(phases.sum(axis=1).mean())
        rows.append((side_by_side, threads, seconds, 3600 * side_by_side / seconds))
    return pd.DataFrame(rows, columns=["side_by_side", "threads", "seconds_per_round", "rounds_per_hour"])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, or 1 when cells failed, 2 for a call that cannot be used, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m aamlib.batch", description="Run a grid of experiments.")
    parser.add_argument("grid", help="TOML file")
    parser.add_argument("out", help="folder of the run folders")
    parser.add_argument("--dry-run", action="store_true", help="list the cells with estimated time and disk")
    parser.add_argument("--measured", metavar="FOLDER", help="finished runs to estimate by")
    parser.add_argument("--side-by-side", type=int, metavar="N", help="cells at a time")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads per cell")
    parser.add_argument("--measure-first", action="store_true", help="choose both by a measurement of some minutes")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler; without it, this machine")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="of a cell whose kernel is lost")
    options = vars(parser.parse_args(arguments))
    if options["measured"] and not options["dry_run"]:
        parser.error("--measured is for the estimates of a --dry-run; give both or neither.")
    grid, out, measured = options.pop("grid"), options.pop("out"), options.pop("measured")
    try:
        if options.pop("dry_run"):
            table = estimate(plan(grid, out), measured)
            print(f"{table.to_string()}\n{describe_total(table)}")
            return 0
        states = run_batch(grid, out, **options)["state"]
    except (ConfigError, ExpertError, RunFolderError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first cell, or pressed twice; else cells' states tell of it
        print("Stopped; the same call goes on.", file=sys.stderr)
        return 130
    print(f"{', '.join(f'{n} {state}' for state, n in states.value_counts().items())}: {out}")
    return 130 if "interrupted" in states.values else int("failed" in states.values)


if __name__ == "__main__":
    from aamlib import batch  # by its own name, under which Dask's workers find it too

    sys.exit(batch.main())
