"""What is measured beside training, by hand, and that probe sets are made once."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

import aamlib
from aamlib import diagnosis
from aamlib.diagnosis import Probe, load_probes, probe_metrics, record_selection, regret
from aamlib.replay import FramePool


def test_regret_is_what_the_expert_loses_by_the_action():
    expert_q = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, -1.0]])
    assert regret(expert_q, torch.tensor([2, 1])).tolist() == [1.0, 0.0]


def test_probes_are_measured_without_dropout_by_kl_agreement_and_regret(with_settings):
    config, student = with_settings(temperature=0.5), aamlib.MCDropoutDQN(6, dropout=0.9).train()
    probes = {
        name: Probe(torch.randint(256, (300, 4, 84, 84), dtype=torch.uint8), torch.randn(300, 6))
        for name in ("expert", "random")
    }
    metrics = probe_metrics(student, probes, config)
    for name, probe in probes.items():
        with torch.no_grad():
            student_q = aamlib.NatureDQN.forward(student, probe.states).numpy()
        expert_q, actions = probe.expert_q.numpy(), student_q.argmax(axis=1)
        log_ratio = log_softmax(expert_q / 0.5, axis=1) - log_softmax(student_q / 0.5, axis=1)
        kl = (softmax(expert_q / 0.5, axis=1) * log_ratio).sum(axis=1).mean()
        lost = expert_q.max(axis=1) - expert_q[np.arange(300), actions]
        assert metrics[f"probe_{name}_kl"] == pytest.approx(kl, rel=1e-4)
        assert metrics[f"probe_{name}_agreement"] == pytest.approx((lost == 0).mean())
        assert metrics[f"probe_{name}_regret"] == pytest.approx(lost.mean(), rel=1e-4)


def test_a_selection_is_a_random_sample_with_scores_labels_and_the_mean_students_action(with_settings):
    config = with_settings(recorded_states=300, recorded_stacks=40)
    pool, random = FramePool(4_000, 4), np.random.default_rng(0)
    for _ in range(1_000):
        pool.add(random.integers(256, size=(4, 84, 84), dtype=np.uint8), random.random(4) < 0.1)
    student, expert_q = aamlib.MCDropoutDQN(6, dropout=0.8), torch.randn(4_000, 6)
    heads, queried = student.sample_heads(10), torch.arange(0, 4_000, 4)
    table = record_selection(
        student, lambda ids: expert_q[ids], pool, queried, heads, config, torch.Generator().manual_seed(0)
    )
    for kind, candidates in (("queried", queried), ("random", pool.ids())):
        drawn = table[table["kind"] == kind]
        ids = torch.tensor(drawn["state_id"].to_list())
        assert len(drawn) == drawn["state_id"].nunique() == 300
        assert set(ids.tolist()) <= set(candidates.tolist())
        for sample in (ids, ids[:40]):  # of a uniform sample the mean is the middle, within five standard errors
            assert abs(sample.double().mean() - 2_000) < 5 * 4_000 / (12 * len(sample)) ** 0.5
        samples = student.q_samples(pool.read(ids), heads=heads)
        assert drawn["student_action"].tolist() == samples.mean(dim=1).argmax(dim=1).tolist()
        np.testing.assert_array_equal(np.stack(drawn["expert_q"].to_list()), expert_q[ids])
        for name in ("bald", "entropy", "variation_ratio"):
            expected = aamlib.ACQUISITIONS[name](samples / config.temperature)
            np.testing.assert_allclose(drawn[f"score_{name}"], expected, atol=1e-4)
        assert drawn["frames"].notna().tolist() == drawn["q_samples"].notna().tolist() == [i < 40 for i in range(300)]
        frames = np.frombuffer(b"".join(drawn["frames"].dropna()), np.uint8).reshape(40, 4, 84, 84)
        np.testing.assert_array_equal(frames, pool.read(ids[:40]))
        kept = np.stack(drawn["q_samples"].dropna().to_list()).reshape(40, 10, 6)
        np.testing.assert_allclose(kept, samples[:40], rtol=1e-3, atol=1e-3)  # in half precision


@pytest.mark.slow
def test_probe_sets_are_of_the_experts_games_and_of_random_play(tiny, tmp_path, monkeypatch):
    sampled = []

    def sample_states(expert, game, n_states, games, epsilon, *_, max_frames, device):
        sampled.append((game, n_states, games, epsilon, max_frames, device))
        return torch.full((n_states, 4, 84, 84), len(sampled), dtype=torch.uint8)

    monkeypatch.setattr(diagnosis, "sample_states", sample_states)
    probes = load_probes(tmp_path, aamlib.NatureDQN(6), dataclasses.replace(tiny, probe_states=100))
    assert sampled == [("pong", 100, 40, epsilon, 120, "cpu") for epsilon in (0.05, 1.0)]
    assert {name: probe.states.unique().tolist() for name, probe in probes.items()} == {"expert": [1], "random": [2]}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_beside_an_expert_in_a_folder_that_may_not_be_written_the_run_keeps_the_probe_sets(tiny, tmp_path, monkeypatch):
    folder, run_dir = tmp_path / "experts", tmp_path / "run"
    folder.mkdir()
    path = aamlib.save_expert(folder / "mine.safetensors", aamlib.NatureDQN(6), {"game": "pong"})
    monkeypatch.setattr("os.access", lambda path, mode: path != folder)
    aamlib.distill(dataclasses.replace(tiny, expert=str(path)), run_dir)
    assert not list(folder.glob("*probe-sets*"))
    assert len(list(run_dir.glob("pong-probe-sets-*.zst"))) == 1
