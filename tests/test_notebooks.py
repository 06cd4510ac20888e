"""Every notebook is clean as committed, and runs from top to bottom at smoke size."""

import dataclasses
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

import aamlib
from aamlib import plots

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PARAMETERS = {
    "01_train_expert": {*aamlib.PQNConfig.names(), *aamlib.cards.CardConfig.names(), "run_dir", "output"},
    "02_run_experiment": {*aamlib.ExperimentConfig.names(), "preset", "run_dir"},
    "03_run_batch": {
        *("grid", "out", "dry_run", "measured", "side_by_side", "threads", "measure_first", "scheduler", "retries")
    },
    "04_compare_runs": {"runs", "select", "by", "references", "figures", "readme"},
    "05_expert_q_values": {
        "game",
        "expert",
        "runs",
        "student",
        "seed",
        "epsilon",
        "steps",
        "temperature",
        "step",
    },
    "06_uncertain_frames": {"runs", "run", "other", "number", "sort", "exports", "gifs"},
    "07_entropy_versus_bald": {"runs", "run", "number", "color"},
    "08_benchmark": {
        "game",
        "results",
        "figures",
        "readme",
        "pool_states",
        "baseline_states",
        "repeats",
        "growth_pools",
        "growth_samples",
        "settings",
        "expert_settings",
    },
}


def run_cells(name, n_cells, **given):
    """Run a notebook's first code cells in this process, as papermill would with `given` parameters.

    Returns the variables that they leave behind.
    """
    source = next(path for path in NOTEBOOKS if path.stem == name)
    code = [cell.source for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "code"]
    injected = "\n".join(["# Parameters", *(f"{parameter} = {value!r}" for parameter, value in given.items())])
    cells = [code[0], injected + "\n", *code[1:]]
    variables = {"In": cells}
    for cell in cells[: n_cells + 1]:
        exec(cell, variables)
    return variables


def execute(name, folder, *, cwd=None, **parameters):
    """Run a notebook in `folder`, or from `cwd`; its last outputs' text."""
    source = next(path for path in NOTEBOOKS if path.stem == name)
    try:
        notebook = papermill.execute_notebook(
            source, folder / source.name, parameters, kernel_name="python3", progress_bar=False, cwd=cwd or folder
        )
    except PapermillExecutionError as error:
        pytest.fail(str(error), pytrace=False)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata
    assert "widgets" not in notebook.metadata
    assert notebook.cells[0].cell_type == "markdown", "the first cell says question, inputs, outputs and run time"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_setting_is_a_parameter(name):
    source = next(path for path in NOTEBOOKS if path.stem == name)
    assert set(papermill.inspect_notebook(source)) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_train_expert(tmp_path):
    small = {"total_steps": 1024, "n_envs": 8, "rollout_steps": 16, "evaluate_every": 512, "evaluation_episodes": 1}
    text = execute(
        "01_train_expert", tmp_path, run_dir=str(tmp_path / "run"), card_episodes=2, game="breakout", **small
    )
    assert "over 2 games" in text
    path = tmp_path / "run" / "expert.safetensors"
    assert aamlib.load_expert(path).n_actions == 4
    card = aamlib.read_card(path)
    assert card["agent_steps"] == 1024
    assert len(card["scores"]) == 2
    assert [row["agent_steps"] for row in card["curve"]] == [512, 1024]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("recorded_stacks", [4, 0])
def test_run_experiment(tiny, tmp_path, recorded_stacks):
    config = dataclasses.replace(tiny, recorded_stacks=recorded_stacks)
    parameters = {name: value for name, value in config.asdict().items() if value is not None}
    text = execute("02_run_experiment", tmp_path, run_dir=str(tmp_path / "run"), preset="study", **parameters)
    assert "finished: 800 agent steps" in text
    for name in ("curves.png", "metrics.csv"):
        assert (tmp_path / "run" / name).stat().st_size > 0
        assert name in text
    gif = tmp_path / "run" / "queried.gif"
    assert gif.exists() == ("queried.gif" in text) == bool(recorded_stacks)
    if recorded_stacks:
        run = aamlib.Run(tmp_path / "run")
        queried = run.selection(int(run.metrics["round"].max())).query("kind == 'queried'").dropna(subset="frames")
        assert len(queried) > 1
        by_score = queried.sort_values(f"score_{tiny.acquisition}", ascending=False)
        assert gif.read_bytes() == plots.gif_bytes(np.stack(by_score["frames"].to_list())), "the highest score first"


