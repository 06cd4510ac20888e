"""Acquisition functions against hand-made values, a slow oracle, baal, and the bounds that theory gives."""

import contextlib
import hashlib
import importlib
import linecache
import math
import sys
import types

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from aamlib.acquisition import (
    ACQUISITIONS,
    bald,
    check_acquisition,
    choose,
    entropy,
    find_acquisition,
    random,
    scores_of,
    source_hash,
    variation_ratio,
)
from aamlib.config import ConfigError

UNCERTAINTIES = [entropy, bald, variation_ratio]
LOGITS = torch.randn(5, 10, 6, generator=torch.Generator().manual_seed(0))

shapes = st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 6))  # N, T, A
values = st.integers(-40, 40).map(lambda quarters: quarters / 4) | st.sampled_from([-1e4, 1e4])  # exact in binary
logit_arrays = hnp.arrays(np.float64, shapes, elements=values)
seeds = st.integers(0, 2**32 - 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def assert_close(actual, expected, atol=1e-6):
    torch.testing.assert_close(
        actual.double(), torch.as_tensor(expected, dtype=torch.float64).expand_as(actual), rtol=0, atol=atol
    )


# The oracle: plain loops in float64, one state at a time.


def slow_policy(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def slow_entropy(policy):
    return -sum(p * math.log(p) for p in policy if p > 0)


def slow_scores(passes):
    """Entropy, BALD and variation ratio of one state's passes (T, A)."""
    policies = [slow_policy(row) for row in passes]
    mean_policy = [sum(column) / len(policies) for column in zip(*policies, strict=True)]
    total = slow_entropy(mean_policy)
    expected = sum(slow_entropy(policy) for policy in policies) / len(policies)
    votes = [list(row).index(max(row)) for row in passes]
    agreeing = max(votes.count(action) for action in votes)
    return total, total - expected, 1 - agreeing / len(votes)


@given(logit_arrays)
def test_scores_equal_those_of_a_slow_oracle(array):
    oracle = np.array([slow_scores(passes) for passes in array])
    for column, function in enumerate(UNCERTAINTIES):
        assert_close(function(torch.from_numpy(array)), oracle[:, column])
        assert_close(function(torch.from_numpy(array).float()), oracle[:, column], atol=5e-6)


@pytest.mark.filterwarnings("ignore:`structlog.threadlocal`:DeprecationWarning")  # as baal is imported
@given(shapes, seeds)
def test_entropy_and_bald_agree_with_baal(shape, seed):
    from baal.active import heuristics

    logits = torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * 3
    policies = logits.softmax(dim=-1).movedim(1, -1).numpy()  # (N, A, T), as baal wants it
    assert_close(entropy(logits), heuristics.Entropy().compute_score(policies))
    assert_close(bald(logits), heuristics.BALD().compute_score(policies))


# Values worked out by hand.


@pytest.mark.parametrize("n_samples", [2, 10])
def test_identical_passes_have_no_bald_and_no_variation(n_samples):
    logits = torch.randn(500, 1, 6, generator=seeded(0)).expand(-1, n_samples, -1)
    assert (bald(logits) == 0).all(), "not rounding, by which a pool would then be ranked"
    assert_close(variation_ratio(logits), 0)


def test_two_certain_opposed_passes_have_bald_ln_2():
    logits = torch.tensor([[[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]]])
    assert_close(bald(logits), math.log(2))
    assert_close(entropy(logits), math.log(2))


@pytest.mark.parametrize("n_actions", [2, 4, 6, 18])
def test_uniform_policies_have_entropy_ln_a_and_no_bald(n_actions):
    logits = torch.full((3, 5, n_actions), 7.0)
    assert_close(entropy(logits), math.log(n_actions))
    assert_close(bald(logits), 0)


def test_entropy_takes_a_single_pass():
    assert_close(entropy(torch.tensor([[[math.log(3.0), 0.0]]])), math.log(4) - 0.75 * math.log(3))


@pytest.mark.parametrize(
    ("votes", "ratio"), [([0, 0, 1, 2, 0], 0.4), ([0, 1, 2, 3], 0.75), ([2, 2, 2], 0.0), ([1, 1, 3, 3], 0.5)]
)
def test_variation_ratio_is_the_share_outside_the_modal_vote(votes, ratio):
    logits = torch.nn.functional.one_hot(torch.tensor([votes]), 4).float()
    assert_close(variation_ratio(logits), ratio)


# Bounds and symmetries.


@given(logit_arrays, st.sampled_from([torch.float32, torch.float64]))
def test_bald_lies_between_0_and_each_of_its_bounds(array, dtype):
    logits = torch.from_numpy(array).to(dtype)
    _, n_samples, n_actions = logits.shape
    scores = bald(logits)
    assert (scores >= 0).all()
    for bound in (math.log(n_samples), math.log(n_actions), entropy(logits)):
        assert (scores <= bound + 1e-5).all()


@given(logit_arrays)
def test_bald_is_entropy_less_the_mean_entropy_of_the_passes(array):
    logits = torch.from_numpy(array)
    passes = torch.stack([entropy(logits[:, t : t + 1]) for t in range(logits.shape[1])])
    assert_close(bald(logits), entropy(logits) - passes.mean(dim=0))


@given(logit_arrays)
def test_variation_ratio_is_a_multiple_of_1_over_t_below_its_bound(array):
    _, n_samples, n_actions = array.shape
    dissenting = variation_ratio(torch.from_numpy(array)) * n_samples
    assert_close(dissenting, dissenting.round(), atol=1e-5)
    assert (dissenting <= n_samples * (1 - 1 / min(n_samples, n_actions)) + 1e-5).all()


@given(logit_arrays, seeds)
def test_order_of_passes_and_actions_does_not_matter(array, seed):
    _, n_samples, n_actions = array.shape
    untied = torch.from_numpy(array) + 0.01 * torch.arange(n_actions)  # a tie within a pass goes to the first action
    passes, actions = (torch.randperm(size, generator=seeded(seed)) for size in (n_samples, n_actions))
    for function in UNCERTAINTIES:
        assert_close(function(untied[:, passes][:, :, actions]), function(untied))


@given(logit_arrays, seeds)
def test_constants_added_to_a_pass_do_not_matter(array, seed):
    logits = torch.from_numpy(array)
    constants = torch.randint(-1000, 1000, (*logits.shape[:2], 1), generator=seeded(seed))
    for function in UNCERTAINTIES:
        assert_close(function(logits + constants), function(logits))


@pytest.mark.parametrize("function", UNCERTAINTIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_give_finite_scores(function, dtype):
    signs = torch.tensor([[[1, -1, -1], [-1, 1, -1]], [[1, 1, 1], [-1, -1, -1]], [[1, 0, -1], [1, 0, -1]]])
    assert torch.isfinite(function(signs.to(dtype) * 1e4)).all()


@pytest.mark.parametrize("function", UNCERTAINTIES)
def test_logits_whose_sum_overflows_are_taken(function):
    assert torch.isfinite(function(torch.full((3, 4, 5), 1e38))).all()


# What is refused.


@pytest.mark.parametrize("function", UNCERTAINTIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(function, bad):
    logits = torch.zeros(3, 4, 5)
    logits[1, 2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        function(logits)


@pytest.mark.parametrize("function", [bald, variation_ratio])
def test_disagreement_needs_two_passes(function):
    with pytest.raises(ValueError, match=r"\(5, 1, 4\); give \(N, T, A\) with T >= 2"):
        function(torch.zeros(5, 1, 4))


@pytest.mark.parametrize("function", UNCERTAINTIES)
@pytest.mark.parametrize("shape", [(4,), (5, 4), (5, 0, 4), (5, 3, 0), (5, 3, 4, 1)])
def test_other_shapes_are_refused(as_users, function, shape):
    with pytest.raises(ValueError, match=r"give \(N, T, A\)"):
        function(torch.zeros(shape))


@pytest.mark.parametrize("function", ACQUISITIONS.values())
def test_no_states_give_no_scores(function):
    assert function(torch.zeros(0, 3, 4)).shape == (0,)


# Random scores, and the choice.


def test_random_scores_are_seeded_and_uniform():
    logits = torch.zeros(10_000, 2, 3)
    scores = random(logits, generator=seeded(1))
    assert torch.equal(scores, random(logits, generator=seeded(1)))
    assert not torch.equal(scores, random(logits, generator=seeded(2)))
    shares = torch.histc(scores, bins=10, min=0, max=1) / len(scores)
    assert_close(shares, 0.1, atol=0.015)  # five standard errors


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.integers(0, 5)), st.data(), seeds)
def test_choose_takes_distinct_states_and_none_below_one_left_out(array, data, seed):
    scores = torch.from_numpy(array)
    query_size = data.draw(st.integers(0, len(scores)))
    chosen = choose(scores, query_size, seeded(seed)).tolist()
    left_out = set(range(len(scores))) - set(chosen)
    assert len(set(chosen)) == len(chosen) == query_size
    assert not chosen or not left_out or scores[chosen].min() >= scores[list(left_out)].max()


def test_choose_breaks_ties_by_its_seed():
    tied = torch.zeros(100)
    assert torch.equal(choose(tied, 10, seeded(0)), choose(tied, 10, seeded(0)))
    assert set(choose(tied, 10, seeded(0)).tolist()) != set(choose(tied, 10, seeded(1)).tolist())


def test_choose_gives_tied_states_equal_chances():
    scores = torch.tensor([0.5] * 5 + [1.0] + [0.5] * 5 + [0.1])  # 10 tied states for the last 3 places of 4
    generator, draws = seeded(0), 3000
    times_chosen = sum(torch.bincount(choose(scores, 4, generator), minlength=12) for _ in range(draws))
    assert times_chosen[5] == draws
    assert times_chosen[11] == 0
    tied = torch.cat([times_chosen[:5], times_chosen[6:11]])
    assert_close(tied / draws, 0.3, atol=0.042)  # five standard errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_choose_refuses_scores_that_are_not_finite(bad):
    with pytest.raises(ConfigError, match="1 of 3 scores are not finite"):
        choose(torch.tensor([0.1, bad, 0.2]), 1, seeded(0))


# Functions by name.


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_acquisition.py").write_text(
        "def first_pass(logits, *, generator=None):\n    return logits[:, 0, 0]\n\nNOT_A_FUNCTION = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "own_acquisition"


@pytest.mark.parametrize("name", ["entropy", "bald", "variation_ratio", "random"])
def test_registered_functions_are_found_by_their_own_name(name):
    assert find_acquisition(name).__name__ == name


def test_own_function_is_found_in_its_module(own_module):
    function = find_acquisition(f"{own_module}:first_pass")
    assert_close(function(torch.full((2, 3, 4), 5.0)), 5)


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="unknown acquisition 'BALDD'; did you mean 'bald'"):
        find_acquisition("BALDD")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_of_mine:score", "No module named 'no_such_module_of_mine'; is its folder on PYTHONPATH"),
        ("own_acquisition:missing", "own_acquisition has no function 'missing'; allowed: first_pass"),
        ("own_acquisition:NOT_A_FUNCTION", "own_acquisition has no function 'NOT_A_FUNCTION'"),
        (":score", "unknown acquisition ':score'; .*Your own: 'my_module:my_function'"),
        (".own_acquisition:first_pass", "unknown acquisition '.own_acquisition:first_pass'"),
    ],
)
def test_function_that_cannot_be_had_is_an_error(own_module, name, reason):
    with pytest.raises(ConfigError, match=reason):
        find_acquisition(name)


