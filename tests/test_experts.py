"""Experts on disk: what is saved comes back, and what is no expert is refused in one line."""

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import NatureCNN
from synthetic import Screens
from torch import nn

import aamlib
from aamlib import cards, experts
from aamlib.experts import EXPERTS_DIR, ExpertError, expert_path, fingerprint, load_expert, save_expert
from aamlib.files import RunFolderError
from aamlib.grids import plan
from aamlib.networks import NatureDQN
from aamlib.precision import reduced_precision

CARD = {"game": "pong", "agent_steps": 1_000, "scores": [20.0, 21.0]}


@pytest.fixture
def network():
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


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("n_actions", [4, 6])
def test_loaded_expert_gives_the_same_q_values(tmp_path, n_actions, normalise, conv_bias):
    network = NatureDQN(n_actions, normalise=normalise, conv_bias=conv_bias)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)  # biases and scales too, which start as zeros and ones
    states = torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8)
    card = CARD | {"game": {4: "breakout", 6: "pong"}[n_actions]}
    expert = load_expert(save_expert(tmp_path / "expert.safetensors", network, card))
    assert torch.equal(expert(states), network(states))


def test_loaded_expert_is_frozen(saved):
    expert = load_expert(saved)
    assert not expert.training
    assert not any(weight.requires_grad for weight in expert.parameters())


def test_card_keeps_what_it_was_given_and_adds_the_hashes(saved, network):
    card = json.loads(saved.with_suffix(".json").read_text())
    hashes = {"sha256": hashlib.sha256(saved.read_bytes()).hexdigest(), "weights_sha256": fingerprint(network)}
    assert card == {**CARD, **hashes}


def test_a_damaged_card_is_said(saved):
    card = saved.with_suffix(".json")
    for content in (card.read_bytes()[:40], b"[1, 2]"):
        card.write_bytes(content)
        with pytest.raises(ExpertError, match=r"json cannot be read .*fetch it again, or remove it"):
            aamlib.read_card(saved)


def test_nothing_else_is_left_beside_weights_and_card(saved):
    assert sorted(path.name for path in saved.parent.iterdir()) == ["mine.json", "mine.safetensors"]


def test_bundled_expert_is_found_by_name_and_any_by_path(bundled, saved):
    assert expert_path("asterix") == bundled["asterix"]
    assert expert_path(str(saved)) == expert_path(saved) == saved
    assert load_expert("pong").n_actions == 6


def test_a_relative_path_starts_in_the_working_folder_or_else_in_the_project(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert expert_path(saved.name) == Path(saved.name)
    assert expert_path("data/experts/pong.safetensors") == EXPERTS_DIR / "pong.safetensors"


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
    assert "something else than a Nature-DQN (embedding, head.weight, ...)" in refusal(path)


def test_a_nature_dqn_of_others_is_known_by_its_shapes(tmp_path):
    layers = [nn.Conv2d(4, 32, 8, stride=4), nn.Conv2d(32, 64, 4, stride=2), nn.Conv2d(64, 64, 3)]
    body = [module for layer in layers for module in (layer, nn.ReLU())]
    other = nn.Sequential(*body, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6))
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({f"network.{name}": tensor for name, tensor in other.state_dict().items()}, path)
    torch.save(other.state_dict(), tmp_path / "other.cleanrl_model")
    states = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    for saved in (path, tmp_path / "other.cleanrl_model"):
        with torch.no_grad():
            torch.testing.assert_close(aamlib.load_expert(saved)(states), other(states / 255))
    dueling = {**other.state_dict(), "value.weight": torch.zeros(1, 512), "value.bias": torch.zeros(1)}
    safetensors.torch.save_file(dueling, path)
    torch.save(dueling, tmp_path / "other.pt")
    for saved in (path, tmp_path / "other.pt"):
        assert "give a file that aamlib.save_expert wrote, the weights and biases of such" in refusal(saved)


