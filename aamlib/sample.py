"""The sample runs in data/sample/ that the notebooks 05 to 07 open: `make sample` makes them again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from aamlib.config import ExperimentConfig, preset
from aamlib.distill import distill
from aamlib.files import DATA_DIR
from aamlib.runs import Run
from aamlib.selections import rounds_of

_TABLES = ("config.json", "environment.json", "metrics.csv", "evaluations.csv", "progress.json")


def copy_sample(run: Run, target: str | Path, *, rounds: int = 6, student: bool = True) -> Run:
    """Copy what looking at a run needs into an empty folder: its tables, selections of `rounds` rounds, its student.

    The rounds are spread evenly from the first to the last. Raises FileExistsError when the folder is there.
    """
    target = Path(target)
    (target / "selections").mkdir(parents=True)
    numbers = rounds_of(run)
    spread = np.linspace(0, len(numbers) - 1, min(rounds, len(numbers))).round().astype(int)
    names = [*_TABLES, *(f"selections/{numbers[i]:06d}.parquet" for i in spread)]
    if student:
        (target / "checkpoints").mkdir()
        names.append(f"checkpoints/{run.metrics['round'].iloc[-1]:06d}.safetensors")
    for name in names:
        shutil.copyfile(run.dir / name, target / name)
    return Run(target)


def main() -> None:
    """Run the preset `quick` on Pong for 80,000 agent steps with BALD and with entropy; keep what looking needs."""
    for acquisition in ("bald", "entropy"):
        settings = {**preset("quick"), "total_steps": 80_000, "acquisition": acquisition}
        run = distill(ExperimentConfig(**settings), DATA_DIR / "runs" / f"sample-{acquisition}")
        target = DATA_DIR / "sample" / f"pong-{acquisition}"
        shutil.rmtree(target, ignore_errors=True)
        copy_sample(run, target, student=acquisition == "bald")


if __name__ == "__main__":
    main()
