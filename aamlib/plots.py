"""Figures from the tidy tables: each function draws on an Axes and returns it; and GIFs of frames."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)
from PIL import Image

from aamlib import stats
from aamlib.comparison import ANY, percent, without_setting
from aamlib.files import write_bytes
from aamlib.runs import METRICS

LABELS = {
    "agent_steps": "agent steps (4 emulator frames each)",
    "labels_used": "labels used (queries)",
    "unique_labels": "unique states labelled",
    "loss": "loss summed over the round's queries (nats)",
    "loss_per_label": "loss per label (nats)",
    "smoothed": "unclipped score",
    "normalised": "normalised score (0 random play, 1 expert)",
    **{f"probe_{probe}_kl": "KL(expert || student), nats" for probe in ("expert", "random")},
    **{f"probe_{probe}_agreement": "greedy agreement with the expert" for probe in ("expert", "random")},
    **{f"probe_{probe}_regret": "mean regret (Q-value)" for probe in ("expert", "random")},
    "asked_indifferent": "share of the states asked about",
    "asked_costly": "share of the states asked about",
    "asked_q_gap": "mean Q-gap of the states asked about",
    "auroc": "AUROC against costly mistakes",
    "auroc_decided": "AUROC against costly mistakes",
}
COLORBLIND = (  # seaborn's palette of this name; importing seaborn takes longer than drawing with it
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip
# The built-in functions', which stand in this order.
COLORS = {name: COLORBLIND[i] for name, i in {"bald": 0, "variation_ratio": 2, "entropy": 1, "random": 4}.items()}
_OTHERS = [COLORBLIND[i] for i in (3, 9, 7, 5, 6, 8)]
_OTHERS += [to_hex((0.55 * red, 0.55 * green, 0.55 * blue)) for red, green, blue in map(to_rgb, _OTHERS)]
_colors = COLORS | {ANY: to_hex("0.2")}  # and those that others have been given
PHASES = dict(zip((name for name in METRICS if name.startswith("seconds_")), COLORBLIND, strict=False))


def name_of(acquisition: str) -> str:
    """The function's name as it stands in figures; margin:margin is margin, other own functions keep their module.

    A setting by which runs are told apart follows it, as in "bald, n_samples=100".
    """
    if (function := without_setting(acquisition)) != acquisition:
        return name_of(function) + acquisition.removeprefix(function)
    module, _, function = acquisition.partition(":")
    if function:
        return function if function == module and function not in COLORS else acquisition
    return "BALD" if acquisition == "bald" else acquisition.replace("_", " ")


def in_order(acquisitions: Iterable[str]) -> list[str]:
    """Each acquisition function once: the built-in ones first, then others by name; with other settings after it."""
    places = {name: i for i, name in enumerate(COLORS)}

    def place(name: str) -> tuple[Any, ...]:
        function, value = without_setting(name), name.rpartition("=")[2]
        number = float(pd.to_numeric(value, errors="coerce"))
        return places.get(function, len(places)), function, -1.0 if np.isnan(number) else number, name

    return sorted({*acquisitions}, key=place)


def palette(acquisitions: Iterable[str]) -> dict[str, str]:
    """A colour per acquisition function, which it keeps in all figures; the built-in ones have the same ever."""
    for i, name in enumerate(sorted({*acquisitions} - {*_colors}), start=len(_colors) - len(COLORS) - 1):
        _colors[name] = _OTHERS[i % len(_OTHERS)]
    return dict(_colors)


def plot_scores(
    evaluations: pd.DataFrame,
    references: Mapping[str, float] | None = None,
    *,
    x: str = "agent_steps",
    ax: Axes | None = None,
) -> Axes:
    """Score against steps or labels: each game a dot, each run a line through its evaluations' means.

    `evaluations`: as `load_evaluations`. `references`: horizontal lines by name, such as
    {"expert": 19.5, "random play": -20.4}. `x`: "agent_steps" or "labels_used".
    """
    ax = ax or plt.gca()
    colors = palette(evaluations["acquisition"])
    for (acquisition, _), games in evaluations.groupby(["acquisition", "run"]):
        color = colors[str(acquisition)]
        means = games.groupby(x)["score"].mean()
        ax.scatter(games[x], games["score"], s=8, color=color, alpha=0.25, linewidth=0)
        ax.plot(means.index, means, marker="o", markersize=4, color=color, label=name_of(str(acquisition)))
    _draw_references(ax, references)
    ax.set(ylabel="unclipped score (dot: a game, line: mean)")
    return _finish(ax, x)


def plot_curves(
    curves: pd.DataFrame,
    references: Mapping[str, float] | None = None,
    *,
    x: str = "agent_steps",
    all_labels: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Smoothed score against steps or labels, all functions in one plot; a pale dot is an evaluation's mean.

    From five seeds on, a function is a line (interquartile mean) in a band (95 % interval at each evaluation), which
    ends where the shortest run does; with fewer, each seed is a line.

    `curves`: as `aamlib.comparison.learning_curves`, of one game and share; references and x as in `plot_scores`, x may
    be "unique_labels" too. `all_labels`: curves of runs that asked about the whole pool, as a further reference.
    """
    ax = ax or plt.gca()
    colors = palette(curves["acquisition"])
    for acquisition in in_order(curves["acquisition"]):
        rows = curves[curves["acquisition"] == acquisition]
        has_line = rows["smoothed"].notna().any()
        label = None if has_line else name_of(acquisition)
        ax.scatter(rows[x], rows["score"], s=10, color=colors[acquisition], alpha=0.5, linewidth=0, label=label)
        _draw_runs(ax, rows, x, "smoothed", name_of(acquisition), color=colors[acquisition])
    ax.set_xlim(0, float(curves[x].max()) * 1.02)
    if all_labels is not None:
        _draw_runs(ax, all_labels, x, "smoothed", "100 % labels", color="0.2", linestyle="-.", linewidth=1.2)
    _draw_references(ax, references)
    ax.set(ylabel=LABELS["smoothed"])
    return _finish(ax, x)


