"""Published runs: what is copied, what is left out, and that nothing is lost on the way."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic import write_run

import aamlib
from aamlib import evidence, publish, selections
from aamlib import sample as sample_module
from aamlib.runs import recorded_runs

GAME = ("frames", "q_values", "actions", "rewards")


@pytest.fixture(scope="module")
def sample():
    """A bundled run with selections of six rounds and its student."""
    return recorded_runs(aamlib.DATA_DIR / "sample")["pong-bald"]


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


TABLES = ["choices.csv", "config.json", "environment.json", "evaluations.csv", "metrics.csv", "progress.json"]


def test_a_published_run_is_its_tables(sample, tmp_path):
    whole = shutil.copytree(sample.dir, tmp_path / "whole")
    (whole / "choices.csv").unlink()
    kept = publish.publish(aamlib.Run(whole), tmp_path / "results" / "run", selections=1)
    assert names(kept.dir) == [*TABLES, f"selections/{selections.rounds_of(sample)[-1]:06d}.parquet"]
    pd.testing.assert_frame_equal(kept.metrics, sample.metrics)
    shown, made = evidence.load_choices(kept.dir), evidence.tabulate(sample)
    pd.testing.assert_frame_equal(shown.drop(columns=["run", "own"]), made.round(5), check_dtype=False)
    again = publish.publish(kept, tmp_path / "results" / "again")
    same = (again.dir / "choices.csv").read_bytes() == (kept.dir / "choices.csv").read_bytes()
    assert same, "it tells more rounds than the selections that are left"


def test_a_run_within_another_is_not_counted_to_it(sample, tmp_path):
    outer = shutil.copytree(sample.dir, tmp_path / "outer")
    shutil.copytree(sample.dir, outer / "inner")
    kept = publish.publish(aamlib.Run(outer), tmp_path / "results" / "outer")
    assert (kept.dir / "choices.csv").read_bytes() == (sample.dir / "choices.csv").read_bytes()


def test_frames_and_the_student_go_along_on_demand(sample, tmp_path):
    rounds = selections.rounds_of(sample)
    kept = publish.publish(sample, tmp_path / "run", selections=2, student=True)
    assert selections.rounds_of(kept) == [rounds[0], rounds[-1]]
    assert aamlib.load_student(kept.dir).n_actions == 6
    again = publish.publish(sample, tmp_path / "run", selections=1)
    assert selections.rounds_of(again) == [rounds[-1]], "the folder is replaced as a whole"
    assert names(tmp_path) == [f"run/{name}" for name in sorted([*TABLES, f"selections/{rounds[-1]:06d}.parquet"])]


def test_the_command_publishes_what_has_ended(sample, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for name, status in {"ended": "finished", "begun": "running", "spent": "label budget used"}.items():
        shutil.copytree(sample.dir, runs / name)
        (runs / name / "progress.json").write_text(json.dumps({"status": status}))
    assert publish.main([str(runs), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["ended", "spent"]
    assert "begun: running, left out" in capsys.readouterr().out
    assert set(aamlib.load_runs(out)["run"]) == {"ended", "spent"}
    assert list(out.rglob("*.parquet")) == []
    (runs / "begun" / "progress.json").write_text("{")
    shutil.rmtree(out)
    assert publish.main([str(runs), "--out", str(out)]) == 2
    assert "progress.json cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["ended", "spent"], "the others are published all the same"


def test_refusals_are_sentences_and_nothing_is_lost(sample, tmp_path, capsys):
    itself = shutil.copytree(sample.dir, tmp_path / "itself")
    assert publish.main([str(itself), "--out", str(itself)]) == 2
    assert "is the run itself" in capsys.readouterr().err
    assert names(itself) == names(sample.dir)
    precious = tmp_path / "precious" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("the only copy")
    with pytest.raises(aamlib.RunFolderError, match="holds no run; choose another folder"):
        publish.publish(sample, precious.parent)
    assert precious.read_text() == "the only copy"
    (itself / "pool").mkdir()
    with pytest.raises(aamlib.RunFolderError, match="is a run that can go on, and would be cut down"):
        publish.publish(sample, itself)
    assert names(itself) == names(sample.dir)
    (itself / "progress.json").write_text(json.dumps({"status": "interrupted"}))
    with pytest.raises(aamlib.RunFolderError, match=r"has not ended \(interrupted\); go on with it first"):
        publish.publish(aamlib.Run(itself), tmp_path / "out")
    assert publish.main([str(tmp_path / "nothing")]) == 2
    assert "no folder" in capsys.readouterr().err
    without = write_run(tmp_path / "without", rounds=2)
    assert publish.main([str(without), "--out", str(tmp_path / "out")]) == 2
    assert "progress.json cannot be read" in capsys.readouterr().err
    (without / "progress.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(aamlib.RunFolderError, match="holds no recorded selection"):
        publish.publish(aamlib.Run(without), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        publish.main([str(itself), "--selections", "-1"])
    assert "'-1' is no number of rounds; give 0 or more" in capsys.readouterr().err


def test_an_interrupt_just_after_the_old_was_moved_away_loses_nothing(sample, tmp_path, monkeypatch):
    before = names(publish.publish(sample, tmp_path / "run", selections=1).dir)
    rename = Path.rename

    def interrupted(path, target):
        rename(path, target)
        if target.name == "before":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish.publish(sample, tmp_path / "run")
    assert names(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("reason", "raised"),
    [
        (OSError(28, "No space left on device"), pytest.raises(aamlib.RunFolderError, match="published as .*No space")),
        (KeyboardInterrupt(), pytest.raises(KeyboardInterrupt)),
    ],
)
def test_what_was_published_before_is_put_back_if_the_new_cannot_be_moved_there(
    sample, tmp_path, monkeypatch, reason, raised
):
    before = names(publish.publish(sample, tmp_path / "run", selections=1).dir)
    rename = Path.rename

    def fail(path, target):
        if path.name == "run" and path.parent.name.startswith(".run."):
            raise reason
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with raised:
        publish.publish(sample, tmp_path / "run")
    assert names(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_whose_starts_were_not_recorded_is_published_without_them(sample, tmp_path):
    run = shutil.copytree(sample.dir, tmp_path / "run")
    (run / "environment.json").unlink()
    kept = publish.publish(aamlib.Run(run), tmp_path / "out")
    assert names(kept.dir) == [name for name in TABLES if name != "environment.json"]


def test_an_interrupted_sample_is_not_published(sample, tmp_path, monkeypatch):
    run = shutil.copytree(sample.dir, tmp_path / "run")
    (run / "progress.json").write_text(json.dumps({"status": "interrupted"}))
    monkeypatch.setattr(sample_module, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(sample_module, "sample_game_path", lambda *_: tmp_path / "game.zst")
    monkeypatch.setattr(sample_module, "record_game", lambda *_: SimpleNamespace(**dict.fromkeys(GAME, np.zeros(1))))
    monkeypatch.setattr(sample_module, "distill", lambda *_: aamlib.Run(run))
    assert sample_module.main() == 130
    assert not (tmp_path / "data").exists()
    (run / "progress.json").write_text(json.dumps({"status": "finished"}))
    assert sample_module.main() == 0
    assert {path.name for path in (tmp_path / "data" / "sample").iterdir()} == {"pong-bald", "pong-entropy"}
