"""Sentences about the published runs whose numbers stand in no table: computed anew from these runs.

Where a run that is added changes one, its test fails, and shows what the sentence should say.
"""

import itertools

import pandas as pd
import pytest

import aamlib
from aamlib import comparison, evidence, stats
from aamlib.cards import read_references
from aamlib.comparison import TREATMENT
from aamlib.diagnosis import load_probes
from aamlib.experts import expert_path
from aamlib.files import DATA_DIR
from aamlib.selections import describe_q
from aamlib.starts import read_starts

RESULTS, ABLATIONS = DATA_DIR / "results", DATA_DIR / "ablations"
BESIDE_CHANCE = ["decided:decided", "bald", "random"]
WORDS = ["none", "one", "two", "three", "four", "all five"]


@pytest.fixture(scope="module")
def metrics():
    table = aamlib.load_runs(RESULTS)
    return table.assign(acquisition=comparison.function_of(table))


@pytest.fixture(scope="module")
def references(metrics):
    newest = metrics.groupby("game").last()
    return {game: read_references(game, run["expert"], run["expert_sha256"]) for game, run in newest.iterrows()}


@pytest.fixture(scope="module")
def curves(metrics, references):
    return comparison.learning_curves(metrics, aamlib.load_evaluations(RESULTS), references)


@pytest.fixture(scope="module")
def choices():
    return evidence.load_choices(RESULTS)


@pytest.fixture(scope="module")
def rounds(metrics, choices):
    return evidence.per_round(metrics, choices).query(evidence.LEARNED)


@pytest.fixture(scope="module")
def readme():
    return one_line(DATA_DIR.parent / "README.md")


@pytest.fixture(scope="module")
def findings():
    return one_line(RESULTS / "README.md")


def one_line(page):
    """A page as one line, wherever its lines are broken."""
    return " ".join(page.read_text().split())


def of(table, game, share):
    return table[(table["game"] == game) & (table["query_fraction"] == share)]


def percent(share, digits):
    return f"{share * 100:.{digits}f} %"


def pairs_above(ones, others):
    return sum(one > other for one, other in itertools.product(ones, others))


def at_end(curves):
    """Each run's last row at which all runs of its game and share have a mean of three evaluations."""
    return comparison.to_common_end(curves.dropna(subset="normalised")).groupby("run").last()


def test_number_of_runs(metrics, findings):
    n_runs = metrics["run"].nunique()
    assert f"Of the {n_runs} runs" in findings
    assert f"the tables of the study's comparison: {n_runs} runs" in findings


def test_early_steps(curves, readme):
    """Where the runs on the whole pool can be compared with the others."""
    areas = {
        key: stats.mean_height(run["agent_steps"].to_numpy(float), run["normalised"].to_numpy(float), 150e3, 250e3)
        for key, run in curves.dropna(subset="normalised").groupby([*TREATMENT, "run"])
    }
    mean = pd.Series(areas).groupby(level=[0, 1, 2]).agg(comparison.iqm)
    on_breakout, on_pong = (
        f"{mean[game, 1.0, 'any']:.2f} on {game.title()} (10 %: {tenth.min():.2f} to {tenth.max():.2f})"
        for game, tenth in (("breakout", mean["breakout", 0.1]), ("pong", mean["pong", 0.1]))
    )
    assert f"is far ahead: {on_breakout} and {on_pong}." in readme


def test_indifferent_shares_of_the_verdict(rounds, readme):
    asked = evidence.summary(rounds).set_index(TREATMENT)["asked_indifferent"]
    for game, share, where in (("breakout", 0.05, " on 5 %"), ("pong", 0.1, "")):
        entropy, random, bald = (percent(asked[game, share, name], 0) for name in ("entropy", "random", "bald"))
        assert f"{entropy} of its questions{where}; of random's {random}, of BALD's {bald} |" in readme