def plot_shares(
    curves: pd.DataFrame, *, shares: Iterable[float] = (), x: str = "labels_used", ax: Axes | None = None
) -> Axes:
    """Normalised score of one function, a line or band per share of the pool; x on a log scale.

    `shares`: those in the plots beside it, where they are to have the same colours.
    """
    ax = ax or plt.gca()
    all_shares = sorted({*curves["query_fraction"], *shares}, reverse=True)
    colors = dict(zip(all_shares, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(all_shares))), strict=True))
    for share in sorted(set(curves["query_fraction"])):
        rows = curves[curves["query_fraction"] == share]
        _draw_runs(ax, rows, x, "normalised", percent(share), color=colors[share])
    ax.set(ylabel=LABELS["normalised"])
    ax.set_xscale("log")
    _finish(ax, x)
    _log_ticks(ax.xaxis, EngFormatter(sep=""))
    return ax


def plot_metric(
    metrics: pd.DataFrame, column: str, *, x: str = "agent_steps", log: bool = False, ax: Axes | None = None
) -> Axes:
    """One column of the metrics (as `load_runs`) against steps or labels: seeds or bands as in `plot_curves`."""
    ax = ax or plt.gca()
    colors = palette(metrics["acquisition"])
    for acquisition in in_order(metrics["acquisition"]):
        rows = metrics[metrics["acquisition"] == acquisition].dropna(subset=[column])
        _draw_runs(ax, rows, x, column, name_of(acquisition), color=colors[acquisition])
    ax.set(ylabel=LABELS.get(column, column.replace("_", " ")))
    if log:
        ax.set_yscale("log")
        _log_ticks(ax.yaxis, StrMethodFormatter("{x:g}"))
    return _finish(ax, x)


