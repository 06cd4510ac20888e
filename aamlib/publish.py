"""Publishing: a run folder of hundreds of megabytes becomes the few small tables that figures are drawn from.

python -m aamlib.publish data/runs/study-pong             # every run that has ended, to data/results/study-pong
python -m aamlib.publish data/runs/mine --selections 2    # with the frames of two rounds, for GIFs and for looking
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from aamlib.evidence import CHOICES, read_choices
from aamlib.files import DATA_DIR, RunFolderError, write_csv
from aamlib.runs import ENDED, Run, find_runs
from aamlib.selections import rounds_of

_TABLES = ("config.json", "metrics.csv", "evaluations.csv", "progress.json")


def publish(run: Run, target: str | Path, *, selections: int = 0, student: bool = False) -> Run:
    """Copy a run's tables into a folder, which is replaced as a whole if it is there.

    With them goes choices.csv (`aamlib.evidence.tabulate`); the recorded selections of some rounds, spread evenly
    from the first to the last; and the student, for those who want to watch it. Raises RunFolderError if the run has
    not ended or has recorded no selection, or the folder holds something other than a published run, is the run's own,
    or cannot be written; what was there is then as it was.
    """
    target, numbers = Path(target).expanduser().resolve(), rounds_of(run)
    if run.status not in ENDED:
        raise RunFolderError(f"{run.dir} has not ended ({run.status}); go on with it first.")
    if target == run.dir.resolve():
        raise RunFolderError(f"{target} is the run itself, which publishing would cut down; choose another folder.")
    if (target / "pool").exists():
        raise RunFolderError(f"{target} is a run that can go on, and would be cut down; choose another folder.")
    if target.exists() and not (target / "metrics.csv").exists():
        raise RunFolderError(f"{target} is there and holds no run; choose another folder.")
    spread = np.linspace(len(numbers) - 1, 0, min(selections, len(numbers))).round().astype(int)  # of one, the last
    names = [*_TABLES, *(["environment.json"] if (run.dir / "environment.json").exists() else [])]
    names += [f"selections/{numbers[i]:06d}.parquet" for i in spread]
    if student:
        names.append(f"checkpoints/{run.metrics['round'].iloc[-1]:06d}.safetensors")
    choices = read_choices(run).round(5)  # a published run has kept few of its selections
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            copy, before = Path(folder) / "run", Path(folder) / "before"
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.dir / name, copy / name)
            write_csv(copy / CHOICES, choices)
            try:
                if target.exists():
                    target.rename(before)
                copy.rename(target)
            except BaseException:  # an interrupt too
                if before.exists():
                    before.rename(target)
                raise
    except OSError as error:
        raise RunFolderError(
            f"{run.dir} cannot be published as {target} ({error}); mend that and call again."
        ) from error
    return Run(target)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; give 0 or more.")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, or 2 if the call cannot be used or a run could not be published."""
    parser = argparse.ArgumentParser(prog="python -m aamlib.publish", description="Publish the runs that have ended.")
    parser.add_argument("runs", type=Path, help="folder of run folders, or a run folder")
    parser.add_argument(
        "--out", type=Path, help="folder to publish in; data/results/ and the name of the first if left out"
    )
    parser.add_argument(
        "--selections", type=_count, default=0, metavar="N", help="rounds whose frames go with each run"
    )
    options = parser.parse_args(arguments)
    out = options.out or DATA_DIR / "results" / options.runs.resolve().name
    try:
        found = find_runs(options.runs)
    except RunFolderError as error:
        print(error, file=sys.stderr)
        return 2
    failed = 0
    for name, folder in found.items():
        try:
            run = Run(folder)
            if run.status not in ENDED:
                print(f"{name}: {run.status}, left out")
                continue
            published = publish(run, out if folder == options.runs else out / name, selections=options.selections)
            print(f"{name}: {published.dir}")
        except RunFolderError as error:  # the others are none the worse
            print(error, file=sys.stderr)
            failed += 1
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
