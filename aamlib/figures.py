"""Figures of single states, of one game, and of what a run's functions chose."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from aamlib.plots import COLORBLIND, name_of, palette
from aamlib.selections import INDIFFERENT, describe_q

_ACTIONS = [COLORBLIND[i] for i in (0, 1, 2, 4, 9, 7, 3, 5, 8, 6)]  # neighbours look unlike each other
ANSWERS = {"no": "#00224e", "yes": "#fee838"}  # the ends of the colour map
EXPERT, STUDENT, POOL = COLORBLIND[0], COLORBLIND[1], "0.35"
SCORES = {
    "entropy": "predictive entropy (nats)",
    "bald": "BALD (nats)",
    "variation_ratio": "variation ratio",
    "random": "random score",
}
AXES = {
    "q_gap": "Q-gap (best − second best)",
    "q_range": "Q-range (best − worst)",
    "label_entropy": "entropy of the expert's policy (nats)",
    "regret": "regret (Q-value lost)",
    "aleatoric": "expected entropy (nats)",
    "costly": "costly mistake",
    "indifferent": "expert indifferent",
    "disagree": "student disagrees",
    "has_frames": "frames recorded",
    "student_action": "the student's action",
    "expert_action": "the expert's action",
}


def axis_label(column: str) -> str:
    """What a column of a described selection is called on an axis, with its unit."""
    score = column.removeprefix("score_")
    return SCORES.get(score, f"score of {score}") if column.startswith("score_") else AXES[column]


def action_palette(actions: Sequence[str]) -> dict[str, str]:
    """A colour for each action's name; a game has at most 18 actions."""
    many = [to_hex(color) for color in mpl.colormaps["tab20"].colors]  # type: ignore[attr-defined]
    return dict(zip(actions, _ACTIONS if len(actions) <= len(_ACTIONS) else many, strict=False))


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, which pyplot does not keep; inches at 100 dots each."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The figure drawn, uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def to_png(picture: Figure | np.ndarray, scale: int = 1) -> bytes:
    """PNG of a figure, or of pixels (H, W) or (H, W, 3) enlarged `scale` times; compressed for speed, not for size."""
    image = Image.fromarray(pixels(picture) if isinstance(picture, Figure) else picture)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def strip(stack: np.ndarray) -> np.ndarray:
    """The four frames of a state, (4, 84, 84), side by side with a white line between them."""
    return np.concatenate([np.pad(frame, 1, constant_values=255) for frame in stack], axis=1)


def softmax(q_values: np.ndarray, temperature: float) -> np.ndarray:
    """Policies softmax(Q / temperature) of Q-values (..., A)."""
    return torch.tensor(q_values).div(temperature).softmax(dim=-1).numpy()


def draw_timeline(axes: Iterable[Axes], q_values: np.ndarray, actions: Sequence[str]) -> None:
    """Q-values (N, A) of each action over a game, and under them the Q-gap."""
    above, below = axes
    span = (0, max(1, len(q_values) - 1))
    colors = action_palette(actions)
    for name, values in zip(actions, q_values.T, strict=True):
        above.plot(values, color=colors[name], linewidth=1, label=name)
    above.set(ylabel="expert's Q-value", xlim=span)
    above.tick_params(labelbottom=False)
    above.legend(ncols=_legend_columns(above, actions), fontsize="small", loc="lower left", bbox_to_anchor=(0, 1),
                 frameon=False, borderaxespad=0.2, handlelength=1.2, columnspacing=1)  # fmt: skip
    gap = describe_q(q_values, 1.0)["q_gap"]
    below.fill_between(range(len(gap)), gap, color=EXPERT, linewidth=0, alpha=0.8)
    below.set(ylabel="Q-gap", xlabel="agent step (4 emulator frames)", xlim=span, ylim=(0, None))


def _legend_columns(ax: Axes, names: Sequence[str]) -> int:
    """Into how many columns the names go above an Axes, by the size of small letters: all in one row if they fit."""
    widths = [0.4 + 0.075 * len(name) for name in names]  # inches
    available = ax.get_position().width * ax.figure.get_figwidth()  # type: ignore[union-attr]
    return len(names) if sum(widths) <= available else max(1, int(available / max(widths)))


def draw_histogram(ax: Axes, q_values: np.ndarray, column: str, temperature: float) -> None:
    """Distribution of q_gap, q_range or label_entropy over states with the expert's Q-values (N, A)."""
    table, ceiling = describe_q(q_values, temperature), np.log(q_values.shape[1])
    highest = ceiling if column == "label_entropy" else table[column].quantile(0.995)
    span = (0.0, max(float(highest), 1e-6))
    ax.stairs(*np.histogram(table[column].clip(*span), bins=40, range=span), fill=True, color=EXPERT)
    more = "; last bar: and above" if table[column].max() > span[1] and column != "label_entropy" else ""
    ax.set(xlabel=axis_label(column) + more, xlim=span, ylim=(0, None), ylabel="states")
    if column == "label_entropy":
        ax.axvline(INDIFFERENT * ceiling, color=STUDENT, linestyle="--")
        share = table["indifferent"].mean()
        text = f"τ = {temperature:.3g}\n{share:.1%} indifferent\n(right of the line)"
        where, side = (0.04, "left") if table[column].median() > ceiling / 2 else (0.9, "right")  # where few bars are
        ax.text(where, 0.94, text, transform=ax.transAxes, va="top", ha=side)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))


