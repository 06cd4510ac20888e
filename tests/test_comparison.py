"""Reading sets of run folders, what is refused, and the tables; on run folders that the tests make up."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from synthetic import REFERENCES, write_run, write_runs

import aamlib
from aamlib import comparison, report
from aamlib.cards import read_references
from aamlib.experts import ExpertError


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", rounds=8)


def curves_of(root):
    return comparison.learning_curves(aamlib.load_runs(root), aamlib.load_evaluations(root), REFERENCES)


def table(y, game="pong", acquisition="bald", share=0.1, seed=0, steps=None):
    """A learning curve with the normalised scores y, and ten labels a step."""
    steps = np.array(steps or range(1, len(y) + 1), dtype=float) * 100
    identity = {"run": f"{game}-{acquisition}-{share}-{seed}", "game": game, "query_fraction": share, "seed": seed}
    values = {"agent_steps": steps, "labels_used": steps * 10, "unique_labels": steps * 5, "round": steps / 100}
    scores = dict.fromkeys(("score", "smoothed", "normalised"), y) | {"normalised_noise": 0.03, "smoothed_noise": 0.5}
    return pd.DataFrame({**identity, "acquisition": acquisition, **values, **scores})


# Run folders


def test_several_folders_load_as_one_table(tmp_path):
    first, second = write_run(tmp_path / "a" / "x", rounds=2), write_run(tmp_path / "b", rounds=2, seed=1)
    assert aamlib.load_runs(tmp_path)["run"].unique().tolist() == ["a/x", "b"]
    assert aamlib.load_runs(first)["run"].unique().tolist() == ["x"]
    assert aamlib.load_evaluations(tmp_path / "a", second)["run"].unique().tolist() == [str(first), str(second)]
    assert aamlib.load_runs(tmp_path)["expert_sha256"].eq("e" * 64).all()


def cut(text, characters):
    return text[:-characters]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("metrics.csv", lambda text: cut(text, 30), "metrics.csv ends in the middle of a line.*copied by half.*Copy"),
        ("metrics.csv", lambda text: "", r"metrics.csv cannot be read \(No columns"),
        ("metrics.csv", lambda text: text.splitlines()[0] + "\n", "holds no round yet; go on with its run"),
        ("metrics.csv", lambda text: text + "1,2,3" * 40 + "\n", "metrics.csv cannot be read"),
        ("metrics.csv", lambda text: "\x00\x01\n" + text, "metrics.csv has no column round"),
        ("metrics.csv", lambda text: text.replace("unique_labels", "distinct"), "no column unique_labels: .* version"),
        ("metrics.csv", lambda text: text.replace("\n8,", "\neight,"), "something other than numbers in round"),
        ("metrics.csv", lambda text: text.replace("\n8,", "\n,"), "has rows without round"),
        ("metrics.csv", lambda text: text.replace("\n8,", "\ninf,"), "has rows without round"),
        ("metrics.csv", lambda text: text + text.splitlines()[-1] + "\n", "has rounds twice or in disorder"),
        ("evaluations.csv", lambda text: cut(text, 2), "evaluations.csv ends in the middle of a line"),
        ("evaluations.csv", lambda text: text.replace("episode", "game"), "has no column episode"),
        ("config.json", lambda text: cut(text, 20), "is no run folder: config.json cannot be read"),
        ("config.json", lambda text: "[1]", "holds no settings but"),
        ("config.json", lambda text: text.replace("acquisition", "method"), "another version.*no usable acquisition"),
        ("config.json", lambda text: text.replace('"seed": 0', '"seed": "0"'), "no usable seed"),
        ("config.json", lambda text: text.replace('"query_fraction": 0.1', '"query_fraction": NaN'), "no usable query"),
        ("config.json", lambda text: text.replace('"seed": 0', '"seed": 0, "run": "mine"'), "no usable run"),
        ("environment.json", lambda text: "[{", "environment.json cannot be read"),
        ("environment.json", lambda text: "[7]", r"environment.json cannot be read \(no list of starts but '\[7\]'\)"),
    ],
)  # fmt: skip
def test_damaged_folders_are_named_with_what_is_wrong(run_dir, file, change, message):
    text = (run_dir / file).read_text()
    (run_dir / file).write_text(change(text))
    assert (run_dir / file).read_text() != text
    with pytest.raises(aamlib.RunFolderError, match=message):
        aamlib.load_runs(run_dir), aamlib.load_evaluations(run_dir)


def test_missing_files_and_folders_are_named(run_dir, tmp_path):
    (run_dir / "evaluations.csv").unlink()
    with pytest.raises(aamlib.RunFolderError, match="evaluations.csv cannot be read.*No such file"):
        aamlib.load_evaluations(tmp_path)
    with pytest.raises(aamlib.RunFolderError, match="no folder .*elsewhere; give a folder that holds run folders"):
        aamlib.load_runs(tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(aamlib.RunFolderError, match="no runs below .*empty; give"):
        aamlib.load_runs(run_dir, tmp_path / "empty")


def test_runs_without_evaluations_yet_have_no_curve_but_load(run_dir, tmp_path):
    path = run_dir / "evaluations.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(aamlib.RunFolderError, match="none of these runs has been evaluated yet; go on with them"):
        curves_of(tmp_path)
    write_run(tmp_path / "further", rounds=2, seed=1)
    assert curves_of(tmp_path)["run"].tolist() == ["further"]


# Which runs may be compared


def test_runs_that_differ_in_what_is_compared_pass(tmp_path):
    write_runs(tmp_path, games=("pong", "breakout"), shares=(0.1, 0.4), acquisitions=("bald", "random"), rounds=2)
    write_run(tmp_path / "longer", rounds=3, seed=7, label_budget=10**6)
    elsewhere = {"expert": "copy", "device": "cuda", "precision": "bfloat16", "recorded_states": 9}
    write_run(tmp_path / "elsewhere", rounds=2, seed=8, recorded_stacks=2, **elsewhere)
    comparison.check_comparable(aamlib.load_runs(tmp_path))


def test_mixed_settings_are_named_with_how_many_runs_have_which(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"plain-{seed}", seed=seed, rounds=2)
    odd = write_run(tmp_path / "odd", seed=2, rounds=2, temperature=0.2, n_samples=25)
    write_run(tmp_path / "other-game", game="breakout", temperature=0.3, rounds=2)  # differs, but within no game
    message = r"runs of pong .* differ in n_samples \(10 in 2, as .*; 25 in 1, as odd\); in temperature .*select"
    with pytest.raises(aamlib.RunFolderError, match=message):
        comparison.check_comparable(aamlib.load_runs(tmp_path))
    comparison.check_comparable(comparison.select_runs(aamlib.load_runs(tmp_path), "temperature != 0.2"))

    config = json.loads((odd / "config.json").read_text()) | {"temperature": 0.1, "n_samples": 10}
    del config["dropout"]
    (odd / "config.json").write_text(json.dumps({**config, "ensemble": [1, 2]}))
    message = r"dropout \(0.3 in 2, as .*; none in 1, as odd\); in ensemble \(none in 2"
    with pytest.raises(aamlib.RunFolderError, match=message):
        comparison.check_comparable(aamlib.load_runs(tmp_path))


def told_apart(root, by="n_samples"):
    metrics = aamlib.load_runs(root)
    return metrics.assign(acquisition=comparison.function_of(metrics, by))


def test_runs_that_differ_in_one_setting_are_compared_by_it(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"more-{seed}", seed=seed, rounds=2, n_samples=25)
        write_run(tmp_path / f"whole-{seed}", seed=seed, rounds=2, query_fraction=1.0, n_samples=10 * (1 + seed))
    write_run(tmp_path / "study", rounds=2)
    metrics = told_apart(tmp_path)
    assert metrics.groupby("run")["acquisition"].first().to_dict() == {
        "more-0": "bald, n_samples=25", "more-1": "bald, n_samples=25", "study": "bald", "whole-0": "any",
        "whole-1": "any, n_samples=20",
    }  # fmt: skip
    assert comparison.function_of(metrics).equals(metrics["acquisition"])
    comparison.check_comparable(metrics, "n_samples")
    with pytest.raises(aamlib.RunFolderError, match="differ in n_samples .* the parameter by"):
        comparison.check_comparable(metrics)
    write_run(tmp_path / "copy", rounds=2, n_samples=25)
    with pytest.raises(aamlib.RunFolderError, match=r"are the same run \(pong, bald, n_samples=25"):
        comparison.check_comparable(told_apart(tmp_path), "n_samples")


def test_precisions_are_compared_only_where_it_is_asked_for(tmp_path):
    for precision in ("auto", "float32"):
        write_run(tmp_path / precision, rounds=2, precision=precision)
    with pytest.raises(aamlib.RunFolderError, match="auto and float32 are the same run"):
        comparison.check_comparable(aamlib.load_runs(tmp_path))
    metrics = told_apart(tmp_path, "precision")
    assert metrics["acquisition"].unique().tolist() == ["bald", "bald, precision=float32"]
    comparison.check_comparable(metrics, "precision")


def test_a_run_without_the_setting_to_compare_by_is_named(tmp_path):
    for name in ("a", "b"):
        run = write_run(tmp_path / name, rounds=2)
    config = json.loads((run / "config.json").read_text())
    del config["n_samples"]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(aamlib.RunFolderError, match="^b cannot be compared by n_samples, which it lacks"):
        told_apart(tmp_path)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(aamlib.RunFolderError, match="^b cannot be compared by n_samples, which it lacks"):
        told_apart(tmp_path)


def test_functions_of_different_source_are_not_compared_by_a_setting_either(tmp_path):
    for source, n_samples in (("a", 10), ("b", 25)):
        run = write_run(tmp_path / source, rounds=2, acquisition="margin:margin", n_samples=n_samples)
        start = {"expert_sha256": "e" * 64, "acquisition_sha256": source * 64}
        (run / "environment.json").write_text(json.dumps([start]))
    with pytest.raises(aamlib.RunFolderError, match="margin:margin .* different source code"):
        comparison.check_comparable(told_apart(tmp_path), "n_samples")


@pytest.mark.parametrize("by", ["n_sample", "seed", "query_fraction", "game", ["n_samples"]])
def test_what_is_no_setting_to_compare_by_is_named(metrics, by):
    with pytest.raises(
        aamlib.ConfigError, match=rf"by = {re.escape(repr(by))} is no setting to compare by; .*n_samples"
    ):
        comparison.function_of(metrics, by)


def test_another_expert_is_not_compared(tmp_path):
    write_run(tmp_path / "a", rounds=2)
    other = write_run(tmp_path / "b", rounds=2, seed=1)
    (other / "environment.json").write_text(json.dumps([{"expert_sha256": "f" * 64}]))
    with pytest.raises(aamlib.RunFolderError, match="differ in expert_sha256"):
        comparison.check_comparable(aamlib.load_runs(tmp_path))


def test_functions_of_one_name_and_different_source_are_not_compared(tmp_path):
    for seed, source in enumerate(("a", "a", "b", None)):  # a run of before sources were recorded is taken as it is
        game = "breakout" if source == "b" else "pong"
        run_dir = write_run(tmp_path / f"{seed}", rounds=2, acquisition="margin:margin", seed=seed, game=game)
        start = {"expert_sha256": "e" * 64} | ({"acquisition_sha256": source * 64} if source else {})
        (run_dir / "environment.json").write_text(json.dumps([start]))
    metrics = aamlib.load_runs(tmp_path)
    different = rf"margin:margin .* different source code, acquisition_sha256 \({'a' * 16} in 2, as 0; {'b' * 16} in 1"
    with pytest.raises(aamlib.RunFolderError, match=different):
        comparison.check_comparable(metrics)
    comparison.check_comparable(comparison.select_runs(metrics, "seed != 2"))


def test_a_copy_is_no_second_seed(tmp_path):
    for name in ("a", "copy"):
        write_run(tmp_path / name, rounds=2)
    with pytest.raises(
        aamlib.RunFolderError, match=r"a and copy are the same run \(pong, bald, 0.1 of the pool, seed 0\)"
    ):
        comparison.check_comparable(aamlib.load_runs(tmp_path))
    comparison.check_comparable(comparison.select_runs(aamlib.load_runs(tmp_path), "run != 'copy'"))


def test_selection_by_settings_and_by_how_far_a_run_went(tmp_path):
    for seed, rounds in enumerate((2, 5)):
        write_run(tmp_path / f"{seed}", seed=seed, rounds=rounds)
    metrics = aamlib.load_runs(tmp_path)
    assert comparison.select_runs(metrics, "agent_steps > 80_000")["round"].tolist() == [0, 1, 2, 3, 4, 5]
    assert comparison.select_runs(metrics, "seed == 0 and acquisition == 'bald'")["run"].unique() == ["0"]
    with pytest.raises(aamlib.RunFolderError, match="leaves none of the 2 runs"):
        comparison.select_runs(metrics, "seed > 5")
    for condition in ("sed > 5", "seed >", "(seed > 5", "seed + 'a'", "seed = 1", "1 / 0", "2 + 0 * round", "True"):
        with pytest.raises(aamlib.RunFolderError, match=r"is no condition on runs \(.*\); give one on settings"):
            comparison.select_runs(metrics, condition)


# References


def test_references_come_from_the_card_of_the_expert_that_labelled(tmp_path, pong_expert):
    network = aamlib.load_expert(pong_expert)
    card = {"game": "pong", "score_mean": 12.0, "random_score_mean": -20.5}
    path = aamlib.save_expert(tmp_path / "mine.safetensors", network, card)
    known = read_references("pong", str(path), aamlib.read_card(path)["weights_sha256"])
    assert known == {"expert": 12.0, "random play": -20.5}
    before = aamlib.read_card(path)
    later = {**card, "score_mean": 15.0, "started_from": before}
    path = aamlib.save_expert(tmp_path / "mine.safetensors", aamlib.NatureDQN(6), later)
    assert read_references("pong", str(path), before["weights_sha256"]) == known
    for expert, sha256, reason in (
        (str(path), "0" * 64, ""),
        ("nowhere", None, r" \(no expert 'nowhere'.*\)"),
        (str(pong_expert), aamlib.read_card(pong_expert)["weights_sha256"], r" \(that of .* lacks score_mean"),
    ):
        with pytest.raises(ExpertError, match=f"whose scores no card has{reason}.*: give them as references"):
            read_references("pong", expert, sha256)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({}, "references of pong lack the score of expert and of random play; give references"),
        ({"pong": {"expert": 3.0}}, "lack the score of random play"),
        ({"pong": 3.0}, "lack the score of expert and of random play"),
        ({"pong": {"expert": 3.0, "random play": 3.0}}, "pong: .* 3.0 is not above .* 3.0: .* \"game != 'pong'\""),
    ],
)
def test_references_that_normalise_nothing_are_refused(run_dir, references, message):
    with pytest.raises(ValueError, match=message):
        comparison.learning_curves(aamlib.load_runs(run_dir), aamlib.load_evaluations(run_dir), references)


# Tables


def test_learning_curves_by_hand(run_dir):
    scores = aamlib.Run(run_dir).evaluations.groupby("agent_steps")["score"].mean()
    curve = curves_of(run_dir)
    assert curve["agent_steps"].tolist() == [70_000, 90_000, 110_000, 130_000]
    assert curve["score"].tolist() == pytest.approx(scores.tolist())
    smoothed = [np.nan, scores.iloc[:3].mean(), scores.iloc[1:].mean(), np.nan]
    assert curve["smoothed"].tolist() == pytest.approx(smoothed, nan_ok=True), "at the middle evaluation"
    assert curve["normalised"].tolist()[2] == pytest.approx((scores.iloc[1:].mean() + 20) / 36)
    games = aamlib.Run(run_dir).evaluations.groupby("agent_steps")["score"]
    noise = games.std() / np.sqrt(15)
    assert curve["normalised_noise"].tolist() == pytest.approx((noise / 36).tolist())
    assert curve["smoothed_noise"].tolist()[2] == pytest.approx(np.sqrt((noise.iloc[1:] ** 2).sum()) / 3)
    unique = aamlib.Run(run_dir).metrics.set_index("round")["unique_labels"]
    assert curve["unique_labels"].tolist() == unique[[2, 4, 6, 8]].tolist()


def test_areas_are_taken_over_what_the_runs_of_a_share_have_in_common():
    long = table([0.0, 1.0, 1.0, 1.0])
    short = table([1.0, 1.0, 0.0], seed=1)
    other_share = table([0.5, 0.5], share=0.4)
    without = table([np.nan, np.nan], acquisition="random")
    areas = comparison.areas(pd.concat([long, short, other_share, without])).set_index("run")
    assert areas["area_agent_steps"].tolist() == pytest.approx([0.75, 0.75, np.nan, 0.5], nan_ok=True)
    assert areas["area_labels_used"].tolist() == pytest.approx([0.75, 0.75, np.nan, 0.5], nan_ok=True)
    assert areas["end_agent_steps"].tolist() == [300, 300, 300, 200]
    assert areas["end_labels_used"].tolist() == [3000, 3000, 3000, 2000]


def test_the_noise_of_an_area_is_what_other_games_of_the_same_students_would_change(run_dir):
    metrics, evaluations = aamlib.load_runs(run_dir), aamlib.load_evaluations(run_dir)
    known = comparison.areas(comparison.learning_curves(metrics, evaluations, REFERENCES)).iloc[0]
    rng, others = np.random.default_rng(0), []
    for _ in range(200):
        played = evaluations.groupby("round")["score"].transform(lambda games: rng.choice(games, len(games)))
        curves = comparison.learning_curves(metrics, evaluations.assign(score=played), REFERENCES)
        others.append(comparison.areas(curves).iloc[0])
    for x in comparison.AREA_OVER:
        assert known[f"area_{x}_noise"] == pytest.approx(np.std([row[f"area_{x}"] for row in others]), rel=0.2)


def test_what_lies_beyond_the_common_end_of_a_share_is_not_compared():
    curves = pd.concat([table([0.1, 0.1, 0.9]), table([0.3, 0.3], seed=1), table([0.7] * 3, share=0.4)])
    common = comparison.to_common_end(curves)
    assert common.groupby("run")["agent_steps"].max().tolist() == [200, 200, 300]
    row = comparison.summary(curves).iloc[0]
    assert row[["normalised", "agent_steps", "labels_used"]].tolist() == pytest.approx([0.2, 200, 2000])
    assert row[["start_agent_steps", "end_agent_steps"]].tolist() == [100, 200]
    assert row[["labels_to_75", "reached_75"]].tolist() == [np.inf, 0], "reached by the longer run alone, later"


def test_a_longer_run_is_judged_at_the_common_end_by_no_evaluation_beyond(tmp_path):
    long, _ = (write_run(tmp_path / f"{seed}", rounds=rounds, seed=seed) for seed, rounds in enumerate((20, 12)))
    curves = curves_of(tmp_path)
    scores = aamlib.Run(long).evaluations.groupby("round")["score"].mean().loc[[8, 10, 12]]
    short = curves.query("seed == 1")["smoothed"].dropna().iloc[-1]
    row = comparison.summary(curves).iloc[0]
    assert row["score"] == pytest.approx((scores.mean() + short) / 2)
    assert row.filter(like="noise").notna().all()


def test_how_far_a_longer_run_went_beyond_the_end_changes_no_threshold(tmp_path):
    scores = np.array([-20, -20, -18, -10, -2, 16, 19, 19, 19])  # of the round's evaluation, one every second round
    for end in (10, 18):
        for seed, rounds in enumerate((10, end)):
            run = write_run(tmp_path / f"{end}" / f"{seed}", rounds=rounds, seed=seed)
            games = aamlib.Run(run).evaluations
            games.assign(score=scores[games["round"] // 2 - 1]).to_csv(run / "evaluations.csv", index=False)
    as_short, as_long = (comparison.summary(curves_of(tmp_path / name)).iloc[0] for name in ("10", "18"))
    thresholds = [name for name in as_short.index if name.startswith(("labels_to_", "reached_"))]
    assert as_long[thresholds].to_dict() == as_short[thresholds].to_dict()


def test_thresholds_show_runs_that_never_got_there():
    reached = comparison.thresholds(table([0.2, 0.6, 0.8])).set_index(["x", "threshold"])
    assert reached.loc[("labels_used", 0.5), ["after", "by"]].tolist() == [1000, 2000]
    assert reached.loc[("unique_labels", 0.75), ["after", "by"]].tolist() == [1000, 1500]
    assert reached.loc[("agent_steps", 0.9), ["after", "by"]].tolist() == [300, np.inf]


def areas_of(values):
    """A table of areas: (game, acquisition) -> the seeds' values."""
    rows = [(game, 0.1, name, value) for (game, name), seeds in values.items() for value in seeds]
    return pd.DataFrame(rows, columns=["game", "query_fraction", "acquisition", "area"])


