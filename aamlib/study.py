"""The 2020 study's published numbers beside ours: its tables, data/study2020*.csv, with columns of ours added."""

from __future__ import annotations

import pandas as pd

from aamlib.comparison import TREATMENT, function_of, iqm, to_common_end
from aamlib.config import ExperimentConfig
from aamlib.evidence import LAST, full_pool


def scores(curves: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The study's scores beside ours at the same agent steps: its table with score_ours and seeds_ours added.

    `study`: columns game, query_fraction, acquisition, agent_steps and score. Ours is the interquartile mean over the
    seeds of the smoothed score nearest to these steps, of runs that went so far; NaN where there is none. Of the whole
    pool all functions are the same run, so any stands for any.
    """
    ours = curves.assign(end=curves.groupby("run")["agent_steps"].transform("max")).dropna(subset="smoothed")
    pairs = paired(study, ours.drop(columns="score").rename(columns={"smoothed": "score_ours"}))
    pairs = pairs[pairs["end"] >= pairs["agent_steps"]]
    pairs["distance"] = (pairs["agent_steps_ours"] - pairs["agent_steps"]).abs()
    return _add_means(study, pairs.sort_values("distance").groupby(["point", "run"]).head(1), ["score_ours"])


def losses(metrics: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The study's losses beside ours: its table with first_ours, last_ours and seeds_ours added.

    `study`: columns game, query_fraction, acquisition, first and last, in nats summed over a round's queries. Ours are
    means over the first and the last `LAST` rounds with a full pool, up to the common end of the share's runs, then
    interquartile ones over the seeds, of runs with the study's size of pool; NaN where there is none.
    """
    alike = metrics[metrics["pool_size"] == ExperimentConfig().pool_size]  # a sum over as many queries as the study's
    of_runs = full_pool(to_common_end(alike)).groupby([*TREATMENT, "run"])["loss"]
    ours = of_runs.agg(first_ours=lambda loss: loss.head(LAST).mean(), last_ours=lambda loss: loss.tail(LAST).mean())
    return _add_means(study, paired(study, ours.reset_index()), ["first_ours", "last_ours"])


def paired(study: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Every row of the study's table, numbered as `point`, with every row of ours of the same treatment."""
    points = study.reset_index(drop=True).rename_axis("point").reset_index()
    left, right = (table.assign(function=function_of(table)) for table in (points, ours))
    return left.merge(right, on=["game", "query_fraction", "function"], suffixes=("", "_ours"))


def _add_means(study: pd.DataFrame, runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The study's table with the runs' interquartile means of these columns, and seeds_ours, their number."""
    of_point = runs.groupby("point")[columns]
    table = study.reset_index(drop=True).join(of_point.agg(iqm)).assign(seeds_ours=of_point.size())
    return table.assign(seeds_ours=table["seeds_ours"].fillna(0).astype(int))
