"""Which runs may be compared, and the tables in which they are: from the metrics and evaluations of `load_runs`.

Every claim is judged on the area under the normalised score, over steps and over labels, fixed before the first run.
Added after the first results: the permutation test and its correction, and the area over the different states labelled.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from aamlib import stats
from aamlib.config import ConfigError, ExperimentConfig, first_line, nearest
from aamlib.files import RunFolderError
from aamlib.runs import METRICS

_SHOWN = 16  # characters of a setting that differs

# What runs of one game may differ in and still be compared: what is compared, the seed, the horizon, and what does not
# change the learning. Of the expert, its weights' hash is compared instead of its name; of the precision, "auto" comes
# to another on other processors anyway.
MAY_DIFFER = {
    *("acquisition", "acquisition_sha256", "query_fraction", "seed", "total_steps", "label_budget"),
    *("expert", "device", "precision", "recorded_states", "recorded_stacks"),
}
TREATMENT = ["game", "query_fraction", "acquisition"]
ALL_GAMES = "all games"
ANY = "any"
AREA_OVER = ("agent_steps", "labels_used", "unique_labels")


def select_runs(metrics: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The rows of those runs that meet a condition on their settings and newest metrics.

    Such as "seed < 5 and agent_steps >= 1e6", in the words of `pandas.DataFrame.query`. Raises RunFolderError if the
    condition cannot be read, or no run meets it.
    """
    newest = _newest(metrics)
    try:
        meets = newest.eval(condition)
        if not isinstance(meets, pd.Series) or meets.dtype != bool:  # numbers would be taken as those of rows
            raise TypeError("it is neither true nor false of a run")
        chosen = newest.loc[meets, "run"]
    except Exception as error:  # pandas raises nearly anything for what is no condition
        raise RunFolderError(
            f"select = {condition!r} is no condition on runs ({first_line(error)}); give one on settings and "
            'metrics, such as "query_fraction == 0.1 and seed < 5".'
        ) from error
    if chosen.empty:
        raise RunFolderError(f"select = {condition!r} leaves none of the {len(newest)} runs; give another condition.")
    return metrics[metrics["run"].isin(chosen)]


def function_of(table: pd.DataFrame, by: object = None) -> pd.Series:
    """Each row's acquisition function; "any" where the whole pool is asked about: there all are the same run.

    `by`: a setting whose value is named too, as in "bald, n_samples=100", where it is not the study's, which is the
    default of `ExperimentConfig`. Raises ConfigError if runs cannot be compared by it, RunFolderError for a run without
    it.
    """
    is_named = table["acquisition"].str.startswith(f"{ANY}, ")
    function = table["acquisition"].where((table["query_fraction"] < 1) | is_named, ANY)
    if by is None:
        return function
    of_study = study_value(by)
    if without := [run for run, values in table.groupby("run") if by not in values or values[by].isna().any()]:
        raise RunFolderError(
            f"{', '.join(map(str, without))} cannot be compared by {by}, which it lacks; leave it out."
        )
    return function.where(table[by] == of_study, function + f", {by}=" + table[by].astype(str))


def study_value(by: object) -> Any:
    """A setting's value in the study. Raises ConfigError if runs cannot be compared by it."""
    values = {field.name: field.default for field in dataclasses.fields(ExperimentConfig)}
    # A precision may differ where nothing is asked of it, but may be what is asked.
    allowed = sorted(values.keys() - (MAY_DIFFER - {"precision"}) - {"game"})
    if not isinstance(by, str) or by not in allowed:
        raise ConfigError(f"by = {by!r} is no setting to compare by; {nearest(str(by), allowed)}")
    return values[by]


def without_setting(function: str) -> str:
    """The name of an acquisition function without the setting that `function_of` may have added."""
    return function.partition(", ")[0]