def test_the_source_of_ones_own_function_is_known_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "known_again.py"

    def write(helper):
        path.write_text(
            "import torch\n\n"
            f"@torch.no_grad()\ndef first(logits, *, generator=None):\n    return _of(logits)\n\n"
            f"def _of(logits):\n    return {helper}\n"
        )

    def loaded(helper):
        write(helper)
        monkeypatch.delitem(sys.modules, "known_again", raising=False)
        linecache.clearcache()
        importlib.invalidate_caches()
        return source_hash("known_again:first")

    before, again, changed = (loaded(f"logits[:, {sample}, 0]") for sample in (0, 0, 1))
    assert before == again != changed
    write("logits[:, 0, 0]")
    assert source_hash("known_again:first") == changed, "in memory is still what was loaded"
    assert source_hash("bald") is None


def test_what_is_no_plain_function_is_known_by_the_module_that_has_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "import functools\n\ndef base(logits, *, generator=None, k):\n    return logits[:, 0, k]\n\n"
        "class Callable(dict):\n    def __call__(self, logits, *, generator=None):\n        return logits[:, 0, 0]\n\n"
        "first, unhashable = functools.partial(base, k=0), Callable()\n"
    )
    (tmp_path / "known_by_name.py").write_text(source)
    sources = {source_hash(f"known_by_name:{name}") for name in ("base", "first", "unhashable")}
    assert sources == {hashlib.sha256(source.encode()).hexdigest()}


