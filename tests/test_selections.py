"""Statistics of recorded selections, on tables whose answers can be counted by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_run

import aamlib
from aamlib import runs, selections
from aamlib.runs import recorded_runs


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


def test_an_expert_is_indifferent_above_95_per_cent_of_the_highest_entropy():
    shares = np.array([0.63, 0.64])  # of the likelier of two actions: 95.07 and 94.27 % of ln 2
    q = np.stack([np.log(shares / (1 - shares)), np.zeros(2)], axis=1)
    assert selections.describe_q(q, 1.0)["indifferent"].tolist() == [True, False]


def test_a_regret_of_exactly_tau_is_no_costly_mistake(table):
    assert selections.describe(table, temperature=2.0)["costly"].tolist() == [False, False, False, True]


def test_label_entropy_by_hand():
    q = np.array([[math.log(3), 0.0], [1.0, 1.0]])
    three_quarters = 2 * math.log(2) - 0.75 * math.log(3)  # of softmax [3/4, 1/4]
    np.testing.assert_allclose(selections.label_entropy(q, 1.0), [three_quarters, math.log(2)])
    np.testing.assert_allclose(selections.label_entropy(2 * q, 2.0), [three_quarters, math.log(2)])


def test_label_entropy_stays_finite_for_extreme_q_values():
    q = np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(selections.label_entropy(q, 0.01), [0, math.log(3)], atol=1e-12)


def test_each_function_would_ask_about_its_highest_scores_and_ties_fall_by_the_random_score(table):
    assert selections.would_ask(table, "bald", 0.5).tolist() == [False, True, False, True]
    level = table.assign(score_bald=0.0)
    assert selections.would_ask(level, "bald", 0.5).tolist() == [True, False, True, False]
    assert selections.would_ask(table, "bald", 0.01).tolist() == [False, False, False, True], "one at least"


def test_choices_and_agreement_per_round(table):
    described = selections.describe(table, temperature=1.0)
    queried = described.assign(kind="queried", score_entropy=[9.0, 0.0, 8.0, 1.0], score_bald=[5.0, 6.0, 7.0, 8.0])
    both = pd.concat([described, queried])  # what was asked about is no sample of the pool
    states = pd.concat([both.assign(round=number) for number in (1, 2)], ignore_index=True)
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


@pytest.fixture
def recorded(tmp_path):
    """A function that writes a round's logits, (N, T, A), and gives the reliability of each score by them."""

    def measure(logits):
        table = pd.DataFrame(
            {"kind": "random", "expert_q": [np.zeros(logits.shape[2], np.float32)] * (len(logits) + 1)}
        )
        stacks = [np.zeros((4, 84, 84), np.uint8).tobytes()] * len(logits)
        table["frames"] = [*stacks, None]
        table["q_samples"] = [*(states.flatten() * 0.5 for states in logits.astype(np.float32)), None]
        alike = table.assign(kind="queried")  # other states, which are no sample of the pool
        alike["q_samples"] = [*(np.arange(states.size, dtype=np.float32) * i for i, states in enumerate(logits)), None]
        table = pd.concat([table, alike], ignore_index=True)
        runs.write_selection(tmp_path, 3, table)
        config = aamlib.ExperimentConfig(acquisition="random", temperature=0.5, n_samples=logits.shape[1])
        (tmp_path / "config.json").write_text(json.dumps(config.asdict()))
        measured = selections.reliability(aamlib.Run(tmp_path))
        assert set(measured["round"]) == {3}
        return measured.set_index("score")["reliability"]

    return measure


def test_a_ranking_is_as_reliable_as_another_draw_of_masks_repeats_it(recorded):
    rng = np.random.default_rng(0)
    policy, spread = rng.standard_normal((1000, 1, 4)), rng.gamma(1.0, size=(1000, 1, 1))

    def draw(n_samples):
        return policy + spread * rng.standard_normal((1000, n_samples, 4))

    for n_samples in (10, 25):
        estimated = recorded(draw(n_samples))
        for name, function in selections.OF_THE_PASSES.items():
            first, second = (pd.Series(function(torch.from_numpy(draw(n_samples))).numpy()) for _ in range(2))
            assert estimated[name] == pytest.approx(first.corr(second, method="spearman"), abs=0.03), (name, n_samples)


