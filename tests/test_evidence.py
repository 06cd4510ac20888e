"""What speaks for the study's explanation: on tables whose answers can be counted by hand, and on the sample runs."""

import numpy as np
import pandas as pd
import pytest
from synthetic import choices_of, write_run, write_runs

import aamlib
from aamlib import evidence, report, selections
from aamlib.runs import recorded_runs


def test_each_round_says_what_was_asked_about_beside_the_pool(metrics):
    choices = choices_of("pong-bald-0.1-0", asked=0.2, pool=0.6, auroc=0.7)
    rounds = evidence.per_round(metrics, choices)
    assert len(rounds) == len(metrics)
    row = rounds.query("run == 'pong-bald-0.1-0' and round == 2").iloc[0]
    assert (row["asked_indifferent"], row["pool_indifferent"], row["auroc"]) == (0.2, 0.6, 0.7)
    assert (row["asked_costly"], row["pool_q_gap"]) == (0.1, 0.4)
    elsewhere = rounds.query("run != 'pong-bald-0.1-0' or round > 3")
    assert elsewhere[list(evidence.COLUMNS)].isna().all(axis=None), "nothing was recorded there"


def test_the_summary_is_a_mean_over_rounds_and_then_over_seeds(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}", rounds=12, seed=seed)
    metrics = aamlib.load_runs(tmp_path)
    choices = pd.concat([choices_of("seed0", 0.2, 0.6, 0.7), choices_of("seed1", 0.4, 0.8, 0.5).query("round < 3")])
    rounds = evidence.per_round(metrics, choices)
    (row,) = evidence.summary(rounds).to_dict("records")
    assert row["seeds"] == 2
    assert row["asked_indifferent"] == pytest.approx(0.3), "of seeds, not of rounds"
    assert (row["asked_indifferent_min"], row["asked_indifferent_max"]) == pytest.approx((0.2, 0.4))
    assert row["auroc"] == pytest.approx(0.6)
    assert (row["rounds_recorded"], row["rounds_auroc"]) == (3, 3), "of all seeds, but the first of each"
    last = metrics[metrics["round"] > 12 - 10].groupby("run")["probe_expert_kl"].mean()
    assert row["probe_expert_kl"] == pytest.approx(last.mean())


def test_functions_are_compared_on_the_pools_that_none_of_them_has_shaped(tmp_path):
    write_runs(tmp_path, acquisitions=("random", "bald"), rounds=12, seeds=2)
    metrics = aamlib.load_runs(tmp_path)
    own = choices_of("pong-bald-0.1-0", 0.9, 0.9, 0.9)
    neutral = [choices_of("pong-random-0.1-0", 0.2, 0.6, 0.7), choices_of("pong-random-0.1-1", 0.4, 0.8, 0.5)]
    table = evidence.same_pool(metrics, pd.concat([own, *neutral])).set_index("acquisition")
    assert set(table.index) == {"bald", "entropy", "pool"}
    assert table.loc["bald", ["runs", "indifferent", "auroc"]].tolist() == pytest.approx([2, 0.3, 0.6])
    assert table.loc["bald", ["rounds_auroc", "rounds_auroc_decided"]].tolist() == [4, 4], "two of each run"
    assert table.loc["entropy", "indifferent"] == pytest.approx(0.7)
    assert table.loc["bald", ["indifferent_min", "indifferent_max"]].tolist() == pytest.approx([0.2, 0.4])
    taken = [0.1 * (1 - 0.2) / (1 - 0.6), 0.1 * (1 - 0.4) / (1 - 0.8)]
    assert table.loc["bald", ["decided_taken", "decided_taken_max"]].tolist() == pytest.approx([sum(taken) / 2, 0.3])
    assert table.loc[["entropy", "pool"], "decided_taken"].tolist() == pytest.approx([0.1, 1])
    assert table.loc["bald", ["reliability", "rounds_reliability"]].tolist() == pytest.approx([0.3, 4])
    assert "30 % (20 % to 40 %)" in report.to_markdown(table.reset_index())
    assert "30 % (" not in report.to_markdown(table.assign(indifferent_min=0.3, indifferent_max=0.3).reset_index())
    rows = report.side_by_side(table.reset_index()).set_index("of the states")
    assert rows.loc["expert indifferent", ["share", "bald", "entropy", "(all states)"]].tolist() == [
        "10 %", "30 %", "70 %", "70 %",
    ]  # fmt: skip
    assert rows.loc["AUROC, all states", ["bald", "(all states)"]].tolist() == ["0.60", "–"]
    assert rows.loc["reliability of the ranking", "bald"] == "0.30"
    older = table.reset_index().assign(reliability=np.nan, auroc=np.nan)
    rows = report.side_by_side(older).set_index("of the states")
    assert "reliability of the ranking" not in rows.index, "a row of dashes for what older tables lack"
    assert rows.loc["AUROC, all states", "bald"] == "–"