def curves_and_questions(references, game, share, condition, *folders):
    """The curves of the runs that meet the condition, and what each of their functions asked about."""
    metrics = comparison.select_runs(of(aamlib.load_runs(*folders), game, share), condition)
    curves = comparison.learning_curves(metrics, aamlib.load_evaluations(*folders), references)
    asked = evidence.summary(evidence.per_round(metrics, evidence.load_choices(*folders)))
    return curves, asked.set_index("acquisition")


@pytest.fixture(scope="module")
def beside_chance(references):
    """BALD, random and chance where the action matters on Breakout, all by the same code."""
    condition = f"acquisition in {BESIDE_CHANCE}"
    return curves_and_questions(references, "breakout", 0.05, condition, ABLATIONS / "decided-breakout")


def labels_of(curves, functions=BESIDE_CHANCE):
    """The questions asked, and the different states among them, at the last step that all have done: in thousands."""
    ends = comparison.to_common_end(curves).groupby("run").last().groupby("acquisition")
    labels = ends[["labels_used", "unique_labels"]].mean() / 1e3
    return [f"{count:.0f}k" for count in (labels["labels_used"]["random"], *labels["unique_labels"][functions])]


def areas_of(curves, name="agent_steps", functions=BESIDE_CHANCE):
    areas = comparison.areas(curves).set_index("acquisition")[f"area_{name}"]
    return [areas[function] for function in functions]


def p_of_pair(curves, one, other):
    """The corrected p of two functions' areas over agent steps, as it stands in a sentence."""
    pairs = comparison.improvements(comparison.areas(curves), "area_agent_steps")
    pair = pairs[pairs["better"].isin([one, other]) & pairs["than"].isin([one, other])]
    return f"p = {pair['p'].item():.2g}"


def test_chance_where_it_matters(beside_chance, readme, findings):
    curves, asked = beside_chance
    decided, bald, random = areas_of(curves)
    assert pairs_above(decided, random) == 25
    better = p_of_pair(curves, "decided:decided", "random")
    assert f"below *decided*'s in all 25 pairs ({better})" in readme
    assert "each of theirs is above each of random's" in findings
    assert f"({better}, corrected for these three pairs: the smallest that there can be)" in findings
    undecided = p_of_pair(curves, "decided:decided", "bald")
    assert f"({undecided})" in readme
    assert f"the larger in {pairs_above(decided, bald)} of the 25 pairs ([{undecided}](" in findings
    means = [f"{comparison.iqm(areas):.2f}" for areas in (decided, bald, random)]
    for page, texts in (
        (readme, ("its area is {} [", "BALD's {} [", "random's {} [")),
        (findings, ("Their area is {} [", "BALD's {} [", "random's, {} [")),
    ):
        for text, mean in zip(texts, means, strict=True):
            assert text.format(mean) in page
    ends = at_end(curves).set_index("acquisition")["smoothed"]
    end = [f"{comparison.iqm(ends[name]):.0f}" for name in BESIDE_CHANCE]
    assert f"end as high ({end[0]} and {end[1]}; random {end[2]}, " in findings
    indifferent = [percent(asked["asked_indifferent"][name], 1) for name in BESIDE_CHANCE]
    assert f"({indifferent[0]} and {indifferent[1]}; random {indifferent[2]})" in readme
    assert f"{indifferent[0]} of the questions, BALD {indifferent[1]}, random {indifferent[2]}" in findings
    costly = asked[["asked_costly", "pool_costly"]].map(lambda share: percent(share, 1))
    (ours, our_pool), (of_bald, bald_pool), (of_random, _) = (costly.loc[name] for name in BESIDE_CHANCE)
    assert ours == of_random
    assert (
        f"({ours} and {our_pool}), and as many as of random's ({of_random}); of BALD's more ({of_bald} and {bald_pool})"
        in findings
    )