PONG = str(aamlib.experts.expert_path("pong"))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("01_train_expert", {"gamma_": 0.9}, "unknown parameter 'gamma_'; did you mean 'gamma'?"),
        (
            "01_train_expert",
            {"start_from": "pong", "output": PONG},
            f"output = start_from = '{PONG}' would be overwritten",
        ),
        ("01_train_expert", {"card_episodes": 1}, "card_episodes = 1 is out of range; give a value at least 2."),
        ("02_run_experiment", {"aquisition": "bald"}, "unknown parameter 'aquisition'; did you mean 'acquisition'?"),
        ("02_run_experiment", {"preset": "quikc"}, "unknown preset 'quikc'; did you mean 'quick'?"),
        ("03_run_batch", {"gird": "grid.toml"}, "unknown parameter 'gird'; did you mean 'grid'?"),
        ("04_compare_runs", {"run": "x"}, "unknown parameter 'run'; did you mean 'runs'?"),
        ("05_expert_q_values", {"temprature": 1.0}, "unknown parameter 'temprature'; did you mean 'temperature'?"),
        ("06_uncertain_frames", {"export": "x"}, "unknown parameter 'export'; did you mean 'exports'?"),
        ("07_entropy_versus_bald", {"colour": "regret"}, "unknown parameter 'colour'; did you mean 'color'?"),
        ("08_benchmark", {"repeat": 1}, "unknown parameter 'repeat'; did you mean 'repeats'?"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(name, given, message):
    with pytest.raises(aamlib.ConfigError, match=re.escape(message)):
        run_cells(name, 2, **given)


def test_runs_stand_beside_each_other_though_one_has_no_score_of_ones_own_function(tmp_path):
    for name in ("own", "plain"):
        shutil.copytree(aamlib.DATA_DIR / "sample" / "pong-bald", tmp_path / name)
    for path in (tmp_path / "own" / "selections").iterdir():
        table = pd.read_parquet(path)
        table.assign(**{"score_margin:margin": table["score_bald"]}).to_parquet(path)
    left = run_cells("06_uncertain_frames", 3, runs=str(tmp_path), run="own", sort="score_margin:margin")
    assert (left["view"].sort, left["right"].run) == ("score_margin:margin", "plain")
    assert left["right"].sort == "score_bald"


def test_the_left_of_two_begins_as_the_view_above_is_set():
    variables = run_cells("06_uncertain_frames", 2, runs=str(aamlib.DATA_DIR / "sample"))
    view = variables["view"]
    view.kind, view.sort, view.descending, view.agreement = "random", "score_entropy", False, "disagree"
    view.percentiles, view.gaps = (20, 80), (0.01, 1.0)
    exec(variables["In"][3], variables)
    assert len(view.shown)
    pd.testing.assert_frame_equal(variables["left"].shown, view.shown)


def test_a_run_stands_beside_one_that_has_other_rounds(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(aamlib.DATA_DIR / "sample" / "pong-bald", tmp_path / name)
    first, *_, last = sorted((tmp_path / "two" / "selections").iterdir())
    last.unlink()
    left = run_cells("06_uncertain_frames", 3, runs=str(tmp_path), run="one", other="two", number=int(last.stem))
    assert left["view"].round == int(last.stem)
    assert int(first.stem) <= left["right"].round < int(last.stem)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_benchmark(tmp_path, pong_expert):
    small = {"pool_states": 1_000, "baseline_states": 64, "repeats": 1, "growth_pools": [400, 800]}
    folders = {name: str(tmp_path / name) for name in ("results", "figures")}
    small |= {"growth_samples": [2, 4], "expert_settings": {"n_envs": 4}}
    settings = {"n_envs": 4, "round_steps": 400, "evaluation_episodes": 2, "max_game_frames": 400}
    settings |= {"expert": str(pong_expert)}  # beside which probe sets of such short games may lie
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\n<!-- /speed -->\nafter\n")
    text = execute("08_benchmark", tmp_path, settings=settings, readme=str(readme), **small, **folders)
    assert "times Stable-Baselines3's" in text
    assert re.search(r"\| collecting, against .* \| \d\.\d\d +\| 1 ", readme.read_text())
    results = tmp_path / "results"
    [benchmark], [growth] = results.glob("benchmark-*.csv"), results.glob("growth-*.csv")
    table = pd.read_csv(benchmark)
    parts = "round evaluation scoring collection training labels start-up memory expert looking"
    assert set(table["part"]) == set(parts.split())
    assert (table["rate"] > 0).all()
    assert set(pd.read_csv(growth)["varied"]) == {"states in the pool", "dropout samples T", "threads"}
    for name in ("benchmark.png", "phases.png", "growth.png", "memory.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