def test_estimates_have_intervals_from_five_seeds_on_and_all_games_together():
    values = {("pong", "bald"): [0.1, 0.2, 0.3, 0.4, 0.9], ("breakout", "bald"): [0.5] * 5, ("pong", "random"): [0.3]}
    values["breakout", "random"] = [0.2]  # of so few seeds there is nothing to say on all games
    values["pong", "mine:own"] = [0.1] * 5  # nor of a function that one game lacks
    values["tennis", "bald"] = [np.nan]  # has only begun
    estimates = comparison.estimates(areas_of(values), "area").set_index(["game", "acquisition"])
    assert estimates["seeds"].to_dict() == {
        ("breakout", "bald"): 5, ("breakout", "random"): 1, ("pong", "bald"): 5, ("pong", "mine:own"): 5,
        ("pong", "random"): 1, ("all games", "bald"): 5,
    }  # fmt: skip
    assert estimates["iqm"].tolist() == pytest.approx([0.5, 0.2, 0.3, 0.1, 0.3, (0.3 + 0.5) / 2])
    assert estimates.loc[("pong", "random"), ["low", "high"]].isna().all()
    low, high = estimates.loc[("pong", "bald"), ["low", "high"]]
    assert 0.1 <= low < 0.3 < high <= 0.9


def test_shares_are_told_in_per_cent():
    assert [comparison.percent(share) for share in (0.1, 0.05, 1.0, 0.125)] == ["10 %", "5 %", "100 %", "12.5 %"]