def test_bald_and_random_anew_beside_their_older_runs(beside_chance, curves, readme, findings):
    decided, bald, random = areas_of(beside_chance[0])
    older = of(comparison.areas(curves), "breakout", 0.05).set_index("acquisition")["area_agent_steps"]
    older_bald, older_random = older["bald"], older["random"]
    of_new, of_older = (f"{comparison.iqm(areas):.2f}" for areas in (random, older_random))
    assert of_new == of_older
    assert [pairs_above(older_bald, runs) for runs in (random, older_random)] == [25, 25]
    assert f"eight bits, is {comparison.iqm(older_bald):.2f} [" in findings
    undecided, alone = (
        p_of_pair(beside_chance[0], "bald", "random"),
        stats.permutation_p([bald.to_numpy()], [random.to_numpy()]),
    )
    pairs = pairs_above(bald, random)
    assert f"below BALD's in {pairs} ({undecided})" in readme
    assert (
        f"larger in {pairs} of the 25 pairs, which is undecided ({undecided}, corrected for these three pairs; "
        in findings
    )
    assert f"corrected for these three pairs; {alone:.3f} alone)" in findings
    assert f"in {pairs} of the 25 pairs ({comparison.iqm(bald):.2f} and {of_new}; " in findings
    p_of_older = stats.permutation_p([older_bald.to_numpy()], [bald.to_numpy()])
    assert (
        f"larger than the new in {pairs_above(older_bald, bald)} of the 25 pairs (p = {p_of_older:.2f}), and of "
        f"random, whose older runs have {of_older} too, in {pairs_above(older_random, random)}."
    ) in findings
    all_bald, all_random = pd.concat([bald, older_bald]), pd.concat([random, older_random])
    of_all = pairs_above(all_bald, all_random)
    assert stats.permutation_p([all_bald.to_numpy()], [all_random.to_numpy()]) < 0.001
    assert f"the larger in {of_all} of the 100 pairs (p < 0.001)" in findings
    assert (
        f"there BALD is above random in {pairs} of the 25 pairs, which is undecided ([Why](#why)), and by all ten "
        f"runs of each, which was not planned, in {of_all} of 100; "
    ) in readme
    assert f"five runs anew on 5 % leave it undecided by themselves ({undecided}) |" in readme
    assert "is above random's older runs in all 25 pairs, too" in findings
    assert pairs_above(decided, older_random) == 25


def test_chance_where_it_matters_in_the_first_million(beside_chance, curves, findings):
    older = comparison.areas(of(curves, "breakout", 0.05).query("agent_steps <= 1_000_000")).set_index("acquisition")
    curves, _ = beside_chance
    decided, bald, random = areas_of(curves[curves["agent_steps"] <= 1_000_000])
    assert (
        f"larger than theirs in {pairs_above(bald, decided)} of the 25 pairs (of its older runs in "
        f"{pairs_above(older['area_agent_steps']['bald'], decided)}), and theirs than random's in "
        f"{pairs_above(decided, random)}."
    ) in findings
    wide = curves.pivot(index="agent_steps", columns=["acquisition", "run"], values="smoothed").dropna()
    mean = wide.T.groupby(level=0).agg(comparison.iqm).T
    is_behind = (mean["bald"] < mean["decided:decided"]).loc[200_000:]  # before that nothing is learned
    first = is_behind.idxmax()
    assert (~is_behind.loc[first:]).sum() == 1
    assert f"From {first:,} steps on they are ahead, but for one evaluation." in findings


def test_unique_labels_of_chance_where_it_matters(beside_chance, readme, findings):
    curves, _ = beside_chance
    unique = [f"{comparison.iqm(areas):.2f}" for areas in areas_of(curves, "unique_labels")]
    assert f"({unique[1]}; they {unique[0]}, random {unique[2]}; p = " in findings
    questions, decided, bald, random = labels_of(curves)
    assert f"{bald} in place of {decided}" in readme
    assert (
        f"of {questions} questions it asks about {bald} different states, they about {decided}, random about {random}"
    ) in findings


