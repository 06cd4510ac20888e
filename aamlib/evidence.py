"""Why a function wins or fails, over many runs: what was asked about, whether the uncertainty was right, what is known.

Beside the scores of `comparison`, these tables hold the study's explanation to the test: tables in, tables out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from aamlib.comparison import TREATMENT, as_text, percent
from aamlib.files import RunFolderError
from aamlib.runs import Run, find_runs
from aamlib.selections import all_rounds, choices, was_right

CHOICES = "choices.csv"  # in the folder of a published run, whose selections are too large to publish
ASKED = ("indifferent", "costly", "q_gap")
RIGHT = ("auroc", "auroc_decided")
_NEEDED = ["run", "round", "score", *ASKED, *RIGHT]
LAST = 10  # rounds over which what a student knows at the end is averaged
LEARNED = "round > 1"  # in the first round a student has learned nothing yet, and would weigh on every mean

# What `per_round` adds to the metrics, with units.
COLUMNS = {
    "asked_indifferent": "share of the states asked about that the expert is indifferent about",
    "asked_costly": "share of them on which the student's greedy action is a costly mistake",
    "asked_q_gap": "their mean Q-gap",
    "pool_indifferent": "the same share of all states in the pool",
    "pool_costly": "the same share of all states in the pool",
    "pool_q_gap": "mean Q-gap of all states in the pool",
    "auroc": "of the run's own function against costly mistakes, on the pool",
    "auroc_decided": "the same among the states that the expert is not indifferent about",
}


def tabulate(run: Run) -> pd.DataFrame:
    """What each function would have asked about in each recorded round of a run, and how right its scores were.

    Columns as `selections.choices`, with a further score "asked" (what the run itself did ask about), and auroc and
    auroc_decided as `selections.was_right`. Raises RunFolderError if the run has recorded no selection.
    """
    states = all_rounds(run)
    would_be = choices(states, run.config["query_fraction"])
    queried = states[states["kind"] == "queried"]
    asked = queried.groupby("round")[[name for name in would_be if name not in ("round", "score")]].mean()
    table = pd.concat([would_be, asked.astype(float).reset_index().assign(score="asked")])
    table = table.merge(was_right(states)[["round", "score", *RIGHT]], how="left", on=["round", "score"])
    return table.sort_values(["round", "score"], ignore_index=True)


def load_choices(root: str | Path, *more: str | Path) -> pd.DataFrame:
    """As `tabulate`, of every run folder that `load_runs` finds: one row per run, round and score.

    A published run has the table as choices.csv; of others it is made from their selections, in seconds each. Runs
    with neither are left out. Raises RunFolderError if there is no run folder, or a table cannot be read.
    """
    tables = []
    for name, folder in find_runs([Path(root), *map(Path, more)]).items():
        if (path := folder / CHOICES).exists():
            try:
                table = pd.read_csv(path).assign(run=name)
                if missing := [column for column in _NEEDED if column not in table]:
                    raise ValueError(f"it lacks {', '.join(missing)}")
            except ValueError as error:
                raise RunFolderError(f"{path} cannot be read ({error}); publish the run again.") from error
            tables.append(table)
        elif any(folder.glob("selections/*.parquet")):
            tables.append(tabulate(Run(folder)).assign(run=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_NEEDED)


def per_round(metrics: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """The metrics (of `load_runs`) with `COLUMNS` added from `load_choices`; NaN where nothing was recorded."""
    keys = ["run", "round"]
    table = metrics
    for kind in ("asked", "pool"):
        names = {name: f"{kind}_{name}" for name in ASKED}
        rows = choices.loc[choices["score"] == kind, [*keys, *ASKED]].rename(columns=names)
        table = table.merge(rows, how="left", on=keys)
    own = choices[[*keys, "score", *RIGHT]].rename(columns={"score": "acquisition"})
    return table.merge(own, how="left", on=[*keys, "acquisition"])


def summary(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row per game, share and function, from `per_round`: means over a run's rounds, then over the seeds.

    A run's first round, in which nothing has been learned, is left out. Columns seeds, asked_..., pool_..., auroc... as
    `COLUMNS`; probe_... as `METRICS`, of the last `LAST` rounds alone.
    """
    asked = [name for name in COLUMNS if not name.endswith("q_gap")]
    probes = [f"probe_{states}_{name}" for states in ("expert", "random") for name in ("kl", "regret")]
    after, keys = rounds.query(LEARNED), [*TREATMENT, "run"]
    at_the_end = after.groupby("run").tail(LAST)
    per_run = after.groupby(keys)[asked].mean().join(at_the_end.groupby(keys)[probes].mean())
    by = per_run.groupby(level=TREATMENT)
    return by.mean().assign(seeds=by.size())[["seeds", *asked, *probes]].reset_index()