class Trap:
    """A pickle that gives itself away when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_pickle_is_refused_and_never_executed(tmp_path, network):
    trap = Trap(tmp_path / "sprung")
    (tmp_path / "trap.safetensors").write_bytes(pickle.dumps(trap))
    assert "neither a readable safetensors file" in refusal(tmp_path / "trap.safetensors")
    torch.save({**network.state_dict(), "more": trap}, tmp_path / "trap.pt")
    message = refusal(tmp_path / "trap.pt")
    assert "it is damaged, or holds more than tensors, numbers and text). Nothing in it was executed" in message
    assert "weights_only" not in message, "torch's advice to trust the file"
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "weights_only" not in refusal(tmp_path / "script.pt")
    assert not (tmp_path / "sprung").exists()


def test_weights_for_other_stacks_are_refused(saved):
    weights = {**safetensors.torch.load_file(saved), "trunk.0.weight": torch.zeros(32, 1, 8, 8)}
    safetensors.torch.save_file(weights, saved, {"format": "aamlib-expert-1", "game": "pong"})
    assert "takes stacks of 1 frames; give one that was trained on stacks of 4" in refusal(saved)


def test_a_file_of_another_kind_is_told_the_way_from_python(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "mine.pt")
    assert "can be distilled from Python as a module" in refusal(tmp_path / "mine.pt")


def test_a_game_without_an_expert_is_told_how_to_have_one(bundled):
    assert "train one (make expert GAME=ms_pacman, or notebook 1), or give a file" in refusal("ms_pacman")


def test_weights_that_do_not_fit_are_refused(saved):
    weights = {**safetensors.torch.load_file(saved), "trunk.0.weight": torch.zeros(2, 2)}
    metadata = {"format": "aamlib-expert-1", "game": "pong"}
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


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_module_is_an_expert():
    class Brightness(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(1, 6)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.q(states.float().mean(dim=(1, 2, 3)).unsqueeze(1) / 255)

    module = Brightness()
    expert = aamlib.load_expert(torch.jit.script(module))
    states = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(expert(states), module(states))
    assert expert.n_actions == 6
    assert not any(parameter.requires_grad for parameter in expert.parameters())


def test_module_that_could_not_be_read_back_is_not_saved(tmp_path):
    class Worst(NatureDQN):
        def forward(self, states):
            return -super().forward(states)

    for module in (torch.nn.Linear(2, 2), Worst(6)):
        message = f"a {type(module).__name__} cannot be saved as an expert, only a NatureDQN"
        with pytest.raises(ExpertError, match=message):
            save_expert(tmp_path / "expert.safetensors", module, CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_changes_the_states_is_refused(network):
    class WithoutScores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, states):
            states[:, :, :20] = 0
            return self.network(states)

    with pytest.raises(ExpertError, match=r"WithoutScores changes the states that it is given; .* a copy"):
        load_expert(WithoutScores())


@pytest.mark.parametrize("name", ["mine.json", "mine.zip", "v1.5", "mine"])
def test_weights_that_would_not_be_known_again_are_not_written(tmp_path, network, name):
    with pytest.raises(aamlib.ExpertError, match=r"cannot be written as .*; give a name that ends in \.safetensors"):
        aamlib.save_expert(tmp_path / name, network, {"game": "pong"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"curve": object()}, "the card cannot be written .* give numbers, text, lists and dicts"),
        ({"score_mean": "high"}, "the card has score_mean = 'high'; give a number, or leave it out"),
        ({"random_score_mean": float("nan")}, "the card has random_score_mean = nan; give a number, or leave it out"),
        ({"curve": [{"loss": float("nan")}]}, "the card cannot be written .* give numbers, text, lists and dicts"),
        (
            {"game": "freeway"},
            r"the expert \(.*expert\.safetensors\) has 6 actions, but freeway has 3; give an expert of this game",
        ),
    ],
)
def test_a_card_that_cannot_be_used_is_refused_and_leaves_no_weights_behind(tmp_path, network, more, message):
    with pytest.raises(ExpertError, match=message):
        save_expert(tmp_path / "expert.safetensors", network, {"game": "pong", **more})
    assert list(tmp_path.iterdir()) == []


def test_a_card_takes_numbers_and_arrays_of_numpy(tmp_path, network):
    card = {"game": "pong", "scores": np.array([1.0, 2.0]), "score_mean": np.float32(1.5)}
    path = save_expert(tmp_path / "expert.safetensors", network, card)
    assert aamlib.read_card(path).items() >= {"scores": [1.0, 2.0], "score_mean": 1.5}.items()


# Experts of others.


@pytest.fixture(scope="module")
def sb3_zip(tmp_path_factory):
    """A model's Q-network, and the zip that Stable-Baselines3 itself saved."""
    path = tmp_path_factory.mktemp("sb3") / "dqn.zip"
    model = DQN("CnnPolicy", Screens(), buffer_size=1, device="cpu", seed=0)
    model.save(path)
    return model.q_net, path