def test_a_ranking_of_chance_is_not_reliable_and_one_that_no_mask_changes_is_wholly(recorded):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((400, 10, 4))
    assert recorded(noise).between(0, 0.2).all()
    assert recorded(rng.standard_normal((400, 1, 4)).repeat(10, axis=1))["entropy"] == pytest.approx(1)


def test_too_few_passes_or_states_or_a_level_score_have_no_reliability(recorded):
    for shape in ((50, 7, 4), (50, 2, 4), (9, 10, 4)):
        assert recorded(np.random.default_rng(0).standard_normal(shape)).isna().all()
    assert recorded(np.zeros((50, 10, 4))).isna().all()
    assert recorded(np.random.default_rng(0).standard_normal((10, 8, 4))).notna().all(), "these are just enough"


def test_halves_that_tell_nothing_count_as_chance(recorded):
    logits = np.zeros((50, 10, 4))
    logits[:, :, 0] = 1
    logits[7, :2, 1] = 2  # the only dissent: most halvings leave one half without any
    measured = recorded(logits)
    assert measured.between(0, 0.9).all(), "halvings in which both have a part of it would rank alike"


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
    states = pd.concat([states, states.assign(kind="queried", costly=~states["costly"])], ignore_index=True)
    assert selections.was_right(states)[["auroc", "auroc_decided", "costly"]].to_numpy().tolist() == [[1, 1, 10]]
    states.loc[n - 1, "indifferent"] = True
    assert selections.was_right(states).fillna(-1)[["auroc", "auroc_decided"]].to_numpy().tolist() == [[1, -1]]
    states.loc[n - 1, "costly"] = False
    assert selections.was_right(states)["auroc"].isna().all()


def test_what_is_not_there_is_said_in_one_sentence(tmp_path):
    (tmp_path / "run" / "selections").mkdir(parents=True)
    (tmp_path / "run" / "selections" / "000001 (1).parquet").touch()  # a copy that a cloud made
    with pytest.raises(aamlib.RunFolderError, match="no run with recorded selections below"):
        recorded_runs([tmp_path])
    with pytest.raises(aamlib.RunFolderError, match="holds no recorded selection"):
        selections.rounds_of(aamlib.Run(tmp_path))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a/run", "b/run", "b/other"):
        (write_run(tmp_path / folder) / "selections").mkdir()
        (tmp_path / folder / "selections" / "000001.parquet").touch()
    assert set(recorded_runs([tmp_path])) == {"other", "a/run", "b/run"}
    assert set(recorded_runs(str(tmp_path / "a"))) == {"run"}, "papermill gives one folder as a string"
    (tmp_path / "a").rename(tmp_path / ".a.half-copied")
    assert set(recorded_runs([tmp_path])) == {"other", "run"}
    assert {"pong-bald", "pong-entropy"} <= set(recorded_runs())
    (tmp_path / "b" / "other" / "run").mkdir()
    (tmp_path / "b" / "run").rename(tmp_path / "b" / "other" / "other")
    assert set(recorded_runs([tmp_path / "b"])) == {"other", "other/other"}


def test_a_run_whose_settings_cannot_be_read_is_left_out_and_a_folder_that_is_not_there_is_refused(tmp_path):
    for name in ("whole", "damaged", "other"):
        (write_run(tmp_path / name) / "selections").mkdir()
        (tmp_path / name / "selections" / "000001.parquet").touch()
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.warns(UserWarning, match="not shown: .*(damaged is no run folder|other was written by)") as said:
        assert set(recorded_runs(tmp_path)) == {"whole"}
    assert len(said) == 2
    with pytest.raises(aamlib.RunFolderError, match="no folder .*nowhere; give folders that hold run folders"):
        recorded_runs([tmp_path, tmp_path / "nowhere"])
