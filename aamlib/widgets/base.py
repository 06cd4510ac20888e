"""What the notebooks' views are made of: each keeps its state in traits, and shows it as controls where these work.

A view is the last line of a cell. In JupyterLab it shows `panel`, live widgets; papermill and nbconvert, where no one
can turn a knob, get `figure()`, a still picture of the same state. All can be set from code too: `view.step = 5`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from IPython.core.getipython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aamlib import figures
from aamlib.comparison import percent
from aamlib.config import ConfigError, nearest
from aamlib.experts import ExpertError
from aamlib.files import RunFolderError
from aamlib.runs import Run


def is_live() -> bool:
    """Whether widgets can be used: a notebook run by papermill or nbconvert cannot be asked for input."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def one_of(what: str, value: str, allowed: Sequence[str], where: str = "") -> str:
    """The value. Raises ConfigError for one that is not allowed, naming the nearest."""
    if value not in allowed:
        raise ConfigError(f"unknown {what} {value!r}{where}; {nearest(value, allowed)}")
    return value


def run_titles(runs: Mapping[str, Run]) -> dict[str, str]:
    """What each run is, in words, by its name; the name stands behind where two runs are the same."""
    titles = {}
    for name, run in runs.items():
        config = run.config
        share = percent(config["query_fraction"])
        titles[name] = f"{config['game']}, {config['acquisition']} on {share}, seed {config['seed']}"
    words = list(titles.values())
    return {name: title if words.count(title) == 1 else f"{title} ({name})" for name, title in titles.items()}


class View(traitlets.HasTraits):
    """What all views share: `panel`, the live controls; `figure()`, the still picture; `readout`, the numbers.

    `problem`: why the last thing that was tried on the panel could not be done; "" if it was.
    """

    readout = traitlets.Unicode()
    problem = traitlets.Unicode()
    _showing = False

    @functools.cached_property
    def panel(self) -> ipywidgets.Widget:
        """The live widgets, linked to this view's traits; made when they are first needed."""
        return self.make_panel()

    def make_panel(self) -> ipywidgets.Widget:
        """Build the live widgets."""
        raise NotImplementedError

    def figure(self) -> Figure:
        """A still picture of the present state."""
        raise NotImplementedError

    def link(self, trait: str, widget: ipywidgets.Widget) -> Any:
        """Tie a trait to a control, which also gets the trait's name as a class for styles and tests.

        A value that cannot be taken goes back to the one before, and `problem` says why.
        """

        def show(_: Any = None) -> None:
            self._show(trait, widget)

        show()
        self.follow(trait, widget)
        self.observe(show, trait)
        return widget.add_class(f"aam-{trait}")

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Within the block controls go with the view, not it with them: they may have no place for a value."""
        before, self._showing = self._showing, True
        try:
            yield
        finally:
            self._showing = before

    def follow(self, trait: str, widget: ipywidgets.Widget) -> None:
        """Let the trait go with a control, as `link` does, but not the control with the trait."""

        def take(change: Any) -> None:
            if not self._showing:
                with self.telling():
                    self.set_trait(trait, change.new)
                self._show(trait, widget)

        widget.observe(take, "value")

    def _show(self, trait: str, widget: ipywidgets.Widget) -> None:
        with self.showing():
            try:
                widget.value = getattr(self, trait)
            except traitlets.TraitError:  # a list that does not offer what was set from code
                widget.value = None

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell as `problem` what is raised within the block: on a page errors go to a log that nobody looks at."""
        self.problem = ""
        try:
            yield
        except (ConfigError, ExpertError, RunFolderError, OSError) as problem:
            self.problem = str(problem)

    def problem_line(self) -> ipywidgets.Widget:
        """The `problem` as a line of text."""
        line = ipywidgets.HTML()
        text = "<span style='color: #b00020'>{}</span>".format
        traitlets.dlink((self, "problem"), (line, "value"), lambda problem: problem and text(html.escape(problem)))
        return line.add_class("aam-problem")

    def readout_line(self) -> ipywidgets.Widget:
        """The numbers as a line of text."""
        line = ipywidgets.HTML()
        traitlets.dlink((self, "readout"), (line, "value"))
        return line.add_class("aam-readout")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        still = {"image/png": base64.b64encode(figures.to_png(self.figure())).decode(), "text/plain": self.readout}
        return {**still, **self.panel._repr_mimebundle_()} if is_live() else still