def test_a_mistake_in_ones_own_module_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for mistake, error in {
        "def score(:": "SyntaxError",
        "import no_such_module_of_mine": "ModuleNotFoundError",
    }.items():
        (tmp_path / f"with_{error}.py").write_text(f"{mistake}\n")
        with pytest.raises(ConfigError, match=rf"cannot be imported: {error}: .*; mend with_{error}, or install"):
            find_acquisition(f"with_{error}:score")


def test_a_function_of_a_notebook_s_cell_is_refused_for_a_run_could_not_know_it_again(monkeypatch):
    notebook = types.ModuleType("__main__")
    exec("def mine(logits, *, generator=None):\n    return logits[:, 0, 0]\n", vars(notebook))
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    with pytest.raises(ConfigError, match="is in no file .* give 'mine:mine'"):
        find_acquisition("__main__:mine")


@pytest.mark.parametrize("name", ["entropy", "bald", "variation_ratio", "random", "own_acquisition:first_pass"])
def test_function_that_makes_scores_passes_its_check(own_module, name):
    check_acquisition(name, n_samples=2, n_actions=3)


@pytest.mark.parametrize(
    ("signature", "body", "reason"),
    [
        (
            "logits",
            "logits[:, 0, 0]",
            r"TypeError: .*; it is called as function\(logits, generator=generator\)",
        ),
        ("logits, generator", "logits.nothing", "AttributeError: .*nothing"),
        ("logits, generator", "logits", r"torch.float32 \(7, 2, 3\) for 7 states; return one score per state"),
        ("logits, generator", "logits.mean((0, 1))", r"\(3,\) for 7 states"),
        ("logits, generator", "logits[:, 0, 0].sum()", r"\(\) for 7 states"),
        ("logits, generator", "logits[:, 0, 0].numpy()", "returned ndarray for 7 states"),
        ("logits, generator", "torch.complex(logits[:, 0, 0], logits[:, 0, 1])", r"complex64 \(7,\) .* a real tensor"),
        ("logits, generator", "logits.sub_(1)[:, 0, 0].argsort()", "scores a state otherwise among other states"),
        (
            "logits, generator",
            "-(logits.softmax(2) * logits.softmax(2).log()).sum(2).mean(1)",
            r"are not finite; mend .* torch\.special\.entr",
        ),
    ],
)
def test_function_that_makes_no_scores_is_refused(tmp_path, monkeypatch, signature, body, reason):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "no_scores", raising=False)
    (tmp_path / "no_scores.py").write_text(f"import torch\n\n\ndef function({signature}):\n    return {body}\n")
    with pytest.raises(ConfigError, match=f"acquisition 'no_scores:function'.*{reason}"):
        check_acquisition("no_scores:function", n_samples=2, n_actions=3)