def plot_asked(rounds: pd.DataFrame, column: str, *, ax: Axes | None = None) -> Axes:
    """What each run asked about, means of the ten rounds around each; dotted, the same of all states in the pools.

    The dotted pools are those of the random runs, if there are any, which no function has shaped. `rounds`: as
    `aamlib.evidence.per_round`. `column`: asked_indifferent, asked_costly (log), asked_q_gap, or auroc and
    auroc_decided, without random, whose one half is drawn as chance. Ten rounds without a value leave a gap.
    """
    ax, x, colors = ax or plt.gca(), "agent_steps", palette(rounds["acquisition"])
    is_log, is_auroc = column == "asked_costly", column.startswith("auroc")

    def running(values: pd.Series) -> pd.Series:
        has_begun, goes_on = values.ffill().notna(), values.bfill().notna()
        means = values.rolling(10, min_periods=1, center=True).mean().where(has_begun & goes_on)
        return means.where(means > 1e-9) if is_log else means  # rolling leaves a rounding error of a zero

    for acquisition in in_order(rounds["acquisition"]):
        if not (is_auroc and without_setting(acquisition) == "random"):
            rows = rounds[rounds["acquisition"] == acquisition]
            rows = rows.assign(**{column: rows.groupby("run")[column].transform(running)})
            _draw_runs(ax, rows, x, column, name_of(acquisition), color=colors[acquisition])
    if is_auroc:
        ax.axhline(0.5, color="0.6", linewidth=1, label="chance")
        ax.set_ylim(0, 1)
    else:
        at_random = rounds[rounds["acquisition"] == "random"]
        whose, pools = ("random's", at_random) if len(at_random) else ("the", rounds)
        means = running(pools.groupby(x)[column.replace("asked", "pool")].mean())
        ax.plot(means.index, means, color="0.3", linestyle=":", linewidth=1.2, label=f"all states in {whose} pools")
    if is_log:
        ax.set_yscale("log")
        _log_ticks(ax.yaxis, FuncFormatter(lambda share, _: percent(share)))
    elif column == "asked_indifferent":
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    ax.set(ylabel=LABELS[column])
    return _finish(ax, x)