def rewrite(source, target, **files):
    """Copy a zip with some of its files replaced, or left out when None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (content := files.get(name.partition(".")[0], old.read(name))) is not None:
                new.writestr(name, content)
    return target


def test_stable_baselines3s_dqn_gives_the_same_q_values(sb3_zip):
    q_net, path = sb3_zip
    states = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(load_expert(path)(states), q_net(states))


def test_stable_baselines3s_dqn_labels_a_run(tiny, sb3_zip, tmp_path):
    path = shutil.copy(sb3_zip[1], tmp_path)
    run = aamlib.distill(dataclasses.replace(tiny, expert=str(path), total_steps=320), tmp_path / "run")
    assert run.status == "finished"


def test_an_expert_of_another_game_is_refused_though_it_has_as_many_actions(with_settings, tmp_path):
    config = with_settings(game="space_invaders", expert="pong-4")
    with pytest.raises(ExpertError, match="plays pong, not space_invaders; give an expert of this game"):
        aamlib.distill(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ExpertError, match=r"cannot be used: the expert \(pong-4\) plays pong, not breakout"):
        plan({"constants": {"expert": "pong-4"}, "values": {"game": ["pong", "breakout"]}}, tmp_path)


def test_stable_baselines3s_dqn_for_another_game_is_refused(tiny, tmp_path):
    DQN("CnnPolicy", Screens(4), buffer_size=1, device="cpu").save(tmp_path / "four.zip")
    with pytest.raises(ExpertError, match="has 4 actions, but pong has 6"):
        aamlib.distill(dataclasses.replace(tiny, expert=str(tmp_path / "four.zip")), tmp_path / "run")


def test_hostile_pickles_in_a_zip_are_never_executed(sb3_zip, tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"), protocol=2)
    data = json.dumps({"policy_class": {":type:": "x", ":serialized:": base64.b64encode(trap).decode()}})
    with_hostile_data = rewrite(sb3_zip[1], tmp_path / "data.zip", data=data, pytorch_variables=trap)
    assert load_expert(with_hostile_data).n_actions == 6  # never looked at
    buffer = io.BytesIO()
    torch.save({"q_net.q_net.0.weight": Trap(tmp_path / "sprung")}, buffer)
    for name, policy in (("raw", trap), ("saved", buffer.getvalue())):
        message = refusal(rewrite(sb3_zip[1], tmp_path / f"{name}.zip", policy=policy))
        assert "othing in it was executed" in message
    assert not (tmp_path / "sprung").exists()


class Slow(NatureCNN):
    """Layers of the same shapes, with another activation between them."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.cnn[1] = torch.nn.ELU()


