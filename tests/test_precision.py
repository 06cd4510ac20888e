"""In what numbers a machine computes, and how the fastest are found."""

import time

import pytest
import torch
from torch import nn

from aamlib import precision
from aamlib.networks import MCDropoutDQN
from aamlib.precision import bfloat16_works, clear_moments, fastest, fastest_precision, instructions, reduced_precision


@pytest.fixture
def student():
    return MCDropoutDQN(n_actions=6)


@pytest.fixture
def states():
    return torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_bfloat16_stays_close_and_float32_exact(student, states):
    student.eval()
    exact = student(states)
    with reduced_precision("float32"):
        assert torch.equal(student(states), exact)
    with reduced_precision("bfloat16"):
        rounded, samples = student(states), student.q_samples(states, 3)
    assert rounded.dtype == samples.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.03 * exact.abs().max().item())
    assert student.head.weight.dtype == torch.float32
    assert torch.equal(student(states), exact)  # the block is over


def test_bfloat16_follows_weights_that_are_trained_within_the_block(student, states):
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
    student.eval()
    with reduced_precision("bfloat16"):
        for _ in range(3):
            optimiser.zero_grad()
            student(states).square().sum().backward()
            optimiser.step()
        within = student(states)
    with reduced_precision("bfloat16"):
        assert torch.equal(student(states), within)


def test_moments_too_small_to_move_a_weight_are_cleared():
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([weight])
    weight.grad = torch.tensor([1.0, 1e-15, 1e-30])
    optimiser.step()
    moments = optimiser.state[weight]
    before = {name: moments[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    assert before["exp_avg"].count_nonzero() == 3
    assert before["exp_avg_sq"].count_nonzero() == 2
    clear_moments(optimiser)
    assert torch.equal(moments["exp_avg"], before["exp_avg"] * torch.tensor([1, 1, 0]))
    assert torch.equal(moments["exp_avg_sq"], before["exp_avg_sq"] * torch.tensor([1, 0, 0]))


def test_a_trial_is_won_in_one_thread_whatever_interrupts_it(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    interruptions = iter([0, 5] * 7 + [0, 0] + [0, 5] * 2)  # seconds, in all trials of the quick way but one
    now = 0.0

    def taking(seconds):
        def call():
            nonlocal now
            assert numbers == [1]
            now += seconds + next(interruptions)

        return call

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert fastest({"slow": taking(2), "quick": taking(1)}) == "quick"
    assert numbers == [1, 2]


@pytest.mark.parametrize(
    ("works", "quicker", "expected"),
    [(False, "bfloat16", "float32"), (True, "float32", "float32"), (True, "bfloat16", "bfloat16")],
)
def test_bfloat16_is_taken_where_it_works_and_is_faster(monkeypatch, works, quicker, expected):
    tried, random_state = [], torch.get_rng_state()

    def trial(ways):
        for name, run in ways.items():
            run()
            tried.append(name)
        return quicker

    monkeypatch.setattr(precision, "bfloat16_works", lambda device: works)
    monkeypatch.setattr(precision, "fastest", trial)
    assert fastest_precision.__wrapped__("cpu") == expected
    assert tried == (["float32", "bfloat16"] if works else []), "where it does not work, it takes far too long"
    assert torch.equal(torch.get_rng_state(), random_state)


def test_bfloat16_works_on_a_cpu_with_instructions_for_it(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda answer=answer: answer)
        assert bfloat16_works("cpu") == answer
        assert bfloat16_works("cuda")


def test_instructions_are_those_that_torch_reports(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    kind = instructions()
    assert kind == torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert instructions() == f"{kind} VNNI"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert instructions() == f"{kind} AMX"
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert instructions() == f"{kind} VNNI"
