"""The view of entropy beside BALD: a round's states as points that are linked with their frames."""

from __future__ import annotations

from typing import Any

import ipywidgets
import jscatter
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from aamlib import figures
from aamlib.atari import action_names
from aamlib.plots import gif_bytes, mosaic
from aamlib.selections import score_names
from aamlib.widgets.base import one_of, row
from aamlib.widgets.round import MEASURES, RoundView

_SHOWN = 25  # states at once, beside the points
_NO_FRAMES = "none of these states has frames"
_ANSWERS = ("indifferent", "costly", "disagree", "has_frames")
_ACTIONS = ("student_action", "expert_action")


class ScatterView(RoundView):
    """Recorded states as points, entropy against BALD, coloured by a column; those picked with the lasso show frames.

    Traits beside `RoundView`'s: color (a column), picked (positions in `states`, by lasso or click).
    """

    column_trait = "color"

    kind = traitlets.Enum(("queried", "random"), "random")
    color = traitlets.Unicode()
    picked = traitlets.Tuple()

    def first_column(self, run: str) -> str:
        """The Q-gap, of every run."""
        return "q_gap"

    @property
    def offered(self) -> list[str]:
        """Columns to colour by."""
        scores = [f"score_{name}" for name in score_names(self.states)]
        return [*MEASURES, *_ANSWERS, *_ACTIONS, *scores]

    @property
    def states(self) -> pd.DataFrame:
        """The round's recorded states of this kind, described, and whether each has_frames."""
        states = super().states
        return states.assign(has_frames=states["frames"].notna())

    def palette(self, column: str) -> dict[str, str]:
        """The colour of each value of a column of categories; empty for one of numbers."""
        if column in _ANSWERS:
            return figures.ANSWERS
        return figures.action_palette(action_names(self.config["game"])) if column in _ACTIONS else {}

    @traitlets.validate("color")
    def _known_column(self, proposal: Any) -> str:
        return one_of("column", proposal["value"], self.offered, f" of {self.run}")

    @traitlets.observe("run", "round", "kind")
    def _other_states(self, _: Any) -> None:
        self.picked = ()

    @traitlets.observe("run", "round", "kind", "picked")
    def _tell(self, _: Any = None) -> None:
        states = self.states
        chosen = states.iloc[list(self.picked)] if self.picked else states
        self.readout = (
            f"{len(chosen):,} of {len(states):,} states{'' if self.picked else ' (draw a lasso to pick some)'}: "
            f"{chosen['indifferent'].mean():.1%} expert-indifferent, {chosen['costly'].mean():.1%} costly mistakes, "
            f"mean Q-gap {chosen['q_gap'].mean():.3f}; {chosen['has_frames'].sum()} with frames (the larger points)"
        )

    def points(self) -> pd.DataFrame:
        """The states as points: score_entropy, score_bald and the columns to colour by, answers and actions by name."""
        points = self.states[[*dict.fromkeys(["score_entropy", "score_bald", *self.offered])]].copy()
        for column in (*_ANSWERS, *_ACTIONS):
            points[column] = pd.Categorical.from_codes(points[column].astype(int), pd.Index([*self.palette(column)]))
        return points

    def stacks(self) -> np.ndarray:
        """Frames of up to 25 of the picked states (of all, when none is picked), by chance, uint8 (N, 4, 84, 84)."""
        states = self.states.iloc[list(self.picked)] if self.picked else self.states
        frames = states["frames"].dropna()  # the oldest first
        drawn = frames if len(frames) <= _SHOWN else frames.sample(_SHOWN, random_state=0)
        return np.array(drawn.to_list(), np.uint8).reshape(-1, 4, 84, 84)

    def figure(self) -> Figure:
        """The points, and frames of picked states."""
        figure = figures.new_figure(12.0, 4.8)
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        figures.draw_scatter(left, self.points(), self.color, self.palette(self.color))
        left.set_title(f"{self.title()}: {self.kind} states", fontsize="medium")
        if len(stacks := self.stacks()):
            right.imshow(mosaic(stacks, 5)[-1], cmap="gray", vmin=0, vmax=255)
        title = ("picked states" if self.picked else "some of them") if len(stacks) else _NO_FRAMES
        right.set_title(title, fontsize="medium", loc="left")
        right.set_anchor("NW")
        right.axis("off")
        return figure

    def make_panel(self) -> ipywidgets.Widget:
        """Controls, the linked points and the frames."""
        color = self.column_control("Colour")
        motion = ipywidgets.Image(format="gif", layout={"max_width": "100%"}).add_class("aam-motion")
        nothing = ipywidgets.Label(f"{_NO_FRAMES}: only the larger points have").add_class("aam-nothing")

        scatter = jscatter.Scatter(data=self.points(), x="score_entropy", y="score_bald", height=430)
        scatter.axes(True, grid=True, labels=["predictive entropy, total (nats)", "BALD, epistemic (nats)"])
        scatter.opacity(default=0.8)
        scatter.background("white")
        scatter.mouse(mode="lasso")
        scatter.legend(True)

        def of_those_there(values: pd.Series, map: dict[str, Any]) -> list[Any]:
            """For the categories that occur: jscatter drops the others, and counts on from the first."""
            return [map[category] for category in values.cat.categories if (values == category).any()]

        def shade(points: pd.DataFrame, **once: Any) -> None:
            values = points[self.color]
            if palette := self.palette(self.color):
                scatter.color(by=self.color, map=of_those_there(values, palette), **once)
            else:
                low, high = float(values.min()), float(values.quantile(0.99))
                scatter.color(by=self.color, map="cividis", norm=(low, high if high > low else low + 1.0), **once)

        def show_points(_: Any = None) -> None:
            points, once = self.points(), {"skip_widget_update": True}  # or the page draws old points on new axes
            scatter.selection([])
            scatter.x(scale=(0.0, float(points["score_entropy"].max())), **once)
            scatter.y(scale=(0.0, max(float(points["score_bald"].max()), 1e-6)), **once)
            shade(points, **once)  # the column by which it was coloured may be gone
            scatter.data(points)
            small, large = (3, 7) if len(points) <= 20_000 else (2, 4)  # many large points hide each other
            sizes = of_those_there(points["has_frames"], {"no": small, "yes": large})
            scatter.size(by="has_frames", map=sizes)
            shade(points)
            show_frames()

        def show_frames(_: Any = None) -> None:
            stacks = self.stacks()
            for widget, shown in ((motion, len(stacks) > 0), (nothing, len(stacks) == 0)):
                widget.layout.display = None if shown else "none"
            if len(stacks):
                motion.value = gif_bytes(stacks, columns=5)
            if self.picked != tuple(scatter.widget.selection):  # set from code
                scatter.selection(self.picked)

        def pick(change: Any) -> None:  # a page that is behind may still show more states
            self.picked = tuple(int(i) for i in change.new if i < len(self.states))

        scatter.widget.observe(pick, "selection")
        self.observe(show_points, ["run", "round", "kind"])
        self.observe(lambda _: shade(self.points()), ["color"])
        self.observe(show_frames, ["picked"])
        show_points()
        self._tell()
        view = ipywidgets.VBox([scatter.show()], layout={"width": "640px", "max_width": "100%"}).add_class("aam-points")
        controls = row(*self.round_controls(), color)
        return ipywidgets.VBox([controls, self.problem_line(), self.readout_line(), row(view, motion, nothing)])
