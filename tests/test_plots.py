"""Figures show what the tables say; the GIF shows every frame where it belongs."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from aamlib import plots

matplotlib.use("Agg")


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture
def evaluations():
    rows = [
        (run, acquisition, steps, steps // 10, score)
        for run, acquisition in (("a", "bald"), ("b", "bald"), ("c", "random"))
        for steps in (100, 200)
        for score in (steps / 100, steps / 50)
    ]
    return pd.DataFrame(rows, columns=["run", "acquisition", "agent_steps", "labels_used", "score"])


def test_scores_are_one_line_per_run_through_the_means_and_one_legend_entry_per_function(ax, evaluations):
    plots.plot_scores(evaluations, {"expert": 19.0}, x="labels_used", ax=ax)
    runs = [line for line in ax.get_lines() if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert len(runs) == 3
    for line in runs:
        assert line.get_xdata().tolist() == [10, 20]
        assert line.get_ydata().tolist() == [1.5, 3.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bald", "random", "expert (19.0)"]
    assert runs[0].get_color() == runs[1].get_color() != runs[2].get_color()


def test_rounds_without_a_value_leave_no_gap_at_zero(ax):
    metrics = pd.DataFrame(
        {"run": "a", "acquisition": "mine:own", "agent_steps": [1, 2, 3], "loss": [5.0, np.nan, 7.0]}
    )
    plots.plot_metric(metrics, "loss", ax=ax)
    assert ax.get_lines()[0].get_ydata().tolist() == [5.0, 7.0]
    assert "nats" in ax.get_ylabel()


def test_seconds_add_up_to_minutes_per_phase(ax):
    plots.plot_seconds(pd.DataFrame({"seconds_act": [30, 60], "seconds_train": [np.nan, 120], "loss": 1}), ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["act", "train"]
    assert [bar.get_width() for bar in ax.patches] == [1.5, 2.0]


def test_gif_runs_each_state_through_its_four_frames_in_its_place(tmp_path):
    stacks = np.arange(3 * 4, dtype=np.uint8).reshape(3, 4, 1, 1) * 20 + np.zeros((84, 84), np.uint8)
    path = plots.write_gif(tmp_path / "states.gif", stacks, columns=2, scale=2)
    with Image.open(path) as gif:
        assert gif.n_frames == 4
        assert gif.size == (2 * 86 * 2, 2 * 86 * 2)
        for frame in range(4):
            gif.seek(frame)
            image = np.asarray(gif.convert("L"))
            for state, (row, column) in enumerate(((0, 0), (0, 1), (1, 0))):
                pixel = image[(row * 86 + 40) * 2, (column * 86 + 40) * 2]
                assert pixel == stacks[state, frame, 0, 0]
            assert image[(86 + 40) * 2, (86 + 40) * 2] == 255, "a place without a state stays white"
