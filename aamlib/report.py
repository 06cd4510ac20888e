"""Tables for people: the numbers of `comparison` and `evidence` as text, for README.md and comparison.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from aamlib import stats
from aamlib.comparison import ANY, AREA_OVER, TREATMENT, percent
from aamlib.study import paired


def areas_as_text(summary: pd.DataFrame) -> pd.DataFrame:
    """The areas over agent steps of the `summary` for people: a row per game and share, functions as columns.

    Of the whole pool there is nothing to choose, and any function's run stands for all.
    """
    text = as_text(summary).rename(columns={"area over agent steps": "area"}).join(summary["query_fraction"])
    start, end = (summary[f"{end}_agent_steps"].map(_thousands) for end in ("start", "end"))
    text["agent steps"] = (start + "–" + end).where(summary["start_agent_steps"] < summary["end_agent_steps"], "–")
    table = text.pivot(index=["game", "query_fraction", "share", "agent steps"], columns="function", values="area")
    if ANY in table:
        whole_pool = table.index.get_level_values("query_fraction") == 1
        table[whole_pool] = table[whole_pool].apply(lambda of_function: of_function.fillna(table.loc[whole_pool, ANY]))
        table = table[[name for name in table if name != ANY] or [ANY]]
    return table.fillna("not run").reset_index().drop(columns="query_fraction")


def as_text(summary: pd.DataFrame) -> pd.DataFrame:
    """The `summary` for people: intervals in brackets, labels in thousands, from one evaluation to the next.

    With too few seeds for one, the lowest and the highest; of a single run, ± the standard error for the games played.
    """
    rows = []
    for row in summary.to_dict("records"):
        values: dict[str, Any] = {str(name): value for name, value in row.items()}
        text = {"game": values["game"], "share": percent(values["query_fraction"])}
        text |= {"function": values["acquisition"], "seeds": values["seeds"]}
        text["score"] = _with_width(values, "score", ".1f")
        text["normalised"] = f"{values['normalised']:.2f}".replace("nan", "–")
        for x in AREA_OVER:
            text[f"area over {x.replace('_', ' ')}"] = _with_width(values, f"area_{x}", ".2f")
        names = [f"{threshold * 100:g}" for threshold in stats.THRESHOLDS]
        for count, name in [*(("labels", name) for name in names), ("unique", names[-1])]:
            after, to = values[f"{count}_after_{name}"], values[f"{count}_to_{name}"]
            seeds = f" ({values[f'reached_{name}']} of {values['seeds']})" if values["seeds"] > 1 else ""
            text[f"{count} to {name} %"] = _interval(after, to) + seeds
        for count in ("labels_used", "unique_labels"):
            text[count.replace("_", " ")] = _thousands(values[count])
        rows.append(text)
    return pd.DataFrame(rows)


def at_a_glance(results: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The results (`comparison.summary`) as text, each beside the first point of the study's curve that ours reached.

    `study` as `study.scores` returns it.
    """
    points = paired(study[study["seeds_ours"] > 0].groupby(TREATMENT).head(1), results[TREATMENT])
    points = points.drop(columns="acquisition").rename(columns={"acquisition_ours": "acquisition"})
    points = results[TREATMENT].merge(points, how="left", on=TREATMENT)
    text = as_text(results)
    steps, score = points["agent_steps"].map("{:,.0f}".format), points["score"].map("{:.0f}".format)
    then = points["score_ours"].map("{:.1f}".format).replace("nan", "–")
    of_seeds = " (" + points["seeds_ours"].map("{:.0f}".format) + " of " + results["seeds"].astype(str) + ")"
    columns = {
        "study": (score + " after " + steps).where(points["score"].notna(), "–"),
        "ours then": then + of_seeds.where(points["seeds_ours"] < results["seeds"], ""),
        "ours at the end": text["score"],
        "area": text["area over agent steps"],
        "area over unique": text["area over unique labels"],
    }
    return text[["game", "share", "function", "seeds"]].assign(**columns).join(text.filter(regex="(labels|unique) to"))


