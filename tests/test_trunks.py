"""The trunks made ready for many states: as the network's own, exactly or nearly."""

import ctypes
import sys

import pytest
import torch
from marks import needs_int8, needs_int16
from torch import nn

import aamlib
from aamlib import trunks
from aamlib.diagnosis import load_probes
from aamlib.networks import NatureDQN, as_blocks
from aamlib.precision import fastest_precision, reduced_precision
from aamlib.trunks import (
    ByteLayer,
    Int8Trunk,
    Int16Trunk,
    PackedTrunk,
    int8_is_fast,
    int8_works,
    int16_is_fast,
    packed_trunk,
)


@pytest.fixture(scope="module")
def student():
    return aamlib.load_student(aamlib.DATA_DIR / "sample" / "pong-bald")


@pytest.fixture(scope="module")
def states():
    """Of the expert's games and of random play."""
    probes = load_probes(aamlib.DATA_DIR / "experts", aamlib.load_expert("pong"), aamlib.ExperimentConfig())
    return torch.cat([probe.states for probe in probes.values()])[::8]


@pytest.fixture
def unusual():
    """A network with dead units and with biases."""
    network = NatureDQN(4, conv_bias=True)
    with torch.no_grad():
        for layer in (network.trunk[0], network.trunk[3], network.trunk[10]):
            layer.weight[:5] = 0
            layer.bias[:] = 0.1 * torch.randn_like(layer.bias)
    return network


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def features(network, states):
    with torch.no_grad():
        return network.trunk(states)


@pytest.mark.parametrize("n_states", [0, 1, 5, 40, 500])
def test_packed_is_exact(student, states, n_states):
    trunk = packed_trunk(student)
    expected = features(student, states[:n_states])
    for given in (states[:n_states], as_blocks(states[:n_states])):
        torch.testing.assert_close(trunk(given), expected, rtol=1e-4, atol=1e-5)
    assert not trunk(states[:n_states]).requires_grad


def test_packed_takes_biases_and_dead_units(unusual, states):
    torch.testing.assert_close(packed_trunk(unusual)(states), features(unusual, states), rtol=1e-4, atol=1e-5)


def test_packed_computes_in_the_precision_that_it_is_made_in(student, states):
    exact = features(student, states)
    with reduced_precision("bfloat16"):
        trunk = packed_trunk(student)
        if not isinstance(trunk, PackedTrunk):
            pytest.skip("this processor has no instructions for bfloat16, and oneDNN packs none.")
        assert trunk(states).dtype == features(student, states).dtype == torch.bfloat16
        plain_error = (features(student, states) - exact).norm()
    error = (trunk(states) - exact).norm()
    assert 0 < error < 1.1 * plain_error
    assert error < 0.03 * exact.norm()


def test_packed_keeps_the_weights_as_they_were(unusual, states):
    trunk, before = packed_trunk(unusual), features(unusual, states)
    with torch.no_grad():
        for weight in unusual.parameters():
            weight.mul_(2)
    torch.testing.assert_close(trunk(states), before, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX2",
    reason="with AVX2 and two threads the order of weights is known to depend on the number of states.",
)
def test_packed_puts_weights_in_order_once(student, states, capfd, two_threads):
    trunk = packed_trunk(student)
    for n_states in (1, 15, 40, 256, 15):
        trunk(states[:n_states])
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            trunk(states[:n_states])
        ctypes.CDLL(None).fflush(None)
        log = capfd.readouterr().out
        assert log.count("exec,cpu,convolution") == 3
        assert "exec,cpu,reorder" not in log


def test_packed_refuses_other_states(as_users, student):
    with pytest.raises(ValueError, match=r"give uint8 stacks \(N, 4, 84, 84\)"):
        packed_trunk(student)(torch.zeros(2, 4, 80, 80, dtype=torch.uint8))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN.")
def test_packed_is_what_this_machine_uses(student):
    assert isinstance(packed_trunk(student), PackedTrunk)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_where_torch_cannot_pack_the_network_computes_itself(student, states, monkeypatch, error):
    def refuse(*_):
        raise error("no such operator")

    monkeypatch.setattr(trunks, "PackedTrunk", refuse)
    assert torch.equal(packed_trunk(student)(states), student.trunk(states))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN.")
def test_a_network_elsewhere_computes_itself(student):
    network = NatureDQN(6).to("meta")
    assert packed_trunk(network) == network.trunk