def check_comparable(metrics: pd.DataFrame, by: str | None = None) -> None:
    """Raise RunFolderError unless the runs of each game differ in nothing but `MAY_DIFFER`, and each is there once.

    A copy of a run would pass for a further seed. Runs of one function must have been ranked by the same source code.
    `by`: a further setting in which they may differ, if functions are told apart by it (`function_of`).
    """
    newest = _newest(metrics)
    ranked = newest[newest["query_fraction"] < 1].dropna(subset="acquisition_sha256")
    for function, runs in ranked.groupby(ranked["acquisition"].map(without_setting)):
        if sources := list(_differing(runs, ["acquisition_sha256"])):
            raise RunFolderError(
                f"the runs of {function} were ranked by functions of different source code, {sources[0]}. Choose some "
                "of them by the parameter select, or run those anew of which the function has changed."
            )
    for game, runs in newest.groupby("game"):
        settings = sorted({str(name) for name in runs} - {*METRICS, *MAY_DIFFER, "run", by})
        if differing := list(_differing(runs, settings)):
            raise RunFolderError(
                f"the runs of {game} cannot be compared, for they differ in {'; in '.join(differing)}. Choose some of "
                'them by the parameter select, a condition such as "temperature == 0.1", or give other folders; runs '
                "that differ in one setting alone can be compared by it, the parameter by."
            )
        copies = runs[runs.duplicated([*TREATMENT, "seed"], keep=False)].sort_values([*TREATMENT, "seed", "run"])
        if len(copies):
            (_, first), (_, second) = itertools.islice(copies.iterrows(), 2)
            raise RunFolderError(
                f"{first['run']} and {second['run']} are the same run ({game}, {first['acquisition']}, "
                f"{first['query_fraction']:g} of the pool, seed {first['seed']}) and would pass for two seeds; leave "
                f'one out, for instance by select = "run != {second["run"]!r}".'
            )


