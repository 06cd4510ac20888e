import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from synthetic import write_run

import aamlib
from aamlib import files
from aamlib.files import write_json
from aamlib.grids import plan
from aamlib.runs import METRICS, check_settings, find_runs, recorded_runs

pytestmark = pytest.mark.slow


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has an umask")
def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o007)
    try:
        write_json(tmp_path / "config.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o660
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_tilde_is_the_home_folder(finished, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(finished.dir, tmp_path / "runs" / "mine")
    assert aamlib.distill(tiny, "~/runs/mine").dir == tmp_path / "runs" / "mine"
    assert aamlib.Run("~/runs/mine").metrics.equals(finished.metrics)
    assert set(find_runs("~/runs")) == set(recorded_runs("~/runs")) == {"mine"}
    (cell,) = plan({"seeds": [0]}, "~/batch")
    assert cell.run_dir.parent == tmp_path / "batch"


def test_runs_load_as_one_tidy_table(finished, with_settings, tmp_path):
    shutil.copytree(finished.dir, tmp_path / "seed-0")
    aamlib.distill(with_settings(seed=1, total_steps=320), tmp_path / "seed-1")
    table = aamlib.load_runs(tmp_path)
    assert table.groupby("run")["round"].apply(list).to_dict() == {"seed-0": [0, 1, 2, 3, 4], "seed-1": [0, 1]}
    assert set(METRICS) <= set(table)
    assert set(aamlib.ExperimentConfig.names()) <= set(table)
    assert table.loc[table["run"] == "seed-1", "seed"].eq(1).all()
    pd.testing.assert_frame_equal(
        aamlib.load_runs(tmp_path / "seed-0")[list(METRICS)], aamlib.Run(str(tmp_path / "seed-0")).metrics
    )


def test_a_setting_that_no_run_has_is_empty(tmp_path):
    config = write_run(tmp_path / "older", rounds=2) / "config.json"
    config.write_text(json.dumps({n: v for n, v in json.loads(config.read_text()).items() if n != "max_game_frames"}))
    assert aamlib.load_runs(tmp_path)["max_game_frames"].isna().all()


def test_what_is_not_there_is_said_in_one_sentence(finished, tmp_path):
    with pytest.raises(aamlib.RunFolderError, match="no runs below"):
        aamlib.load_runs(tmp_path)
    with pytest.raises(aamlib.RunFolderError, match=r"no run folder: config\.json"):
        _ = aamlib.Run(tmp_path).config
    with pytest.raises(aamlib.RunFolderError, match="no selection of round 9; it has those of 1, 2, 3, 4"):
        finished.selection(9)


def test_links_are_followed_and_what_they_lead_to_counts_once(tmp_path):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    write_run(elsewhere / "batch" / "a", rounds=1)
    root.mkdir()
    (root / "batch").symlink_to(elsewhere / "batch")
    write_run(root / "real", rounds=1)
    (root / "latest").symlink_to(root / "real")
    (elsewhere / "batch" / "circle").symlink_to(root)
    assert list(find_runs(root)) == ["batch/a", "real"]


def test_folders_are_searched_but_for_hidden_ones_and_one_that_is_taken_away(tmp_path, monkeypatch):
    for name in ("a/run", "b/run", "gone", ".copied/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.csv").touch()
    scandir = os.scandir

    def late(path):
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert [*find_runs(tmp_path)] == ["a/run", "b/run"]
    assert [*find_runs(tmp_path / ".copied")] == ["run"], "a root may be hidden itself"
    assert [*find_runs(tmp_path / "a", tmp_path)] == [str(tmp_path / name) for name in ("a/run", "b/run")], "each once"


def test_a_horizon_may_only_be_raised_and_none_is_no_limit(tmp_path):
    write_json(tmp_path / "config.json", {"total_steps": 10, "label_budget": 5})
    check_settings(tmp_path, {"total_steps": 11, "label_budget": None})
    with pytest.raises(aamlib.RunFolderError, match=r"label_budget = 4 \(the folder has 5\)"):
        check_settings(tmp_path, {"total_steps": 10, "label_budget": 4})
    write_json(tmp_path / "config.json", {"total_steps": 10, "label_budget": None})
    with pytest.raises(aamlib.RunFolderError, match=r"label_budget = 5 \(the folder has None\)"):
        check_settings(tmp_path, {"total_steps": 10, "label_budget": 5})


def test_a_run_may_go_on_on_another_device(tmp_path):
    write_json(tmp_path / "config.json", {"total_steps": 10, "device": "cpu"})
    check_settings(tmp_path, {"total_steps": 10, "device": "cuda"})


def test_a_folder_of_another_kind_of_run_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {"total_steps": 10, "label_budget": 5})
    with pytest.raises(aamlib.RunFolderError, match=r"label_budget = None \(the folder has 5\)"):
        check_settings(tmp_path, {"total_steps": 10})


def test_a_damaged_selection_is_named(finished, tmp_path):
    path = tmp_path / "selections" / "000001.parquet"
    path.parent.mkdir()
    whole = finished.dir / "selections" / "000001.parquet"
    pd.read_parquet(whole).head(0).to_parquet(tmp_path / "empty.parquet")
    for damaged in (whole.read_bytes()[:200], (tmp_path / "empty.parquet").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(aamlib.RunFolderError, match=r"000001\.parquet cannot be read .* copy it again"):
            aamlib.Run(tmp_path).selection(1)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"hello world"])
def test_what_is_no_checkpoint_is_said(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(aamlib.RunFolderError, match=r"checkpoint\.pt cannot be read \(.+\); remove it to start again"):
        files.read_torch(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_another_device_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    files.write_torch(tmp_path / "checkpoint.pt", {"moments": torch.ones(3)})
    assert files.read_torch(tmp_path / "checkpoint.pt")["moments"].tolist() == [1, 1, 1]


def test_a_file_that_someone_reads_is_replaced_when_he_is_done(tmp_path, monkeypatch):
    """Windows refuses to replace a file that is open."""
    refusals, replace = [PermissionError("in use")] * 3, Path.replace

    def busy(source, target):
        if refusals:
            raise refusals.pop()
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", busy)
    files.write_json(tmp_path / "x.json", 1)
    assert (tmp_path / "x.json").read_text() == "1\n"


def test_a_text_is_filled_in_between_its_lines(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\n<!-- /two -->\n")
    files.fill_in(path, {"one": "new", "two": "| x |"})
    expected = "a\n<!-- one -->\n\nnew\n\n<!-- /one -->\nb\n<!-- two -->\n\n| x |\n\n<!-- /two -->\n"
    assert path.read_text() == expected
    with pytest.raises(ValueError, match="has no lines <!-- three --> and <!-- /three -->; add them"):
        files.fill_in(path, {"one": "lost", "three": "more"})
    assert path.read_text() == expected
