"""Probe sets: made once for each length of games, whatever else is asked for."""

import dataclasses

import pytest
import torch

import aamlib
from aamlib import diagnosis
from aamlib.diagnosis import load_probes

pytestmark = pytest.mark.slow


def test_probe_sets_are_made_once_for_each_length_of_games(tiny, tmp_path, monkeypatch):
    expert, longer_games = aamlib.NatureDQN(6), dataclasses.replace(tiny, max_game_frames=240)
    made = load_probes(tmp_path, expert, tiny)
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    longer = load_probes(tmp_path, expert, longer_games)
    assert not torch.equal(longer["random"].states, made["random"].states)
    assert torch.equal(longer["random"].expert_q, aamlib.experts.label(expert, longer["random"].states))
    monkeypatch.setattr(diagnosis, "_make_probes", None)  # from here on they are read
    assert torch.equal(load_probes(tmp_path, expert, tiny)["random"].states, made["random"].states)
    assert path.read_bytes() == written
    monkeypatch.setattr("os.access", lambda *_: False)  # what is there is read all the same
    again = load_probes(tmp_path, expert, longer_games, spare=tmp_path / "run")
    assert torch.equal(again["random"].states, longer["random"].states)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(aamlib.RunFolderError, match="probe-sets-.* cannot be read .* copy it again, or remove it"):
        load_probes(tmp_path, expert, tiny)


def test_of_runs_that_begin_together_all_take_the_first_ones_probe_sets(tiny, tmp_path, monkeypatch):
    """Made on another processor, they may differ in the last bits, and then in the games."""
    expert, make = aamlib.NatureDQN(6), diagnosis._make_probes

    def late(expert, config):
        first = {name: array[::-1].copy() for name, array in make(expert, config).items()}
        monkeypatch.setattr(diagnosis, "_make_probes", lambda *_: first)
        load_probes(tmp_path, expert, config)
        return make(expert, config)

    monkeypatch.setattr(diagnosis, "_make_probes", late)
    taken = load_probes(tmp_path, expert, tiny)
    assert torch.equal(taken["random"].states, torch.from_numpy(make(expert, tiny)["random"][::-1].copy()))
    assert len([*tmp_path.iterdir()]) == 1


def test_beside_an_expert_in_a_folder_that_may_not_be_written_the_run_keeps_the_probe_sets(tiny, tmp_path, monkeypatch):
    folder, run_dir = tmp_path / "experts", tmp_path / "run"
    folder.mkdir()
    path = aamlib.save_expert(folder / "mine.safetensors", aamlib.NatureDQN(6), {"game": "pong"})
    monkeypatch.setattr("os.access", lambda path, mode: path != folder)
    aamlib.distill(dataclasses.replace(tiny, expert=str(path)), run_dir)
    assert not list(folder.glob("*probe-sets*"))
    assert len(list(run_dir.glob("pong-probe-sets-*.zst"))) == 1