def test_chance_where_it_matters_on_pong(references, curves, readme, findings):
    older = of(comparison.areas(curves), "pong", 0.1).set_index("acquisition")["area_agent_steps"]
    condition = f"acquisition in {BESIDE_CHANCE}"
    curves, asked = curves_and_questions(references, "pong", 0.1, condition, ABLATIONS / "decided-pong")
    decided, bald, random = areas_of(curves)
    pairs = pairs_above(random, decided)
    undecided = p_of_pair(curves, "random", "decided:decided")
    means = [f"{comparison.iqm(areas):.2f}" for areas in (decided, bald, random)]
    assert f"but its area is {means[0]} [" in readme
    assert f"], below random's, {means[2]} [" in readme
    assert f"in {pairs} of the 25 pairs, which is undecided ({undecided}); BALD's is {means[1]} [" in readme
    assert f"such runs is below random's in {pairs} of the 25 pairs, which is undecided ([Why](#why))" in readme
    assert f"the larger in {pairs} of the 25 pairs, which is undecided ([{undecided}](" in findings
    assert f"Their area is {means[0]} [" in findings
    assert f"], random's {means[2]} [" in findings
    of_older = pairs_above(older["random"], decided)
    p = 3 * stats.permutation_p([older["random"].to_numpy()], [decided.to_numpy()])
    area = f"whose area is {comparison.iqm(older['random']):.2f} too"
    assert f"Beside random's older runs, {area}, it was {of_older} of them, and p = {p:.3f}" in findings
    assert f"{comparison.iqm(older['random']):.2f}" == means[2]
    above, below = pairs_above(bald, decided), pairs_above(random, bald)
    both = p_of_pair(curves, "bald", "decided:decided")
    assert p_of_pair(curves, "bald", "random") == both
    assert (
        f"in {above} of the 25 pairs above theirs and in {below} below random's, and undecided against both "
        f"({both} each)"
    ) in findings
    assert f"BALD's, {means[1]} [" in findings
    p = stats.permutation_p([older["bald"].to_numpy()], [bald.to_numpy()])
    assert (
        f"whose area is {comparison.iqm(older['bald']):.2f} (larger in {pairs_above(older['bald'], bald)} of the 25 "
        f"pairs, p = {p:.2f})"
    ) in findings
    assert f"has the larger one in {below} ([below]" in findings
    of_bald, of_random = pd.concat([bald, older["bald"]]), pd.concat([random, older["random"]])
    of_all, p = pairs_above(of_random, of_bald), stats.permutation_p([of_random.to_numpy()], [of_bald.to_numpy()])
    assert f"the larger in {of_all} of the 100 pairs (p = {p:.3f}, not corrected for anything)" in findings
    assert (
        f"both run anew, in {below}, and by all ten runs of each, not planned either, in {of_all} of 100 "
        f"(p = {p:.3f} by itself)"
    ) in readme
    ours, of_bald, of_random = (percent(asked["asked_indifferent"][name], 1) for name in BESIDE_CHANCE)
    assert f"({ours}; BALD {of_bald}, random {of_random})" in readme
    assert f"{ours} leave the expert indifferent, of BALD's {of_bald}, of random's {of_random} " in findings
    ends = at_end(curves).set_index("acquisition")["smoothed"]
    end = [f"{comparison.iqm(ends[name]):.1f}" for name in BESIDE_CHANCE]
    assert f"near the expert ({end[0]}; BALD {end[1]}, random {end[2]})" in findings
    questions, *unique = labels_of(curves)
    assert f"{unique[0]} different ones in {questions} questions (BALD {unique[1]}, random {unique[2]})" in findings


