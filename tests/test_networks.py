"""The networks; above all that the fast dropout samples equal full forward passes under the same masks."""

import itertools

import pytest
import torch
from torch import nn

from aamlib.networks import (
    MCDropoutDQN,
    NatureDQN,
    as_blocks,
    begins_empty,
    depth_to_space,
    series_of,
    space_to_depth,
)

DROPOUT = 0.3


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def states():
    return torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8, generator=seeded(0))


@pytest.fixture
def student():
    student = MCDropoutDQN(n_actions=6)
    nn.init.normal_(student.head.bias)  # it starts as zero, which would hide a lost or a dropped bias
    return student


def test_weights_are_those_of_the_study():
    convolutions = 32 * 4 * 8 * 8 + 64 * 32 * 4 * 4 + 64 * 64 * 3 * 3  # no biases
    linear = (3136 + 1) * 512 + (512 + 1) * 6
    network = NatureDQN(6)
    assert sum(weight.numel() for weight in network.parameters()) == convolutions + linear
    assert all(not bias.any() for name, bias in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("n_actions", [4, 6])
@pytest.mark.parametrize("n_states", [0, 1, 5])
@pytest.mark.parametrize("build", [NatureDQN, MCDropoutDQN, lambda n_actions: NatureDQN(n_actions, normalise=True)])
def test_forward_maps_uint8_stacks_to_float32_q_values(build, n_states, n_actions):
    q_values = build(n_actions)(torch.full((n_states, 4, 84, 84), 255, dtype=torch.uint8))
    assert q_values.shape == (n_states, n_actions)
    assert q_values.dtype == torch.float32


def test_states_are_scaled_to_one_and_left_as_they_were(student, states):
    before = states.clone()
    first = student.trunk[0]
    expected = nn.functional.conv2d(states / 255, first.weight, stride=4)
    torch.testing.assert_close(first(states), expected)
    assert torch.equal(states, before)


@pytest.mark.parametrize("shape", [(4, 84, 84), (2, 4, 80, 80), (2, 1, 84, 84), (2, 84, 84, 4)])
def test_states_of_another_shape_are_refused(as_users, student, shape):
    wrong = torch.zeros(shape, dtype=torch.uint8)
    for use in (student, student.q_samples, NatureDQN(6)):
        with pytest.raises(ValueError, match=r"give uint8 stacks \(N, 4, 84, 84\)"):
            use(wrong)


def test_blocks_are_the_pixels_in_another_order(states):
    assert torch.equal(depth_to_space(space_to_depth(states)), states)
    blocks = as_blocks(states).reshape(5, 4, 4, 4, 21, 21)  # row and column in the block, frame, the block's
    for frame, row, column in itertools.product(range(4), repeat=3):
        assert torch.equal(blocks[:, row, column, frame], states[:, frame, row::4, column::4])


@pytest.mark.parametrize("normalise", [False, True])
def test_networks_take_blocks_as_they_take_stacks(states, normalise):
    network = NatureDQN(6, normalise=normalise)
    assert torch.equal(network(as_blocks(states)), network(states))


@pytest.mark.parametrize("normalise", [False, True])
def test_frames_in_a_row_stand_for_a_state_each_from_the_fourth_on(normalise):
    network = NatureDQN(6, normalise=normalise)
    frames = torch.randint(256, (3, 9, 84, 84), dtype=torch.uint8)
    stacks = frames.unfold(1, 4, 1).permute(0, 1, 4, 2, 3).flatten(0, 1)  # of each environment its six states
    with torch.no_grad():
        torch.testing.assert_close(network(series_of(space_to_depth(frames))), network(stacks))


def test_weights_begin_as_he_et_al_draw_them_and_biases_as_zeros():
    network = NatureDQN(18, conv_bias=True)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            n_inputs = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / n_inputs) ** 0.5, rel=0.05)
            assert abs(layer.weight.mean().item()) < 5 * (2 / n_inputs / layer.weight.numel()) ** 0.5
            assert not layer.bias.any()


