"""Scores of a whole pool, else by far the most work of a round: mostly in eight-bit products, where these are fast.

Those are rough, but only a state near the cut between asked and not asked can be put on the wrong side: states so near
get their scores in float32, or nearly as exactly in 16 bits where these are faster, so that nearly all that is asked
about is what float32 alone would choose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from aamlib.acquisition import ACQUISITIONS, find_acquisition, scores_of
from aamlib.config import ExperimentConfig
from aamlib.networks import FORWARD_BATCH, MCDropoutDQN, States, begins_empty
from aamlib.precision import bfloat16_works, fastest_precision, reduced_precision
from aamlib.replay import FramePool
from aamlib.trunks import Int8Trunk, Int16Trunk, Trunk, int8_is_fast, int8_works, int16_is_fast, packed_trunk

ROUGH_FROM = 10_000  # states: in a smaller pool, the samples are too large a share
_CALIBRATION, _NEAR_CALIBRATION, _STARTS = 256, 128, 8  # states; with more, errors are no smaller
_NEAREST = 1_000
_ROUGH_BATCH = 1024  # states per pass: four times as many bytes as so many floats


def way_to_compute(config: ExperimentConfig, starts: list[dict[str, Any]]) -> tuple[str, bool]:
    """The precision of a run's matrix products, and whether eight bits stand in for it where rough is good enough.

    As at the first of the run's `starts`, where the machine can; at first as its processor is fastest.
    """
    if config.precision != "auto":
        return config.precision, False
    if not starts:
        return fastest_precision(config.device), int8_is_fast(config.device)
    precision = starts[0]["precision"] if bfloat16_works(config.device) else "float32"
    return precision, starts[0].get("int8", False) and int8_works(config.device)


def rough_trunk(student: MCDropoutDQN, pool: FramePool, generator: torch.Generator) -> Trunk | None:
    """The student's trunk in eight-bit products, its weights as they are now; None for a pool below `ROUGH_FROM`.

    States at games' starts go through its own. Their empty frames are like no others: where bytes have room for what
    they bring about, too little of it is left for all other states.
    """
    if len(pool) < ROUGH_FROM:
        return None
    others, _ = _sample(pool, _CALIBRATION, generator)
    int8 = Int8Trunk(student, pool.read_blocks(others))

    def trunk(states: States) -> Float[Tensor, "N F"]:
        features = int8(states)
        if (at_start := begins_empty(states)).any():
            features[at_start] = student.trunk(states[at_start]).float()
        return features

    return trunk


def _sample(
    pool: FramePool, n_states: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " M"]]:
    """Ids of some of the pool's states, and of a few at games' starts."""
    ids = pool.ids()
    shuffled = ids[torch.randperm(len(ids), generator=generator)]
    at_start = pool.at_start(shuffled)
    return shuffled[~at_start][:n_states], shuffled[at_start][:_STARTS]


def near_trunk(student: MCDropoutDQN, pool: FramePool, generator: torch.Generator, device: str) -> Trunk:
    """What states near the cut are scored by: the student's trunk in float32, or in 16 bits where that is faster."""
    if not int16_is_fast(device):
        with reduced_precision("float32", device):
            return packed_trunk(student)
    return Int16Trunk(student, pool.read_blocks(torch.cat(_sample(pool, _NEAR_CALIBRATION, generator))))


def score_pool(
    student: MCDropoutDQN,
    pool: FramePool,
    heads: Float[Tensor, "T A F"],
    query_size: int,
    config: ExperimentConfig,
    generator: torch.Generator,
    rough: Trunk | None = None,
) -> Float[Tensor, " N"]:
    """Scores of all states of the pool, in the order of its ids: those by which the `query_size` highest are chosen.

    With the trunk `rough`, scores far from the cut are rough, and the others are by the `near_trunk`.
    """
    ids, acquisition = pool.ids(), find_acquisition(config.acquisition)
    if acquisition is ACQUISITIONS["random"]:  # it reads N alone: no passes are needed
        return acquisition(torch.empty(len(ids), 1, 1), generator=generator)

    def score(states: States, trunk: Trunk) -> Tensor:  # (M,), of whatever type
        q = student.q_samples(states.to(config.device), heads=heads, trunk=trunk)  # (M, T, A)
        return scores_of(acquisition, q.div_(config.temperature), generator)

    # Each batch's scores, kept on their own, could come to lie where the next one's states had found room.
    def score_some(positions: Int64[Tensor, " M"], trunk: Trunk) -> Float[Tensor, " M"]:
        scores = torch.empty(len(positions), dtype=torch.float64)
        for kept, batch in zip(scores.split(FORWARD_BATCH), ids[positions].split(FORWARD_BATCH), strict=True):
            kept.copy_(score(pool.read_blocks(batch), trunk))
        return scores

    def score_all(trunk: Trunk, batch_size: int) -> Float[Tensor, " N"]:
        scores = torch.empty(len(ids) // pool.n_envs, pool.n_envs, dtype=torch.float64)
        first_step = int(ids[0]) // pool.n_envs
        for kept in scores.split(max(1, batch_size // pool.n_envs)):
            states = pool.read_steps(first_step, first_step + len(kept))
            kept.copy_(score(states, trunk).unflatten(0, (pool.n_envs, -1)).T)
            first_step += len(kept)
        scores = scores.flatten()
        if len(at_start := torch.nonzero(pool.at_start(ids)).flatten()):
            scores[at_start] = score_some(at_start, trunk)
        return scores

    if rough is None:
        return score_all(packed_trunk(student), FORWARD_BATCH)
    near = near_trunk(student, pool, generator, config.device)

    def exact(positions: Int64[Tensor, " M"]) -> Float[Tensor, " M"]:
        with reduced_precision("float32", config.device):
            return score_some(positions, near)

    return refine(score_all(rough, _ROUGH_BATCH), exact, query_size, generator)


def refine(
    rough: Float[Tensor, " N"],
    exact: Callable[[Int64[Tensor, " M"]], Float[Tensor, " M"]],
    query_size: int,
    generator: torch.Generator,
) -> Float[Tensor, " N"]:
    """Rough scores, but exact ones for the states so near the cut that they could belong on its other side.

    How far rough scores are off is measured on the states nearest to the cut: 99 % of them by no more than some margin.
    `rough` is float (N,); `exact` maps positions, int64 (M,), to scores, float (M,); the `query_size` highest lie above
    the cut; `generator` draws from states as near as each other.
    """
    cut = rough.kthvalue(len(rough) - query_size + 1).values
    distance = (rough - cut).abs()
    shuffled = torch.randperm(len(rough), generator=generator)
    sample = shuffled[distance[shuffled].argsort(stable=True)[:_NEAREST]]
    refined = rough.clone()
    refined[sample] = exact(sample)
    margin = (refined[sample] - rough[sample]).abs().quantile(0.99) + 1e-6  # levels that are equal but for rounding
    is_far = distance > margin  # NaN is not: its state gets its exact score
    is_far[sample] = True  # whose scores are exact already
    near = torch.nonzero(~is_far).flatten()
    if len(near):
        refined[near] = exact(near)
    return refined