def test_half_chance_on_pong(references, readme, findings):
    functions = ["mixed:mixed", "decided:decided", "random"]
    folders = ABLATIONS / "decided-pong", ABLATIONS / "mixed-pong"
    curves, asked = curves_and_questions(references, "pong", 0.1, f"acquisition in {functions}", *folders)
    mixed, decided, random = areas_of(curves, functions=functions)
    pairs = pairs_above(mixed, decided)
    assert f"the area of *mixed* is {comparison.iqm(mixed):.2f} [" in readme
    assert f"their area is {comparison.iqm(mixed):.2f} [" in findings
    better, undecided = (p_of_pair(curves, "mixed:mixed", other) for other in ("decided:decided", "random"))
    random_beside_decided = p_of_pair(curves, "random", "decided:decided")
    assert (
        f"above *decided*'s in {pairs} of the 25 pairs ({better}; with one pair fewer it would be undecided), and "
        f"beside random's undecided ({undecided})"
    ) in readme
    assert f"larger than that of chance where the action matters in {pairs} of the 25 pairs ([{better}](" in findings
    assert (
        f"and smaller than random's in {pairs_above(random, mixed)} ({undecided}; random beside chance where the "
        f"action matters has {random_beside_decided} among these three)"
    ) in findings
    spread = [f"{areas.min():.2f} to {areas.max():.2f}" for areas in (mixed, decided)]
    assert f"areas spread about alike ({spread[0]}, and {spread[1]})" in findings
    _, *unique = labels_of(curves, functions)
    assert f"({unique[0]} in place of {unique[1]}; random {unique[2]})" in readme
    assert f"({unique[0]}; chance where the action matters {unique[1]}, random {unique[2]})" in findings
    of_questions, of_pool = (asked[f"{of_what}_costly"] for of_what in ("asked", "pool"))
    ours, our_pool = of_questions["decided:decided"], of_pool["decided:decided"]
    assert 0.45 < ours / our_pool < 0.55
    assert f"half as many of its students' costly mistakes as chance would ({percent(ours, 1)} of its" in readme
    assert f"of its questions, {percent(our_pool, 1)} of its pools)" in readme
    assert f"({percent(ours, 2)} of their questions, {percent(our_pool, 2)} of their pools)" in findings
    ours, our_pool = of_questions["mixed:mixed"], of_pool["mixed:mixed"]
    indifferent = percent(asked["asked_indifferent"]["mixed:mixed"], 1)
    assert f"Of their questions {indifferent} leave the expert indifferent, and nearly as many are costly" in findings
    assert f"as of their pools ({percent(ours, 2)} and {percent(our_pool, 2)}, [all of it]" in findings


def test_ranges_of_areas(curves, readme):
    areas = comparison.areas(curves).groupby(TREATMENT)["area_agent_steps"]

    def ranges(game, share, *functions):
        return [
            f"{runs.min():.2f} to {runs.max():.2f}" for runs in (areas.get_group((game, share, f)) for f in functions)
        ]

    def lowest_other(game, share):
        return f"{areas.min()[game, share].drop('entropy').min():.2f} and more"

    on_5, on_10 = (ranges("breakout", share, "bald", "random", "variation_ratio", "entropy") for share in (0.05, 0.1))
    _, random, ratio, entropy = ranges("pong", 0.1, "bald", "random", "variation_ratio", "entropy")
    assert f"on 5 % ({on_5[0]}; random's {on_5[1]}) and on 10 % ({on_10[0]}; {on_10[1]}; p" in readme
    assert (
        f"on Pong, 10 % ({ratio}; {random}), and on Breakout, 5 % ({on_5[2]}; {on_5[1]}) and 10 % ({on_10[2]}; "
        f"{on_10[1]}; p"
    ) in readme
    assert f"on Pong, 10 % ({entropy}; {lowest_other('pong', 0.1)})" in readme
    assert f"on Breakout, 5 % ({on_5[3]}; {lowest_other('breakout', 0.05)})" in readme
    assert f"and 10 % ({on_10[3]}; {lowest_other('breakout', 0.1)}; p" in readme