# Dropout.


def test_forward_drops_units_in_training_mode_only(student, states):
    assert not torch.equal(student.train()(states), student.train()(states))
    assert torch.equal(student.eval()(states), student.eval()(states))
    assert torch.equal(student(states), NatureDQN.forward(student, states))


def test_q_samples_equal_full_forward_passes_under_the_same_masks(student, states):
    heads = student.sample_heads(8, seeded(1))
    samples = student.q_samples(states, heads=heads)
    assert samples.shape == (5, 8, 6)
    student.eval()
    for t, mask in enumerate((heads != 0).any(dim=1)):  # (T, 512)
        hook = student.trunk.register_forward_hook(lambda _, __, out, mask=mask: out * mask / (1 - DROPOUT))
        torch.testing.assert_close(samples[:, t], student(states), atol=1e-4, rtol=1e-4)
        hook.remove()


def test_q_samples_ignore_the_mode(student, states):
    training = student.train().q_samples(states, 4, generator=seeded(1))
    assert student.training
    assert torch.equal(student.eval().q_samples(states, 4, generator=seeded(1)), training)
    assert not student.training


def test_q_samples_differ_between_passes(student, states):
    samples = student.q_samples(states, 4, generator=seeded(1))
    assert len(samples[0].unique(dim=0)) == 4


def test_q_samples_share_their_masks_between_batches_given_the_same_heads(student, states):
    heads = student.sample_heads(4, seeded(1))
    parts = [student.q_samples(part, heads=heads) for part in states.split(2)]
    torch.testing.assert_close(torch.cat(parts), student.q_samples(states, heads=heads))


def test_q_samples_run_the_trunk_once_and_keep_no_gradient(student, states):
    calls = []
    student.trunk.register_forward_hook(lambda *_: calls.append(1))
    samples = student.q_samples(states, 10)
    assert len(calls) == 1
    assert not samples.requires_grad


def test_q_samples_follow_their_generator_only(student, states):
    global_state = torch.get_rng_state()
    first = student.q_samples(states, 4, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(student.q_samples(states, 4, generator=seeded(1)), first)
    assert not torch.equal(student.q_samples(states, 4, generator=seeded(2)), first)


def test_q_samples_without_generator_follow_the_global_one(student, states):
    torch.manual_seed(3)
    first = student.q_samples(states, 4)
    torch.manual_seed(3)
    assert torch.equal(student.q_samples(states, 4), first)


def test_mean_of_many_samples_approaches_the_forward_pass_without_dropout(student, states):
    samples = student.q_samples(states, 4000, generator=seeded(1))
    standard_error = samples.std(dim=1) / 4000**0.5
    assert ((samples.mean(dim=1) - student.eval()(states)).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("dropout", [0.1, 0.3, 0.8])
def test_heads_drop_whole_units_at_the_given_rate(dropout):
    student = MCDropoutDQN(6, dropout=dropout)
    dropped = student.sample_heads(200, seeded(1)) == 0  # (T, A, 512)
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1))
    n_draws = 200 * 512
    five_standard_errors = 5 * (dropout * (1 - dropout) / n_draws) ** 0.5
    assert abs(dropped[:, 0].double().mean() - dropout) < five_standard_errors


def test_without_dropout_all_samples_are_the_forward_pass(states):
    student = MCDropoutDQN(6, dropout=0.0)
    expected = student(states)[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(student.q_samples(states, 3), expected, atol=1e-4, rtol=1e-4)


def test_states_that_begin_with_an_empty_frame_are_known_in_either_form(states):
    states[1, 0] = states[3] = 0
    states[4, 1:] = 0
    for form in (states, as_blocks(states), series_of(space_to_depth(states))):
        assert begins_empty(form).tolist() == [False, True, False, True, False]
    assert begins_empty(torch.zeros(2, 16, 8, 21, 21, dtype=torch.uint8)).tolist() == 10 * [False]