def test_a_run_without_a_value_does_not_count_as_the_best():
    assert comparison.iqm(pd.Series([1.0, 2.0, 3.0, 4.0, np.nan])) == 2.5


def test_improvements_claim_nothing_below_five_seeds_or_without_a_clear_difference():
    values = {
        ("pong", "bald"): [0.9, 0.8, 0.9, 0.8, 0.7],
        ("pong", "entropy"): [0.1, 0.2, 0.1, 0.2, 0.3],
        ("pong", "random"): [0.8, 0.7, 0.9, 0.9, 0.7],
        ("pong", "begun"): [np.nan],
    }
    pairs = comparison.improvements(areas_of(values), "area").set_index(["better", "than"])
    assert pairs["verdict"].to_dict() == {
        ("bald", "entropy"): "better", ("bald", "random"): "undecided", ("random", "entropy"): "better"
    }  # fmt: skip
    assert pairs.loc[("bald", "entropy"), "probability"] == 1
    assert pairs.loc[("bald", "entropy"), ["low", "high"]].isna().all()
    assert pairs.loc[("bald", "random"), ["low", "high"]].between(0, 1).all()
    assert pairs.loc[("bald", "entropy"), "p"] == pytest.approx(6 * 2 / 252), "of six pairs, three yet to be tested"
    assert pairs.loc[("bald", "random"), "p"] > 0.05
    assert pairs.loc[("bald", "random"), "probability"] == pytest.approx((2 * 4 + 2 * 2.5 + 1) / 25)


