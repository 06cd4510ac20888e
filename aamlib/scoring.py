"""Scores of a whole pool, by far the most work of a round: mostly in eight-bit products, where these are fast.

Those are rough, but few states are so near the cut between asked and not asked that it matters: only these get their
exact scores, and what is asked about is what exact scores alone would choose.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from aamlib.acquisition import ACQUISITIONS, find_acquisition
from aamlib.config import ExperimentConfig
from aamlib.int8 import Int8Trunk
from aamlib.networks import FORWARD_BATCH, MCDropoutDQN
from aamlib.replay import FramePool

ROUGH_FROM = 10_000  # states: of fewer, those that have to be scored exactly are too large a share
_CALIBRATION = 512
_SAMPLE = 1_000


def score_pool(
    student: MCDropoutDQN,
    pool: FramePool,
    heads: Float[Tensor, "T A F"],
    query_size: int,
    config: ExperimentConfig,
    generator: torch.Generator,
    *,
    use_int8: bool,
) -> Float[Tensor, " N"]:
    """Scores of all states of the pool, in the order of its ids: those by which the `query_size` highest are chosen.

    With `use_int8` the scores far from the cut are rough, in pools of at least `ROUGH_FROM` states.
    """
    ids, acquisition = pool.ids(), find_acquisition(config.acquisition)
    if acquisition is ACQUISITIONS["random"]:  # it reads N alone: no passes are needed
        return acquisition(torch.empty(len(ids), 1, 1), generator=generator)

    def scores(positions: Int64[Tensor, " M"], trunk: Int8Trunk | None = None) -> Float[Tensor, " M"]:
        parts = []
        for batch in ids[positions].split(FORWARD_BATCH):
            q = student.q_samples(pool.read(batch).to(config.device), heads=heads, trunk=trunk)  # (N, T, A)
            parts.append(acquisition(q / config.temperature, generator=generator).cpu())
            if parts[-1].shape != batch.shape:
                raise ValueError(
                    f"acquisition {config.acquisition!r} returned scores of shape {tuple(parts[-1].shape)} for "
                    f"{len(batch)} states; return one score per state, (N,)."
                )
        return torch.cat(parts)

    everything = torch.arange(len(ids))
    if not (use_int8 and len(ids) >= ROUGH_FROM):
        return scores(everything)
    some = torch.randperm(len(ids), generator=generator)[:_CALIBRATION]
    rough = scores(everything, Int8Trunk(student, pool.read(ids[some])))
    return refine(rough, scores, query_size, generator)


def refine(
    rough: Float[Tensor, " N"],
    exact: Callable[[Int64[Tensor, " M"]], Float[Tensor, " M"]],
    query_size: int,
    generator: torch.Generator,
) -> Float[Tensor, " N"]:
    """Scores that put the same states above the cut as exact ones do, most of them still rough.

    How far rough scores are off is measured where it matters, on a sample from around the cut: 99 % of it by no more
    than some margin. States within that margin of the cut could belong on its other side, and get their exact scores.

    Parameters
    ----------
    rough:
        float (N,).
    exact:
        Maps positions, int64 (M,), to their exact scores, float (M,).
    query_size:
        How many of the highest lie above the cut, from 1 to N.
    generator:
        Draws the sample.
    """
    order = rough.argsort(descending=True, stable=True)
    around = order[query_size // 2 : 2 * query_size]
    sample = around[torch.randperm(len(around), generator=generator)[:_SAMPLE]]
    margin = (exact(sample) - rough[sample]).abs().quantile(0.99)
    near = torch.nonzero((rough - rough[order[query_size - 1]]).abs() <= margin).flatten()
    return rough.index_copy(0, near, exact(near))