def test_random_beside_bald_on_pong(curves, readme):
    areas = of(comparison.areas(curves), "pong", 0.1)
    by_seed = areas.pivot(index="seed", columns="acquisition", values="area_agent_steps")
    pairs = pairs_above(by_seed["random"], by_seed["bald"])
    same_seed = (by_seed["random"] > by_seed["bald"]).sum()
    assert f"larger area in {pairs} of the 25 pairs of runs" in readme
    assert f"and in {WORDS[same_seed]} of the same seed" in readme


def test_single_runs_on_pong(curves, findings):
    """Of which nothing is claimed, but which are told."""
    runs = comparison.areas(curves)

    def areas(share, name, over="agent_steps"):
        return [f"{area:.2f}" for area in sorted(of(runs[runs["acquisition"] == name], "pong", share)[f"area_{over}"])]

    bald, random, (ratio,) = (areas(0.4, name) for name in ("bald", "random", "variation_ratio"))
    (bald_60,), (random_60,), (ratio_60,) = (areas(0.6, name) for name in ("bald", "random", "variation_ratio"))
    (whole_pool,) = areas(1.0, "any")
    assert len(set(bald)) == 1
    assert (
        f"it is ahead of random on Pong, 40 % ({bald[0]} both; {' and '.join(random)}), and by one each further on "
        f"60 % ({bald_60}; random {random_60}, the whole pool {whole_pool})."
    ) in findings
    assert (
        f"level on Pong, 40 % ({ratio}; random's two {' and '.join(random)}), and ahead on Pong, 60 %, alone "
        f"({ratio_60}, {random_60})."
    ) in findings
    (ratio,), (ratio_60,), (random_60,) = (
        areas(share, name, "unique_labels")
        for share, name in ((0.4, "variation_ratio"), (0.6, "variation_ratio"), (0.6, "random"))
    )
    assert (
        f"ahead on Pong, 60 % ({ratio_60} against {random_60}), and a little on 40 % ({ratio}; random's two "
        f"{' and '.join(areas(0.4, 'random', 'unique_labels'))})."
    ) in findings
    for share in (0.4, 0.6):
        assert of(runs, "pong", share).set_index("acquisition")["area_agent_steps"].idxmin() == "entropy"
    at_ends = (at_end(of(curves, "pong", share)).set_index("acquisition") for share in (0.4, 0.6))
    ends = [end.loc["entropy", "smoothed"] for end in at_ends]
    assert f"40 % and 60 % of Pong's pool ({ends[0]:.1f} and {ends[1]:.1f} at the end; the study: 6" in findings


def test_bald_beside_random_over_both_games(curves, readme, findings):
    areas = comparison.areas(curves).set_index("acquisition")
    shares = []
    for game in ("breakout", "pong"):
        bald, random = (of(areas.loc[name], game, 0.1)["area_agent_steps"] for name in ("bald", "random"))
        shares.append(pairs_above(bald, random) / 25)
    for page in (readme, findings):
        assert f"BALD's is the larger in {sum(shares) / 2:.2f} of the pairs" in page


def test_ends_on_breakout(curves, readme, findings):
    ends = at_end(of(curves, "breakout", 0.05)).set_index("acquisition")["smoothed"]
    entropy, others = ends["entropy"], ends.drop("entropy")
    assert f"its runs end at scores of {entropy.min():.0f} to {entropy.max():.0f}, all others at 190 and more" in readme
    assert f"its five runs end at {entropy.min():.0f} to {entropy.max():.0f}" in findings
    assert others.min() >= 190
    ends = at_end(of(curves, "breakout", 0.1)).set_index("acquisition")["smoothed"]
    assert f"On 10 % they end at {ends['entropy'].min():.0f} to {ends['entropy'].max():.0f}" in findings
    for share, above in ((0.05, "BALD's end higher"), (0.1, "at the end the two are level")):
        ends = at_end(of(curves, "breakout", share)).set_index("acquisition")["smoothed"]
        means = [f"{comparison.iqm(ends[name]):.0f}" for name in ("bald", "random")]
        pairs = pairs_above(ends["bald"], ends["random"])
        assert f"{above} ({means[0]} and {means[1]}, in {pairs} of the 25 pairs)" in findings


