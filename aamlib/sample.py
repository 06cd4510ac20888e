"""The sample runs in data/sample/ that the notebooks 05 to 07 open: `make sample` makes them again."""

from __future__ import annotations

from aamlib.config import ExperimentConfig, preset
from aamlib.distill import distill
from aamlib.files import DATA_DIR
from aamlib.publish import publish


def main() -> None:
    """Run the preset `quick` on Pong for 80,000 agent steps with BALD and with entropy; keep what looking needs."""
    for acquisition in ("bald", "entropy"):
        settings = {**preset("quick"), "total_steps": 80_000, "acquisition": acquisition}
        run = distill(ExperimentConfig(**settings), DATA_DIR / "runs" / f"sample-{acquisition}")
        publish(run, DATA_DIR / "sample" / f"pong-{acquisition}", selections=6, student=acquisition == "bald")


if __name__ == "__main__":
    main()