def plot_thresholds(thresholds: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Labels (or steps, on a log scale) at which runs first reached a threshold, all shares and functions of a game.

    `thresholds`: as `aamlib.comparison.thresholds`, of one game, threshold and x. A bar is the interval between two
    evaluations, dotted before the first; an arrow starts where a curve ended without reaching the threshold.
    """
    ax = ax or plt.gca()
    colors, places = palette(thresholds["acquisition"]), _rows(ax, thresholds)
    for treatment, rows in thresholds.groupby(["query_fraction", "acquisition"]):
        offsets = np.linspace(-0.3, 0.3, len(rows)) if len(rows) > 1 else [0.0]
        color = colors[str(treatment[1])]
        for offset, after, by in zip(offsets, rows["after"], rows["by"], strict=True):
            y = places[treatment] + offset
            if np.isfinite(by):
                ax.plot([after, by], [y, y], "-" if after else ":", color=color, linewidth=3, solid_capstyle="butt")
            else:  # at the left edge where a run has no mean yet: a log scale has no 0
                place = ax.transData if after else ax.get_yaxis_transform()
                ax.plot(after, y, ">", color=color, markerfacecolor="none", markersize=6, zorder=1, transform=place)
    ax.set_xlabel(LABELS[str(thresholds["x"].iloc[0])])
    ax.set_xscale("log")
    _log_ticks(ax.xaxis, EngFormatter(sep=""))
    return ax


def plot_areas(areas: pd.DataFrame, estimates: pd.DataFrame, *, x: str = "agent_steps", ax: Axes | None = None) -> Axes:
    """Mean normalised score of each run (pale, with its noise), and of each function with its interval, if it has one.

    `areas`, `estimates`: as `aamlib.comparison.areas` and `estimates`, of one game, or of several taken together, which
    have a marker each.
    """
    ax = ax or plt.gca()
    colors, places = palette(areas["acquisition"]), _rows(ax, areas)
    markers = dict(zip(areas["game"].unique(), itertools.cycle("os^Dv")))
    for (game, share, acquisition), rows in areas.groupby(["game", "query_fraction", "acquisition"]):
        style = {"fmt": markers[game], "color": colors[str(acquisition)], "alpha": 0.5}
        at = [places[share, acquisition]] * len(rows)
        ax.errorbar(rows[f"area_{x}"], at, xerr=rows[f"area_{x}_noise"], **style)
    if len(markers) > 1:
        for game, marker in markers.items():
            ax.plot([], [], marker, color="0.5", label=game)
        ax.legend()
    bars = estimates.dropna(subset=["low"])[["query_fraction", "acquisition", "iqm", "low", "high"]]
    for share, acquisition, middle, low, high in bars.to_numpy():
        y, color = places[share, acquisition], colors[acquisition]
        ax.plot([low, high], [y, y], color=color, linewidth=2)
        ax.plot(middle, y, marker="|", color=color, markersize=14, markeredgewidth=2.5)
    _show(ax, 0.0, 1.0)  # random play and the expert
    ax.set(xlabel=f"mean normalised score\nover {x.replace('_', ' ')}")
    return ax


def plot_phases(metrics: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Mean seconds per round of each phase, a stacked bar per share and function; the warm-up is left out."""
    ax = ax or plt.gca()
    rounds = metrics[metrics["round"] > 0]
    places = _rows(ax, rounds)
    columns = [name for name in PHASES if name in metrics]
    means = rounds[columns].fillna(0).groupby([rounds["query_fraction"], rounds["acquisition"]]).mean()
    y, left = [places[treatment] for treatment in means.index], np.zeros(len(means))
    for column in columns:
        style: dict[str, Any] = {"color": PHASES[column], "edgecolor": "white", "linewidth": 0.5}
        bars = ax.barh(y, means[column], left=left, label=column.removeprefix("seconds_"), **style)
        left = left + means[column].to_numpy()
    ax.bar_label(bars, labels=[f"{total:.1f}" for total in left], padding=4)
    ax.set(xlabel="seconds per round, mean", xlim=(0, 1.14 * left.max()))
    ax.legend(ncols=len(columns), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize="small")
    return ax


def plot_seconds(metrics: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Where a run's time went: per phase, in minutes, or in seconds if it took less than ten minutes."""
    ax = ax or plt.gca()
    seconds = metrics[[name for name in PHASES if name in metrics]].sum()
    unit, length = ("minutes", 60) if seconds.sum() >= 600 else ("seconds", 1)
    bars = ax.barh([name.removeprefix("seconds_") for name in seconds.index], seconds / length, color="C0")
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.set(xlabel=f"{unit} of the run")
    ax.margins(x=0.12)
    ax.invert_yaxis()
    return ax


def _draw_runs(ax: Axes, rows: pd.DataFrame, x: str, y: str, label: str, **style: Any) -> None:
    """The runs of one function: each a line, or from five on their interquartile mean in its interval's band."""
    known = rows.dropna(subset=[y])
    rows = rows[rows["run"].isin(known["run"])]
    seeds = known["run"].nunique()
    shared = known.pivot(index="agent_steps", columns="run", values=y).dropna()  # steps of which every run has a value
    if seeds < stats.MIN_SEEDS or shared.empty:
        label = f"{label}, {seeds} seeds" if seeds > 1 else label
        for _, run in rows.groupby("run"):  # with a gap where there is nothing
            ax.plot(run[x], run[y], label=label, marker=_marker(run[y]), **{"linewidth": 1.5, **style})
        return
    values = shared.to_numpy().T  # (seeds, evaluations)
    low, high = stats.interval(stats.iqm, values)
    band = pd.DataFrame({"low": low, "iqm": stats.iqm(values, axis=0), "high": high}, index=shared.index)
    at = rows.groupby("agent_steps")["run"].agg("count")
    band = band.reindex(at.index[at == seeds])  # with a gap where a run that went so far has nothing
    xs = rows.groupby("agent_steps")[x].mean().loc[band.index]
    ax.fill_between(xs, band["low"], band["high"], color=style["color"], alpha=0.2, linewidth=0)
    ax.plot(
        xs,
        band["iqm"],
        label=f"{label}, IQM of {seeds} seeds",
        marker=_marker(band["iqm"]),
        **{"linewidth": 2, **style},
    )


def _marker(values: pd.Series) -> str | None:
    """A dot for a line of a single value, which would not be seen."""
    return "o" if values.notna().sum() == 1 else None


def _draw_references(ax: Axes, references: Mapping[str, float] | None) -> None:
    for i, (name, score) in enumerate((references or {}).items()):
        ax.axhline(score, linestyle=("--", ":", "-.")[i % 3], color="0.3", linewidth=1, label=f"{name} ({score:.1f})")


def legend_once(ax: Axes, **style: Any) -> None:
    """A legend in which lines of one label, such as several runs of one function, stand once."""
    handles, names = ax.get_legend_handles_labels()
    entries = dict(zip(names, handles, strict=True))
    ax.legend(entries.values(), entries, **{"fontsize": "small", **style})


def legend_below(figure: Figure) -> None:
    """One legend of all panels' entries in place of theirs, below them, in as many columns as the figure has room for.

    Where a panel has room for its own, another has not. `figure`: in constrained layout, each Axes with a legend.
    """
    entries: dict[str, Any] = {}
    for legend in [ax.get_legend() for ax in figure.axes]:
        assert legend is not None
        entries |= dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
        legend.remove()
    for columns in range(len(entries), 0, -1):
        below = figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns, fontsize="small")
        if below.get_window_extent().width <= figure.bbox.width or columns == 1:
            return
        below.remove()


def _finish(ax: Axes, x: str) -> Axes:
    """The x axis in thousands or millions, and a legend."""
    ax.set_xlabel(LABELS[x])
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend_once(ax)
    return ax


def _show(ax: Axes, *xs: float) -> None:
    ax.update_datalim([(x, 0) for x in xs], updatey=False)  # unlike set_xlim, leaves the axis free to grow
    ax.autoscale_view(scaley=False)


def _log_ticks(axis: Axis, formatter: Formatter) -> None:
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter)
    low, high = axis.get_view_interval()
    for locator in (LogLocator(subs=(1, 2, 5)), LogLocator(subs=(1, 2, 3, 5, 7)), MaxNLocator(4)):
        axis.set_major_locator(locator)
        if sum(low <= tick <= high for tick in axis.get_majorticklocs()) >= 3:  # two could be of a linear scale
            break


