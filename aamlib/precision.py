"""In what numbers a machine computes fastest: the precision of products, found by trial, and no denormal numbers."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from aamlib.networks import STACK_SHAPE, NatureDQN

TRIAL_BATCH = 64  # states by which to find what is fastest: short trials meet less of other work


def instructions() -> str:
    """The processor's instructions for matrix products, by which rounding may differ, such as "AVX512 VNNI"."""
    special = {" AMX": "_is_amx_tile_supported", " VNNI": "_is_vnni_supported"}  # no public parts of torch
    has = (name for name, supported in special.items() if getattr(torch.cpu, supported, bool)())
    return torch.backends.cpu.get_cpu_capability() + next(has, "")


def reduced_precision(precision: str, device: str = "cpu") -> torch.autocast:
    """Run matrix products in `precision` ("float32" or "bfloat16") within the block; weights stay float32."""
    # torch would keep the weights that it has converted until the block ends, however they are trained meanwhile.
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def clear_moments(optimiser: torch.optim.Optimizer) -> None:
    """Set to 0 what of Adam's moments is too small to move a weight: call it every few hundred steps.

    Moments of weights without gradient decay until they are denormal numbers, and stay; with these in every sixth place
    of a trained student's, as was seen, a step of the optimiser takes a CPU five times as long.
    """
    for state in optimiser.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].copy_(F.hardshrink(state[name], 1e-20))


@functools.cache
def fastest_precision(device: str) -> str:
    """The precision, "bfloat16" or "float32", that runs the trunk faster here, measured in a fraction of a second.

    Some processors gain more than twice from bfloat16; on others, even with instructions for it, float32 is faster.
    """
    if not bfloat16_works(device):
        return "float32"
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here change nobody's
        network = NatureDQN(n_actions=6).to(device)
    states = torch.zeros(TRIAL_BATCH, *STACK_SHAPE, dtype=torch.uint8, device=device)

    def run(precision: str) -> None:
        with torch.no_grad(), reduced_precision(precision, device):
            network(states).sum().item()

    return fastest({precision: functools.partial(run, precision) for precision in ("float32", "bfloat16")})


def bfloat16_works(device: str) -> bool:
    """Whether bfloat16 can be worth a try: on a CPU without instructions for it, it takes ten times as long."""
    if torch.device(device).type != "cpu":
        return True
    try:  # no public part of torch
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return True


def fastest(ways: dict[str, Callable[[], object]]) -> str:
    """The name of the call that takes the least time: the best of ten each, in turn, as other load hits all.

    In one thread of torch: beside other work, several wait for each other ten times as long as they compute.
    """
    seconds = dict.fromkeys(ways, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(10):
            for name, call in ways.items():
                start = time.perf_counter()
                call()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds, key=lambda name: seconds[name])
