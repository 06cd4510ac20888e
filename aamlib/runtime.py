"""The C runtime, as networks and emulators that take turns on a CPU need it: it is set up on import, before torch's.

Measured on two cores (Linux, glibc, GNU OpenMP), with 40 games: forward passes of 128 states were 1.6 times as fast for
the memory, a step of the emulator that follows a forward pass 1.3 times for the threads' end; and beside two processes
that compute all the time, training 3 times for the shorter wait. What that leaves, `watching_other_work` tells.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

import psutil

# A thread of torch that waits for another spins, by default 300,000 turns, on a processor on which the other could run,
# where there is other work too. This many outlast the gaps within a step of training.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

import torch  # which reads that once

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
OMP_PAUSE_SOFT = 1  # omp.h

# The activations that a forward pass frees would go back to the system, to be asked for, page by page, in the next.
if platform.libc_ver()[0] == "glibc":
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # bytes; more is not accepted
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)

_pause = getattr(ctypes.CDLL(torch._C.__file__), "omp_pause_resource_all", None)  # OpenMP 5.0, as torch is linked to it


def end_idle_threads() -> None:
    """End the threads that torch keeps for this one; its next large operation makes new ones, within 0.1 ms.

    Idle, each would first wait for milliseconds without sleeping, and keep a processor from those who have work.
    """
    if _pause is not None:
        _pause(OMP_PAUSE_SOFT)


@contextlib.contextmanager
def watching_other_work() -> Iterator[None]:
    """Say so if others, within the block, keep busy processors that torch's threads need, and so will wait for.

    An operation of several threads ends with the slowest, which may stand still for milliseconds. On two cores, beside
    a process that computes all the time, training by two threads took 5.6 times as long as by one.
    """
    process, threads, processors = psutil.Process(), torch.get_num_threads(), psutil.cpu_count() or 1
    psutil.cpu_percent(), process.cpu_percent()  # what they give next is since then
    yield
    others = (psutil.cpu_percent() * processors - process.cpu_percent()) / 100
    fewer = max(1, int(processors - others))
    if threads > max(1, processors - others + 0.5):
        print(
            f"Other work keeps {others:.1f} of {processors} processors busy, for which {threads} threads would often "
            f"wait; {fewer} (OMP_NUM_THREADS={fewer} before the start, or torch.set_num_threads({fewer})) may be "
            "several times as fast.",
            flush=True,
        )


def _forget() -> None:
    """A forked process has none of these threads, and would wait for them for ever."""
    global _pause
    _pause = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