def side_by_side(same_pool: pd.DataFrame) -> pd.DataFrame:
    """The means of `same_pool` as text, functions as columns: one row per measure, game and share."""
    measures = {
        "indifferent": "expert indifferent", "costly": "student's costly mistakes",
        "decided_taken": "of the decided states, asked about",
        "auroc": "AUROC, all states", "auroc_decided": "AUROC, decided states",
        "reliability": "reliability of the ranking",
    }  # fmt: skip
    text = {title: same_pool.assign(value=_as_text(same_pool[name])) for name, title in measures.items()}
    rows = pd.concat(text, names=["of the states"]).reset_index(level=0)
    rows["share"] = rows["query_fraction"].map(percent)
    keys = ["of the states", "game", "query_fraction", "share"]
    table = rows.pivot(index=keys, columns="acquisition", values="value").rename(columns={"pool": "(all states)"})
    is_known = (table.notna() & (table != "–")).any(axis=1)
    is_newer = table.index.get_level_values(0) == measures["reliability"]  # than many tables
    table = table[is_known | ~is_newer].reindex(list(measures.values()), level=0).fillna("–")
    return table.reset_index().drop(columns="query_fraction")


def to_markdown(table: pd.DataFrame) -> str:
    """A table of `evidence` for people: shares in percent, ranges over the runs in brackets, a dash for NaN."""
    if table.empty:
        return ""
    text = pd.DataFrame(index=table.index)
    for name in table.columns.astype(str):
        if name.endswith(("_min", "_max")):
            continue
        text[name] = _as_text(table[name])
        if f"{name}_min" in table:
            lowest, highest = (_as_text(table[f"{name}_{end}"].rename(name)) for end in ("min", "max"))
            differ = table[f"{name}_min"] < table[f"{name}_max"]
            text[name] += (" (" + lowest + " to " + highest + ")").where(differ, "")
    text = text.rename(columns={"query_fraction": "share", "acquisition": "function"})
    return text.rename(columns=lambda name: name.replace("_", " ")).to_markdown(index=False, disable_numparse=True)


def _as_text(values: pd.Series) -> pd.Series:
    return values.map(_format(str(values.name), values)).where(values.notna(), "–")


def _format(name: str, values: pd.Series) -> Callable[[Any], str]:
    if name == "query_fraction" or name.endswith(("indifferent", "costly", "taken")):
        return percent
    if name.startswith("score"):
        return "{:.1f}".format
    if name == "p":
        return lambda p: f"{p:.3f}" if p >= 0.0005 else "< 0.001"
    if name.startswith(("auroc", "reliability")):
        return "{:.2f}".format
    if name == "agent_steps" or name.startswith(("first", "last")):
        return "{:,.0f}".format
    return ("{:.3f}" if values.dtype.kind == "f" else "{}").format


def _with_width(row: dict[str, Any], name: str, digits: str) -> str:
    """A value of the summary with what its number of seeds can tell of how far off it may be."""
    if np.isnan(row[name]):
        return "–"
    text, noise = f"{row[name]:{digits}}", row[f"{name}_noise"]
    if np.isfinite(low := row.get(f"{name}_low", np.nan)):
        return f"{text} [{low:{digits}}, {row[f'{name}_high']:{digits}}]"
    if row["seeds"] == 1:
        return text + (f" ± {noise:{digits}}" if np.isfinite(noise) else "")
    few = row["seeds"] < stats.MIN_SEEDS
    return text + (f" ({row[f'{name}_min']:{digits}} to {row[f'{name}_max']:{digits}})" if few else "")


def _thousands(count: float | int) -> str:
    """Such as "12k"; small counts in full."""
    return f"{count:,.0f}" if count < 10_000 else f"{count / 1e3:,.0f}k"


def _interval(after: float, to: float) -> str:
    """Both ends, in thousands if the upper one is; a dash if it is infinite."""
    if not np.isfinite(to):
        return "–"
    return f"{after / (1 if to < 10_000 else 1e3):,.0f}–{_thousands(to)}" if after else f"≤ {_thousands(to)}"