@pytest.mark.parametrize(("worst", "p", "verdict"), [(4.0, 8 / 252, "better"), (2.5, 14 / 252, "undecided")])
def test_an_improvement_is_claimed_where_chance_gives_it_less_than_once_in_twenty(worst, p, verdict):
    values = {("pong", "bald"): [worst, 7.0, 8.0, 9.0, 10.0], ("pong", "random"): [1.0, 2.0, 3.0, 5.0, 6.0]}
    (pair,) = comparison.improvements(areas_of(values), "area").to_dict("records")
    assert pair["p"] == pytest.approx(p), "as many of the 252 ways lose two pairs or fewer, or three, of the 25"
    assert pair["verdict"] == verdict


def test_improvements_over_all_games_are_of_pairs_within_a_game():
    values = {
        ("pong", "bald"): [6.0, 7.0, 8.0, 9.0, 10.0],
        ("pong", "random"): [1.0, 2.0, 3.0, 4.0, 5.0],
        ("breakout", "bald"): [101.0, 103.0, 105.0, 107.0, 109.0],
        ("breakout", "random"): [102.0, 104.0, 106.0, 108.0, 110.0, 112.0],
    }
    pairs = comparison.improvements(areas_of(values), "area").set_index("game")
    assert pairs["better"].to_dict() == {"breakout": "random", "pong": "bald", "all games": "bald"}
    assert pairs["seeds"].tolist() == [5, 5, 5]
    assert pairs["probability"].to_dict() == pytest.approx(
        {"breakout": 20 / 30, "pong": 1, "all games": (1 + 10 / 30) / 2}
    )
    assert pairs.loc["pong", "p"] == pytest.approx(2 / 252)
    assert pairs.loc["all games", ["low", "high"]].between(0.5, 1).all(), "within breakout alone seeds lose"


