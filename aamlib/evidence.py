"""Why a function wins or fails, over many runs: what was asked about, whether the uncertainty was right, what is known.

Beside the scores of `comparison`, these tables hold the study's explanation to the test: tables in, tables out.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from aamlib.comparison import TREATMENT, to_common_end
from aamlib.runs import Run, find_runs, read_table
from aamlib.selections import all_rounds, choices, reliability, was_right

CHOICES = "choices.csv"  # in the folder of a published run, whose selections are too large to publish
ASKED = ("indifferent", "costly", "q_gap")
RIGHT = ("auroc", "auroc_decided")
OF_SCORES = (*RIGHT, "reliability")
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
    "reliability": "of its ranking of the pool, if it is a built-in function: see `selections.reliability`",
}


def tabulate(run: Run) -> pd.DataFrame:
    """What each function would have asked about in each recorded round of a run, and how right its scores were.

    Columns as `selections.choices`, with a further score "asked" (what the run itself did ask about), auroc and
    auroc_decided as `selections.was_right`, and `selections.reliability`. Raises RunFolderError if the run has recorded
    no selection.
    """
    states = all_rounds(run)
    would_be = choices(states, run.config["query_fraction"])
    queried = states[states["kind"] == "queried"]
    asked = queried.groupby("round")[[name for name in would_be if name not in ("round", "score")]].mean()
    table = pd.concat([would_be, asked.astype(float).reset_index().assign(score="asked")])
    for measured in (was_right(states)[["round", "score", *RIGHT]], reliability(run)):
        table = table.merge(measured, how="left", on=["round", "score"])
    return table.sort_values(["round", "score"], ignore_index=True)


def read_choices(run: Run) -> pd.DataFrame:
    """As `tabulate`: a published run has the table as choices.csv, which is read; older ones have no reliability."""
    path = run.dir / CHOICES
    return read_table(path, ["round", *ASKED, *RIGHT], ["round"]) if path.exists() else tabulate(run)


def load_choices(root: str | Path, *more: str | Path) -> pd.DataFrame:
    """The `read_choices` of every run folder that `load_runs` finds: one row per run, round and score.

    With the columns run, and own: whether the run itself asked by this score, as none did that asked about its whole
    pool. It takes seconds for a run that is not published. Runs without recorded selections are left out. Raises
    RunFolderError if there is no run folder, or a table cannot be read.
    """
    columns, tables = ["run", "round", "score", "own", *ASKED, *OF_SCORES], []
    for name, folder in find_runs(root, *more).items():
        run = Run(folder)
        if (folder / CHOICES).exists() or run.recorded:
            table, config = read_choices(run), run.config
            own = (table["score"] == config.get("acquisition")) & (config.get("query_fraction", 1) < 1)
            tables.append(table.assign(run=name, own=own))
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(columns=list(dict.fromkeys([*table, *columns])))


def per_round(metrics: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """The metrics (of `load_runs`) with `COLUMNS` added from `load_choices`; NaN where nothing was recorded."""
    keys = ["run", "round"]
    table = metrics
    for kind in ("asked", "pool"):
        names = {name: f"{kind}_{name}" for name in ASKED}
        rows = choices.loc[choices["score"] == kind, [*keys, *ASKED]].rename(columns=names)
        table = table.merge(rows, how="left", on=keys)
    own = choices.loc[choices["own"].astype(bool), [*keys, *OF_SCORES]]
    return table.merge(own, how="left", on=keys)


def summary(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row per game, share and function, from `per_round`: means over a run's rounds, then over the seeds.

    A run's first round, in which nothing has been learned, is left out, and what lies beyond the common end of the
    share's runs. Columns seeds; asked_..., pool_..., auroc... and reliability as `COLUMNS`; probe_... as `METRICS`, of
    the last `LAST` rounds alone; all of these also with _min and _max over the seeds; and of all seeds rounds_recorded,
    and in how many rounds AUROCs and reliability could be taken.
    """
    asked = [name for name in COLUMNS if not name.endswith("q_gap")]
    probes = [f"probe_{states}_{name}" for states in ("expert", "random") for name in ("kl", "agreement", "regret")]
    after, keys = to_common_end(rounds).query(LEARNED), [*TREATMENT, "run"]
    at_the_end = after.groupby("run").tail(LAST)
    per_run = after.groupby(keys)[asked].mean().join(at_the_end.groupby(keys)[probes].mean())
    by = per_run.groupby(level=TREATMENT)
    counts = (
        after.rename(columns={"asked_indifferent": "recorded"}).groupby(TREATMENT)[["recorded", *OF_SCORES]].count()
    )
    table = by.size().to_frame("seeds").join(_mean_and_range(by))
    return table.join(counts.add_prefix("rounds_")).reset_index()


def same_pool(rounds: pd.DataFrame, choices: pd.DataFrame) -> pd.DataFrame:
    """One row per game, share and function: what it would have asked about in the pools of that share's *random* runs.

    Every function judges the same states by the same students, which none of them has shaped: what BALD has taught its
    own student, BALD no longer finds. "pool" is all of the states. Columns runs, indifferent, costly, q_gap,
    decided_taken (of the states that the expert is not indifferent about, the share that is asked about), auroc,
    auroc_decided and reliability: means over the rounds of a run but the first, then over the runs; with _min and
    _max, those of single runs; and rounds_auroc and so on, in how many rounds of all runs the last three were taken.
    """
    at_random = to_common_end(rounds).query("acquisition == 'random'").query(LEARNED)
    pools = choices.loc[choices["score"] == "pool", ["run", "round", "indifferent"]]
    table = choices[choices["score"] != "asked"].merge(at_random[["run", "round", "game", "query_fraction"]])
    table = table.merge(pools, on=["run", "round"], suffixes=("", "_pool"))
    decided, decided_pool = 1 - table["indifferent"], 1 - table["indifferent_pool"]
    taken = (table["query_fraction"] * decided / decided_pool).where(decided_pool > 0)
    table["decided_taken"] = taken.where(table["score"] != "pool", 1.0)
    keys, measures = ["game", "query_fraction", "score"], [*ASKED, "decided_taken", *OF_SCORES]
    means = table.groupby([*keys, "run"])[measures].mean().groupby(level=keys)
    counts = table.groupby(keys)[list(OF_SCORES)].count().add_prefix("rounds_")
    table = means.size().to_frame("runs").join([_mean_and_range(means), counts])
    return table.reset_index().rename(columns={"score": "acquisition"})


def _mean_and_range(by: DataFrameGroupBy) -> pd.DataFrame:
    return by.mean().join([by.min().add_suffix("_min"), by.max().add_suffix("_max")])


def full_pool(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rounds that asked about their whole share of a full pool, and so about equally many states.

    The last one of a label budget may have had fewer labels left.
    """
    asked = metrics.groupby("run")["labels_used"].diff()
    is_full = (metrics["pool_states"] == metrics["pool_size"]) & (metrics["round"] > 0)
    return metrics[is_full & (asked == (metrics["query_fraction"] * metrics["pool_size"]).round())]
