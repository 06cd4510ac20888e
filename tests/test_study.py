"""The study's numbers beside ours."""

import pandas as pd
import pytest
from synthetic import REFERENCES, write_run

import aamlib
from aamlib import comparison, evidence, report, study


def test_the_studys_scores_stand_beside_ours_at_the_same_steps(two_runs, metrics):
    curves = comparison.learning_curves(metrics, aamlib.load_evaluations(two_runs), REFERENCES)
    theirs = pd.DataFrame(
        {
            "game": "pong",
            "query_fraction": [0.1, 0.1, 0.1, 0.4],
            "acquisition": ["bald", "entropy", "bald", "bald"],
            "agent_steps": [131_000, 170_000, 9_000_000, 100_000],
            "score": [17.0, -14.0, 18.0, 18.0],
        }
    )
    table = study.scores(curves, theirs)
    pd.testing.assert_frame_equal(table[list(theirs)], theirs)
    bald = curves.query("acquisition == 'bald'").reset_index()
    nearest = int(bald.query("agent_steps == 130_000").index[0])
    bald = bald["score"].iloc[nearest - 1 : nearest + 2]
    assert len(bald) == 3
    assert table["score_ours"][0] == pytest.approx(bald.mean()), "of the nearest evaluation and its neighbours"
    assert table["seeds_ours"].tolist() == [1, 1, 0, 0], "no run went that far, or has that share"
    assert table["score_ours"].isna().tolist() == [False, False, True, True]
    glance = report.at_a_glance(comparison.summary(curves), table).set_index("function")
    assert glance.loc["bald", ["share", "study"]].tolist() == ["10 %", "17 after 131,000"]
    assert float(glance.loc["bald", "ours then"]) == pytest.approx(bald.mean(), abs=0.05)
    glance = report.at_a_glance(comparison.summary(curves), table.assign(seeds_ours=0))
    assert (glance[["study", "ours then"]] == "–").all(axis=None), "ours did not go so far"
    results = comparison.summary(curves)
    glance = report.at_a_glance(results.assign(seeds=5), table).set_index("function")
    assert glance.loc["bald", "ours then"].endswith(" (1 of 5)")


def test_of_the_whole_pool_any_function_stands_beside_the_study(tmp_path):
    write_run(tmp_path / "run", rounds=12, acquisition="entropy", query_fraction=1.0)
    curves = comparison.learning_curves(aamlib.load_runs(tmp_path), aamlib.load_evaluations(tmp_path), REFERENCES)
    point = {"game": "pong", "query_fraction": 1.0, "acquisition": "bald", "agent_steps": 131_000, "score": 17.0}
    beside = study.scores(curves, pd.DataFrame([point]))
    (row,) = report.at_a_glance(comparison.summary(curves), beside).to_dict("records")
    assert (row["function"], row["study"]) == ("entropy", "17 after 131,000")


def test_the_studys_losses_stand_beside_ours_of_a_full_pool(metrics):
    theirs = pd.DataFrame(
        {"game": "pong", "query_fraction": [0.1, 0.4], "acquisition": "bald", "first": 2.0, "last": 1.0}
    )
    table = study.losses(metrics, theirs)
    pd.testing.assert_frame_equal(table[list(theirs)], theirs)
    run = metrics.query("run == 'pong-bald-0.1-0'").set_index("round")
    loss = run.loc[run["pool_states"] == run["pool_size"], "loss"]
    assert len(loss) < len(run) - 1, "the pool is not full from the start"
    ours = [loss.head(evidence.LAST).mean(), loss.tail(evidence.LAST).mean()]
    assert table.loc[0, ["first_ours", "last_ours"]].tolist() == pytest.approx(ours)
    assert table["seeds_ours"].tolist() == [1, 0]
    half = metrics.assign(pool_size=50_000, pool_states=50_000)
    assert study.losses(half, theirs)["seeds_ours"].tolist() == [0, 0], "sums over fewer queries"
    cut = metrics.assign(labels_used=metrics["labels_used"].where(metrics["round"] < metrics["round"].max(), 0))
    ours = [loss.iloc[:-1].head(evidence.LAST).mean(), loss.iloc[:-1].tail(evidence.LAST).mean()]
    assert study.losses(cut, theirs).loc[0, ["first_ours", "last_ours"]].tolist() == pytest.approx(ours)
    begun = metrics.query("run == 'pong-bald-0.1-0' and round < 20").assign(run="begun", seed=1)
    table = study.losses(pd.concat([metrics, begun]), theirs)
    ours = [loss.head(evidence.LAST).mean(), loss.loc[: begun["round"].max()].tail(evidence.LAST).mean()]
    assert table.loc[0, ["first_ours", "last_ours"]].tolist() == pytest.approx(ours), "students of one age"


@pytest.mark.parametrize(
    ("name", "columns"), {"study2020": ["agent_steps", "score"], "study2020_losses": ["first", "last"]}.items()
)
def test_the_studys_tables_are_readable(name, columns):
    theirs = pd.read_csv(aamlib.DATA_DIR / f"{name}.csv")
    assert set(theirs["acquisition"]) <= set(aamlib.ACQUISITIONS)
    assert theirs[["game", "query_fraction", "acquisition", *columns]].notna().all(axis=None)
