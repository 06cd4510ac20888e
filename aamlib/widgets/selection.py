"""The view of recorded selections: the frames that a round chose, alone or beside those of another."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from aamlib import figures
from aamlib.atari import action_names
from aamlib.comparison import percent
from aamlib.config import ConfigError
from aamlib.files import make_folder, write_csv
from aamlib.plots import gif_bytes, mosaic, write_gif
from aamlib.runs import Run
from aamlib.selections import score_names
from aamlib.widgets.base import Picture, PolicyPlot, View, labelled, one_of, row
from aamlib.widgets.round import MEASURES, SHOWN, RoundView

AGREEMENT = ("all", "agree", "disagree", "costly mistake")
_STUDY_NAMES = {"bald": "BALD", "variation_ratio": "var_ratio"}
# The GIFs that the study shows: game, acquisition function, and its share of the pool.
STUDY_GIFS = (
    ("breakout", "entropy", 1.0),
    ("breakout", "bald", 0.05),
    ("breakout", "variation_ratio", 0.05),
    ("breakout", "random", 0.05),
    ("pong", "entropy", 0.6),
    ("pong", "bald", 0.6),
    ("pong", "variation_ratio", 0.6),
    ("pong", "random", 0.6),
)


def gif_name(acquisition: str, query_fraction: float) -> str:
    """The study's name for the GIF of a selection, such as "train_AMN_BALD_perc_5.gif"."""
    return f"train_AMN_{_STUDY_NAMES.get(acquisition, acquisition)}_perc_{query_fraction * 100:g}.gif"


def write_study_gifs(runs: dict[str, Run], folder: str | Path) -> list[str]:
    """Write the `STUDY_GIFS` that there are runs for, each beside its CSV; returns a sentence on every one.

    Each shows the last recorded round of the run with the lowest seed: of the queried states recorded with frames, the
    50 that the run's own function scores highest.
    """
    told = []
    for treatment in STUDY_GIFS:
        game, acquisition, fraction = treatment
        name = gif_name(acquisition, fraction)
        found = {
            run.config["seed"]: name
            for name, run in runs.items()
            if (run.config["game"], run.config["acquisition"], run.config["query_fraction"]) == treatment
        }
        if found:
            view = SelectionView(runs, found[min(found)], folder=Path(folder))
        if found and len(view.shown):
            gif, _ = view.export(name)
            told.append(f"{gif}: {len(view.shown)} states, {view.run}, round {view.round}")
        else:
            wanted = f"{game}, {acquisition} on {percent(fraction)}"
            told.append(f"{name} skipped: no run of {wanted} has recorded frames here.")
    return told


