"""Whether others keep the processors busy is told, by numbers that are given and by those of a process at work."""

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from aamlib import runtime
from aamlib.runtime import watching_other_work


@pytest.mark.parametrize(
    ("threads", "all_percent", "own_percent", "others", "fewer"),
    [
        (4, 75.0, 20.0, 2.8, 1),
        (4, 50.0, 50.0, 1.5, 2),
        (4, 75.0, 280.0, 0, 0),
        (2, 50.0, 50.0, 0, 0),
        (1, 100.0, 0.0, 0, 0),
    ],
)
def test_other_work_is_told_where_threads_would_wait_for_it(
    monkeypatch, capsys, threads, all_percent, own_percent, others, fewer
):
    process = SimpleNamespace(cpu_percent=lambda: own_percent)
    numbers = {"Process": lambda: process, "cpu_percent": lambda: all_percent, "cpu_count": lambda: 4}
    monkeypatch.setattr(runtime, "psutil", SimpleNamespace(**numbers))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with watching_other_work():
        pass
    out = capsys.readouterr().out
    told = (
        f"keeps {others} of 4 processors busy, for which 4 threads would often wait; {fewer} (OMP_NUM_THREADS={fewer}"
    )
    assert (told in out) if others else out == ""


WORK = """
import time
print(flush=True)
end = time.monotonic() + 20
while time.monotonic() < end:
    pass
"""


@pytest.mark.skipif(
    psutil.cpu_count() == 1, reason="on a single processor there is one thread, which waits for no other"
)
def test_a_process_at_work_is_seen(monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", psutil.cpu_count)
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with watching_other_work():
            time.sleep(1)
        other.kill()
    assert capsys.readouterr().out.startswith("Other work keeps ")