def _rows(ax: Axes, table: pd.DataFrame) -> dict[Any, float]:
    """A horizontal row per share and function, shares set apart: their y, top down, and the axis labelled so."""
    places: dict[Any, float] = {}
    y = 0.0
    for share, rows in table.groupby("query_fraction"):
        for acquisition in in_order(rows["acquisition"]):
            places[share, acquisition] = y
            y += 1
        y += 0.6
    ax.set_yticks(list(places.values()), [f"{name_of(name)}, {percent(share)}" for share, name in places])
    ax.set_ylim(y - 1, -0.6)
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    return places


def mosaic(stacks: np.ndarray, columns: int = 10) -> np.ndarray:
    """Stacks of frames, uint8 (N, 4, 84, 84), as a grid in which each state has its place, uint8 (4, H, W)."""
    n, frames, height, width = stacks.shape
    rows = -(-n // columns)
    grid = np.full((frames, rows * columns, height + 2, width + 2), 255, dtype=np.uint8)  # a white line between states
    grid[:, :n, 1:-1, 1:-1] = stacks.swapaxes(0, 1)
    grid = grid.reshape(frames, rows, columns, height + 2, width + 2).swapaxes(2, 3)  # (4, rows, H, columns, W)
    return grid.reshape(frames, rows * (height + 2), -1)


def gif_bytes(stacks: np.ndarray, *, columns: int = 10, scale: int = 1) -> bytes:
    """A GIF of the `mosaic` of stacks of frames, uint8 (N, 4, 84, 84), that runs through each state's four frames."""
    images = [Image.fromarray(image) for image in mosaic(stacks, columns)]
    images = [image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=250, loop=0)
    return buffer.getvalue()


def write_gif(path: str | Path, stacks: np.ndarray) -> Path:
    """Write `gif_bytes` atomically; returns the path. Raises RunFolderError when it cannot be written."""
    write_bytes(path, gif_bytes(stacks))
    return Path(path)
