"""What recorded selections tell: tables in, tables out, on the states that `Run.selection` gives.

The functions are compared on the round's random sample of the pool: each would have asked about the share
`query_fraction` of it that it scores highest, whichever of them the run itself used.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import torch

from aamlib import stats
from aamlib.acquisition import bald, entropy, variation_ratio
from aamlib.files import RunFolderError
from aamlib.runs import Run

INDIFFERENT = 0.95  # of the highest entropy, ln A
OF_THE_PASSES = {"bald": bald, "entropy": entropy, "variation_ratio": variation_ratio}
FEWEST = 10  # costly mistakes in a sample on which an AUROC is worth taking

# What `describe` adds to a selection, with units.
COLUMNS = {
    "q_gap": "Q-gap: the expert's best Q-value minus its second best",
    "q_range": "Q-range: the expert's best Q-value minus its worst",
    "label_entropy": "entropy of the label, softmax(Q_expert / tau), nats",
    "indifferent": "whether the label's entropy is above 0.95 ln A",
    "aleatoric": "expected entropy, score_entropy - score_bald, nats",
    "expert_action": "the expert's greedy action",
    "disagree": "whether the student's greedy action is another one",
    "regret": "the expert's best Q-value minus its Q-value of the student's action",
    "costly": "whether that is more than tau: a costly mistake",
}


def score_names(selection: pd.DataFrame) -> list[str]:
    """The functions whose scores a selection holds, such as "bald"."""
    names = selection.columns.astype(str)
    return [name.removeprefix("score_") for name in names if name.startswith("score_")]


def label_entropy(q_values: np.ndarray, temperature: float) -> np.ndarray:
    """Entropy of softmax(Q / temperature), nats, (N,), of Q-values (N, A); between 0 and ln A."""
    return entropy(torch.tensor(q_values, dtype=torch.float64)[:, None] / temperature).numpy()


def describe_q(q_values: np.ndarray, temperature: float) -> pd.DataFrame:
    """The first four of `COLUMNS`, one row per state, from the expert's Q-values (N, A)."""
    ordered = np.sort(q_values, axis=1)
    of_label = label_entropy(q_values, temperature)
    return pd.DataFrame(
        {
            "q_gap": ordered[:, -1] - ordered[:, -2],
            "q_range": ordered[:, -1] - ordered[:, 0],
            "label_entropy": of_label,
            "indifferent": of_label > INDIFFERENT * np.log(q_values.shape[1]),
        }
    )