def test_an_unstable_run_of_entropy(curves, findings):
    runs = of(curves, "pong", 0.1).query("acquisition == 'entropy'")
    texts = [
        f"one has {run.set_index('agent_steps')['smoothed'][700_000]:.1f} after 700,000 steps, and "
        f"{run['smoothed'].dropna().iloc[-1]:.1f} at the end"
        for _, run in runs.groupby("run")
    ]
    assert any(text in findings for text in texts), texts


def test_costly_mistakes_in_early_random_pools(metrics, choices, findings):
    at_random = metrics[metrics["acquisition"] == "random"]
    table = choices.merge(at_random[["run", "round", "game", "query_fraction"]]).query(evidence.LEARNED)

    def costly(game, share, last_round):
        early = of(table, game, share).query("round <= @last_round")
        return early.groupby(["score", "run"])["costly"].mean().groupby("score").mean()

    breakout, pong = costly("breakout", 0.05, 20), costly("pong", 0.1, 10)
    assert pong[["variation_ratio", "entropy"]].min() > pong["bald"]
    shares = {name: percent(share, 0) for name, share in breakout.items()}
    assert shares["variation_ratio"] == shares["entropy"]
    assert f"({shares['entropy']} each, BALD {shares['bald']}, chance {shares['random']})" in findings


def smoothed(rounds, column):
    """The functions' curves in the figures of what was asked about: interquartile means of runs over ten rounds."""
    wide = rounds.pivot(index="agent_steps", columns=["acquisition", "run"], values=column)
    running = wide.rolling(10, min_periods=1, center=True).mean()
    return running.T.groupby(level="acquisition").agg(comparison.iqm).T


@pytest.fixture(scope="module")
def on_breakout(rounds):
    return comparison.to_common_end(of(rounds, "breakout", 0.05).dropna(subset="asked_costly"))


def test_costly_mistakes_of_bald_and_variation_ratio(on_breakout, findings):
    curves = smoothed(on_breakout, "asked_costly")
    crossing = curves.index[curves["bald"] > curves["variation_ratio"]].min()
    keys = ["acquisition", "run"]
    before = on_breakout.query("agent_steps < @crossing").groupby(keys)["asked_costly"].mean()
    after = on_breakout.query("agent_steps >= @crossing").groupby(keys)["asked_costly"].mean()
    (vr_before, bald_before), (vr_after, bald_after) = (
        [percent(part[name].mean(), 1) for name in ("variation_ratio", "bald")] for part in (before, after)
    )
    assert (
        f"(the curves first cross at {crossing:,}; before, {vr_before} and {bald_before}; then {vr_after} and "
        f"{bald_after}, every run of BALD above every one of its"
    ) in findings
    assert after["bald"].min() > after["variation_ratio"].max()
    assert "random's, which asks about fewer than the variation ratio throughout" in findings
    assert (curves["random"] < curves["variation_ratio"]).all()


def test_costly_mistakes_of_bald_and_its_pool(on_breakout, findings):
    asked, pool = (smoothed(on_breakout, f"{of_what}_costly")["bald"] for of_what in ("asked", "pool"))
    last_below = asked.index[asked < pool].max()
    assert f"on Breakout, 5 %, only from some {round(last_below, -5):,} steps on" in findings


def test_probe_states_without_a_decision(findings):
    """To how many of them the published runs' expert of Pong is indifferent."""
    config = aamlib.ExperimentConfig(game="pong", expert="pong-4")
    path = expert_path("pong-4")
    probes = load_probes(path.parent, aamlib.load_expert(path), config)
    tables = {name: describe_q(probe.expert_q.numpy(), config.temperature) for name, probe in probes.items()}
    shares = {name: table["indifferent"].mean() for name, table in tables.items()}
    assert shares == pytest.approx({"expert": 9 / 10, "random": 2 / 3}, abs=0.03)
    assert "nine in ten of the expert's own in Pong and two in three of random play's" in findings


