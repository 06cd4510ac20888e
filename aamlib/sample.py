"""The sample runs and games in data/sample/ that the notebooks 05 to 07 open: `make sample` makes them again."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from aamlib.config import ExperimentConfig, preset
from aamlib.distill import distill
from aamlib.experts import load_expert
from aamlib.files import DATA_DIR, save_arrays
from aamlib.games import record_game, sample_game_path
from aamlib.publish import publish
from aamlib.runs import ENDED


def main() -> int:
    """Record the game that notebook 05 shows first, and keep what looking needs of two runs of the preset `quick`.

    These play Pong for 80,000 agent steps, one with BALD and one with entropy. Returns 0, or 130 when interrupted.
    """
    expert = load_expert("pong")
    game = record_game(expert, "pong")
    arrays = {name: getattr(game, name) for name in ("frames", "q_values", "actions", "rewards")}
    with tempfile.TemporaryDirectory() as folder:  # a run that was finished by older code would not be made again
        for acquisition in ("bald", "entropy"):
            settings = {**preset("quick"), "total_steps": 80_000, "acquisition": acquisition}
            run = distill(ExperimentConfig(**settings), Path(folder) / acquisition)
            if run.status not in ENDED:
                return 130
            publish(run, DATA_DIR / "sample" / f"pong-{acquisition}", selections=6, student=acquisition == "bald")
    path = sample_game_path(expert, "pong")
    save_arrays(path, arrays)
    for other in path.parent.glob("*.zst"):  # of an earlier expert
        if other != path:
            other.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