def same_pool(rounds: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """One row per game, share and function: what it would have asked about in the pools of *all* runs of that share.

    Every function judges the same states by the same students, so nothing but the ranking differs; "pool" is all of
    them. Columns runs, indifferent, costly, q_gap, auroc and auroc_decided: means over the rounds of a run but the
    first, then over the runs; with _low and _high, those of single runs, since each function shapes the student whose
    uncertainty is judged; and rounds_decided, in how many rounds of all runs auroc_decided could be taken.
    """
    settings = rounds[["run", "game", "query_fraction"]].drop_duplicates()
    of_functions = choices[choices["score"] != "asked"].query(LEARNED).merge(settings, on="run")
    keys = ["game", "query_fraction", "score"]
    means = of_functions.groupby([*keys, "run"])[[*ASKED, *RIGHT]].mean().groupby(level=keys)
    table = means.mean().assign(runs=means.size(), rounds_decided=of_functions.groupby(keys)["auroc_decided"].count())
    table = table[["runs", *ASKED, *RIGHT, "rounds_decided"]]
    table = table.join([means.min().add_suffix("_low"), means.max().add_suffix("_high")])
    return table.reset_index().rename(columns={"score": "acquisition"})


def side_by_side(same_pool: pd.DataFrame) -> pd.DataFrame:
    """The means of `same_pool` as text, functions as columns: one row per measure, game and share."""
    measures = {
        "indifferent": "expert indifferent", "costly": "student's costly mistakes",
        "auroc": "AUROC, all states", "auroc_decided": "AUROC, decided states",
    }  # fmt: skip
    text = {
        title: same_pool.assign(value=same_pool[name].map(_format(name, same_pool[name])))
        for name, title in measures.items()
    }
    rows = pd.concat(text, names=["of the states"]).reset_index(level=0)
    rows["share"] = rows["query_fraction"].map(percent)
    keys = ["of the states", "game", "query_fraction", "share"]
    table = rows.pivot(index=keys, columns="acquisition", values="value").rename(columns={"pool": "(all states)"})
    table = table.reindex(list(measures.values()), level=0).replace("nan", "–").fillna("–")
    return table.reset_index().drop(columns="query_fraction")


def beside_study(curves: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The study's scores beside ours at the same agent steps: its table with score_ours and seeds_ours added.

    `study`: columns game, query_fraction, acquisition, agent_steps and score. Ours is the mean over the seeds of the
    score at the nearest evaluation and those before and after it, of runs that went so far; NaN where there is none.
    Of the whole pool all functions are the same run, so any stands for any.
    """
    of_run = curves.groupby("run")["agent_steps"]
    ours = curves.assign(end=of_run.transform("max"), agent_steps=of_run.shift(1)).dropna(subset="smoothed")
    pairs = _pairs(study, ours.drop(columns="score").rename(columns={"smoothed": "score_ours"}))
    pairs = pairs[pairs["end"] >= pairs["agent_steps"]]
    pairs["distance"] = (pairs["agent_steps_ours"] - pairs["agent_steps"]).abs()
    return _add_means(study, pairs.sort_values("distance").groupby(["point", "run"]).head(1), ["score_ours"])


def at_a_glance(results: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The results (`comparison.summary`) as text, each beside the first point of the study's curve that ours reached.

    `study` as `beside_study` returns it.
    """
    points = _pairs(study[study["seeds_ours"] > 0].groupby(TREATMENT).head(1), results[TREATMENT])
    points = points.drop(columns="acquisition").rename(columns={"acquisition_ours": "acquisition"})
    points = results[TREATMENT].merge(points, how="left", on=TREATMENT)
    text = as_text(results)
    steps, score = points["agent_steps"].map("{:,.0f}".format), points["score"].map("{:.0f}".format)
    columns = {
        "study": (score + " after " + steps).where(points["score"].notna(), "–"),
        "ours then": points["score_ours"].map("{:.1f}".format).replace("nan", "–"),
        "ours at the end": text["score"],
        "area": text["area over agent steps"],
    }
    return text[["game", "share", "function", "seeds"]].assign(**columns).join(text.filter(regex="(labels|unique) to"))


def losses_beside_study(metrics: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The study's losses beside ours: its table with first_ours, last_ours and seeds_ours added.

    `study`: columns game, query_fraction, acquisition, first and last, in nats summed over a round's queries. Ours are
    means over the first and the last `LAST` rounds with a full pool, then over the seeds; NaN where there is none.
    """
    losses = full_pool(metrics).groupby([*TREATMENT, "run"])["loss"]
    ours = losses.agg(first_ours=lambda loss: loss.head(LAST).mean(), last_ours=lambda loss: loss.tail(LAST).mean())
    return _add_means(study, _pairs(study, ours.reset_index()), ["first_ours", "last_ours"])


def full_pool(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rounds that asked about a full pool, and so about equally many states."""
    return metrics[(metrics["round"] > 0) & (metrics["pool_states"] == metrics["pool_size"])]


def _pairs(study: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Every row of the study's table, numbered as `point`, with every row of ours of the same treatment."""
    points = study.reset_index(drop=True).rename_axis("point").reset_index()
    left, right = (
        table.assign(function=table["acquisition"].where(table["query_fraction"] < 1, "any"))
        for table in (points, ours)
    )
    return left.merge(right, on=["game", "query_fraction", "function"], suffixes=("", "_ours"))


def _add_means(study: pd.DataFrame, runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The study's table with the means of these columns over the runs of each point, and seeds_ours, their number."""
    of_point = runs.groupby("point")[columns]
    table = study.reset_index(drop=True).join(of_point.mean()).assign(seeds_ours=of_point.size())
    return table.assign(seeds_ours=table["seeds_ours"].fillna(0).astype(int))


def to_markdown(table: pd.DataFrame) -> str:
    """A table of this module for people: shares in percent, ranges over the runs in brackets, a dash for NaN."""
    text = pd.DataFrame(index=table.index)
    for name in table.columns.astype(str):
        if name.endswith(("_low", "_high")):
            continue
        text[name] = table[name].map(_format(name, table[name]))
        if f"{name}_low" in table:
            low, high = (table[f"{name}_{end}"].map(_format(name, table[name])) for end in ("low", "high"))
            text[name] += (" (" + low + " to " + high + ")").where(table["runs"] > 1, "")
        text[name] = text[name].where(table[name].notna(), "–")
    text = text.rename(columns={"query_fraction": "share", "acquisition": "function"})
    return text.rename(columns=lambda name: name.replace("_", " ")).to_markdown(index=False, disable_numparse=True)


def _format(name: str, values: pd.Series) -> Callable[[Any], str]:
    if name == "query_fraction" or name.endswith(("indifferent", "costly")):
        return percent
    if name.startswith("score"):
        return "{:.1f}".format
    if name.startswith("auroc"):
        return "{:.2f}".format
    if name == "agent_steps" or name.startswith(("first", "last")):
        return "{:,.0f}".format
    return ("{:.3f}" if values.dtype.kind == "f" else "{}").format
