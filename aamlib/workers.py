"""What happens where a cell of a batch runs, and where cells wait for their turn.

On one machine cells run in a few threads, each of which waits for the process of its kernel: nothing more is needed,
and nothing more can break. On a cluster the same function, `run_cell`, runs on the workers of a Dask scheduler.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import queue
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from aamlib.config import ConfigError, first_line
from aamlib.files import RunFolderError, lock_run, write_json
from aamlib.grids import Cell
from aamlib.runs import ENDED, differing_settings

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOCK_SECONDS = 30.0  # a killed worker's kernel notices within three seconds, and lets go of the run folder
CONNECT_SECONDS = 10.0  # how long a scheduler may take to answer
RECONNECT_SECONDS = 600.0  # how long a scheduler may be away


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an attempt at a cell ended: "done"; "failed", its notebook raised; "lost", it may be tried again."""

    state: str
    error: str = ""


def read_progress(run_dir: Path) -> dict[str, Any]:
    """What progress.json says; empty if there is none, or none that can be read."""
    try:
        return dict(json.loads((run_dir / "progress.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def is_done(cell: Cell) -> bool:
    """Whether the cell's notebook has been executed to its end with these settings."""
    try:
        mark = dict(json.loads((cell.run_dir / "cell.json").read_text()))
        settings = dict(mark["settings"])
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return mark.get("state") == "done" and not differing_settings(settings, cell.config.asdict())


# The kernels of the cells that this process executes, by batch and run folder.
_active: dict[tuple[str, Path], Popen[bytes] | None] = {}


def run_cell(cell: Cell, threads: int, batch: str = "") -> Outcome:
    """Execute the cell's notebook in its run folder, with `threads` threads; resumes a run that was begun.

    "done" takes a notebook without an exception and a run that this attempt ended. Two callers never work on one
    cell at a time: the second waits for `LOCK_SECONDS`, and then finds it done or gives it up as lost.
    """
    folder = cell.run_dir
    _active[batch, folder] = None
    try:
        with lock_run(folder, "notebook.lock", wait=LOCK_SECONDS):
            if is_done(cell):
                return Outcome("done")
            with lock_run(folder, wait=LOCK_SECONDS):  # a killed worker's kernel holds it a moment longer
                here = {"status": "starting", "host": platform.node(), "pid": os.getpid(), "since": time.time()}
                before = read_progress(cell.run_dir)
                write_json(cell.run_dir / "progress.json", before | here)
            outcome = _execute(cell, threads, batch)
            progress = read_progress(cell.run_dir)
            if outcome.state != "done" and progress.get("status") not in ENDED:
                untouched = progress.get("status") == "starting" and before.get("status") in ENDED
                status = before["status"] if untouched else "interrupted"
                write_json(cell.run_dir / "progress.json", progress | {"status": status})
            write_json(cell.run_dir / "cell.json", {**dataclasses.asdict(outcome), "settings": cell.config.asdict()})
            return outcome
    except RunFolderError as error:
        return Outcome("lost", str(error))
    finally:
        _active.pop((batch, folder), None)


def _execute(cell: Cell, threads: int, batch: str) -> Outcome:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    sockets = tempfile.TemporaryDirectory(prefix="aamlib-", ignore_cleanup_errors=True)

    class Kernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            # Of kernels that start at once, two may choose the same TCP port, and wait in vain. But a socket's path
            # must be short: 107 bytes on Linux.
            if os.name == "posix" and len(os.fsencode(sockets.name)) < 80:
                self.transport, self.connection_file = "ipc", f"{sockets.name}/kernel.json"
            await super().start_kernel(**options, env=environment)
            _active[batch, cell.run_dir] = self.provisioner.process  # type: ignore[union-attr]

    try:
        with sockets, closing(ensure_event_loop()):  # this thread's, in which papermill will run
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
    except Exception as error:  # such as a full disk, or a kernel that does not start
        return Outcome("lost", f"{type(error).__name__}: {first_line(error)}")
    status = read_progress(cell.run_dir).get("status")
    return Outcome("done") if status in ENDED else Outcome("lost", f"its run ended as {status!r}")


def kill_kernels(batch: str) -> int:
    """Kill the kernels of the batch's cells that this process executes; returns how many cells there still are."""
    active = [kernel for (owner, _), kernel in list(_active.items()) if owner == batch]
    for kernel in active:
        if kernel is not None:
            kernel.kill()
    return len(active)


# Where cells wait for their turn


class _Threads:
    """Threads of this process."""

    dashboard: str | None = None

    def __init__(self, side_by_side: int) -> None:
        self.batch, self.executor = uuid.uuid4().hex, ThreadPoolExecutor(side_by_side)
        self.ended: queue.SimpleQueue[tuple[Cell, Any]] = queue.SimpleQueue()

    def submit(self, cell: Cell, threads: int) -> None:
        """Let the cell run when its turn comes."""
        future = self.executor.submit(run_cell, cell, threads, self.batch)
        future.add_done_callback(lambda future: self.ended.put((cell, future)))

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
        while kill_kernels(self.batch):
            time.sleep(0.1)

    def close(self) -> None:
        """Free the threads."""
        self.executor.shutdown()


class _Dask(_Threads):
    """The workers of a Dask scheduler, which may go away and come back with no memory."""

    def __init__(self, scheduler: str) -> None:
        try:
            import distributed
        except ImportError as error:
            raise ConfigError(f"a scheduler needs Dask ({error}); pip install 'aamlib[cluster]'.") from error
        self.distributed, self.scheduler, self.batch = distributed, scheduler, uuid.uuid4().hex
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
        self.client = self.distributed.Client(self.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        self.dashboard = self.client.dashboard_link
        self.ended = queue.SimpleQueue()  # what the client before still says is not heard
        self.futures: dict[str, Any] = {}
        for cell, threads in self.tasks.values():
            self.submit(cell, threads)

    def submit(self, cell: Cell, threads: int) -> None:
        """Let the cell run when its turn comes. Dask itself repeats it, three times, if the worker is lost."""
        ended, future = self.ended, self.client.submit(run_cell, cell, threads, self.batch, pure=False)
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
            while sum(self.client.run(kill_kernels, self.batch, on_error="ignore").values()):  # some may be lost now
                time.sleep(0.1)

    def close(self) -> None:
        """Leave the scheduler and its workers running."""
        self.client.close()


@contextmanager
def open_pool(scheduler: str | None, side_by_side: int) -> Iterator[_Threads]:
    """The scheduler's workers, or threads of this process; closed at the end."""
    pool = _Dask(scheduler) if scheduler else _Threads(side_by_side)
    try:
        yield pool
    except BaseException:  # a second Ctrl-C too: else all cells that wait would be run before it is seen
        pool.stop()
        raise
    finally:
        pool.close()