class Picture(anywidget.AnyWidget):
    """A picture that can be clicked, with a mark on it; places are fractions of its width and height from the top."""

    png = traitlets.Bytes().tag(sync=True)
    mark = traitlets.List(traitlets.Float(), [0.0, 0.0, 0.0, 0.0]).tag(sync=True)  # x, y, width, height
    clicked = traitlets.List(traitlets.Float(), []).tag(sync=True)  # x, y, and when: each click is a change
    _css = ".aam-gaps .widget-readout { min-width: 88px }"  # else two numbers are cut off: there is no trait for it
    _esm = """
    export default {
      render({ model, el }) {
        const frame = el.appendChild(document.createElement("div"));
        const image = frame.appendChild(document.createElement("img"));
        const mark = frame.appendChild(document.createElement("div"));
        frame.style.cssText = "position: relative; width: fit-content; max-width: 100%; line-height: 0";
        image.style.cssText = "max-width: 100%; cursor: pointer";
        mark.style.cssText = "position: absolute; pointer-events: none; outline: solid #d55e00";
        const draw = () => {
          URL.revokeObjectURL(image.src);
          image.src = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
        };
        const place = () => ["left", "top", "width", "height"].forEach((side, i) => {
          mark.style[side] = `${100 * model.get("mark")[i]}%`;
          mark.hidden = model.get("mark")[3] == 0;
          const line = model.get("mark")[2] == 0;
          Object.assign(mark.style, line ? { outlineWidth: "0.5px" } : { outlineWidth: "2px", outlineOffset: "-2px" });
        });
        image.addEventListener("click", (event) => {
          const [x, y] = [event.offsetX / image.clientWidth, event.offsetY / image.clientHeight];
          model.set("clicked", [x, y, event.timeStamp]);
          model.save_changes();
        });
        model.on("change:png", draw);
        model.on("change:mark", place);
        draw();
        place();
      },
    };
    """


class Plot:
    """One Axes drawn again and again: laid out by the first drawing only, which makes the next ones fast."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = figures.new_figure(width, height)
        self.ax = self.figure.subplots()

    def draw(self, function: Callable[..., None], *args: Any) -> bytes:
        """PNG of what `function(ax, *args)` draws."""
        self.ax.clear()
        function(self.ax, *args)
        png = figures.to_png(self.figure)
        self.figure.set_layout_engine("none")
        return png


class PolicyPlot:
    """Policies of one state after another: the axes are drawn once, then only bars and dots, ten times as fast.

    Higher than the given inches where there are many actions.
    """

    def __init__(self, width: float, height: float) -> None:
        self.size = width, height
        self.kind: tuple[Any, ...] = ()

    def draw(
        self,
        actions: Sequence[str],
        expert: np.ndarray,
        student: np.ndarray | None = None,
        samples: np.ndarray | None = None,
    ) -> bytes:
        """PNG of `figures.draw_policies`."""
        kind = tuple(actions), student is None, None if samples is None else samples.shape
        if kind != self.kind:
            width, height = self.size
            self.kind, figure = kind, figures.new_figure(width, max(height, 0.8 + 0.17 * len(actions)))
            self.ax, self.canvas = figure.subplots(), FigureCanvasAgg(figure)
            figures.draw_policies(self.ax, actions, expert, student, samples)
            self.bars: list[Any] = [*self.ax.patches]
            self.dots: list[Any] = [*self.ax.collections]
            for artist in self.bars + self.dots:
                artist.set_animated(True)  # left out of the background
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(figure.bbox)
        for bar, probability in zip(self.bars, [*expert, *([] if student is None else student)], strict=True):
            bar.set_width(probability)
        if samples is not None:
            self.dots[0].set_offsets(np.column_stack([samples.ravel(), self.dots[0].get_offsets()[:, 1]]))
        self.canvas.restore_region(self.background)
        for artist in self.bars + self.dots:
            self.ax.draw_artist(artist)
        return figures.to_png(np.array(self.canvas.buffer_rgba())[..., :3])


def labelled(widget: type[ipywidgets.Widget], description: str, width: int = 200, **settings: Any) -> Any:
    """A control with its description, as wide as told (pixels)."""
    return widget(
        description=description, layout={"width": f"{width}px"}, style={"description_width": "initial"}, **settings
    )


def row(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Widgets side by side, on a new line where the page is too narrow."""
    return ipywidgets.Box(widgets, layout={"display": "flex", "flex_flow": "row wrap", "align_items": "flex-start"})