def _newest(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics.groupby("run").tail(1)


def _differing(runs: pd.DataFrame, settings: list[str]) -> Iterator[str]:
    """Each setting that has several values, with the number of runs that have each."""
    for name in settings:
        values = runs[name].map(lambda value: "none" if pd.isna(value) else str(value)[:_SHOWN])
        if len(counts := values.value_counts()) > 1:
            of_runs = (f"{value} in {n}, as {runs['run'][values == value].iloc[0]}" for value, n in counts.items())
            yield f"{name} ({'; '.join(of_runs)})"


def learning_curves(metrics: pd.DataFrame, evaluations: pd.DataFrame, references: Mapping[str, Any]) -> pd.DataFrame:
    """One row per run and evaluation: the mean score of its games, and the normalised score.

    Parameters
    ----------
    metrics, evaluations:
        As `load_runs` and `load_evaluations`; evaluations of runs that are not among the metrics are left out.
    references:
        Per game the scores of "expert" and "random play".

    Returns
    -------
    Columns run, game, query_fraction, acquisition, seed, agent_steps, labels_used, unique_labels, score (mean),
    smoothed (mean of an evaluation, the one before and the one after it, NaN in a run's first and last), normalised
    (the same, 0 random play, 1 the expert), and what the games leave uncertain, as standard errors: score_noise (of the
    score), smoothed_noise (of smoothed) and normalised_noise (of the score, in units of normalised).

    Raises RunFolderError if no run has been evaluated yet, ValueError for a game whose references are missing, or
    cannot normalise.
    """
    columns = ["run", *TREATMENT, "seed", "round", "agent_steps", "labels_used", "unique_labels"]
    games = evaluations.groupby(["run", "round"])["score"].agg(score="mean", score_noise="sem").reset_index()
    curves = metrics[columns].merge(games, on=["run", "round"]).sort_values(["run", "round"], ignore_index=True)
    if curves.empty:
        raise RunFolderError(
            "none of these runs has been evaluated yet; go on with them, or give folders of runs that went further."
        )
    of_run = curves.assign(squared=curves["score_noise"] ** 2).groupby("run")
    curves["smoothed"] = of_run["score"].transform(_smooth)
    curves["smoothed_noise"] = np.sqrt(of_run["squared"].transform(_smooth) / 3)
    curves[["normalised", "normalised_noise"]] = np.nan
    for game, rows in curves.groupby("game"):
        known = references.get(str(game))
        known = known if isinstance(known, Mapping) else {}
        if absent := [name for name in ("expert", "random play") if not isinstance(known.get(name), int | float)]:
            raise ValueError(
                f"the references of {game} lack the score of {' and of '.join(absent)}; give references = "
                f'{{"{game}": {{"expert": ..., "random play": ...}}}}.'
            )
        expert, random_play = float(known["expert"]), float(known["random play"])
        try:
            normalised = stats.normalise(rows["smoothed"].to_numpy(), expert, random_play)
        except ValueError as problem:
            raise ValueError(
                f"{game}: {problem}; give references of a better expert, or leave the game out by the parameter "
                f'select, such as "game != {str(game)!r}".'
            ) from None
        curves.loc[rows.index, "normalised"] = normalised
        curves.loc[rows.index, "normalised_noise"] = rows["score_noise"] / (expert - random_play)
    return curves


def _smooth(scores: Any) -> Any:
    """The mean of three evaluations in a row, at the middle one: at the last, a curve would lag behind its steps."""
    return scores.rolling(3, center=True).mean()


def to_common_end(table: pd.DataFrame) -> pd.DataFrame:
    """The rows up to the agent steps that all runs of the same game and share have reached.

    Whatever is compared at the end, or averaged over a run, would else be of students of different age.
    """
    ends = table.groupby(["game", "query_fraction", "run"])["agent_steps"].transform("max")
    return table[table["agent_steps"] <= ends.groupby([table["game"], table["query_fraction"]]).transform("min")]


def areas(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per run: its mean normalised score over steps, over labels and over different states labelled.

    Columns run, game, query_fraction, acquisition, seed, then per x of `AREA_OVER`: area_x, start_x, end_x and
    area_x_noise. The area under the curve is taken between start and end, which all runs of the game and share have in
    common, and divided by the width. Runs without a normalised score have NaN and do not narrow the range. The noise is
    the area's standard error for the games that were played: how much another such student would differ it cannot say.
    """
    rows: list[dict[str, Any]] = []
    for _, group in curves.groupby(["game", "query_fraction"]):
        ends = group.dropna(subset=["normalised"]).groupby("run")[list(AREA_OVER)].agg(["first", "last"])
        for _, of_run in group.groupby("run"):
            known = of_run.dropna(subset=["normalised"])
            row = _identity(of_run)
            of_each = _smooth(pd.DataFrame(np.eye(len(of_run))))[of_run["normalised"].notna().to_numpy()]
            for x in AREA_OVER:
                start, end = float(ends[x, "first"].max()), float(ends[x, "last"].min())
                xs, ys = known[x].to_numpy(float), known["normalised"].to_numpy(float)
                row |= {f"area_{x}": stats.mean_height(xs, ys, start, end), f"start_{x}": start, f"end_{x}": end}
                weights = [stats.mean_height(xs, of_each[i].to_numpy(), start, end) for i in of_each]
                row[f"area_{x}_noise"] = float(np.linalg.norm(weights * of_run["normalised_noise"]))
            rows.append(row)
    return pd.DataFrame(rows)


def _identity(of_run: pd.DataFrame) -> dict[str, Any]:
    return {name: of_run[name].iloc[0] for name in ("run", *TREATMENT, "seed")}


def thresholds(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per run, threshold and x: the interval in which the normalised score first reaches the threshold.

    Columns run, game, query_fraction, acquisition, seed, threshold, x (of `AREA_OVER`), after and by; by is inf in a
    run whose curve ended, at `after`, without reaching it.
    """
    rows: list[dict[str, Any]] = []
    for _, of_run in curves.groupby("run"):
        known = of_run.dropna(subset=["normalised"])
        for threshold, x in itertools.product(stats.THRESHOLDS, AREA_OVER):
            xs, ys = known[x].to_numpy(float), known["normalised"].to_numpy(float)
            after, by = stats.reached(xs, ys, threshold)
            rows.append({**_identity(of_run), "threshold": threshold, "x": x, "after": after, "by": by})
    return pd.DataFrame(rows)


def estimates(runs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row per game, share and function: the seeds' interquartile mean of a measure, with its interval.

    Columns game, query_fraction, acquisition, seeds, iqm, low and high (NaN with fewer than `stats.MIN_SEEDS` seeds).
    Where there are several games with the same share, a function that has so many seeds on each of them has a further
    row of all games, equally weighty.
    """
    rows = []
    for (game, fraction), functions in _strata(runs, measure).items():
        for acquisition, strata in functions.items():
            if _fewest(strata) < (stats.MIN_SEEDS if game == ALL_GAMES else 1):
                continue
            low, high = stats.interval(stats.iqm, *strata)
            row = {"game": game, "query_fraction": fraction, "acquisition": acquisition, "seeds": _fewest(strata)}
            rows.append({**row, "iqm": float(stats.iqm(*strata)), "low": float(low), "high": float(high)})
    return pd.DataFrame(rows, columns=[*TREATMENT, "seeds", "iqm", "low", "high"])


def improvements(runs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row per game, share and pair of functions: how probable it is that `better` has the higher measure.

    Of each pair, `better` is the function with the higher probability. Columns game, query_fraction, better, than,
    seeds (the smaller number), probability, low, high, p (`stats.permutation_p`, corrected by `stats.holm`) and
    verdict: "better" if p is below 0.05, else "undecided". Pairs with fewer than `stats.MIN_SEEDS` seeds are left out:
    nothing can be claimed of them. But p is corrected for all pairs of functions with an evaluation on the game and
    share: so no claim is taken back because others get their seeds. Of four functions five seeds are just enough for a
    claim (p of at least 6 · 2/252), of five it takes six. The interval does not decide: of two equal functions with
    five seeds each, it lies beside one half once in ten times. It is NaN where every run is above every one of the
    other's, for no resample tells how seldom that could fail.
    """
    rows: list[dict[str, Any]] = []
    for (game, fraction), functions in _strata(runs, measure).items():
        enough = [name for name, strata in functions.items() if _fewest(strata) >= stats.MIN_SEEDS]
        pairs = []
        for better, than in itertools.combinations(enough, 2):
            if stats.probability_of_improvement(functions[better], functions[than]) < 0.5:
                better, than = than, better
            strata = [*functions[better], *functions[than]]
            statistic = _probability(len(functions[better]))
            low, high = stats.interval(statistic, *strata) if statistic(*strata) < 1 else (np.nan, np.nan)
            pair = {"game": game, "query_fraction": fraction, "better": better, "than": than, "seeds": _fewest(strata)}
            pair |= {"probability": float(statistic(*strata)), "low": float(low), "high": float(high)}
            pairs.append({**pair, "p": stats.permutation_p(functions[better], functions[than])})
        corrected = stats.holm(np.array([pair["p"] for pair in pairs]), family=math.comb(len(functions), 2))
        rows += [{**pair, "p": p} for pair, p in zip(pairs, corrected.tolist(), strict=True)]
    columns = ["game", "query_fraction", "better", "than", "seeds", "probability", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(verdict=np.where(table["p"] < stats.SIGNIFICANT, "better", "undecided"))


def _probability(games: int) -> Callable[..., Any]:
    """The probability of improvement as a function of all strata, X's games first."""
    return lambda *strata, axis=-1: stats.probability_of_improvement(strata[:games], strata[games:], axis)


def _fewest(strata: list[np.ndarray]) -> int:
    return min(len(values) for values in strata)


def _strata(runs: pd.DataFrame, measure: str) -> dict[tuple[str, float], dict[str, list[np.ndarray]]]:
    """The seeds' values, game by game, of each function, by (game, share); with all games together where possible.

    A function whose runs have no value yet is there, with none.
    """
    strata: dict[tuple[str, float], dict[str, list[np.ndarray]]] = {}
    for fraction in sorted(runs["query_fraction"].astype(float).unique()):
        at_share = runs[runs["query_fraction"] == fraction]
        games = [str(game) for game in at_share.dropna(subset=[measure])["game"].unique()]
        for name, of_function in at_share.groupby("acquisition"):
            acquisition = str(name)
            values = {str(game): rows[measure].dropna().to_numpy(float) for game, rows in of_function.groupby("game")}
            for game, of_game in values.items():
                strata.setdefault((game, fraction), {})[acquisition] = [of_game]
            if len(games) > 1 and set(games) <= set(values):
                strata.setdefault((ALL_GAMES, fraction), {})[acquisition] = [values[game] for game in games]
    return dict(sorted(strata.items(), key=lambda item: (item[0][0] == ALL_GAMES, item[0])))


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """The table of all results: one row per game, share and function.

    Columns game, query_fraction, acquisition, seeds; at the common end of the share's runs agent_steps, labels_used and
    unique_labels (mean over seeds); score and normalised (of the last three evaluations, not the best),
    area_agent_steps, area_labels_used and area_unique_labels: interquartile means over seeds; of score and areas also
    _low and _high (as `estimates`), _min and _max over the seeds, and _noise (the standard error for the games that
    were played); start_agent_steps and end_agent_steps, between which the area is taken; and per threshold, such as 50
    %, up to the common end: labels_to_50 (the labels by which half of the seeds had reached it; inf if fewer did),
    labels_after_50 (that seed's at its evaluation before, 0 if there is none), unique_to_50 and unique_after_50 (the
    same of different states) and reached_50 (how many seeds did).
    Runs with too few evaluations for a normalised score are left out, unless there are no others.
    """
    judged = curves.groupby("run")["normalised"].transform("count") > 0
    curves = (curves[judged] if judged.any() else curves).reset_index(drop=True)
    until, smoothed = to_common_end(curves), ["smoothed", "smoothed_noise", "normalised"]
    # Where a longer run is cut, its smoothed score counts an evaluation beyond the end.
    beyond = ~until.duplicated("run", keep="last") & curves.duplicated("run", keep="last")[until.index]
    until = until.assign(**until[smoothed].mask(beyond))
    last, area, reached = until.groupby("run", as_index=False).last(), areas(curves), thresholds(until)
    last = last.assign(score=last["smoothed"], score_noise=last["smoothed_noise"])
    ends = last.groupby(TREATMENT)
    table = ends.size().to_frame("seeds")
    table = table.join(ends[list(AREA_OVER)].mean().astype(int)).join(ends["normalised"].agg(iqm))
    table = table.join(area.groupby(TREATMENT)[["start_agent_steps", "end_agent_steps"]].first())
    for name, of_runs in {"score": last, **{f"area_{x}": area for x in AREA_OVER}}.items():
        columns = {"iqm": name, "low": f"{name}_low", "high": f"{name}_high"}
        table = table.join(estimates(of_runs, name).set_index(TREATMENT)[list(columns)].rename(columns=columns))
        by_function = of_runs.groupby(TREATMENT)
        table[[f"{name}_min", f"{name}_max"]] = by_function[name].agg(["min", "max"])
        table[f"{name}_noise"] = by_function[f"{name}_noise"].agg(_noise)
    for threshold in stats.THRESHOLDS:
        name, at = f"{threshold * 100:g}", reached[reached["threshold"] == threshold]
        for count, x in (("labels", "labels_used"), ("unique", "unique_labels")):
            ends = at[at["x"] == x].groupby(TREATMENT)[["after", "by"]]
            table[[f"{count}_after_{name}", f"{count}_to_{name}"]] = ends.apply(_middle)
        finite = np.isfinite(at.loc[at["x"] == "labels_used"].set_index(TREATMENT)["by"])
        table[f"reached_{name}"] = finite.groupby(TREATMENT).sum()
    return table.reset_index()


def iqm(values: pd.Series) -> float:
    """The interquartile mean of a column's known values, `stats.iqm`; NaN without any."""
    known = values.dropna().to_numpy(float)
    return float(stats.iqm(known)) if len(known) else np.nan


def _middle(ends: pd.DataFrame) -> pd.Series:
    """The interval by whose end half of the seeds, or more, had reached a threshold."""
    return ends.sort_values(["by", "after"]).iloc[(len(ends) - 1) // 2]


def _noise(of_runs: pd.Series) -> float:
    """The standard error of an interquartile mean over runs, by the games alone."""
    kept = len(of_runs) - 2 * stats.n_trimmed(len(of_runs))
    return float(np.sqrt(np.mean(of_runs**2) / kept))


def percent(share: float) -> str:
    """A share as text, such as "10 %"."""
    return f"{share * 100:.3g} %"
