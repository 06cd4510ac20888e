"""Probe sets: made once, and made anew when they would be of games cut too short."""

import dataclasses

import pytest
import torch

import aamlib
from aamlib.diagnosis import load_probes

pytestmark = pytest.mark.slow


def test_probe_sets_are_kept_until_longer_games_are_asked_for(tiny, tmp_path, monkeypatch):
    expert = aamlib.NatureDQN(6)
    made = load_probes(tmp_path, expert, tiny)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    for config in (tiny, dataclasses.replace(tiny, max_game_frames=100)):
        again = load_probes(tmp_path, expert, config)
        assert torch.equal(again["expert"].states, made["expert"].states)
    assert path.stat().st_mtime_ns == written
    longer = load_probes(tmp_path, expert, dataclasses.replace(tiny, max_game_frames=240))
    assert not torch.equal(longer["random"].states, made["random"].states)
    assert torch.equal(longer["random"].expert_q, aamlib.experts.label(expert, longer["random"].states))
    monkeypatch.setattr("os.access", lambda *_: False)  # what is there is read all the same
    assert torch.equal(
        load_probes(tmp_path, expert, tiny, spare=tmp_path / "run")["random"].states, longer["random"].states
    )
    spare = tmp_path / "run"
    spare.mkdir()
    longest = dataclasses.replace(tiny, max_game_frames=400)
    made = load_probes(tmp_path, expert, longest, spare=spare)  # what is there is too short, and may not be replaced
    (kept,) = spare.iterdir()
    written = kept.stat().st_mtime_ns
    again = load_probes(tmp_path, expert, longest, spare=spare)
    assert torch.equal(again["random"].states, made["random"].states)
    assert kept.stat().st_mtime_ns == written, "read, not made anew"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(aamlib.RunFolderError, match="probe-sets-.* cannot be read .* copy it again, or remove it"):
        load_probes(tmp_path, expert, tiny)


def test_beside_an_expert_in_a_folder_that_may_not_be_written_the_run_keeps_the_probe_sets(tiny, tmp_path, monkeypatch):
    folder, run_dir = tmp_path / "experts", tmp_path / "run"
    folder.mkdir()
    path = aamlib.save_expert(folder / "mine.safetensors", aamlib.NatureDQN(6), {"game": "pong"})
    monkeypatch.setattr("os.access", lambda path, mode: path != folder)
    aamlib.distill(dataclasses.replace(tiny, expert=str(path)), run_dir)
    assert not list(folder.glob("*probe-sets*"))
    assert len(list(run_dir.glob("pong-probe-sets-*.zst"))) == 1