def draw_policies(
    ax: Axes,
    actions: Sequence[str],
    expert: np.ndarray,
    student: np.ndarray | None = None,
    samples: np.ndarray | None = None,
) -> None:
    """The policies of expert and student, (A,) each, as bars; the student's T dropout passes (T, A) as strips."""
    y = np.arange(len(actions))
    shift = 0.0 if student is None else 0.2
    ax.barh(y - shift, expert, height=0.36, color=EXPERT, label="expert")
    if student is not None:
        label = "student" if samples is None else "student, mean"
        ax.barh(y + shift, student, height=0.36, color=STUDENT, label=label)
    if samples is not None:
        spread = np.linspace(-0.14, 0.14, len(samples))[:, None] + (y + shift)
        ax.scatter(samples, spread, s=9, color="0.1", linewidth=0, zorder=3, label=f"student's {len(samples)} passes")
    ax.set(yticks=y, yticklabels=actions, xlim=(0, 1), xlabel="probability of the action")
    ax.tick_params(axis="y", labelsize="medium" if len(actions) < 9 else "small")
    ax.invert_yaxis()
    ax.legend(fontsize="small", ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2,
              handlelength=1, columnspacing=1)  # fmt: skip


def draw_scatter(ax: Axes, states: pd.DataFrame, color: str, colors: Mapping[str, str] | None = None) -> None:
    """Each state as a point, entropy against BALD, coloured by a column; missing values are left out.

    `states`: as `ScatterView.points`; those that have frames are larger. `colors`: that of each value of a column of
    categories.
    """
    known = states.dropna(subset=[color])
    values, sizes = known[color], known["has_frames"].map({"no": 7, "yes": 24}).astype(float)
    places = known["score_entropy"], known["score_bald"], sizes
    if colors:
        ax.scatter(*places, c=values.astype(str).map(colors), linewidth=0)
        handles = [Patch(color=shade, label=value) for value, shade in colors.items()]
        ax.legend(handles=handles, title=axis_label(color), fontsize="small", handlelength=1)
    else:
        points = ax.scatter(*places, c=values, cmap="cividis", vmax=float(values.quantile(0.99)), linewidth=0)
        assert ax.figure is not None
        ax.figure.colorbar(points, ax=ax, label=axis_label(color))
    ax.set(xlabel="predictive entropy, total (nats)", ylabel="BALD, epistemic (nats)", xlim=(0, None), ylim=(0, None))


def draw_rounds(ax: Axes, table: pd.DataFrame, column: str, by: str = "score") -> None:
    """A column over the rounds, a line per function (or per pair of them); the whole pool is dotted."""
    colors = palette(set(table[by]) - {"pool"}) | {"pool": POOL}
    for name, rows in table.dropna(subset=[column]).groupby(by, sort=False):
        style = ":" if name == "pool" else "-"
        label = " · ".join(map(name_of, str(name).split(" · ")))
        ax.plot(
            rows["round"], rows[column], color=colors[str(name)], linestyle=style, marker="o", markersize=3, label=label
        )
    axis_of_rounds(ax, table["round"])


def axis_of_rounds(ax: Axes, rounds: pd.Series) -> None:
    """The x axis of a figure over rounds: whole numbers, and each round with its own width."""
    ax.set(xlabel="round", xlim=(rounds.min() - 0.5, rounds.max() + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_decomposition(ax: Axes, table: pd.DataFrame, score: str) -> None:
    """Mean total uncertainty of a function's choice (of `selections.choices`), split into its two parts, per round.

    Dots are the rounds that were recorded.
    """
    rows = table[table["score"] == score]
    wide = rows
    if len(rows) == 1:  # a single round is drawn as wide as one
        wide = pd.concat([rows.assign(round=rows["round"] + side) for side in (-0.5, 0.5)])
    ax.stackplot(wide["round"], wide["aleatoric"], wide["score_bald"], colors=[COLORBLIND[9], COLORBLIND[3]],
                 labels=["aleatoric: expected entropy", "epistemic: BALD"])  # fmt: skip
    ax.plot(rows["round"], rows["score_entropy"], color="0.1", linewidth=1.5, marker="o", markersize=3,
            label="total: predictive entropy")  # fmt: skip
    ax.set_title(f"chosen by {name_of(score)}" if score != "pool" else "the whole pool")
    axis_of_rounds(ax, rows["round"])