@pytest.mark.parametrize(
    ("policy", "differs"),
    [
        ({"normalize_images": False}, "normalize_images = False"),
        ({"normalize_images": False, "activation_fn": torch.nn.ReLU}, "normalize_images = False"),
        ({"features_extractor_class": Slow, "net_arch": []}, "the features extractor <class 'test_experts.Slow'>"),
        ({"features_extractor_class": NatureCNN, "activation_fn": torch.nn.ReLU}, None),
    ],
)
def test_a_zip_whose_layers_are_other_than_they_look_is_refused(tmp_path, policy, differs):
    path = tmp_path / "dqn.zip"
    DQN("CnnPolicy", Screens(), policy_kwargs=policy, buffer_size=1, device="cpu").save(path)
    if differs is None:
        assert load_expert(path).n_actions == 6
    else:
        assert f"has {differs}, so that with its weights a Nature-DQN would be another network" in refusal(path)


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_truncated_zip_is_refused(sb3_zip, tmp_path, share):
    whole = sb3_zip[1].read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: int(share * len(whole))])
    assert "may be truncated" in refusal(tmp_path / "short.zip")


def test_zip_without_a_policy_is_refused(sb3_zip, tmp_path):
    assert "no readable zip of Stable-Baselines3" in refusal(rewrite(sb3_zip[1], tmp_path / "x.zip", policy=None))


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"hello world"])
def test_zip_with_a_policy_of_other_bytes_is_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("policy.pth", content)
    assert "no readable zip of Stable-Baselines3" in refusal(tmp_path / "x.zip")


def test_zip_with_damaged_compression_is_refused(sb3_zip, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", zipfile.ZipFile(sb3_zip[1]).read("policy.pth"))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[200:300] = bytes(100)
    (tmp_path / "x.zip").write_bytes(content)
    assert "may be truncated" in refusal(tmp_path / "x.zip")


def test_another_algorithm_or_network_is_refused(tmp_path):
    PPO("CnnPolicy", Screens(), n_steps=2, batch_size=2, device="cpu").save(tmp_path / "ppo.zip")
    deeper = DQN("CnnPolicy", Screens(), buffer_size=1, device="cpu", policy_kwargs={"net_arch": [32]})
    deeper.save(tmp_path / "deeper.zip")
    for name in ("ppo", "deeper"):
        assert "something else than a Nature-DQN" in refusal(tmp_path / f"{name}.zip")


def test_hub_without_network_says_how_to_fetch_by_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal("hub:sb3/dqn-PongNoFrameskip-v4")
    assert "sb3/dqn-PongNoFrameskip-v4 cannot be fetched" in message
    assert "download dqn-PongNoFrameskip-v4.zip from https://huggingface.co/sb3/dqn-PongNoFrameskip-v4" in message


def test_a_download_that_breaks_off_says_how_to_fetch_by_hand(monkeypatch):
    class ProtocolError(Exception):
        """As HTTP clients have them, of no kind that is known here."""

    def breaks_off(*_):
        raise ProtocolError("peer closed connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", breaks_off)
    message = refusal("hub:sb3/dqn-PongNoFrameskip-v4")
    assert "cannot be fetched (peer closed connection); download dqn-PongNoFrameskip-v4.zip from" in message


def test_hub_gives_the_zip_of_the_repository(monkeypatch, sb3_zip):
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(sb3_zip[1]))
    assert load_expert("hub:sb3/dqn-PongNoFrameskip-v4").n_actions == 6
    assert asked == [("sb3/dqn-PongNoFrameskip-v4", "dqn-PongNoFrameskip-v4.zip")]


def test_hub_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "aamlib[hub]" in refusal("hub:sb3/dqn-PongNoFrameskip-v4")


class Bright(torch.nn.Module):
    """A module of a user's own: any network with Q-values will do."""

    def __init__(self, n_actions=6):
        super().__init__()
        self.layer = torch.nn.Linear(4, n_actions)

    def forward(self, states):
        return self.layer(states.float().mean(dim=(2, 3)) / 255)


