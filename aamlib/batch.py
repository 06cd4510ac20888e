"""Batches: every cell of a grid is the experiment notebook, executed by papermill in a run folder of its own.

On one machine the cells run in a few threads, each of which waits for the process of its kernel: nothing more is
needed, and nothing more can break. On a cluster the same function runs on the workers of a Dask scheduler. Start
reading at `run_batch`; `run_cell` is what a worker does.

From a shell: `python -m aamlib.batch GRID.toml FOLDER`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import queue
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pandas as pd
import papermill
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from aamlib.config import ConfigError, preset
from aamlib.experts import ExpertError
from aamlib.files import RunFolderError, lock_run, write_json
from aamlib.grids import Cell, describe_total, estimate, plan
from aamlib.progress import BatchView, read_progress
from aamlib.runs import check_settings, load_runs

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOCK_SECONDS = 30.0  # a killed worker's kernel notices within three seconds, and lets go of the run folder
RECONNECT_SECONDS = 600.0  # how long a scheduler may be away
_ENDED = ("finished", "label budget used")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an attempt at a cell ended: "done"; "failed", its notebook raised; "lost", it may be tried again."""

    state: str
    error: str = ""


def run_batch(
    grid: str | Path | Mapping[str, Any] | list[Cell],
    out: str | Path,
    *,
    side_by_side: int | None = None,
    threads: int | None = None,
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
        Cells at a time on this machine, and processor threads for each. None: as many cells as there are processors,
        and an equal share of the processors for each. `measure_layouts` tells what is fastest.
    scheduler:
        Address of a Dask scheduler, such as tcp://head:8786, or None for this machine. Its workers set how many cells
        run at a time: start each with one thread (`dask worker --nthreads 1`).

    Returns one row per cell: state (done, failed, interrupted), rounds, agent_steps, score, attempts in this call,
    error, notebook. Raises, before anything has started, ConfigError for an unusable grid or a scheduler that does not
    answer, ExpertError for a game without an expert, RunFolderError for a folder made with other settings.
    """
    cells = grid if isinstance(grid, list) else plan(grid, out)
    for name, value, least in (("side_by_side", side_by_side, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} = {value} is out of range; give at least {least}.")
    unfinished = {cell.name: cell for cell in cells if not is_done(cell)}
    for cell in unfinished.values():
        check_settings(cell.run_dir, cell.config.asdict())
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    side_by_side = side_by_side or max(1, min(len(unfinished), processors // (threads or 1)))
    threads = threads or max(1, processors // side_by_side)

    outcomes = {cell.name: Outcome("done") for cell in cells if cell.name not in unfinished}
    attempts = dict.fromkeys((cell.name for cell in cells), 0)
    losses: dict[str, tuple[int, int]] = {}  # per cell: losses in a row, and the round at which they began
    with _pool(scheduler, side_by_side, str(Path(out).absolute())) as pool, BatchView(cells, pool.dashboard) as view:
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
                    times, began = losses.get(cell.name, (0, reached))
                    losses[cell.name] = times, began = (times + 1, began) if reached == began else (1, reached)
                    if times <= retries:
                        view.say(f"{cell.name}: {outcome.error}; it goes on after round {reached}")
                        pool.submit(cell, threads)
                        continue
                    outcome = Outcome("failed", f"{outcome.error}; lost {times} times without completing a round")
                outcomes[cell.name] = outcome
                del unfinished[cell.name]
                view.say(f"{cell.name}: {outcome.state} {outcome.error}".rstrip())
        except (KeyboardInterrupt, ConnectionError) as reason:
            pool.stop()
            outcomes |= dict.fromkeys(unfinished, Outcome("interrupted"))
            view.say(f"Stopped. {reason} The same call goes on with {len(unfinished)} cells.".replace("  ", " "))
        view.update({name: outcome.state for name, outcome in outcomes.items()}, last=True)
    return _summary(cells, outcomes, attempts)


def is_done(cell: Cell) -> bool:
    """Whether the cell's notebook has been executed to its end with these very settings."""
    try:
        mark = json.loads((cell.run_dir / "cell.json").read_text())
    except (OSError, ValueError):
        return False
    return mark.get("state") == "done" and mark.get("settings") == cell.config.asdict()


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


# What happens where a cell runs

_active: dict[str, Popen[bytes] | None] = {}  # by run folder: the kernels of the cells that this process executes


def run_cell(cell: Cell, threads: int) -> Outcome:
    """Execute the cell's notebook in its run folder, with `threads` threads; resumes a run that was begun.

    "done" takes a notebook without an exception and a run that this attempt ended. Two callers never work on one
    cell at a time: the second waits for `LOCK_SECONDS`, and then finds it done or gives it up as lost.
    """
    folder = str(cell.run_dir)
    _active[folder] = None
    try:
        with lock_run(folder, "notebook.lock", wait=LOCK_SECONDS):
            if is_done(cell):
                return Outcome("done")
            with lock_run(folder, wait=LOCK_SECONDS):  # a killed worker's kernel holds it a moment longer
                here = {"status": "starting", "host": platform.node(), "pid": os.getpid(), "since": time.time()}
                write_json(cell.run_dir / "progress.json", read_progress(cell.run_dir) | here)
            outcome = _execute(cell, threads)
            if outcome.state != "done":
                write_json(cell.run_dir / "progress.json", read_progress(cell.run_dir) | {"status": "interrupted"})
            write_json(cell.run_dir / "cell.json", {**dataclasses.asdict(outcome), "settings": cell.config.asdict()})
            return outcome
    except RunFolderError as error:
        return Outcome("lost", str(error))
    finally:
        _active.pop(folder, None)


def _execute(cell: Cell, threads: int) -> Outcome:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))

    class Kernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**options, env=environment)
            _active[str(cell.run_dir)] = self.provisioner.process  # type: ignore[union-attr]

    try:
        with closing(ensure_event_loop()):  # this thread's, in which papermill will run
            papermill.execute_notebook(
                cell.notebook,
                cell.run_dir / "notebook.ipynb",
                cell.parameters | {"run_dir": str(cell.run_dir)},
                kernel_name="python3",
                kernel_manager_class=Kernel,
                start_timeout=300,  # seconds: many kernels may read torch from a shared folder at once
                progress_bar=False,
            )
    except PapermillExecutionError as error:
        return Outcome("failed", f"{error.ename}: {error.evalue}")
    except DeadKernelError:  # papermill's notebook does not tell: each of its cells is marked as completed
        return Outcome("lost", "its kernel died")
    status = read_progress(cell.run_dir).get("status")
    return Outcome("done") if status in _ENDED else Outcome("lost", f"its run ended as {status!r}")