def test_half_of_the_seeds_is_enough_for_labels_to_and_a_run_without_a_score_is_left_out():
    curves = pd.concat([table([0.2, 0.6, 0.8]), table([0.1] * 3, seed=1), table([np.nan], seed=2)])
    row = comparison.summary(curves).iloc[0]
    assert row[["seeds", "labels_to_50", "reached_50"]].tolist() == [2, 2000, 1]


def test_labels_are_means_over_seeds_and_noise_is_that_of_the_seeds_that_count():
    noises = [0.1, 0.2, 0.3, 0.4, 0.5]
    curves = pd.concat(
        [table([0.2, 0.6, 0.8], seed=seed).assign(smoothed_noise=noise) for seed, noise in enumerate(noises)]
    )
    curves["labels_used"] *= 1 + (curves["seed"] == 4)
    row = comparison.summary(curves).iloc[0]
    assert row[["labels_used", "unique_labels"]].tolist() == [3600, 1500]
    assert row["score_noise"] == pytest.approx((np.mean(np.square(noises)) / 3) ** 0.5), "of three of the five"


def test_both_ends_of_labels_to_are_of_one_run():
    curves = pd.concat([table([0.2, 0.6, 0.8]), table([0.2, 0.6, 0.8], seed=1, steps=[1.9, 2.1, 3])])
    row = comparison.summary(curves).iloc[0]
    assert row[["labels_after_50", "labels_to_50"]].tolist() == [1000, 2000]
    assert row[["unique_after_50", "unique_to_50"]].tolist() == [500, 1000]