def test_any_module_is_an_expert(tiny, tmp_path):
    expert = load_expert(Bright())
    assert expert.n_actions == 6
    assert not any(weight.requires_grad for weight in expert.parameters())
    run = aamlib.distill(dataclasses.replace(tiny, total_steps=320), tmp_path / "run", expert=expert)
    recorded = run.selection(1).dropna(subset=["frames"])
    q = expert(torch.from_numpy(np.stack(recorded["frames"].to_list())))
    np.testing.assert_allclose(np.stack(recorded["expert_q"].to_list()), q, rtol=1e-5)
    with pytest.raises(RunFolderError, match="other weights"):
        aamlib.distill(tiny, tmp_path / "run", expert=Bright())


@pytest.mark.parametrize("source", [lambda states: states, {"weight": torch.zeros(1)}, None])
def test_what_is_neither_name_nor_file_nor_module_is_refused(as_users, source):
    assert f"an expert cannot be a {type(source).__name__}; give a name, a file, or" in refusal(source)


class Rule(nn.Module):
    """Always does the same, by the number that it is given."""

    def forward(self, states):
        return nn.functional.one_hot(torch.full((len(states),), int(self.action)), 6).float()


def test_a_module_is_known_again_by_its_buffers_and_refused_without_any():
    rules = [Rule(), Rule(), Rule()]
    for rule in rules:
        rule.get_extra_state = lambda: {"made": "by hand"}
    rules[0].action = 2
    assert "has neither parameters nor buffers, by which a run could know it again" in refusal(rules[0])
    for rule, action in zip(rules[1:], (2, 5), strict=True):
        rule.register_buffer("action", torch.tensor(action))
    assert len({fingerprint(load_expert(rule)) for rule in rules[1:]}) == 2


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (torch.nn.Linear(84, 6), r"failed \(RuntimeError\("),
        (torch.nn.Module(), r"failed \(NotImplementedError\("),
        (torch.nn.Flatten(), r"returned torch.uint8 \(2, 28224\)"),
        (torch.nn.Unflatten(1, (2, 2)), r"returned torch.uint8 \(2, 2, 2, 84, 84\)"),
    ],
)
def test_module_that_gives_no_q_values_is_refused(module, reason):
    with pytest.raises(ExpertError, match=reason):
        load_expert(module)


class Mirrored(NatureDQN):
    """Knows stacks alone."""

    def forward(self, states):
        return super().forward(states.flip(-1))


def test_an_expert_made_of_ours_labels_the_stacks_that_it_was_made_for(tiny, tmp_path):
    expert = Mirrored(6)
    run = aamlib.distill(dataclasses.replace(tiny, total_steps=320), tmp_path / "run", expert=expert)
    recorded = run.selection(1).dropna(subset=["frames"])
    q = expert(torch.from_numpy(np.stack(recorded["frames"].to_list())))
    np.testing.assert_allclose(np.stack(recorded["expert_q"].to_list()), q.detach(), rtol=1e-4, atol=1e-4)


class Doubtful(Bright):
    """Has no answer for some states."""

    def forward(self, states):
        q_values = super().forward(states)
        q_values[states.float().mean(dim=(1, 2, 3)) > 0] = torch.nan
        return q_values


def test_q_values_that_are_not_finite_are_refused_before_anything_is_learnt(tiny, tmp_path):
    with pytest.raises(ExpertError, match=r"Q-values of \d+ among \d+ states are not finite; mend it"):
        aamlib.distill(tiny, tmp_path / "run", expert=Doubtful())
    assert not (tmp_path / "run" / "config.json").exists(), "the folder is free for another expert"


def test_module_with_another_number_of_actions_than_it_says_is_refused():
    module = Bright()
    module.n_actions = 4
    with pytest.raises(ExpertError, match="Bright has n_actions = 4, but returned 6 Q-values a state"):
        load_expert(module)
    module.n_actions, module.layer = 6, module.layer.double()
    with pytest.raises(ExpertError, match="Bright failed"):
        load_expert(module)


def test_labels_are_float32s_whatever_precision_is_set_around(network):
    states = torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8)
    with reduced_precision("bfloat16"):
        labels, rough = experts.label(network, states), network(states)
    assert torch.equal(labels, experts.label(network, states))
    assert not torch.allclose(labels, rough, rtol=1e-4, atol=1e-4)


