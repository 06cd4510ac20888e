"""The metrics of runs for TensorBoard: an event file beside each metrics.csv, made from it whenever it is wanted.

python -m aamlib.tensorboard data/runs --follow    # also runs that are still going; until Ctrl-C
tensorboard --logdir data/runs                     # in another terminal

No run knows of it: finished runs, the cells of a batch, those of a cluster and those of others can be looked at alike.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from aamlib.config import ConfigError
from aamlib.files import RunFolderError
from aamlib.runs import METRICS, Run, find_runs
from aamlib.starts import read_starts

FOLLOW_SECONDS = 10.0


def write_events(run_dir: str | Path) -> Path:
    """Write each round's metrics as scalars over agent steps, or add those that are not in the event file yet.

    The file is a function of the metrics alone: one that was cut is completed, and no round is there twice. Tags are
    the names in `METRICS` by group: run/..., probe/... and seconds/.... Wall time is when the run was first started
    plus the seconds of its rounds, without pauses. Returns the file. Raises ConfigError if TensorBoard is not
    installed, RunFolderError if the metrics cannot be read or the file cannot be written.
    """
    content = _encode(Run(Path(run_dir)).metrics, read_starts(run_dir))
    path = Path(run_dir) / "events.out.tfevents.metrics"
    try:
        written = path.read_bytes() if path.exists() else b""
        if not content.startswith(written):  # the run went on from a checkpoint before its last
            written = b""
            path.unlink()
        with path.open("ab") as file:  # in place, for a TensorBoard that has it open
            file.write(content[len(written) :])
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}; make room, then call again.") from error
    return path


def _encode(metrics: pd.DataFrame, starts: list[dict[str, Any]]) -> bytes:
    """The rounds as TensorBoard's records; those of more rounds begin with the same bytes."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise ConfigError(f"this needs TensorBoard ({error}); pip install 'aamlib[tensorboard]'.") from error
    started = _started(starts)
    ended = started + metrics.filter(like="seconds_").sum(axis=1).cumsum()
    tags = {
        name: name.replace("_", "/", 1) if name.startswith(("probe_", "seconds_")) else f"run/{name}"
        for name in METRICS
        if name != "agent_steps"
    }
    content = io.BytesIO()
    records = RecordWriter(content)
    records.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
    for (_, row), time_ended in zip(metrics.iterrows(), ended, strict=True):
        known = [Summary.Value(tag=tags[name], simple_value=row[name]) for name in tags if pd.notna(row[name])]
        event = Event(wall_time=time_ended, step=int(row["agent_steps"]), summary=Summary(value=known))
        records.write(event.SerializeToString())
    return content.getvalue()


def _started(starts: list[dict[str, Any]]) -> float:
    """When the run was first started, in seconds since 1970; 0 where that is not known."""
    try:
        return datetime.fromisoformat(starts[0]["time"]).timestamp()
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0


def export(root: str | Path, exported: dict[Path, float]) -> int:
    """Write the events of each run folder below `root` whose metrics changed since the last call; returns of how many.

    `exported` keeps the time of change by run folder, from call to call. Raises ConfigError as `write_events` does, and
    RunFolderError if there are no runs, or, after all others are written, if some cannot be read.
    """
    changed = {}
    for run_dir in find_runs(root).values():
        with contextlib.suppress(FileNotFoundError):  # while a run is published anew, it is away for a moment
            changed[run_dir] = (run_dir / "metrics.csv").stat().st_mtime
    changed = {run_dir: since for run_dir, since in changed.items() if exported.get(run_dir) != since}
    errors = []
    for run_dir, since in changed.items():
        try:
            write_events(run_dir)
            exported[run_dir] = since
        except RunFolderError as error:
            errors.append(str(error))
    if errors:
        raise RunFolderError("\n".join(errors))
    return len(changed)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, or 2 for a call that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m aamlib.tensorboard", description="Write metrics for TensorBoard.")
    parser.add_argument("root", help="a run folder, or a folder of such")
    parser.add_argument("--follow", action="store_true", help="go on with the runs until Ctrl-C")
    options = parser.parse_args(arguments)
    exported: dict[Path, float] = {}
    said = ""
    try:
        if options.follow:
            print(f"Look: tensorboard --logdir {options.root}")
        else:
            print(f"{export(options.root, exported)} runs written; look: tensorboard --logdir {options.root}")
        while options.follow:
            try:
                export(options.root, exported)
                said = ""
            except RunFolderError as error:  # said once; the others go on, and more may begin
                if str(error) != said:
                    print(error, file=sys.stderr)
                said = str(error)
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        pass
    except (ConfigError, RunFolderError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