def test_what_lies_beyond_the_common_end_is_left_out(tmp_path):
    for run, rounds in (("random-0", 14), ("random-1", 12)):
        write_run(tmp_path / run, rounds=rounds, seed=int(run[-1]), acquisition="random")
    longer = aamlib.load_runs(tmp_path)
    common = longer[longer["round"] <= 12]
    choices = pd.concat([choices_of("random-0", 0.2, 0.6, 0.7), choices_of("random-1", 0.4, 0.8, 0.5)])
    late = choices_of("random-0", 0.9, 0.9, 0.9).query("round == 3").assign(round=13)
    more = pd.concat([choices, late])
    pd.testing.assert_frame_equal(
        evidence.summary(evidence.per_round(longer, more)), evidence.summary(evidence.per_round(common, choices))
    )
    pd.testing.assert_frame_equal(evidence.same_pool(longer, more), evidence.same_pool(common, choices))


def test_a_small_p_is_not_shown_as_none():
    text = report.to_markdown(pd.DataFrame({"p": [0.00003, 0.0476]}))
    assert [line.strip("| ") for line in text.splitlines()[2:]] == ["< 0.001", "0.048"]


def test_without_a_random_run_there_is_no_pool_to_compare_on(metrics):
    table = evidence.same_pool(metrics, choices_of("pong-bald-0.1-0", 0.2, 0.6, 0.7))
    assert table.empty
    assert report.to_markdown(table) == ""


def test_an_expert_that_is_indifferent_everywhere_leaves_nothing_to_take(tmp_path):
    write_runs(tmp_path, acquisitions=("random",), rounds=12)
    choices = choices_of("pong-random-0.1-0", 0.9, 1.0, 0.7)
    table = evidence.same_pool(aamlib.load_runs(tmp_path), choices)
    rows = report.side_by_side(table).set_index("of the states")
    assert rows.loc["of the decided states, asked about", "bald"] == "–"


def test_a_run_is_tabulated_from_its_selections():
    run = recorded_runs(aamlib.DATA_DIR / "sample")["pong-entropy"]
    table = evidence.tabulate(run).set_index(["round", "score"])
    number = selections.rounds_of(run)[-1]
    states = selections.describe(run.selection(number), run.config["temperature"])
    queried, sample = (states[states["kind"] == kind] for kind in ("queried", "random"))
    assert table.loc[(number, "asked"), "indifferent"] == pytest.approx(queried["indifferent"].mean())
    assert table.loc[(number, "pool"), "indifferent"] == pytest.approx(sample["indifferent"].mean())
    costly = sample["costly"].to_numpy(bool)
    assert table.loc[(number, "bald"), "auroc"] == pytest.approx(
        selections.auroc(costly, sample["score_bald"].to_numpy())
    )
    reliability = selections.reliability(run).set_index(["round", "score"])["reliability"]
    assert table.loc[(number, "bald"), "reliability"] == reliability[(number, "bald")]
    assert pd.isna(table.loc[(number, "random"), "reliability"]), "a chance has none"


def test_the_scores_by_which_a_run_asked_are_its_own(tmp_path):
    for name, share in (("part", 0.1), ("whole", 1.0)):
        run = write_run(tmp_path / name, rounds=3, query_fraction=share, acquisition="entropy")
        choices_of(name, 0.2, 0.6, 0.7).drop(columns=["run", "own"]).to_csv(run / evidence.CHOICES, index=False)
    choices = evidence.load_choices(tmp_path)
    assert set(choices.loc[choices["own"], "run"]) == {"part"}, "of the whole pool there is nothing to choose"
    assert set(choices.loc[choices["own"], "score"]) == {"entropy"}


def test_runs_without_selections_have_no_choices_and_a_damaged_table_is_named(two_runs, metrics):
    choices = evidence.load_choices(two_runs)
    assert choices.empty
    older = choices_of("pong-bald-0.1-0", 0.2, 0.6, 0.7).drop(columns="reliability")
    older.to_csv(two_runs / "pong-bald-0.1-0" / evidence.CHOICES, index=False)
    assert evidence.load_choices(two_runs)["reliability"].isna().all()
    assert evidence.per_round(metrics, choices)["asked_indifferent"].isna().all()
    whole = choices_of("pong-bald-0.1-0", 0.2, 0.6, 0.7).to_csv(index=False).encode()
    for damaged in (b"", b"round,score\n1,bald\n", whole[:-3]):
        (two_runs / "pong-bald-0.1-0" / evidence.CHOICES).write_bytes(damaged)
        with pytest.raises(aamlib.RunFolderError, match=r"choices\.csv .* leave "):
            evidence.load_choices(two_runs)