@needs_int8
def test_features_in_int8_are_near(student, states):
    trunk, exact = Int8Trunk(student, states), features(student, states)
    assert trunk(states).shape == exact.shape
    assert trunk(states).dtype == torch.float32
    assert (trunk(states) - exact).norm() < 0.05 * exact.norm()
    assert not torch.equal(trunk(states), exact)
    assert torch.equal(trunk(states), trunk(as_blocks(states)))


@needs_int16
def test_features_in_int16_are_nearly_exact(student, states):
    trunk, exact = Int16Trunk(student, states[::4]), features(student, states)
    assert trunk(states).shape == exact.shape
    assert trunk(states).dtype == torch.float32
    error = (trunk(states) - exact).norm()
    assert 0 < error < 1e-3 * exact.norm()
    assert error < 0.05 * (Int8Trunk(student, states)(states) - exact).norm()
    assert torch.equal(trunk(states), trunk(as_blocks(states)))


@needs_int16
def test_larger_activations_than_those_it_was_made_with_do_not_come_round_in_int16(student, states):
    exact = features(student, states)
    within, beyond = (Int16Trunk(student, (states * share).to(torch.uint8))(states) for share in (0.7, 0.2))
    assert (within - exact).norm() < 2e-3 * exact.norm()
    kept = torch.nn.functional.cosine_similarity(beyond, exact, dim=1)
    assert kept.min() > 0.5, "cut off at the highest of 16 bits"
    assert (beyond - exact).norm() > 0.1 * exact.norm(), "so it was beyond"


either = pytest.mark.parametrize(
    ("make", "nearly"),
    [pytest.param(Int8Trunk, 0.05, marks=needs_int8), pytest.param(Int16Trunk, 0.002, marks=needs_int16)],
)


@either
def test_bytes_are_the_same_within_another_precision(student, states, make, nearly):
    with reduced_precision("bfloat16"):
        within = make(student, states)(states)
    assert torch.equal(within, make(student, states)(states))


@either
def test_bytes_take_biases_and_dead_units(unusual, make, nearly):
    states = torch.randint(0, 256, (64, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = features(unusual, states)
    assert (make(unusual, states)(states) - exact).norm() < nearly * exact.norm()


@needs_int8
@pytest.mark.parametrize("pattern", [[1, 1], [1, 0], [0, 1, 1, 0], [-1, -1], [1, -1]])
@pytest.mark.parametrize(("n_inputs", "kernel", "stride"), [(64, 2, 1), (32, 4, 2), (64, 3, 1), (3136, None, None)])
def test_products_of_bytes_do_not_overflow(pattern, n_inputs, kernel, stride):
    """Without VNNI two products are added in 16 bits: the largest are of white pixels."""
    kernel_shape = [kernel, kernel] if kernel else []
    module = nn.Conv2d(n_inputs, 64, kernel, stride) if kernel else nn.Linear(n_inputs, 64)
    weight = torch.tensor(pattern * (n_inputs // len(pattern)), dtype=torch.float32)
    weight = weight.view(1, -1, *[1] * len(kernel_shape)).expand(64, n_inputs, *kernel_shape)
    white = torch.full((4, n_inputs, *[9] * len(kernel_shape)), 255, dtype=torch.uint8)
    if kernel:
        white = white.contiguous(memory_format=torch.channels_last)
    outputs = ByteLayer(module, weight, torch.ones(1), torch.ones(64))(white, torch.float32, "none")
    exact = 255.0 * weight[0].sum()
    torch.testing.assert_close(outputs, exact.expand_as(outputs), rtol=0.01, atol=0)


def test_what_is_fast_is_seen_without_touching_the_random_numbers():
    for measure in (fastest_precision, int8_works, int8_is_fast, int16_is_fast):
        torch.manual_seed(0)
        measure.__wrapped__("cpu")
        drawn = torch.rand(1)
        torch.manual_seed(0)
        assert drawn == torch.rand(1), measure


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_where_torch_cannot_add_products_sixteen_bits_are_not_used(monkeypatch, error):
    def refuse(*_):
        raise error("no such operator")

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(trunks, "Int16Trunk", refuse)
    assert not int16_is_fast.__wrapped__("cpu")


@pytest.mark.parametrize(
    "make", [PackedTrunk, *(pytest.param(make, marks=needs_int8) for make in (Int8Trunk, Int16Trunk))]
)
def test_a_network_with_normalisation_is_refused(states, make):
    given = () if make is PackedTrunk else (states[:8],)
    with pytest.raises(ValueError, match="normalises its layers"):
        make(NatureDQN(6, normalise=True), *given)