@pytest.mark.parametrize(
    ("returned", "is_refused"),
    [
        ("scores.argsort(descending=True)", True),
        ("scores.argsort().argsort()", True),
        ("(scores - scores.mean()) / scores.std()", True),
        ("scores > scores.median()", True),
        ("scores", False),
        ("scores + torch.rand(len(scores), generator=generator)", False),
    ],
)
def test_scores_that_other_states_change_are_refused(tmp_path, monkeypatch, returned, is_refused):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_bald", raising=False)
    (tmp_path / "own_bald.py").write_text(
        "import torch\nfrom aamlib.acquisition import bald\n\n\ndef own(logits, *, generator):\n"
        f"    scores = bald(logits)\n    return {returned}\n"
    )
    expected = pytest.raises(ConfigError, match="no ranks, no indices") if is_refused else contextlib.nullcontext()
    with expected:
        check_acquisition("own_bald:own", n_samples=10, n_actions=6)


@pytest.mark.parametrize("n_actions", [3, 6, 18])
@pytest.mark.parametrize("n_samples", [2, 10, 100])
def test_a_logarithm_of_a_mean_policy_with_zeros_is_found(tmp_path, monkeypatch, n_samples, n_actions):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_entropy", raising=False)
    (tmp_path / "own_entropy.py").write_text(
        "def entropy(logits, *, generator):\n    p = logits.softmax(2).mean(1)\n    return -(p * p.log()).sum(1)\n"
    )
    with pytest.raises(ConfigError, match="scores that are not finite; mend the function"):
        check_acquisition("own_entropy:entropy", n_samples, n_actions)


def overlap(logits, *, generator=None):
    policies = logits.softmax(dim=2)
    return -(policies @ policies.transpose(1, 2)).mean(dim=(1, 2))


def test_a_functions_own_products_are_float32s_within_a_run_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        scores = scores_of(overlap, LOGITS, seeded(0))
    assert torch.equal(scores, overlap(LOGITS))
    assert scores.dtype == torch.float32


def test_a_function_may_have_weights():
    layer = torch.nn.Linear(6, 1)

    def learned(logits, *, generator=None):
        return layer(logits.mean(dim=1)).squeeze(1)

    assert not scores_of(learned, LOGITS, seeded(0)).requires_grad


@pytest.mark.parametrize("function", [entropy, bald])
def test_uncertainty_can_be_differentiated(function):
    logits = LOGITS.clone().requires_grad_()
    function(logits).sum().backward()
    assert logits.grad.abs().sum() > 0
