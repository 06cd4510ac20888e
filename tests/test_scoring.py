"""Reduced precision chooses what float32 chooses: on a trained student, under the same masks."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from marks import needs_int8, needs_int16
from scipy.stats import spearmanr

import aamlib
from aamlib import scoring
from aamlib.acquisition import choose
from aamlib.diagnosis import load_probes
from aamlib.networks import as_blocks
from aamlib.precision import bfloat16_works, reduced_precision
from aamlib.replay import FramePool
from aamlib.scoring import refine, rough_trunk, score_pool
from aamlib.starts import read_starts
from aamlib.trunks import Int8Trunk, int8_is_fast, packed_trunk

QUERY_SIZE = 200


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Pool(FramePool):
    """States that were not collected by a run."""

    n_envs = 1

    def __init__(self, states):
        self.states = states

    def __len__(self):
        return len(self.states)

    def ids(self):
        return torch.arange(len(self.states))

    def read_blocks(self, ids):
        return as_blocks(self.states[ids])

    def read_steps(self, first_step, last_step):
        return as_blocks(self.states[first_step:last_step])

    def at_start(self, ids):
        return (self.states[ids, 0] == 0).flatten(1).all(dim=1)


@pytest.fixture(scope="module")
def student():
    return aamlib.load_student(aamlib.DATA_DIR / "sample" / "pong-bald")


@pytest.fixture(scope="module")
def pool():
    """States of the expert and of random play."""
    probes = load_probes(aamlib.DATA_DIR / "experts", aamlib.load_expert("pong"), aamlib.ExperimentConfig())
    return Pool(torch.cat([probe.states for probe in probes.values()]))


@pytest.fixture(scope="module")
def heads(student):
    return student.sample_heads(10, seeded(0))


def logits(student, pool, heads, trunk=None):
    batches = pool.states.split(128)
    return torch.cat([student.q_samples(batch, heads=heads, trunk=trunk) for batch in batches]) / 0.1


@pytest.fixture(scope="module")
def exact(student, pool, heads):
    with reduced_precision("float32"):
        return logits(student, pool, heads)


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("int8", marks=needs_int8)])
def reduced(request, student, pool, heads):
    if request.param == "int8":
        return request.param, logits(student, pool, heads, Int8Trunk(student, pool.states[::8]))
    with reduced_precision("bfloat16"):
        return request.param, logits(student, pool, heads, packed_trunk(student))


def chosen(scores, query_size=QUERY_SIZE):
    return set(choose(scores, query_size, seeded(0)).tolist())


@pytest.mark.parametrize("name", ["entropy", "bald"])
def test_reduced_precision_ranks_states_as_float32_does(exact, reduced, name):
    scores = [aamlib.ACQUISITIONS[name](values) for values in (exact, reduced[1])]
    assert not torch.equal(*scores)
    assert spearmanr(*scores).statistic >= 0.99
    assert len(chosen(scores[0]) & chosen(scores[1])) >= 0.95 * QUERY_SIZE


def test_reduced_precision_leaves_nearly_all_votes_as_they_are(exact, reduced):
    """A vote turns where two actions are as good as equal: variation ratio, which counts votes, shifts the most."""
    precision, values = reduced
    least_votes, least_correlation = {"bfloat16": (0.98, 0.98), "int8": (0.97, 0.95)}[precision]
    assert (exact.argmax(dim=-1) == values.argmax(dim=-1)).float().mean() >= least_votes
    ratios = [aamlib.ACQUISITIONS["variation_ratio"](logits) for logits in (exact, values)]
    assert spearmanr(*ratios).statistic >= least_correlation


@needs_int8
@pytest.mark.parametrize("near", ["float32", pytest.param("int16", marks=needs_int16)])
@pytest.mark.parametrize("name", ["entropy", "bald", "variation_ratio"])
def test_a_pool_scored_mostly_in_int8_is_asked_the_same(student, pool, heads, exact, name, near, monkeypatch):
    monkeypatch.setattr(scoring, "ROUGH_FROM", 1_000)
    monkeypatch.setattr(scoring, "int16_is_fast", lambda _: near == "int16")
    config, rough = aamlib.ExperimentConfig(acquisition=name), rough_trunk(student, pool, seeded(2))
    with reduced_precision("bfloat16" if bfloat16_works("cpu") else "float32"):  # as in a run
        scores = score_pool(student, pool, heads, QUERY_SIZE, config, seeded(1), rough)
    expected = aamlib.ACQUISITIONS[name](exact).double()
    nearest = (scores - expected.kthvalue(len(expected) - QUERY_SIZE + 1).values).abs().argsort()[:100]
    assert (scores - expected)[nearest].abs().quantile(0.95) < (1e-2 if near == "int16" else 1e-5)
    assert not torch.equal(scores, expected)
    agreed = len(chosen(scores) & chosen(expected))
    assert agreed >= (0.97 if name == "variation_ratio" else 0.99) * QUERY_SIZE, "of few levels, votes that turn"
    other_masks = logits(student, pool, student.sample_heads(10, seeded(3)))
    assert len(chosen(aamlib.ACQUISITIONS[name](other_masks)) & chosen(expected)) < agreed - 10, "these change far more"


@needs_int8
def test_states_at_a_games_start_are_exact_and_make_no_others_rough(student, pool, monkeypatch):
    """Their empty frames are like no others: a trained student's features of them can be many times as large."""
    monkeypatch.setattr(scoring, "ROUGH_FROM", 1_000)
    starts = pool.at_start(pool.ids())
    assert 0 < starts.float().mean() < 0.02
    calibrated = []
    monkeypatch.setattr(
        scoring, "Int8Trunk", lambda network, states: calibrated.append(states) or Int8Trunk(network, states)
    )
    trunk = rough_trunk(student, pool, seeded(0))
    with torch.no_grad():
        for states in (pool.states, pool.read_blocks(pool.ids())):
            features, exact = trunk(states), student.trunk(states)
            torch.testing.assert_close(features[starts], exact[starts])
            assert not torch.allclose(features[~starts], exact[~starts], rtol=1e-3, atol=1e-3)
    assert len(calibrated[0]) == scoring._CALIBRATION
    assert calibrated[0][:, :, 0].flatten(1).any(dim=1).all()


