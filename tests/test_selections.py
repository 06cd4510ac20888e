"""Statistics of recorded selections, on tables whose answers can be counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aamlib
from aamlib import selections


@pytest.fixture
def table():
    """Four states, three actions; tau = 1 below: Q-values are logits."""
    return pd.DataFrame(
        {
            "kind": "random",
            "score_entropy": [1.0, 0.8, 0.6, 0.4],
            "score_bald": [0.1, 0.3, 0.2, 0.4],
            "score_random": [0.5, 0.2, 0.9, 0.1],
            "expert_q": [np.array(q, np.float32) for q in ([0, 0, 0], [3, 1, 0], [0, 5, 4.5], [2, 2, -9])],
            "student_action": np.array([2, 1, 1, 2], np.int16),
        }
    )


def test_columns_counted_by_hand(table):
    described = selections.describe(table, temperature=1.0)
    np.testing.assert_allclose(described["q_gap"], [0, 2, 0.5, 0])
    np.testing.assert_allclose(described["q_range"], [0, 3, 5, 11])
    assert described["label_entropy"][0] == pytest.approx(math.log(3))
    assert described["label_entropy"][3] == pytest.approx(math.log(2), abs=1e-3)
    assert described["indifferent"].tolist() == [True, False, False, False]
    np.testing.assert_allclose(described["aleatoric"], [0.9, 0.5, 0.4, 0.0])
    np.testing.assert_allclose(described["regret"].astype(float), [0, 2, 0, 11])
    assert described["costly"].tolist() == [False, True, False, True]
    assert described["disagree"].tolist() == [True, True, False, True]
    assert set(selections.COLUMNS) <= set(described)


def test_a_regret_of_exactly_tau_is_no_costly_mistake(table):
    assert selections.describe(table, temperature=2.0)["costly"].tolist() == [False, False, False, True]


def test_label_entropy_stays_finite_for_extreme_q_values():
    q = np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(selections.label_entropy(q, 0.01), [0, math.log(3)], atol=1e-12)


def test_each_function_would_ask_about_its_highest_scores_and_ties_fall_by_the_random_score(table):
    assert selections.would_ask(table, "bald", 0.5).tolist() == [False, True, False, True]
    level = table.assign(score_bald=0.0)
    assert selections.would_ask(level, "bald", 0.5).tolist() == [True, False, True, False]


def test_choices_and_agreement_per_round(table):
    described = selections.describe(table, temperature=1.0)
    states = pd.concat([described.assign(round=number) for number in (1, 2)], ignore_index=True)
    choices = selections.choices(states, fraction=0.5).set_index(["round", "score"])
    assert choices.loc[(2, "entropy"), "indifferent"] == 0.5
    assert choices.loc[(2, "bald"), "indifferent"] == 0.0
    assert choices.loc[(2, "pool"), "indifferent"] == 0.25
    assert choices.loc[(1, "bald"), "costly"] == 1.0
    parts = choices["aleatoric"] + choices["score_bald"]
    np.testing.assert_allclose(parts, choices["score_entropy"])
    alike = selections.agreement(states, fraction=0.5).set_index(["round", "pair"])
    assert alike.loc[(1, "entropy · bald"), "overlap"] == 0.5
    assert alike.loc[(1, "entropy · bald"), "rank_correlation"] == pytest.approx(-0.8)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_the_right_order(states):
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for is_positive, high in states
        for is_other, low in states
        if is_positive and not is_other
    ]
    positive, scores = (np.array(column) for column in zip(*states, strict=True))
    value = selections.auroc(positive, scores)
    assert value == pytest.approx(np.mean(pairs)) if pairs else math.isnan(value)


def test_an_auroc_of_few_mistakes_is_not_taken():
    n = 2 * selections.FEWEST
    states = pd.DataFrame({"round": 1, "kind": "random", "score_bald": np.arange(n), "indifferent": False})
    states["costly"] = states.index >= selections.FEWEST  # ten of twenty, the highest scores
    assert selections.was_right(states)[["auroc", "auroc_decided", "costly"]].to_numpy().tolist() == [[1, 1, 10]]
    states.loc[n - 1, "indifferent"] = True
    assert selections.was_right(states).fillna(-1)[["auroc", "auroc_decided"]].to_numpy().tolist() == [[1, -1]]
    states.loc[n - 1, "costly"] = False
    assert selections.was_right(states)["auroc"].isna().all()


def test_what_is_not_there_is_said_in_one_sentence(tmp_path):
    with pytest.raises(aamlib.RunFolderError, match="no run with recorded selections below"):
        selections.recorded_runs([tmp_path])
    with pytest.raises(aamlib.RunFolderError, match="holds no recorded selection"):
        selections.rounds_of(aamlib.Run(tmp_path))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a/run", "b/run", "b/other"):
        (tmp_path / folder / "selections").mkdir(parents=True)
        (tmp_path / folder / "selections" / "000001.parquet").touch()
    assert set(selections.recorded_runs([tmp_path])) == {"other", "a/run", "b/run"}
    assert set(selections.recorded_runs(str(tmp_path / "a"))) == {"run"}, "papermill gives one folder as a string"
    (tmp_path / "a").rename(tmp_path / ".a.half-copied")
    assert set(selections.recorded_runs([tmp_path])) == {"other", "run"}
    assert {"pong-bald", "pong-entropy"} <= set(selections.recorded_runs())