def test_summary_counts_who_got_there_and_reads_as_markdown():
    curves = pd.concat([table([0.2, 0.6, 0.8]), table([0.2, 0.3, 0.6], seed=1), table([0.1] * 3, seed=2)])
    row = comparison.summary(curves).iloc[0]
    assert row[["seeds", "labels_used", "unique_labels"]].tolist() == [3, 3000, 1500]
    assert row["normalised"] == pytest.approx(0.5)
    assert row[["labels_to_50", "reached_50", "labels_to_75", "reached_75"]].tolist() == [3000, 2, np.inf, 1]
    assert row[["labels_after_50", "unique_after_50", "unique_to_50"]].tolist() == [2000, 1000, 1500]
    header, _, line = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.as_text(comparison.summary(curves)).to_markdown(index=False).splitlines()
    )
    cells = dict(zip(header, line, strict=True))
    assert cells["labels to 50 %"] == "2,000–3,000 (2 of 3)"
    assert cells["labels to 75 %"] == "– (1 of 3)"
    assert cells["area over agent steps"] == "0.33 (0.10 to 0.55)"
    begun = table([0.1], seed=9).assign(acquisition="nano:nano")
    row = report.as_text(comparison.summary(begun)).iloc[0]
    assert row[["function", "area over agent steps"]].tolist() == ["nano:nano", "–"]
    row = report.as_text(comparison.summary(begun).assign(normalised=np.nan, score=np.nan)).iloc[0]
    assert row[["score", "normalised"]].tolist() == ["–", "–"]
    random = table([0.1] * 3, seed=3).assign(acquisition="random", query_fraction=0.9)
    areas = report.areas_as_text(comparison.summary(pd.concat([curves, random])))
    assert list(areas.columns) == ["game", "share", "agent steps", "bald", "random"]
    assert areas["agent steps"].tolist() == ["100–300"] * 2
    assert areas[["bald", "random"]].to_numpy().tolist() == [["0.33 (0.10 to 0.55)", "not run"], ["not run", "0.10"]]
    whole_pool = pd.concat([curves, random, table([0.1] * 3, seed=4).assign(query_fraction=1.0)])
    whole_pool["acquisition"] = comparison.function_of(whole_pool)
    areas = report.areas_as_text(comparison.summary(whole_pool))
    assert list(areas.columns) == ["game", "share", "agent steps", "bald", "random"]
    assert areas.loc[2, ["bald", "random"]].tolist() == ["0.10"] * 2
    other = table([0.3] * 3, seed=5).assign(query_fraction=1.0, acquisition="any, n_samples=25")
    areas = report.areas_as_text(comparison.summary(pd.concat([whole_pool, other])))
    assert areas.loc[2, ["bald", "random", "any, n_samples=25"]].tolist() == ["0.10", "0.10", "0.30"]
    alone = whole_pool[whole_pool["query_fraction"] == 1]
    assert report.areas_as_text(comparison.summary(alone)).loc[0, "any"] == "0.10"


def test_one_run_carries_the_noise_of_its_games_a_few_their_range_and_five_an_interval(tmp_path):
    write_runs(tmp_path, acquisitions=("bald",), seeds=5, rounds=10)
    one, few, five = (
        report.as_text(comparison.summary(curves_of(tmp_path).query(f"seed < {seeds}"))).iloc[0] for seeds in (1, 2, 5)
    )
    assert re.fullmatch(r"0\.\d\d ± 0\.0\d", one["area over unique labels"])
    assert re.fullmatch(r"-?\d+\.\d ± \d\.\d", one["score"])
    assert re.fullmatch(r"0\.\d\d \(0\.\d\d to 0\.\d\d\)", few["area over unique labels"])
    assert re.fullmatch(r"-?\d+\.\d \(-?\d+\.\d to -?\d+\.\d\)", few["score"])
    assert re.fullmatch(r"0\.\d\d \[0\.\d\d, 0\.\d\d\]", five["area over unique labels"])
    assert re.fullmatch(r"-?\d+\.\d \[-?\d+\.\d, -?\d+\.\d\]", five["score"])
