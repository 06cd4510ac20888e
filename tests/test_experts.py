"""Experts on disk: what is saved comes back, and what is no expert is refused in one line."""

import hashlib
import json
import os
import pickle

import pytest
import safetensors.torch
import torch

from aamlib import experts
from aamlib.experts import EXPERTS_DIR, ExpertError, expert_path, load_expert, save_expert
from aamlib.files import RunFolderError
from aamlib.networks import NatureDQN

CARD = {"game": "pong", "agent_steps": 1_000, "scores": [20.0, 21.0]}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NatureDQN(6)


@pytest.fixture
def saved(tmp_path, network):
    return save_expert(tmp_path / "mine.safetensors", network, CARD)


@pytest.fixture
def bundled(tmp_path, monkeypatch, network):
    folder = tmp_path / "bundled"
    folder.mkdir()
    monkeypatch.setattr(experts, "EXPERTS_DIR", folder)
    return {name: save_expert(folder / f"{name}.safetensors", network, CARD) for name in ("pong", "asterix")}


def refusal(name):
    """The message with which `load_expert` refuses, which must be one line."""
    with pytest.raises(ExpertError) as caught:
        load_expert(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("n_actions", [4, 6])
def test_loaded_expert_gives_the_same_q_values(tmp_path, n_actions, normalise):
    network = NatureDQN(n_actions, normalise=normalise)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)  # biases and scales too, which start as zeros and ones
    states = torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8)
    expert = load_expert(save_expert(tmp_path / "expert.safetensors", network, CARD))
    assert torch.equal(expert(states), network(states))


def test_loaded_expert_is_frozen(saved):
    expert = load_expert(saved)
    assert not expert.training
    assert not any(weight.requires_grad for weight in expert.parameters())


def test_card_keeps_what_it_was_given_and_adds_the_hash_of_the_weights(saved):
    card = json.loads(saved.with_suffix(".json").read_text())
    assert card == {**CARD, "sha256": hashlib.sha256(saved.read_bytes()).hexdigest()}


def test_nothing_else_is_left_beside_weights_and_card(saved):
    assert sorted(path.name for path in saved.parent.iterdir()) == ["mine.json", "mine.safetensors"]


def test_bundled_expert_is_found_by_name_and_any_by_path(bundled, saved):
    assert expert_path("asterix") == bundled["asterix"]
    assert expert_path(str(saved)) == expert_path(saved) == saved
    assert load_expert("pong").n_actions == 6


@pytest.mark.parametrize("path", sorted(EXPERTS_DIR.glob("*.safetensors")), ids=lambda path: path.stem)
def test_bundled_experts_are_those_of_their_cards(path):
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_expert(path.stem)(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).isfinite().all()


# What is refused.


@pytest.mark.parametrize("name", ["pnog", "Pong"])
def test_unknown_name_is_told_the_nearest(bundled, name):
    assert f"no expert '{name}'" in refusal(name)
    assert "did you mean 'pong'" in refusal(name)


def test_unlike_name_is_told_all_there_are(bundled):
    assert "allowed: asterix, pong" in refusal("zzz")


def test_missing_file_and_folder_are_no_experts(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        assert str(path) in refusal(path)


@pytest.mark.parametrize("share", [0, 1e-6, 0.0001, 0.5, 0.999999])
def test_truncated_file_is_refused(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    assert "may be truncated" in refusal(saved)


def test_safetensors_of_another_project_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"embedding": torch.zeros(3), "head.weight": torch.zeros(6, 512)}, path)
    assert "tensors of another kind (embedding, head.weight" in refusal(path)


class Trap:
    """A pickle that gives itself away when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_is_refused_and_never_executed(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "trap.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("weights", "trap"):
        assert "not a readable safetensors file" in refusal(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_do_not_fit_are_refused(saved):
    weights = {**safetensors.torch.load_file(saved), "trunk.0.weight": torch.zeros(2, 2)}
    metadata = {"format": "aamlib-expert-1", "game": "pong", "normalise": "false"}
    safetensors.torch.save_file(weights, saved, metadata)
    assert "does not fit its network" in refusal(saved)


# Saving that fails.


def test_failed_write_leaves_the_old_expert_as_it_was(saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}

    def disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        save_expert(saved, NatureDQN(6), CARD)
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


def test_path_below_a_file_is_an_error_of_the_package(tmp_path, network):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot write"):
        save_expert(tmp_path / "file" / "expert.safetensors", network, CARD)


def test_card_that_cannot_be_written_leaves_no_weights_behind(tmp_path, network):
    with pytest.raises(TypeError):
        save_expert(tmp_path / "expert.safetensors", network, {"game": "pong", "curve": object()})
    assert list(tmp_path.iterdir()) == []
