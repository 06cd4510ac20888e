"""Acquisition functions: from the student's dropout samples to one score per state; the highest are asked about.

Each is a pure function of logits = Q-values / temperature, (N, T, A): N states, T dropout passes, A actions. Entropies
are in nats, and

    predictive entropy (total) = expected entropy (aleatoric) + BALD (epistemic).

Your own function takes the same arguments; name it "my_module:my_function". It is called on chunks of the pool, with
the same T masks for every state; in a round several times on some states, first with rough logits.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from aamlib.config import ConfigError, nearest

Acquisition = Callable[..., Tensor]


def entropy(logits: Float[Tensor, "N T A"], *, generator: torch.Generator | None = None) -> Float[Tensor, " N"]:
    """Predictive entropy: how undecided the mean policy is, whatever the reason (Shannon 1948).

    H[p̄] = −Σ_a p̄_a ln p̄_a with p̄ = mean over T of softmax(logits).

    Parameters
    ----------
    logits:
        float (N, T, A), T >= 1.
    generator:
        Not used.

    Returns
    -------
    float (N,), nats, between 0 and ln A; higher is asked first.

    Raises
    ------
    ValueError
        Another shape, or values that are not finite.
    """
    return _total(_log_policies(logits, min_samples=1).exp())


def bald(logits: Float[Tensor, "N T A"], *, generator: torch.Generator | None = None) -> Float[Tensor, " N"]:
    """BALD, the mutual information of action and weights: how much the passes disagree.

    I = H[p̄] − mean over T of H[p_t], both terms from the same T passes (Houlsby et al. 2011, arXiv:1112.5745; with MC
    dropout: Gal et al. 2017, arXiv:1703.02910). What rounding alone can bring about is 0.

    Parameters
    ----------
    logits:
        float (N, T, A), T >= 2.
    generator:
        Not used.

    Returns
    -------
    float (N,), nats, between 0 and ln min(T, A); higher is asked first.

    Raises
    ------
    ValueError
        Another shape, T < 2, or values that are not finite.
    """
    log_policies = _log_policies(logits, min_samples=2)
    policies = log_policies.exp()
    negative_aleatoric = (policies * log_policies).sum(dim=(0, 1)) / logits.shape[1]
    scores = _total(policies) + negative_aleatoric
    return scores.masked_fill_(scores < 8 * torch.finfo(scores.dtype).eps, 0)


def variation_ratio(logits: Float[Tensor, "N T A"], *, generator: torch.Generator | None = None) -> Float[Tensor, " N"]:
    """Variation ratio: the share of passes that do not vote for the modal action (Freeman 1965; Gal 2016, thesis, 3.3).

    1 − max_a #{t : argmax logits_t = a} / T. It has few levels (multiples of 1/T); `choose` breaks the ties at random.

    Parameters
    ----------
    logits:
        float (N, T, A), T >= 2.
    generator:
        Not used.

    Returns
    -------
    float (N,), between 0 and 1 − 1/min(T, A); higher is asked first.

    Raises
    ------
    ValueError
        Another shape, T < 2, or values that are not finite.
    """
    states_last = _states_last(logits, min_samples=2)
    voted = states_last == states_last.amax(dim=0)  # (A, T, N): faster than the index of the highest
    taken = voted[0].clone()
    for of_action in voted[1:]:  # of equal logits the first action counts
        of_action &= ~taken
        taken |= of_action
    votes = voted.sum(dim=1, dtype=torch.int32)  # (A, N)
    return 1 - votes.amax(dim=0) / logits.shape[1]


def random(logits: Float[Tensor, "N T A"], *, generator: torch.Generator | None = None) -> Float[Tensor, " N"]:
    """Random scores, uniform in [0, 1): the baseline that every other function has to beat. Only N is read."""
    return torch.rand(len(logits), generator=generator).to(logits.device)


ACQUISITIONS: dict[str, Acquisition] = {
    "entropy": entropy,
    "bald": bald,
    "variation_ratio": variation_ratio,
    "random": random,
}


_FINITE = "mend the function where a probability is 0: torch.special.entr(p), for one, in place of -p * p.log()."


def find_acquisition(name: str) -> Acquisition:
    """The function of a registered name, or of "my_module:my_function". Raises ConfigError if there is none."""
    if name in ACQUISITIONS:
        return ACQUISITIONS[name]
    module_name, _, function_name = name.partition(":")
    if not all([*module_name.split("."), function_name]):
        raise ConfigError(
            f"unknown acquisition {name!r}; {nearest(name, ACQUISITIONS)} Your own: 'my_module:my_function'."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # no module, or a mistake in it
        is_absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        advice = "is its folder on PYTHONPATH?" if is_absent else f"mend {module_name}, or install what it needs."
        raise ConfigError(
            f"acquisition {name!r} cannot be imported: {type(error).__name__}: {error}; {advice}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        known = nearest(function_name, functions)
        raise ConfigError(f"acquisition {name!r}: {module_name} has no function {function_name!r}; {known}")
    if id(function) not in _sources:  # now, while the file is as it was imported
        _sources[id(function)] = function, _source_hash(function, module_name)
    if module_name == "__main__" and _sources[id(function)][1] is None:
        raise ConfigError(
            f"acquisition {name!r} is in no file by which a run could know it again; save it as one, such as "
            f"{function_name}.py, and give '{function_name}:{function_name}'."
        )
    return function


def source_hash(name: str) -> str | None:
    """SHA-256 of the module of a user's own function, hexadecimal; None for others, and without a source."""
    return None if name in ACQUISITIONS else _sources[id(find_acquisition(name))][1]