def test_fingerprint_is_that_of_the_weights_alone(saved, network):
    assert fingerprint(load_expert(saved)) == fingerprint(network)
    assert fingerprint(network) != fingerprint(NatureDQN(6))


def test_a_module_with_tied_weights_has_a_fingerprint(network):
    network.register_parameter("tied", network.head.weight)
    assert len(fingerprint(network)) == 64


def test_weights_that_nobody_trained_here_are_left_out_of_the_table(tmp_path, network):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    aamlib.save_expert(tmp_path / "own.safetensors", network, {"game": "pong", "scores": [1.0], "score_mean": 1.0})
    assert aamlib.cards.card_table(tmp_path).empty
    assert "foreign" not in aamlib.cards.write_readme(tmp_path).read_text()


def test_the_readme_has_commands_that_train_an_expert_stage_by_stage(tmp_path):
    shutil.copytree(EXPERTS_DIR, tmp_path / "experts", ignore=shutil.ignore_patterns("*.zst"))
    text = aamlib.cards.write_readme(tmp_path / "experts").read_text()
    assert text == (EXPERTS_DIR / "README.md").read_text(), "call aamlib.cards.write_readme()"
    commands = [
        shlex.split(block.replace("\\\n", "")) for block in text.split("\n\n") if block.startswith("    papermill")
    ]
    given = [dict(zip(words[6::3], words[7::3], strict=True)) for words in commands]
    assert [words[5::3] for words in commands] == [["-p"] * len(stage) for stage in given]
    assert "Its 4 stages are the first of [pong](#pong)" in text
    for name, n_stages in (("breakout", 2), ("pong", 5)):
        assert len(aamlib.cards.stages(aamlib.read_card(name))) == n_stages
        first, *later = [stage for stage in given if stage["run_dir"].startswith(f"data/runs/expert-{name}-")]
        assert len(later) == n_stages - 1
        assert "start_from" not in first
        for before, stage in itertools.pairwise([first, *later]):
            assert stage["start_from"] == f"{before['run_dir']}/expert.safetensors"
    for stage in given:
        allowed = {"run_dir", "card_seed", *aamlib.PQNConfig.names()}
        assert set(stage) <= allowed


@pytest.mark.parametrize("missing", ["settings", "agent_steps", {}, "a name alone"])
def test_the_table_leaves_out_an_expert_that_went_on_from_an_unknown_training(tmp_path, missing):
    folder = tmp_path / "experts"
    folder.mkdir()
    for name in ("breakout.safetensors", "breakout.json"):
        shutil.copy(EXPERTS_DIR / name, folder)
    assert len(aamlib.cards.card_table(folder)) == 1
    card = aamlib.read_card(folder / "breakout.safetensors")
    if isinstance(missing, str) and missing in card["started_from"]:
        del card["started_from"][missing]
    else:
        card["started_from"] = missing
    (folder / "breakout.json").write_text(json.dumps(card))
    assert aamlib.cards.card_table(folder).set_index("expert").empty
    assert aamlib.cards.commands("breakout", card) == []


def test_commands_name_how_a_card_was_measured_where_that_is_unusual():
    card = aamlib.read_card("breakout")
    assert not any("card_episodes" in command or "temperature" in command for command in cards.commands("b", card))
    *_, last = cards.commands("b", card | {"scores": [1.0, 2.0], "temperature": 0.5})
    assert "-p card_episodes 2" in last
    assert "-p temperature 0.5" in last


def test_a_card_without_the_hash_of_its_weights_is_said(saved):
    saved.with_suffix(".json").write_text(json.dumps({"game": "pong", "score_mean": 1.0, "random_score_mean": 0.0}))
    with pytest.raises(ExpertError, match=r"whose scores no card has \(that of .*mine.* lacks the weights' hash"):
        cards.read_references("pong", str(saved), "0" * 64)