class SelectionView(RoundView):
    """A grid of recorded states, sorted and filtered; the one that is clicked is shown with both policies.

    Only states whose frames were recorded can be shown; percentiles are over all recorded states of the kind.

    Traits beside `RoundView`'s: sort (a column: "score_bald", "q_gap", ...; at first the score of the run's own
    function), descending, gaps (Q-gap from, to), percentiles (of the sorted column, from, to), agreement (one of
    `AGREEMENT`), position (of the state in the grid), columns (of the grid), folder (for exports).
    """

    column_trait = "sort"

    sort = traitlets.Unicode()
    descending = traitlets.Bool(True)
    gaps = traitlets.Tuple((0.0, math.inf))
    percentiles = traitlets.Tuple((0, 100))
    agreement = traitlets.Enum(AGREEMENT, "all")
    position = traitlets.Int(0, min=0)
    columns = traitlets.Int(10, min=1)
    folder = traitlets.Instance(Path, args=(".",))

    def first_column(self, run: str) -> str:
        """What the run's own function makes of the states."""
        return f"score_{self.runs[run].config['acquisition']}"

    @property
    def offered(self) -> list[str]:
        """Columns to sort by."""
        return [*(f"score_{name}" for name in score_names(self.states)), *MEASURES]

    @property
    def shown(self) -> pd.DataFrame:
        """The states in the grid, in its order; at most 50."""
        states = self.states
        keep = states["frames"].notna() & states["q_gap"].between(*self.gaps)
        if self.percentiles != (0, 100):
            low, high = self.percentiles
            in_order = states.sort_values([self.sort, "score_random"])[self.sort]  # chance orders those that are equal
            keep &= in_order.rank(pct=True, method="first").mul(100).between(low, high)
        if self.agreement == "costly mistake":
            keep &= states["costly"]
        elif self.agreement != "all":
            keep &= states["disagree"] == (self.agreement == "disagree")
        return states[keep].sort_values(self.sort, ascending=not self.descending).head(SHOWN)

    @traitlets.validate("sort")
    def _known_column(self, proposal: Any) -> str:
        return one_of("column", proposal["value"], self.offered, f" of {self.run}")

    @traitlets.observe("run", "round", "kind", "sort", "descending", "gaps", "percentiles", "agreement", "position")
    def _tell(self, _: Any = None) -> None:
        shown = self.shown
        if shown.empty:
            recorded = self.states["frames"].notna().any()
            self.readout = (
                "No state with recorded frames passes the filters." if recorded else "No frames are recorded."
            )
            return
        state = shown.iloc[min(self.position, len(shown) - 1)]
        self.readout = (
            f"{len(shown)} states, {shown['indifferent'].mean():.0%} expert-indifferent, "
            f"{shown['costly'].mean():.0%} costly mistakes, mean Q-gap {shown['q_gap'].mean():.3f}. "
            f"State {state['state_id']}: entropy {state['score_entropy']:.2f}, BALD {state['score_bald']:.3f} nats, "
            f"Q-gap {state['q_gap']:.3f}, regret {state['regret']:.3f}"
        )

    def export(self, name: str | None = None) -> tuple[Path, Path]:
        """Write the shown states as a GIF like the study's, and as CSV; returns both paths.

        `name` of the GIF; None: one that says what is shown, so that another selection never takes its place. Raises
        ConfigError when nothing is shown, RunFolderError when they cannot be written.
        """
        shown = self.shown
        if shown.empty:
            raise ConfigError(f"{self.readout} There is nothing to export; widen the filters, or take another round.")
        make_folder(self.folder)
        gif = write_gif(self.folder / (name or self.export_name()), np.stack(shown["frames"].to_list()))
        table = shown.drop(columns=["frames", "q_samples", "expert_q"]).assign(run=self.run, round=self.round)
        write_csv(gif.with_suffix(".csv"), table)
        return gif, gif.with_suffix(".csv")

    def export_name(self) -> str:
        """Run, round, kind, order and filters, as the name of a GIF; and in six digits the run's folder."""
        low, high = self.gaps
        words = [
            self.title(), self.kind, f"by {self.sort}", "" if self.descending else "ascending",
            "" if (low, high) == (0, math.inf) else f"q_gap {low:.2f} to {high:.2f}",
            "" if self.percentiles == (0, 100) else "percentile {} to {}".format(*self.percentiles),
            "" if self.agreement == "all" else self.agreement,
            hashlib.sha256(str(self.runs[self.run].dir).encode()).hexdigest()[:6],
        ]  # fmt: skip
        return re.sub(r"[^\w.=-]+", "-", " ".join(filter(None, words)).replace("%", "percent")) + ".gif"

    def grid(self, shown: pd.DataFrame) -> np.ndarray:
        """The newest frame of each shown state, in rows."""
        stacks = np.stack(shown["frames"].to_list()) if len(shown) else np.full((1, 4, 84, 84), 255, np.uint8)
        return mosaic(stacks, self.columns)[-1]

    def policies(self, state: pd.Series) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
        """The actions' names, and the policies of expert (A,), student's mean (A,) and passes (T, A)."""
        tau = self.config["temperature"]
        passes = figures.softmax(state["q_samples"], tau)
        return action_names(self.config["game"]), figures.softmax(state["expert_q"], tau), passes.mean(axis=0), passes

    def figure(self) -> Figure:
        """The grid, and the chosen state's frames and policies."""
        shown = self.shown
        rows = math.ceil(len(shown) / self.columns)
        figure = figures.new_figure(12.0, max(4.8, 0.8 + 0.8 * rows))  # a state is as large in few columns
        axes = figure.subplot_mosaic([["grid", "strip"], ["grid", "policy"]], width_ratios=(2, 1), height_ratios=(1, 2))
        for ax in axes.values():
            ax.set_anchor("N")
            ax.set_axis_off()
        axes["grid"].set_title(f"{self.title()}: {self.kind} states by {self.sort}", fontsize="medium")
        if shown.empty:
            axes["grid"].text(0.5, 0.5, self.readout, ha="center", va="center")
            return figure
        position = min(self.position, len(shown) - 1)
        state = shown.iloc[position]
        axes["grid"].imshow(self.grid(shown), cmap="gray", vmin=0, vmax=255)
        axes["strip"].imshow(figures.strip(state["frames"]), cmap="gray", vmin=0, vmax=255)
        axes["strip"].set_title(f"state {state['state_id']}, place {position + 1}", fontsize="medium")
        axes["policy"].set_axis_on()
        figures.draw_policies(axes["policy"], *self.policies(state))
        return figure

    def make_panel(self) -> ipywidgets.Widget:
        """Controls, the grid, and the chosen state."""
        sort = self.column_control("Sort by")
        descending = self.link("descending", labelled(ipywidgets.Checkbox, "highest first", 105, indent=False))
        agreement = self.link("agreement", labelled(ipywidgets.Dropdown, "Student", 190, options=AGREEMENT))
        percentiles = self.link(
            "percentiles", labelled(ipywidgets.IntRangeSlider, "Percentile", 300, min=0, max=100, value=(0, 100))
        )
        gaps = labelled(ipywidgets.FloatRangeSlider, "Q-gap", 300, min=0, max=1, step=0.01)
        save = ipywidgets.Button(description="Save GIF and CSV", icon="save", layout={"width": "auto"}).add_class(
            "aam-save"
        )
        saved = ipywidgets.HTML().add_class("aam-saved")
        grid = Picture(layout={"max_width": "640px"}).add_class("aam-grid")
        motion = ipywidgets.Image(format="gif", layout={"width": "252px", "height": "252px"}).add_class("aam-motion")
        policy, plot = ipywidgets.Image(layout={"max_width": "100%"}).add_class("aam-policy"), PolicyPlot(4.4, 3.2)
        chosen = ipywidgets.VBox([motion, policy])

        def show_state(_: Any = None) -> None:
            shown = self.shown
            chosen.layout.display = "none" if shown.empty else None
            if shown.empty:
                grid.mark = [0.0] * 4
                return
            position = min(self.position, len(shown) - 1)
            columns, rows = self.columns, -(-len(shown) // self.columns)
            grid.mark = [position % columns / columns, position // columns / rows, 1 / columns, 1 / rows]
            state = shown.iloc[position]
            motion.value = gif_bytes(state["frames"][None], columns=1, scale=3)
            policy.value = plot.draw(*self.policies(state))

        def show_states(_: Any = None) -> None:
            saved.value = ""
            grid.png = figures.to_png(self.grid(self.shown))
            show_state()

        def pick(change: Any) -> None:
            x, y, *_ = change.new
            rows = -(-len(self.shown) // self.columns)
            self.position = int(x * self.columns) + self.columns * int(y * rows)

        def export(_: Any) -> None:
            with self.telling():
                saved.value = "saved " + " and ".join(str(path) for path in self.export())

        def slide(change: Any) -> None:
            if not self._showing:  # moved by hand
                low, high = change.new
                self.gaps = low, math.inf if high >= gaps.max else high

        def show_gaps(_: Any = None) -> None:
            with self.showing():
                gaps.max = max(0.1, math.ceil(10 * self.states["q_gap"].to_numpy().max(initial=0)) / 10)
                gaps.value = tuple(np.clip(self.gaps, 0, gaps.max).tolist())

        show_gaps()
        gaps.observe(slide, "value")
        self.observe(show_gaps, ["run", "round", "kind", "gaps"])
        gaps.add_class("aam-gaps")
        grid.observe(pick, "clicked")
        save.on_click(export)
        self.observe(show_state, ["position"])
        filters = ["gaps", "percentiles", "agreement"]
        self.observe(show_states, ["run", "round", "kind", "sort", "descending", *filters, "columns"])
        show_states()
        self._tell()
        return ipywidgets.VBox(
            [
                row(*self.round_controls(), sort, descending),
                row(gaps, percentiles, agreement, save),
                saved,
                self.problem_line(),
                self.readout_line(),
                row(grid, chosen),
            ]
        )


class SideBySide(View):
    """Two views beside each other: two runs, two rounds, or two functions on one pool."""

    def __init__(self, left: View, right: View) -> None:
        super().__init__()
        self.left, self.right = left, right

    def make_panel(self) -> ipywidgets.Widget:
        """Both panels, half the page each."""
        for side, view in (("left", self.left), ("right", self.right)):
            view.panel.add_class(f"aam-{side}").layout.width = "50%"
        return ipywidgets.HBox([self.left.panel, self.right.panel])

    def figure(self) -> Figure:
        """Both pictures, one above the other."""
        pictures = [view.figure() for view in (self.left, self.right)]
        heights = [picture.get_figheight() for picture in pictures]
        figure = figures.new_figure(12.0, sum(heights))
        for ax, picture in zip(figure.subplots(2, 1, height_ratios=heights), pictures, strict=True):
            ax.imshow(figures.pixels(picture))
            ax.axis("off")
        return figure