def test_without_int8_all_scores_are_exact(student, pool, heads, exact):
    config = aamlib.ExperimentConfig(acquisition="bald")
    scores = score_pool(student, pool, heads, QUERY_SIZE, config, seeded(1))
    torch.testing.assert_close(scores, aamlib.ACQUISITIONS["bald"](exact).double(), rtol=0, atol=1e-5)


def test_the_scores_of_a_pool_are_those_of_its_states_one_by_one(student, heads, monkeypatch):
    monkeypatch.setattr(scoring, "FORWARD_BATCH", 16)
    pool, random = FramePool(60, 3), np.random.default_rng(0)
    for _ in range(34):
        pool.add(random.integers(256, size=(3, 84, 84), dtype=np.uint8), random.random(3) < 0.1)
    scores = score_pool(student, pool, heads, 6, aamlib.ExperimentConfig(), seeded(0))
    states = pool.read(pool.ids())
    assert 0 < pool.at_start(pool.ids()).sum() < 30
    expected = aamlib.ACQUISITIONS["bald"](student.q_samples(states, heads=heads) / 0.1)
    torch.testing.assert_close(scores, expected.double(), rtol=0, atol=1e-5)


def test_an_own_function_draws_from_the_generator_of_the_round(student, pool, heads, monkeypatch):
    def noise(logits, *, generator=None):
        return torch.rand(len(logits), generator=generator)

    monkeypatch.setitem(aamlib.ACQUISITIONS, "noise", noise)
    config = aamlib.ExperimentConfig(acquisition="noise")
    few = Pool(pool.states[:300])
    first, again, other = (score_pool(student, few, heads, 6, config, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).all()


def test_an_own_function_is_not_asked_about_no_states(student, pool, heads, monkeypatch):
    def spread(logits, *, generator=None):
        return torch.stack([passes.std(dim=0).max() for passes in logits])

    monkeypatch.setitem(aamlib.ACQUISITIONS, "spread", spread)
    config = aamlib.ExperimentConfig(acquisition="spread")
    without_starts = Pool(pool.states[~pool.at_start(pool.ids())])
    scores = score_pool(student, without_starts, heads, QUERY_SIZE, config, seeded(1))
    assert len(scores) == len(without_starts)


def test_a_small_pool_gets_no_rough_trunk(student, pool):
    assert len(pool) < scoring.ROUGH_FROM
    assert rough_trunk(student, pool, seeded(0)) is None


@needs_int8
def test_the_student_acts_in_int8_as_in_float32(student, pool, monkeypatch):
    monkeypatch.setattr(scoring, "ROUGH_FROM", 1_000)
    trunk = rough_trunk(student, pool, seeded(0))
    with torch.no_grad():
        torch.manual_seed(0)  # the same units are dropped
        exact = student.train()(pool.states)
        torch.manual_seed(0)
        rough = student(pool.states, trunk)
    student.eval()
    assert not torch.equal(rough, exact)
    agreed = rough.argmax(dim=1) == exact.argmax(dim=1)
    assert agreed.float().mean() >= 0.97
    lost = exact.amax(dim=1) - exact.gather(1, rough.argmax(dim=1, keepdim=True))[:, 0]
    assert lost[~agreed].median() < 0.01, "only between actions that are as good as equal"


def test_chance_looks_at_nothing(student, pool, heads, monkeypatch):
    """Scores as pure chance would give them, and not one pass of the student over the pool."""
    monkeypatch.setattr(Pool, "read_blocks", lambda *_: pytest.fail("states were read"))
    config = aamlib.ExperimentConfig(acquisition="random")
    scores = score_pool(student, pool, heads, QUERY_SIZE, config, seeded(1))
    assert scores.shape == (len(pool.states),)
    assert scores.unique().numel() > 0.99 * len(scores)
    assert 0.45 < scores.mean() < 0.55


@pytest.mark.parametrize("query_size", [5, 500, 10_000])
def test_refining_chooses_what_exact_scores_choose(query_size):
    rng = np.random.default_rng(0)
    exact = torch.from_numpy(rng.beta(3, 1, size=20_000))  # most at the top
    rough = exact + torch.from_numpy(0.01 * rng.normal(size=20_000))
    agreed = len(chosen(rough, query_size) & chosen(exact, query_size))
    asked = []

    def look(positions):
        assert len(positions) > 0
        asked.extend(positions.tolist())
        return exact[positions]

    refined = refine(rough, look, query_size, seeded(0))
    assert len(chosen(refined, query_size) & chosen(exact, query_size)) >= query_size - max(1, 0.01 * query_size)
    assert len(chosen(refined, query_size) & chosen(exact, query_size)) > agreed
    assert len(set(asked)) == len(asked) < 0.2 * len(exact)
    changed = refined != rough
    assert torch.equal(refined[changed], exact[changed])


def test_rough_scores_that_are_exact_are_asked_for_a_sample_alone():
    scores, asked = torch.linspace(0, 1, 20_000, dtype=torch.float64), []
    refine(scores, lambda positions: asked.append(len(positions)) or scores[positions], 5, seeded(0))
    assert asked == [1_000]


def test_states_that_are_level_at_the_cut_are_all_asked_for_though_the_sample_shows_no_errors():
    rough = torch.full((20_000,), 0.5, dtype=torch.float64)
    rough[:5_000] = 0.2
    exact = rough.clone()
    exact[5_000::300] = 0.7  # fewer than one in a hundred
    refined = refine(rough, lambda positions: exact[positions], 100, seeded(0))
    assert torch.equal(refined, exact)


def test_scores_that_differ_at_every_call_are_all_taken_from_the_exact_ones():
    exact = torch.rand(20_000, generator=seeded(1))
    refined = refine(torch.rand(20_000, generator=seeded(0)), lambda positions: exact[positions], 2_000, seeded(2))
    assert len(chosen(refined, 2_000) & chosen(exact, 2_000)) >= 0.98 * 2_000


@pytest.mark.slow
def test_a_run_records_how_it_computed(with_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROUGH_FROM", 150)
    trunks, batches = [], []

    class CountedTrunk(Int8Trunk):
        def __init__(self, *args):
            super().__init__(*args)
            trunks.append(self)

        def __call__(self, states):
            batches.append(len(states))
            return super().__call__(states)

    monkeypatch.setattr(scoring, "Int8Trunk", CountedTrunk)
    for precision, expected in (("float32", False), ("auto", int8_is_fast("cpu"))):
        run = aamlib.distill(with_settings(precision=precision, total_steps=480), tmp_path / precision)
        assert [start["int8"] for start in read_starts(run.dir)] == [expected]
        assert len(trunks) == 2 * expected, "one in each round"
        assert (run.config["n_envs"] in batches) == expected, "it acts so too"


@pytest.mark.slow
@needs_int8
def test_the_same_seed_gives_the_same_run_in_int8(with_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROUGH_FROM", 150)
    monkeypatch.setattr(scoring, "fastest_precision", lambda _: "float32")
    monkeypatch.setattr(scoring, "int8_is_fast", lambda _: True)
    first, again = (
        aamlib.distill(with_settings(precision="auto", total_steps=640), tmp_path / name) for name in ("first", "again")
    )
    assert read_starts(first.dir)[0]["int8"]
    columns = ["loss", "score", "probe_expert_kl", "unique_labels"]
    pd.testing.assert_frame_equal(first.metrics[columns], again.metrics[columns], check_exact=True)


@pytest.mark.parametrize(("int8", "recorded_in_bfloat16"), [(False, True), pytest.param(True, False, marks=needs_int8)])
def test_states_are_recorded_as_precisely_as_they_were_chosen(
    with_settings, tmp_path, monkeypatch, int8, recorded_in_bfloat16
):
    monkeypatch.setattr(scoring, "ROUGH_FROM", 150)
    monkeypatch.setattr(scoring, "fastest_precision", lambda _: "bfloat16")
    monkeypatch.setattr(scoring, "int8_is_fast", lambda _: int8)
    found, loop = [], sys.modules["aamlib.distill"]  # whose name in the package is the function's
    record_selection = loop.record_selection

    def spied(*arguments):
        found.append(torch.is_autocast_enabled("cpu"))
        return record_selection(*arguments)

    monkeypatch.setattr(loop, "record_selection", spied)
    aamlib.distill(with_settings(precision="auto", total_steps=320), tmp_path / "run")
    assert set(found) == {recorded_in_bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, pytest.param(True, marks=needs_int8)])
def test_a_run_keeps_its_way_of_computing_where_it_can(with_settings, tmp_path, monkeypatch, first):
    for fast, total_steps in ((first, 320), (True, 480)):
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "int8_is_fast", lambda _, fast=fast: fast)
            run = aamlib.distill(with_settings(precision="auto", total_steps=total_steps), tmp_path / "run")
    assert [start["int8"] for start in read_starts(run.dir)] == [first, first]


@pytest.mark.parametrize(("precision", "works", "expected"), [
    ("auto", True, ("bfloat16", True)), ("auto", False, ("float32", False)), ("float32", True, ("float32", False)),
])  # fmt: skip
def test_a_run_computes_as_it_began_wherever_that_works(monkeypatch, precision, works, expected):
    for name in ("int8_works", "bfloat16_works"):
        monkeypatch.setattr(scoring, name, lambda _: works)
    starts = [{"precision": "bfloat16", "int8": True}, {"precision": "float32", "int8": False}]  # it went on elsewhere
    assert scoring.way_to_compute(aamlib.ExperimentConfig(precision=precision), starts) == expected


@needs_int8
def test_functions_with_few_levels_or_other_types_are_scored_too(student, pool, heads, exact, monkeypatch):
    monkeypatch.setattr(scoring, "ROUGH_FROM", 1_000)

    def votes(logits, *, generator=None):
        return logits.argmax(dim=-1).eq(0).sum(dim=1)  # int64

    monkeypatch.setitem(aamlib.ACQUISITIONS, "votes", votes)
    config = aamlib.ExperimentConfig(acquisition="votes")
    scores = score_pool(student, pool, heads, QUERY_SIZE, config, seeded(1), rough_trunk(student, pool, seeded(2)))
    highest = [torch.as_tensor(sorted(votes(exact)[list(chosen(s))].tolist())) for s in (scores, votes(exact).double())]
    assert (highest[0] == highest[1]).double().mean() >= 0.99


def test_scores_that_are_not_finite_are_not_hidden():
    rough = torch.rand(20_000, generator=seeded(0))
    rough[7] = torch.nan
    with pytest.raises(aamlib.ConfigError, match="1 of 20000 scores are not finite"):
        choose(refine(rough, lambda positions: rough[positions], 2_000, seeded(2)), 2_000, seeded(0))
