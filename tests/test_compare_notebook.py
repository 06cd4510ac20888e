"""The comparing notebook on run folders that the tests make up: many seeds, one run, and what it refuses."""

import shutil

import pandas as pd
import pytest
from synthetic import REFERENCES, choices_of, write_run, write_runs
from test_notebooks import execute, run_cells

import aamlib
from aamlib import files

pytestmark = pytest.mark.filterwarnings("default")
PER_SHARE, PER_GAME = ("reward", "loss", "probes"), ("areas", "seconds", "thresholds")


@pytest.mark.slow
def test_many_seeds_of_several_games(tmp_path):
    runs, figures = tmp_path / "runs", tmp_path / "figures"
    write_runs(runs, games=("pong", "breakout"), acquisitions=("bald", "random"), rounds=12, seeds=5)
    write_run(runs / "whole", query_fraction=1.0, rounds=12)
    write_run(runs / "short", seed=7, rounds=4)
    published = runs / "pong-random-0.1-0"
    choices_of(published.name, asked=0.2, pool=0.6, auroc=0.7).to_csv(published / "choices.csv", index=False)
    text = execute("04_compare_runs", tmp_path, runs=str(runs), references=REFERENCES, figures=str(figures))
    assert "without a mean of three evaluations, and so without an area or a place in the verdict: short." in text
    assert "runs compared: 21" in text
    shares = {"Breakout_MC_10", "pong_MC_10", "pong_MC_100"}
    names = {f"{share}_{kind}.png" for share in shares for kind in PER_SHARE}
    names |= {f"{game}_{kind}.png" for game in ("breakout", "pong") for kind in PER_GAME}
    names |= {"pong_MC_10_asked.png", "all_games_areas.png", "pong_shares.png", "comparison.md", "comparison.csv"}
    assert {path.name for path in figures.iterdir()} == names
    table = pd.read_csv(figures / "comparison.csv")
    assert table["acquisition"].tolist() == ["bald", "random", "bald", "random", "any"]
    assert table["seeds"].tolist() == [5, 5, 5, 5, 1]
    for name in ("score", "area_labels_used"):
        assert table[f"{name}_low"].notna().tolist() == [True] * 4 + [False]
    text = (figures / "comparison.md").read_text()
    assert "all games" in text
    assert "## What each function would ask about" in text
    assert "| 20 % " in text
    assert "## How they were computed" in text


def assert_drawn_alike(made, kept):
    """The tables are those that the published runs give."""
    assert (made / "comparison.md").read_text() == (kept / "comparison.md").read_text(), "call make figures"
    pd.testing.assert_frame_equal(*(pd.read_csv(folder / "comparison.csv") for folder in (made, kept)))


@pytest.mark.slow
def test_readme_and_tables_are_drawn_from_the_published_runs(tmp_path):
    root = aamlib.DATA_DIR.parent
    readme, figures = tmp_path / "README.md", tmp_path / "figures"
    shutil.copy(root / "README.md", readme)
    files.fill_in(readme, dict.fromkeys(("areas", "comparison"), ""))
    text = execute("04_compare_runs", tmp_path, readme=str(readme), figures=str(figures))
    assert "measured otherwise" not in text
    assert readme.read_text() == (root / "README.md").read_text(), "call make figures"
    assert_drawn_alike(figures, root / "plots")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("figures", "settings"),
    [
        ("passes-pong", {
            "runs": ["data/results/study-pong", "data/ablations/passes-pong"], "by": "n_samples",
            "select": "query_fraction == 0.1 and acquisition in ['bald', 'random']",
        }),
        ("decided-breakout", {"runs": "data/ablations/decided-breakout"}),
        ("decided-pong", {"runs": "data/ablations/decided-pong"}),
        ("mixed-pong", {
            "runs": ["data/ablations/decided-pong", "data/ablations/mixed-pong"],
            "select": "acquisition != 'bald'",
        }),
    ],
)  # fmt: skip
def test_tables_of_further_questions_are_drawn_from_the_published_runs(tmp_path, figures, settings):
    root = aamlib.DATA_DIR.parent
    execute("04_compare_runs", tmp_path, cwd=root, figures=str(tmp_path / "figures"), **settings)
    assert_drawn_alike(tmp_path / "figures", root / "plots" / figures)


