"""What the cells of a grid should take, by hand and by finished runs."""

import dataclasses
import json
import shutil

import pytest
from synthetic import write_run

import aamlib
from aamlib import costs
from aamlib.costs import describe_total, estimate
from aamlib.grids import plan


def test_work_is_counted_as_the_loop_does_it(tmp_path):
    """Two rounds by hand: 160 steps of warm-up, then 160 a round, of a pool of 320 a tenth."""
    small = {"total_steps": 480, "warmup_steps": 160, "round_steps": 160, "pool_size": 320, "evaluate_every": 320}
    cells = plan({"seeds": [0], "constants": small}, tmp_path)
    table = estimate(cells)
    assert table["rounds"].item() == 2
    assert table["labels"].item() == 64
    work = {"agent_step": 480, "pool_state": 640, "query": 64, "round": 2, "game": 30}  # two evaluations of 15
    seconds = sum(costs.SECONDS[unit] * n for unit, n in work.items())
    assert table["hours"].item() == pytest.approx(seconds / 3600, abs=0.0005)
    assert describe_total(table) == "1 cells, about 1 minutes one after the other and 0.0 GB"
    assert "about 2.5 hours one after" in describe_total(table.assign(hours=2.5))
    (cell,) = cells
    budgeted = dataclasses.replace(cell, config=dataclasses.replace(cell.config, label_budget=20))
    assert estimate([budgeted])[["rounds", "labels"]].iloc[0].tolist() == [1, 20]
    samples = dataclasses.replace(cell, config=dataclasses.replace(cell.config, n_samples=100))
    assert estimate([samples])["hours"].item() == table["hours"].item(), "the trunk runs once, whatever T is"


def test_neither_chance_nor_the_whole_pool_costs_scoring(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", dict.fromkeys(costs.SECONDS, 0.0) | {"pool_state": 3600.0})
    small = {"total_steps": 480, "warmup_steps": 160, "round_steps": 160, "pool_size": 320}
    values = {"acquisition": ["bald", "random"], "query_fraction": [0.1, 1.0]}
    grid = {"constants": small, "values": values, "exclude": [{"acquisition": "random", "query_fraction": 1.0}]}
    assert estimate(plan(grid, tmp_path))["hours"].tolist() == [640, 0, 0]


def test_what_runs_do_not_tell_keeps_its_default(tmp_path):
    names = ("random", "bald")
    runs = {name: write_run(tmp_path / name, acquisition=name, rounds=1) for name in names}  # too short to be evaluated
    for name, run in runs.items():
        rounds = aamlib.Run(run).metrics.iloc[1:]
        known = {"pool_state": rounds["seconds_score"].sum() / rounds["pool_states"].sum()} if name == "bald" else {}
        measured = costs.measured_costs(run)["seconds"]
        assert measured.keys() == costs.SECONDS.keys()
        for unit in ("pool_state", "game"):
            assert measured[unit] == pytest.approx(known.get(unit, costs.SECONDS[unit]))


@pytest.mark.slow
def test_the_files_of_a_run_that_goes_on_are_not_counted(finished, tmp_path):
    shutil.copytree(finished.dir, tmp_path / "run")
    assert costs.measured_costs(tmp_path)["n_bytes"] != costs.BYTES
    (tmp_path / "run" / "progress.json").write_text(json.dumps({"status": "running"}))
    assert costs.measured_costs(tmp_path)["n_bytes"] == costs.BYTES


@pytest.mark.slow
def test_costs_are_taken_from_finished_runs(finished, tiny, tmp_path):
    shutil.copytree(finished.dir, tmp_path / "run")
    (tmp_path / "run" / "selections" / ".000001.parquet.0123abcd").touch()  # of a process that was killed
    measured = costs.measured_costs(tmp_path)
    rounds = finished.metrics.iloc[1:]
    assert measured["seconds"]["agent_step"] == pytest.approx(rounds["seconds_act"].sum() / 640)
    assert measured["seconds"]["game"] == pytest.approx(rounds["seconds_evaluate"].sum() / 4)
    disk = sum(path.stat().st_size for path in finished.dir.rglob("*") if path.is_file())
    cells = plan(
        {"seeds": [0], "constants": {k: v for k, v in tiny.asdict().items() if v is not None and k != "seed"}}, "x"
    )
    assert estimate(cells, finished.dir)["megabytes"].item() == round(disk / 1e6)
    shutil.rmtree(tmp_path / "run" / "pool")  # as of a published run
    assert costs.measured_costs(tmp_path) == {"seconds": measured["seconds"], "n_bytes": costs.BYTES}
