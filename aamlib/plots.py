"""Figures from the tidy tables: each function draws on an Axes and returns it; and GIFs of frames."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from PIL import Image

from aamlib.files import write_bytes

LABELS = {
    "agent_steps": "agent steps (4 emulator frames each)",
    "labels_used": "labels used (queries)",
    "loss": "loss summed over the round's queries (nats)",
    "probe_expert_kl": "KL(expert || student), nats",
    "probe_random_kl": "KL(expert || student), nats",
    "loss_per_label": "loss per label (nats)",
}
_COLORBLIND = sns.color_palette("colorblind")
COLORS = dict(zip(("bald", "entropy", "variation_ratio", "random"), _COLORBLIND, strict=False))


def plot_scores(
    evaluations: pd.DataFrame,
    references: dict[str, float] | None = None,
    *,
    x: str = "agent_steps",
    ax: Axes | None = None,
) -> Axes:
    """Score against steps or labels: each game a dot, each run a line through its evaluations' means.

    Parameters
    ----------
    evaluations:
        As `load_evaluations`: run, acquisition, agent_steps, labels_used, score.
    references:
        Horizontal lines by name, such as {"expert": 19.5, "random play": -20.4}.
    x:
        "agent_steps" or "labels_used".
    """
    ax = ax or plt.gca()
    for (acquisition, _), games in evaluations.groupby(["acquisition", "run"]):
        color = COLORS.get(str(acquisition), "C7")
        means = games.groupby(x)["score"].mean()
        ax.scatter(games[x], games["score"], s=8, color=color, alpha=0.25, linewidth=0)
        ax.plot(means.index, means, marker="o", markersize=4, color=color, label=str(acquisition))
    for (name, score), style in zip((references or {}).items(), ("--", ":", "-."), strict=False):
        ax.axhline(score, linestyle=style, color="0.3", linewidth=1, label=f"{name} ({score:.1f})")
    ax.set(ylabel="unclipped score (dot: a game, line: mean)")
    return _finish(ax, x)


def plot_metric(metrics: pd.DataFrame, column: str, *, x: str = "agent_steps", ax: Axes | None = None) -> Axes:
    """One column of the metrics (as `load_runs`) against steps or labels, each run a line."""
    ax = ax or plt.gca()
    for (acquisition, _), rows in metrics.dropna(subset=[column]).groupby(["acquisition", "run"]):
        ax.plot(rows[x], rows[column], color=COLORS.get(str(acquisition), "C7"), label=str(acquisition))
    ax.set(ylabel=LABELS.get(column, column.replace("_", " ")))
    return _finish(ax, x)


def _finish(ax: Axes, x: str) -> Axes:
    """The x axis in thousands or millions, and a legend in which several runs of one function stand once."""
    ax.set_xlabel(LABELS[x])
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles, names = ax.get_legend_handles_labels()
    ax.legend(dict(zip(names, handles, strict=True)).values(), dict.fromkeys(names), fontsize="small")
    return ax


def plot_seconds(metrics: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Where a run's time went: minutes per phase."""
    ax = ax or plt.gca()
    columns = [name for name in metrics.columns.astype(str) if name.startswith("seconds_")]
    minutes = metrics[columns].sum() / 60
    bars = ax.barh([name.removeprefix("seconds_") for name in columns], minutes, color="C0")
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.set(xlabel="minutes of the run")
    ax.margins(x=0.12)
    ax.invert_yaxis()
    return ax


def mosaic(stacks: np.ndarray, columns: int = 10) -> np.ndarray:
    """Stacks of frames, uint8 (N, 4, 84, 84), as a grid in which each state has its place, uint8 (4, H, W)."""
    n, frames, height, width = stacks.shape
    rows = -(-n // columns)
    grid = np.full((frames, rows * columns, height + 2, width + 2), 255, dtype=np.uint8)  # a white line between states
    grid[:, :n, 1:-1, 1:-1] = stacks.swapaxes(0, 1)
    grid = grid.reshape(frames, rows, columns, height + 2, width + 2).swapaxes(2, 3)  # (4, rows, H, columns, W)
    return grid.reshape(frames, rows * (height + 2), -1)


def gif_bytes(stacks: np.ndarray, *, columns: int = 10, scale: int = 1, milliseconds: int = 250) -> bytes:
    """A GIF of the `mosaic` of stacks of frames, uint8 (N, 4, 84, 84), that runs through each state's four frames."""
    images = [Image.fromarray(image) for image in mosaic(stacks, columns)]
    images = [image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def write_gif(
    path: str | Path, stacks: np.ndarray, *, columns: int = 10, scale: int = 1, milliseconds: int = 250
) -> Path:
    """Write `gif_bytes` atomically; returns the path. Raises RunFolderError when it cannot be written."""
    write_bytes(path, gif_bytes(stacks, columns=columns, scale=scale, milliseconds=milliseconds))
    return Path(path)