def kill_kernels(out: str) -> int:
    """Kill the kernels of all cells in `out` that this process executes; returns how many cells there still are."""
    active = [kernel for folder, kernel in list(_active.items()) if Path(out) in Path(folder).parents]
    for kernel in active:
        if kernel is not None:
            kernel.kill()
    return len(active)


# Where cells wait for their turn


class _Threads:
    """Threads of this process."""

    dashboard: str | None = None

    def __init__(self, side_by_side: int, out: str) -> None:
        self.out, self.executor = out, ThreadPoolExecutor(side_by_side)
        self.ended: queue.SimpleQueue[tuple[Cell, Any]] = queue.SimpleQueue()

    def submit(self, cell: Cell, threads: int) -> None:
        """Let the cell run when its turn comes."""
        self.executor.submit(run_cell, cell, threads).add_done_callback(lambda future: self.ended.put((cell, future)))

    def wait(self, seconds: float) -> tuple[Cell, Outcome] | None:
        """The next cell that has ended, and how, if one does in time."""
        try:
            cell, future = self.ended.get(timeout=seconds)
        except queue.Empty:
            return None
        try:
            return cell, future.result()
        except Exception as error:
            return cell, Outcome("lost", f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """Start no more cells, and end the kernels of those that run."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        while kill_kernels(self.out):
            time.sleep(0.1)

    def close(self) -> None:
        """Free the threads."""
        self.executor.shutdown()


class _Dask(_Threads):
    """The workers of a Dask scheduler, which may go away and come back with no memory."""

    def __init__(self, scheduler: str, out: str) -> None:
        try:
            import distributed
        except ImportError as error:
            raise ConfigError(f"a scheduler needs Dask ({error}); pip install 'aamlib[cluster]'.") from error
        self.distributed, self.scheduler, self.out = distributed, scheduler, out
        self.tasks: dict[str, tuple[Cell, int]] = {}
        try:
            self.connect()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no Dask scheduler answers at {scheduler!r} ({type(error).__name__}); start one with "
                "`dask scheduler` and give its address, such as tcp://127.0.0.1:8786."
            ) from error

    def connect(self) -> None:
        """Meet the scheduler and give it all cells that have not ended."""
        self.client = self.distributed.Client(self.scheduler, timeout=10, set_as_default=False)
        self.dashboard = self.client.dashboard_link
        self.ended = queue.SimpleQueue()  # what the client before still says is not heard
        self.futures: dict[str, Any] = {}
        for cell, threads in self.tasks.values():
            self.submit(cell, threads)

    def submit(self, cell: Cell, threads: int) -> None:
        """Let the cell run when its turn comes. Dask itself repeats it, three times, if the worker is lost."""
        ended, future = self.ended, self.client.submit(run_cell, cell, threads, pure=False)
        self.tasks[cell.name] = cell, threads
        self.futures[cell.name] = future  # Dask forgets what nobody holds
        future.add_done_callback(lambda future: ended.put((cell, future)))

    def wait(self, seconds: float) -> tuple[Cell, Outcome] | None:
        """As above. When the scheduler is gone, waits for it: ConnectionError after `RECONNECT_SECONDS`."""
        ended = super().wait(seconds)
        gone = self.client.status != "running" or (ended and self.futures[ended[0].name].cancelled())
        end = time.monotonic() + RECONNECT_SECONDS
        while gone:
            self.client.close(timeout=1)
            try:
                self.connect()
                return None
            except OSError as error:
                if time.monotonic() > end:
                    raise ConnectionError(f"The scheduler {self.scheduler} did not come back.") from error
                time.sleep(1)
        if ended:
            del self.tasks[ended[0].name], self.futures[ended[0].name]
        return ended

    def stop(self) -> None:
        """As above, on every worker; without a scheduler they end by themselves."""
        if self.client.status == "running":
            self.client.cancel(list(self.futures.values()), force=True)
            while sum(self.client.run(kill_kernels, self.out).values()):
                time.sleep(0.1)

    def close(self) -> None:
        """Leave the scheduler and its workers running."""
        self.client.close()


@contextmanager
def _pool(scheduler: str | None, side_by_side: int, out: str) -> Iterator[_Threads]:
    pool = _Dask(scheduler, out) if scheduler else _Threads(side_by_side, out)
    try:
        yield pool
    finally:
        pool.close()


def measure_layouts(
    out: str | Path, layouts: list[tuple[int, int]] | None = None, rounds: int = 4, **settings: Any
) -> pd.DataFrame:
    """How many runs side by side, with how many threads each, get the most done here: measure on an idle machine.

    For each layout (side_by_side, threads), runs a few rounds of the preset "quick" with `settings` on top, in `out`.
    None: every layout whose threads are a power of two and fill the processors. Returns per layout
    seconds_per_round (without evaluation) and rounds_per_hour of all runs together.
    """
    processors = os.cpu_count() or 1
    powers = [2**i for i in range(processors.bit_length()) if 2**i <= processors]
    rows = []
    for side_by_side, threads in layouts or [(processors // power, power) for power in powers]:
        folder = Path(out) / f"{side_by_side}x{threads}"
        shortest = preset("quick") | {"evaluation_episodes": 1} | settings
        shortest["total_steps"] = shortest["warmup_steps"] + rounds * shortest["round_steps"]
        grid = {"seeds": list(range(side_by_side)), "constants": shortest}
        run_batch(grid, folder, side_by_side=side_by_side, threads=threads)
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
    parser.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler; without it, this machine")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="of a cell whose kernel is lost")
    options = vars(parser.parse_args(arguments))
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
    print(f"{', '.join(f'{n} {state}' for state, n in states.value_counts().items())}: {out}")
    return 130 if "interrupted" in states.values else int("failed" in states.values)


if __name__ == "__main__":
    from aamlib import batch  # by its own name, under which Dask's workers find it too

    sys.exit(batch.main())