_sources: dict[int, tuple[Acquisition, str | None]] = {}  # by the id of the function, which stays its own here


def _source_hash(function: Acquisition, found_in: str) -> str | None:
    """Of the module that defines it; of what is no plain function, such as a partial, of that in which it was found."""
    module = function.__module__ if inspect.isfunction(function) else found_in
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()
    except (OSError, TypeError, KeyError):  # made by other means than a file
        return None


def scores_of(
    acquisition: Acquisition, logits: Float[Tensor, "N T A"], generator: torch.Generator
) -> Shaped[Tensor, " N"]:
    """The function's scores, (N,), without gradient; its products are float32's, whatever precision is set around.

    Raises ConfigError if it returns anything else.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        scores: Any = acquisition(logits, generator=generator)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1] or scores.is_complex():
        returned = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigError(
            f"the function returned {returned} for {len(logits)} states; return one score per state, a real tensor "
            "(N,)."
        )
    return scores.detach()


def check_acquisition(name: str, n_samples: int, n_actions: int, device: str = "cpu") -> None:
    """Try the function on a few random logits.

    Raises ConfigError if it fails, does not return finite scores, or, as long as it draws nothing, scores a state
    otherwise among others.
    """
    n_states = 4 + max(n_samples, n_actions)  # unlike these, so that no axis can pass for another
    logits = torch.randn(n_states, n_samples, n_actions, generator=torch.Generator().manual_seed(0))
    logits[2:] *= 200  # policies so sharp that some of their probabilities are 0
    logits[3] = logits[3, :1]  # and the passes' mean policy too
    function = find_acquisition(name)

    def scores_by(seed: int, part: slice = slice(None)) -> Tensor:
        own = logits[part].to(device, copy=True)  # which it may change
        return scores_of(function, own, torch.Generator().manual_seed(seed)).double()

    try:
        scores = scores_by(0)
        draws = not torch.equal(scores, scores_by(1))
        in_halves = torch.cat([scores_by(0, slice(n_states // 2)), scores_by(0, slice(n_states // 2, None))])
    except ConfigError as error:
        raise ConfigError(f"acquisition {name!r}: {error}") from error
    except Exception as error:  # of a user's own function, which may raise anything
        raise ConfigError(
            f"acquisition {name!r} fails: {type(error).__name__}: {error}; it is called as "
            f"function(logits, generator=generator), here with logits of shape {tuple(logits.shape)}."
        ) from error
    if not torch.isfinite(scores).all():
        raise ConfigError(f"acquisition {name!r} returned scores that are not finite; {_FINITE}")
    if not (draws or torch.allclose(scores, in_halves, rtol=1e-3, atol=1e-4)):
        raise ConfigError(
            f"acquisition {name!r} scores a state otherwise among other states, but a pool is scored in parts; return "
            "one score for each state by itself, no ranks, no indices, and nothing scaled over the states."
        )


def choose(scores: Float[Tensor, " N"], query_size: int, generator: torch.Generator) -> Int64[Tensor, " K"]:
    """Positions of the highest scores, int64 (query_size,); ties at the cut are broken by a seeded random order.

    Raises ConfigError if a score is not finite: NaN would sort first and such a state would be asked about.
    """
    if not torch.isfinite(scores).all():
        n_bad = int((~torch.isfinite(scores)).sum())
        raise ConfigError(
            f"{n_bad} of {len(scores)} scores are not finite; {_FINITE} Then begin in another folder, for a run goes "
            "on only with the function that it began with."
        )
    shuffled = torch.randperm(len(scores), generator=generator)
    order = torch.sort(scores.cpu()[shuffled], descending=True, stable=True).indices
    return shuffled[order[:query_size]]


def _total(policies: Float[Tensor, "A T N"]) -> Float[Tensor, " N"]:
    return torch.special.entr(policies.mean(dim=1)).sum(dim=0)


def _log_policies(logits: Tensor, min_samples: int) -> Float[Tensor, "A T N"]:
    return torch.log_softmax(_states_last(logits, min_samples), dim=0)


def _states_last(logits: Tensor, min_samples: int) -> Float[Tensor, "A T N"]:
    """In the order in which a CPU is fastest, that of `q_samples`. Raises ValueError for what cannot be scored."""
    if logits.ndim != 3 or logits.shape[1] < min_samples or logits.shape[2] < 1:
        raise ValueError(f"logits have the shape {tuple(logits.shape)}; give (N, T, A) with T >= {min_samples}.")
    if not (logits.sum().isfinite() or logits.isfinite().all()):  # a sum is soon made, but can overflow
        raise ConfigError("logits hold values that are not finite; look at the student's weights and the temperature.")
    return logits.permute(2, 1, 0).contiguous()
