"""What the views of recorded selections share: a run, a round of it, and which of its states."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import traitlets

from aamlib import figures
from aamlib.runs import Run
from aamlib.selections import describe, rounds_of
from aamlib.widgets.base import View, labelled, one_of, run_titles

SHOWN = 50  # states at once, as in the study's GIFs
MEASURES = ("q_gap", "q_range", "label_entropy", "regret", "aleatoric")
KINDS = {"queried by the run": "queried", "random, of the pool": "random"}


def _described(run: Run, number: int) -> pd.DataFrame:
    """A round's recorded states. Raises RunFolderError if they cannot be read."""
    modified = (run.dir / "selections").stat().st_mtime  # a run may be made anew in the same folder
    return _read(run.dir, number, run.config["temperature"], modified)


@functools.lru_cache(maxsize=8)
def _read(run_dir: Path, number: int, temperature: float, _modified: float) -> pd.DataFrame:
    return describe(Run(run_dir).selection(number), temperature)


class RoundView(View):
    """What both views share: a run, a round of it, and which of its states.

    Parameters
    ----------
    runs:
        Runs by name, as `runs.recorded_runs` gives them.
    run:
        Name of the first one shown; None: the first.
    number:
        The round; None: the last recorded one.
    kind:
        "queried" (what the run asked about) or "random" (a sample of its pool).

    Raises ConfigError for an unknown run or column, RunFolderError for a run without selections, or a round without
    one.
    """

    column_trait = ""  # the trait that names one of the columns `offered`

    run = traitlets.Unicode()
    round = traitlets.Int()
    kind = traitlets.Enum(("queried", "random"), "queried")

    def __init__(
        self, runs: dict[str, Run], run: str | None = None, number: int | None = None, **settings: Any
    ) -> None:
        self.runs, self.titles = runs, run_titles(runs)
        super().__init__()
        self.run = run or next(iter(runs))
        if number is not None:
            _described(self.runs[self.run], number)  # raises, if there is none: the nearest is for the slider
            self.round = number
        for trait, value in settings.items():
            self.set_trait(trait, value)

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings."""
        return self.runs[self.run].config

    @property
    def rounds(self) -> list[int]:
        """The rounds that can be shown."""
        return rounds_of(self.runs[self.run])

    @property
    def states(self) -> pd.DataFrame:
        """The round's recorded states of this kind, described."""
        table = _described(self.runs[self.run], self.round)
        return table[table["kind"] == self.kind].reset_index(drop=True)

    @property
    def offered(self) -> list[str]:
        """Columns of the states by which they can be shown."""
        raise NotImplementedError

    def first_column(self, run: str) -> str:
        """The column by which a run is shown, unless told otherwise."""
        raise NotImplementedError

    @traitlets.observe("run")
    def _keep_what_there_is(self, change: Any) -> None:
        with self.hold_trait_notifications():  # nothing is shown of the new round by a column that it lacks
            if self.round not in self.rounds:
                self.round = self.rounds[-1]
            column = getattr(self, self.column_trait)
            if column not in self.offered or (change.old and column == self.first_column(change.old)):
                setattr(self, self.column_trait, self.first_column(self.run))

    @traitlets.validate("run")
    def _readable_run(self, proposal: Any) -> str:
        name = one_of("run", proposal["value"], list(self.runs))
        rounds = rounds_of(self.runs[name])
        _described(self.runs[name], self.round if self.round in rounds else rounds[-1])
        return name

    @traitlets.validate("round")
    def _nearest_round(self, proposal: Any) -> int:
        nearest = min(self.rounds, key=lambda number: abs(number - proposal["value"]))
        _described(self.runs[self.run], nearest)  # raises, if it cannot be read
        return nearest

    def title(self) -> str:
        """What is shown, in words."""
        return f"{self.titles[self.run]}, round {self.round}"

    def column_control(self, label: str) -> ipywidgets.Widget:
        """The dropdown of the columns `offered`."""

        def options() -> list[tuple[str, str]]:
            return [(figures.axis_label(column), column) for column in self.offered]

        def follow(_: Any) -> None:
            if list(dropdown.options) != options():
                with self.showing():
                    dropdown.options = options()
                    dropdown.value = getattr(self, self.column_trait)

        dropdown = self.link(self.column_trait, labelled(ipywidgets.Dropdown, label, 290, options=options()))
        self.observe(follow, ["run"])
        return dropdown

    def round_controls(self) -> list[ipywidgets.Widget]:
        """Dropdowns and slider for run, round and kind."""
        options = [(title, name) for name, title in self.titles.items()]
        run = self.link("run", labelled(ipywidgets.Dropdown, "Run", 370, options=options))
        slider = labelled(ipywidgets.SelectionSlider, "Round", 230, options=self.rounds, value=self.round)
        kind = self.link("kind", labelled(ipywidgets.Dropdown, "States", 210, options=list(KINDS.items())))

        def offer(_: Any) -> None:
            with self.showing():
                if list(slider.options) != self.rounds:
                    slider.options = self.rounds
                slider.value = self.round

        self.follow("round", slider)
        self.observe(offer, ["run", "round"])
        return [run, slider.add_class("aam-round"), kind]
