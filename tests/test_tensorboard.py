"""Metrics for TensorBoard, read back by TensorBoard's own reader."""

import sys

import pytest
from synthetic import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import aamlib
from aamlib import tensorboard


def extend(run_dir, rounds):
    """Let the run go on to more rounds, as a resumed one does."""
    metrics = aamlib.Run(write_run(run_dir.with_name(f"longer-{rounds}"), rounds=rounds)).metrics
    metrics.update(aamlib.Run(run_dir).metrics)
    metrics.to_csv(run_dir / "metrics.csv", index=False)


def assert_each_round_once(reader, run_dir):
    metrics = aamlib.Run(run_dir).metrics
    names = {"run/round": "round", "run/score": "score", "probe/random_kl": "probe_random_kl"}
    assert {*names, "seconds/act"} <= set(reader.Tags()["scalars"])
    for tag, name in names.items():
        known = metrics.dropna(subset=[name])
        assert [scalar.step for scalar in reader.Scalars(tag)] == known["agent_steps"].tolist()
        assert [scalar.value for scalar in reader.Scalars(tag)] == pytest.approx(known[name].tolist())


def test_every_metric_of_every_round_is_there_once(tmp_path):
    run_dir = write_run(tmp_path / "run", rounds=4)
    path = tensorboard.write_events(run_dir)
    watching = EventAccumulator(str(run_dir)).Reload()
    assert_each_round_once(watching, run_dir)
    before = path.read_bytes()
    extend(run_dir, 6)
    path.write_bytes(before[:-7])  # as if the disk had been full
    tensorboard.write_events(run_dir)
    assert path.read_bytes().startswith(before)
    assert_each_round_once(watching.Reload(), run_dir)
    assert_each_round_once(EventAccumulator(str(run_dir)).Reload(), run_dir)
    seconds = aamlib.Run(run_dir).metrics.filter(like="seconds_").sum(axis=1)
    times = [scalar.wall_time for scalar in watching.Scalars("run/round")]
    assert times == pytest.approx((1767225600 + seconds.cumsum()).tolist(), abs=1e-3)  # 2026-01-01, UTC


def test_rounds_that_were_done_again_are_not_there_twice(tmp_path):
    run_dir = write_run(tmp_path / "run", rounds=4)
    tensorboard.write_events(run_dir)
    path = run_dir / "metrics.csv"
    metrics = aamlib.Run(run_dir).metrics
    metrics.loc[4, "probe_random_kl"] = 9.0
    metrics.to_csv(path, index=False)
    tensorboard.write_events(run_dir)
    assert_each_round_once(EventAccumulator(str(run_dir)).Reload(), run_dir)


def test_it_follows_runs_that_go_on_and_begin(tmp_path, monkeypatch, capsys):
    done, going = write_run(tmp_path / "a" / "done", rounds=2), write_run(tmp_path / "a" / "going", rounds=2)
    sizes = []

    def wait(seconds):
        events = sorted((tmp_path / "a").rglob("events.out.tfevents.metrics"))
        sizes.append([path.stat().st_size for path in events])
        if len(sizes) == 1:
            going.rename(tmp_path / "going")
            extend(tmp_path / "going", 3)
            (tmp_path / "going").rename(going)
        elif len(sizes) == 2:
            write_run(tmp_path / "a" / "zero", rounds=1)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(tensorboard.time, "sleep", wait)
    assert tensorboard.main([str(tmp_path / "a"), "--follow"]) == 0
    assert "Look: tensorboard --logdir" in capsys.readouterr().out
    (first, second), (first_then, second_then), (*both, third) = sizes
    assert first_then == first
    assert second_then > second
    assert both == [first_then, second_then]
    assert third > 0
    assert tensorboard.main([str(tmp_path / "a")]) == 0
    assert "3 runs written; look: tensorboard --logdir" in capsys.readouterr().out
    assert_each_round_once(EventAccumulator(str(done)).Reload(), done)


def test_it_waits_for_the_first_run(tmp_path, monkeypatch, capsys):
    polls = []

    def wait(seconds):
        polls.append(sorted(tmp_path.rglob("events*")))
        if len(polls) == 2:
            raise KeyboardInterrupt
        write_run(tmp_path / "run", rounds=2)

    monkeypatch.setattr(tensorboard.time, "sleep", wait)
    assert tensorboard.main([str(tmp_path), "--follow"]) == 0
    assert "no runs below" in capsys.readouterr().err
    assert [len(poll) for poll in polls] == [0, 1]


def test_what_is_missing_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    assert tensorboard.main([str(tmp_path)]) == 2
    assert "no runs below" in capsys.readouterr().err
    run_dir = write_run(tmp_path / "run", rounds=2)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert tensorboard.main([str(tmp_path)]) == 2
    assert "this needs TensorBoard" in (said := capsys.readouterr().err)
    assert "pip install 'aamlib[tensorboard]'" in said
    assert not list(run_dir.glob("events*"))


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_written(tmp_path, monkeypatch, capsys):
    damaged, whole = (write_run(tmp_path / name, rounds=2) for name in ("a", "b"))
    content = (damaged / "metrics.csv").read_bytes()
    (damaged / "metrics.csv").write_bytes(content[:-9])
    assert tensorboard.main([str(tmp_path)]) == 2
    assert "a/metrics.csv" in capsys.readouterr().err
    assert_each_round_once(EventAccumulator(str(whole)).Reload(), whole)
    (damaged / "metrics.csv").write_bytes(content)
    polls = []

    def wait(seconds):
        polls.append(list(damaged.glob("events*")))
        if len(polls) == 3:
            raise KeyboardInterrupt
        (damaged / "metrics.csv").write_bytes(content[:-9])

    monkeypatch.setattr(tensorboard.time, "sleep", wait)
    assert tensorboard.main([str(tmp_path), "--follow"]) == 0
    assert capsys.readouterr().err.count("a/metrics.csv") == 1, "said once"


def test_what_could_not_be_written_is_written_as_soon_as_it_can(tmp_path):
    run_dir = write_run(tmp_path / "run", rounds=2)
    path = run_dir / "events.out.tfevents.metrics"
    path.mkdir()  # in its way, as a full disk would be
    exported = {}
    with pytest.raises(aamlib.RunFolderError, match="cannot write .*make room, then call again"):
        tensorboard.export(tmp_path, exported)
    path.rmdir()
    assert tensorboard.export(tmp_path, exported) == 1
    assert_each_round_once(EventAccumulator(str(run_dir)).Reload(), run_dir)