@pytest.mark.slow
def test_one_run_with_too_few_evaluations_for_a_smoothed_score(tmp_path):
    run = write_run(tmp_path / "run", rounds=4)
    figures = tmp_path / "figures"
    text = execute("04_compare_runs", tmp_path, runs=[str(run)], references=REFERENCES, figures=str(figures))
    assert "nothing is claimed" in text
    assert (figures / "pong_MC_10_reward.png").exists()
    assert "–" in (figures / "comparison.md").read_text()


@pytest.mark.slow
def test_runs_are_told_apart_by_a_setting(tmp_path):
    runs, figures = tmp_path / "runs", tmp_path / "figures"
    write_runs(runs, acquisitions=("bald", "random"), rounds=12)
    more = write_run(runs / "more", rounds=12, n_samples=100)
    choices_of(more.name, asked=0.2, pool=0.6, auroc=0.7).to_csv(more / "choices.csv", index=False)
    settings = {"runs": str(runs), "references": REFERENCES, "figures": str(figures)}
    execute("04_compare_runs", tmp_path, by="n_samples", **settings)
    assert "Functions named without it have n_samples = 10" in (figures / "comparison.md").read_text()
    assert pd.read_csv(figures / "comparison.csv")["acquisition"].tolist() == ["bald", "bald, n_samples=100", "random"]
    why = (figures / "comparison.md").read_text().partition("## Why")[2].splitlines()
    (row,) = (line for line in why if "bald, n_samples=100" in line)
    assert "20 %" in row, "what the run asked about"
    assert "0.70" in row, "the AUROC of its own scores"


@pytest.mark.slow
def test_a_run_too_short_to_share_a_range_with_the_others_is_named(tmp_path):
    runs, figures = tmp_path / "runs", tmp_path / "figures"
    for name, rounds in (("long", 12), ("short", 6), ("begun", 4)):  # three evaluations make one smoothed score
        write_run(runs / name, rounds=rounds, seed=rounds)
    text = execute("04_compare_runs", tmp_path, runs=str(runs), references=REFERENCES, figures=str(figures))
    assert "pong, 10 %: no areas, for short is too short; leave it out with `select`." in text
    assert not any(f"{name} is too short" in text for name in ("long", "begun"))
    settings = {"runs": str(runs), "references": REFERENCES, "figures": str(figures)}
    text = execute("04_compare_runs", tmp_path, select="seed == 6", **settings)
    assert "pong, 10 %: no areas, for its runs are too short." in text


def test_a_card_of_another_kind_of_evaluation_is_said(tmp_path, capsys):
    run = write_run(tmp_path / "run", rounds=4, max_game_frames=20_000)
    start = {"expert_sha256": aamlib.read_card("pong")["weights_sha256"], "precision": "float32"}
    files.write_json(run / "environment.json", [start])
    run_cells("04_compare_runs", 4, runs=str(run), figures=str(tmp_path / "figures"))
    said = "card was measured otherwise than these runs, which have max_game_frames = 20000;"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        (None, aamlib.ExpertError, "by an expert .* whose scores no card has: give them as references"),
        ([15.7, -20.2], aamlib.ConfigError, r"references = \[15.7, -20.2\]; give "),
    ],
)
def test_references_that_are_missing_or_unusable_are_refused(tmp_path, references, error, message):
    write_run(tmp_path / "run", rounds=2)
    folders = {"runs": str(tmp_path / "run"), "figures": str(tmp_path / "figures")}
    with pytest.raises(error, match=message):
        run_cells("04_compare_runs", 4, references=references, **folders)


def test_references_of_a_game_that_no_run_plays_are_told_of(tmp_path, capsys):
    write_run(tmp_path / "run", rounds=2)
    given = REFERENCES | {"Pong": REFERENCES["pong"]}
    run_cells("04_compare_runs", 4, runs=str(tmp_path / "run"), references=given, figures=str(tmp_path / "figures"))
    assert (
        "references of 'Pong' are not used, for none of the runs plays it; did you mean 'pong'"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("given", [{}, {"references": REFERENCES}, {"by": "n_samples"}, {"select": "seed == 0"}])
def test_only_the_published_runs_as_they_are_redraw_the_published_figures(given):
    folder = "runs/figures" if given else "../plots"
    assert run_cells("04_compare_runs", 2, **given)["figures"].resolve() == (aamlib.DATA_DIR / folder).resolve()


def test_no_folder_at_all_is_refused(tmp_path):
    with pytest.raises(aamlib.ConfigError, match="runs names no folder; give one that holds run folders"):
        run_cells("04_compare_runs", 2, runs=[], figures=str(tmp_path))