@pytest.mark.parametrize(
    ("share", "function", "expert", "runs"),
    [
        (0.9, "bald", 335, 5), (0.9, "bald", 340, 5), (0.9, "bald", 341, 4), (0.9, "bald", 343, 4),
        (0.9, "bald", 344, 2), (0.9, "bald", 358, 2), (0.9, "bald", 359, 1), (0.9, "bald", 386, 1),
        (0.9, "random", 335, 1), (0.9, "random", 336, 0), (0.75, "random", 386, 2),
        (0.75, "variation_ratio", 342, 1), (0.75, "variation_ratio", 343, 0),
    ],
)  # fmt: skip
def test_other_scores_of_the_expert(metrics, references, findings, share, function, expert, runs):
    """How many runs on Breakout, 5 %, reach a share of it (findings, "What to bear in mind")."""
    of_breakout = of(metrics, "breakout", 0.05)
    other = {"breakout": references["breakout"] | {"expert": float(expert)}}
    curves = comparison.learning_curves(of_breakout, aamlib.load_evaluations(RESULTS), other)
    reached = comparison.thresholds(comparison.to_common_end(curves)).query("x == 'labels_used' and by < inf")
    assert len(reached.query("threshold == @share and acquisition == @function")) == runs
    assert (
        "| expert's score | 335 to 340 | 341 to 343 | 344 to 358 | 359 to 386 | | --- | --- | --- | --- | --- | "
        "| runs of BALD at 90 % | 5 | 4 | 2 | 1 | At 335 one of random's would, too, otherwise none. And 75 % one run "
        "of the variation ratio would reach if it were 342 or less, and only two of random's if it were 386."
    ) in findings


def test_steps_at_equally_many_unique_labels(curves, findings):
    """How much longer BALD has played than random when both have asked about as many different states."""
    ratio = {}
    for game, share in (("breakout", 0.05), ("pong", 0.1)):
        runs = of(curves, game, share)
        last = of(comparison.areas(curves), game, share)["end_unique_labels"].iloc[0]
        steps = runs[runs["unique_labels"] >= last].groupby(["acquisition", "run"])["agent_steps"].min()
        ratio[game] = steps["bald"].mean() / steps["random"].mean()
    assert 1.8 < ratio["breakout"] < 2
    assert 2.3 < ratio["pong"] < 2.7
    assert (
        "nearly twice as many steps as random on Breakout, and for about two and a half times as many on Pong"
        in findings
    )


def test_bald_passes_random_on_pong(curves, findings):
    wide = of(curves, "pong", 0.1).pivot(index="agent_steps", columns=["acquisition", "run"], values="normalised")
    mean = wide.dropna().T.groupby(level=0).agg(comparison.iqm).T
    behind = mean.index[mean["bald"] <= mean["random"]]
    assert f"passes random after {behind.max():,} steps" in findings


def test_regret_of_bald_and_random_on_pong(rounds, findings):
    after = comparison.to_common_end(of(rounds, "pong", 0.1))
    last = after.groupby("run").tail(evidence.LAST)
    regret = last.groupby(["acquisition", "run"])["probe_expert_regret"].mean()
    bald, random = regret["bald"], regret["random"]
    assert f"{bald.mean():.3f} against {random.mean():.3f} on the expert's states, every run above" in findings
    assert bald.min() > random.max()


def test_commits(metrics, findings):
    starts = [read_starts(RESULTS / run) for run in metrics["run"].unique()]
    changed = sum(any("dirty" in start.get("commit", "") for start in of_run) for of_run in starts)
    unknown = sum(any("commit" not in start for start in of_run) for of_run in starts)
    assert f"{changed} were started or continued from code with uncommitted changes, and nine without" in findings
    assert unknown == 9
