"""Grids of experiments: lists of values in a TOML file or a dict, checked as a whole before anything starts.

preset = "quick"                   # as in notebook 02; "study" if left out
seeds = [0, 1]                     # [0] if left out

[constants]                        # settings of every cell
total_steps = 60_000

[values]                           # every combination is a cell ...
acquisition = ["bald", "random"]
query_fraction = [0.1, 0.4]

[[exclude]]                        # ... but those that match all lines of an exclusion, each a value or a list
acquisition = "random"
query_fraction = 0.4
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aamlib.acquisition import check_acquisition
from aamlib.atari import n_actions
from aamlib.config import ConfigError, ExperimentConfig, nearest, preset
from aamlib.experts import ExpertError, check_fits, load_expert
from aamlib.files import DATA_DIR

EXPERIMENT = DATA_DIR.parent / "notebooks" / "02_run_experiment.ipynb"
_KEYS = ("preset", "seeds", "constants", "values", "exclude")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment of a grid."""

    name: str
    run_dir: Path
    parameters: dict[str, Any]  # what the notebook is given, beside the run folder
    config: ExperimentConfig  # what that comes to
    notebook: Path


def plan(grid: str | Path | Mapping[str, Any], out: str | Path, notebook: str | Path = EXPERIMENT) -> list[Cell]:
    """The cells of a grid, seed by seed, each with a run folder of its own in `out`, named by what varies.

    Writes nothing. Raises ConfigError for a grid that cannot be read, is empty, or has an unknown, doubled or unusable
    setting; ExpertError for a game without an expert.
    """
    content = _read(grid)
    constants, values = content["constants"], content["values"]
    shared = preset(content["preset"])
    experts, acquisitions, cells = set(), set(), []
    out = Path(out).expanduser().absolute()
    for combination in itertools.product(values.pop("seed"), *values.values()):
        varied = dict(zip(values, combination[1:], strict=True)) | {"seed": combination[0]}
        if _excluded(varied, content["exclude"]):
            continue
        parameters = {"preset": content["preset"], **constants, **varied}
        try:
            config = ExperimentConfig(**{**shared, **constants, **varied})
        except ConfigError as error:
            raise ConfigError(f"cell {_name(varied)}: {error}") from error
        # A share of 1 is one of 1.0, and has its folder.
        name = _name({key: value if isinstance(value, str) else getattr(config, key) for key, value in varied.items()})
        if config.expert and (file := Path(config.expert).expanduser()).is_file():
            parameters["expert"] = str(file.absolute())  # workers may stand in another folder
            config = dataclasses.replace(config, expert=parameters["expert"])
        experts.add((config.expert or config.game, config.game))
        acquisitions.add((config.acquisition, config.n_samples, config.game))
        cells.append(Cell(name, out / name, parameters, config, Path(notebook).absolute()))
    if not cells:
        raise ConfigError("every cell of the grid is excluded; remove an exclusion.")
    if len(doubled := {cell.name for cell in cells}) < len(cells):
        raise ConfigError(f"{len(cells)} cells have only {len(doubled)} folder names; make the values differ in more.")
    _check_whole_pool(cells)
    for expert, game in sorted(experts):
        try:
            check_fits(load_expert(expert), game, expert)
        except ExpertError as error:
            raise ExpertError(f"the grid has an expert that cannot be used: {error}") from error
    for acquisition, n_samples, game in sorted(acquisitions):
        check_acquisition(acquisition, n_samples, n_actions(game))
    return cells


