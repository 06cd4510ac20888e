"""environment.json: how a run was started, one entry for each time, and whether it still has what it began with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from aamlib.files import DATA_DIR, RunFolderError, check_kept, write_json
from aamlib.precision import instructions

HASHES = {
    "expert_sha256": "an expert with other weights; give that one as `expert`",
    "acquisition_sha256": "an acquisition function of other source code; restore it, remove the folder to begin again",
}


def read_starts(run_dir: str | Path) -> list[dict[str, Any]]:
    """The entries of environment.json: versions, processor, threads, precision and expert at each start; [] if none.

    Raises RunFolderError if it cannot be read.
    """
    path = Path(run_dir) / "environment.json"
    try:
        starts = json.loads(path.read_text()) if path.exists() else []
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise ValueError(f"no list of starts but {str(starts)[:40]!r}")
        return starts
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); copy it again, or begin in another folder.") from error


def record_start(run_dir: Path, **facts: Any) -> None:
    """Add an entry to environment.json: the given facts, the time, and the versions that a repetition would need."""
    describe = ["git", "-C", str(DATA_DIR.parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no clone
        facts["commit"] = subprocess.check_output(describe, text=True, stderr=subprocess.DEVNULL).strip()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "ale-py", "numpy")}
    machine = {"python": platform.python_version(), "processor": f"{platform.machine()} {instructions()}"}
    entry = {**facts, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **versions, **machine}
    write_json(run_dir / "environment.json", [*read_starts(run_dir), entry])


def check_hashes(run_dir: Path, **hashes: str | None) -> None:
    """Raise RunFolderError if the run began with other hashes than these; one that it did not record is not compared.

    `hashes` are those of `HASHES`, hexadecimal; None where there is none.
    """
    check_kept(run_dir, "environment.json")
    starts = read_starts(run_dir)
    for name, value in hashes.items():
        if starts and starts[0].get(name, value) != value:
            raise RunFolderError(f"{run_dir} was begun with {HASHES[name]}, or choose another folder.")