def describe(selection: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The selection with `COLUMNS` added. The student's greedy action is the best by its mean over the T passes."""
    expert_q = np.stack(selection["expert_q"].to_list())
    table = selection.reset_index(drop=True).assign(**describe_q(expert_q, temperature))
    table["aleatoric"] = table["score_entropy"] - table["score_bald"]
    table["expert_action"] = expert_q.argmax(axis=1)
    table["disagree"] = table["student_action"] != table["expert_action"]
    table["regret"] = expert_q.max(axis=1) - expert_q[np.arange(len(table)), table["student_action"]]
    table["costly"] = table["regret"] > temperature
    return table


def rounds_of(run: Run) -> list[int]:
    """The rounds whose selection is recorded. Raises RunFolderError if none is."""
    if not (rounds := run.recorded):
        raise RunFolderError(f"{run.dir} holds no recorded selection; give the folder of a run of at least one round.")
    return rounds


def all_rounds(run: Run) -> pd.DataFrame:
    """Every recorded state of every round, described, with its `round`; without frames and samples."""
    tables = [
        describe(run.selection(number), run.config["temperature"])
        .drop(columns=["frames", "q_samples", "expert_q"])
        .assign(round=number)
        for number in rounds_of(run)
    ]
    return pd.concat(tables, ignore_index=True)


def would_ask(sample: pd.DataFrame, score: str, fraction: float) -> pd.Series:
    """Whether the function would ask about each state of a pool sample: the share `fraction` with the highest scores.

    Ties at the cut fall by the recorded uniformly random score.
    """
    order = sample.sort_values([f"score_{score}", "score_random"], ascending=False).index
    return pd.Series(sample.index.isin(order[: max(1, round(fraction * len(sample)))]), index=sample.index)


def choices(states: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """What each function would have asked about, per round: the means of its states.

    Returns columns round, score (function, or "pool" for all), indifferent, costly and disagree (shares), q_gap,
    label_entropy, score_entropy, score_bald and aleatoric (means). `states` is as `all_rounds`.
    """
    columns = [
        "indifferent", "costly", "disagree", "q_gap", "label_entropy", "score_entropy", "score_bald", "aleatoric",
    ]  # fmt: skip
    rows = []
    for number, sample in states.query("kind == 'random'").groupby("round"):
        asked = {score: sample[would_ask(sample, score, fraction)] for score in score_names(states)}
        for score, chosen in {**asked, "pool": sample}.items():
            rows.append({"round": number, "score": score, **chosen[columns].mean()})
    return pd.DataFrame(rows)


def agreement(states: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """How alike any two functions are, per round: columns round, pair, overlap and rank_correlation.

    overlap: share of one choice that is in the other too; chance gives `fraction`. rank_correlation: Spearman's, over
    the whole sample of the pool; missing where a score is the same for all states.
    """
    rows = []
    for number, sample in states.query("kind == 'random'").groupby("round"):
        ranks = sample.filter(like="score_").corr(method="spearman")
        asked = {score: would_ask(sample, score, fraction) for score in score_names(states)}
        for first, second in itertools.combinations(asked, 2):
            overlap = (asked[first] & asked[second]).sum() / asked[first].sum()
            correlation = ranks.loc[f"score_{first}", f"score_{second}"]
            rows.append({"round": number, "pair": f"{first} · {second}", "overlap": overlap,
                         "rank_correlation": correlation})  # fmt: skip
    return pd.DataFrame(rows)


def auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    positive: bool (N,); scores: float (N,). NaN without positives or negatives.
    """
    if positive.all() or not positive.any():
        return float("nan")
    return float(stats.probability_of_improvement([scores[positive]], [scores[~positive]]))


def was_right(states: pd.DataFrame) -> pd.DataFrame:
    """AUROC of each score against costly mistakes, on the pool's random sample.

    Where the expert is indifferent, few mistakes are costly. So over all states a score does well that merely avoids
    these; over the others alone it has to tell mistakes. Both are NaN where the mistakes are fewer than `FEWEST`.

    Returns columns round, score, auroc (all states), auroc_decided (those that the expert is not indifferent about),
    states and costly (how many of them).
    """
    rows = []
    for number, sample in states.query("kind == 'random'").groupby("round"):
        decided = sample[~sample["indifferent"]]
        for score in score_names(states):
            both = (
                auroc(part["costly"].to_numpy(), part[f"score_{score}"].to_numpy())
                if part["costly"].sum() >= FEWEST
                else float("nan")
                for part in (sample, decided)
            )
            rows.append((number, score, *both, len(sample), int(sample["costly"].sum())))
    return pd.DataFrame(rows, columns=["round", "score", "auroc", "auroc_decided", "states", "costly"])


def reliability(run: Run) -> pd.DataFrame:
    """How alike a built-in function would rank a round's states under other dropout masks: 1 alike, 0 as by chance.

    Split-half reliability: Spearman's rank correlation between the scores by one half of the T passes and by the other,
    mean over ten random halvings (0 where a half scores all states alike; not below 0), stepped up from T / 2 passes to
    T (Spearman 1910, Brown 1910). On the states of the random sample whose passes are recorded. Few passes have coarse
    scores, of which the half's correlation tells too little: it comes out low, the lower the fewer there are.

    Returns columns round, score and reliability; NaN where T < 8, of fewer than ten states, or where all have the same
    score.
    """
    half = run.config["n_samples"] // 2
    longer = run.config["n_samples"] / half
    rows = []
    for number in rounds_of(run):
        q_samples = run.selection(number).query("kind == 'random'")["q_samples"].dropna()
        if half < 4 or len(q_samples) < 10:
            rows += [(number, score, float("nan")) for score in OF_THE_PASSES]
            continue
        logits = torch.from_numpy(np.stack(q_samples.to_list())) / run.config["temperature"]  # (N, T, A)
        rng = np.random.default_rng(number)
        orders = [rng.permutation(logits.shape[1]) for _ in range(10)]
        for score, function in OF_THE_PASSES.items():
            ranks = (
                pd.DataFrame({i: function(logits[:, order[part]]).numpy() for i, order in enumerate(orders)}).rank()
                for part in (slice(half), slice(half, 2 * half))
            )
            of_halves = max(0.0, next(ranks).corrwith(next(ranks)).fillna(0).mean())
            stepped_up = longer * of_halves / (1 + (longer - 1) * of_halves)
            rows.append((number, score, stepped_up if len(function(logits).unique()) > 1 else float("nan")))
    return pd.DataFrame(rows, columns=["round", "score", "reliability"])