def _read(grid: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The grid's content, complete and checked but for the settings' own ranges."""
    if isinstance(grid, Mapping):
        content = dict(grid)
    else:
        try:
            content = tomllib.loads(Path(grid).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the grid {grid}: {error.strerror}; give a TOML file.") from error
        except ValueError as error:
            raise ConfigError(f"the grid {grid} is no valid TOML: {error}") from error
    settings = ExperimentConfig.names()
    for key in content:
        if key in settings:
            raise ConfigError(f"{key!r} stands outside of the grid's tables; move it to [constants] or [values].")
        if key not in _KEYS:
            raise ConfigError(f"unknown part of a grid {key!r}; {nearest(key, _KEYS)}")
    if not content.get("values") and not content.get("seeds"):
        raise ConfigError("the grid is empty; list values of a setting in [values], or several seeds.")
    content = {"preset": "study", "constants": {}, "values": {}, "exclude": []} | content
    kinds = {
        "preset": (str, "name"),
        "constants": (Mapping, "table"),
        "values": (Mapping, "table"),
        "exclude": (list, "list"),
    }
    for key, (kind, wanted) in kinds.items():
        if not isinstance(content[key], kind):
            raise ConfigError(f"{key} = {content[key]!r} is no {wanted}; see the top of aamlib/grids.py.")
    if "seeds" in content:
        if "seed" in content["values"] or "seed" in content["constants"]:
            raise ConfigError("the grid gives seeds and also a seed in its tables; keep one.")
        content["values"] = content["values"] | {"seed": content["seeds"]}
    elif "seed" not in content["constants"]:
        content["values"] = {"seed": [0]} | content["values"]
    elif "seed" not in content["values"]:  # else the two are refused below
        content["constants"] = dict(content["constants"])
        content["values"] = {"seed": [content["constants"].pop("seed")]} | content["values"]
    content["values"] = {
        name: list(listed) if isinstance(listed, tuple | range) else listed
        for name, listed in content["values"].items()
    }
    _check_names(content, settings)
    _check_exclusions(content)
    return content


def _check_names(content: dict[str, Any], settings: list[str]) -> None:
    for name in (*content["constants"], *content["values"]):
        if name not in settings:
            raise ConfigError(f"unknown setting {name!r} in the grid; {nearest(name, settings)}")
    for name, listed in content["values"].items():
        if name in content["constants"]:
            raise ConfigError(f"{name!r} stands in both [constants] and [values]; keep one.")
        if not isinstance(listed, list):
            raise ConfigError(f"values of {name} = {listed!r} are no list; write [{listed!r}] or move it to constants.")
        if not listed:
            raise ConfigError(f"{name} = [] lists no values; give at least one.")
        for i, value in enumerate(listed):
            if value in listed[:i]:
                raise ConfigError(f"{name} lists {value!r} twice; keep one.")


def _check_exclusions(content: dict[str, Any]) -> None:
    for exclusion in content["exclude"]:
        if not isinstance(exclusion, Mapping) or not exclusion:
            raise ConfigError(f"exclusion {exclusion!r} is no table; give settings and their values in [[exclude]].")
        for name, excluded in exclusion.items():
            if name not in content["values"]:
                raise ConfigError(f"exclusion of {name!r}, which does not vary; {nearest(name, content['values'])}")
            for value in excluded if isinstance(excluded, list) else [excluded]:
                if value not in content["values"][name]:
                    raise ConfigError(
                        f"exclusion of {name} = {value!r}, which is not in the grid; "
                        f"its values: {', '.join(map(str, content['values'][name]))}."
                    )


def _excluded(varied: Mapping[str, Any], exclusions: list[Mapping[str, Any]]) -> bool:
    def matches(name: str, excluded: Any) -> bool:
        return varied[name] in excluded if isinstance(excluded, list) else varied[name] == excluded

    return any(all(matches(*line) for line in exclusion.items()) for exclusion in exclusions)


def _check_whole_pool(cells: list[Cell]) -> None:
    """Where all states are asked about there is nothing to choose: notebook 4 would find the same run twice."""
    first: dict[ExperimentConfig, Cell] = {}
    for cell in (cell for cell in cells if cell.config.query_fraction == 1):
        same = first.setdefault(dataclasses.replace(cell.config, acquisition="random"), cell)
        if same is not cell:
            raise ConfigError(
                f"{same.name} and {cell.name} differ in their function alone, which has nothing to choose where the "
                "whole pool is asked about; leave one out by [[exclude]]."
            )


def _name(varied: Mapping[str, Any]) -> str:
    """Words as they are, numbers with the setting's name: pong-bald-query_fraction=0.1-seed=0."""
    parts = [value if isinstance(value, str) else f"{name}={value}" for name, value in varied.items()]
    return re.sub(r"[^\w.=+-]+", ".", "-".join(parts)).strip(".")
