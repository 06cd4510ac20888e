"""Grids: what they come to, and what is said of wrong ones."""

from pathlib import Path

import pytest
import torch

import aamlib
from aamlib.acquisition import choose, find_acquisition
from aamlib.grids import plan
from aamlib.runs import find_runs
from aamlib.starts import read_starts

FOLDER = Path(__file__).parents[1] / "notebooks" / "grids"
PUBLISHED = sorted(path for kind in ("results", "ablations") for path in (aamlib.DATA_DIR / kind).glob("[!.]*/"))


def test_every_combination_is_a_cell_but_the_excluded(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("""
        preset = "quick"
        seeds = [0, 1]
        [constants]
        total_steps = 30_000
        [values]
        acquisition = ["bald", "random"]
        query_fraction = [0.1, 0.4]
        [[exclude]]
        acquisition = ["random"]
        query_fraction = 0.4
    """)
    cells = plan(path, tmp_path / "out")
    assert [cell.name for cell in cells[:3]] == [
        "bald-query_fraction=0.1-seed=0",
        "bald-query_fraction=0.4-seed=0",
        "random-query_fraction=0.1-seed=0",
    ], "all cells of a seed come before the next seed"
    assert [cell.config.seed for cell in cells] == [0, 0, 0, 1, 1, 1]
    cell = cells[1]
    assert cell.run_dir == tmp_path / "out" / cell.name
    assert cell.config == aamlib.ExperimentConfig(
        **aamlib.preset("quick") | {"total_steps": 30_000, "acquisition": "bald", "query_fraction": 0.4, "seed": 0}
    )
    assert cell.parameters == {
        "preset": "quick",
        "total_steps": 30_000,
        "acquisition": "bald",
        "query_fraction": 0.4,
        "seed": 0,
    }
    assert cell.config.n_rounds == 4  # 10,000 steps of warm-up, then rounds of 5,000
    assert not (tmp_path / "out").exists()


def test_a_constant_seed_and_no_seed_are_one_seed(tmp_path):
    values = {"values": {"acquisition": ["bald"]}}
    assert [cell.name for cell in plan(values, tmp_path)] == ["bald-seed=0"]
    assert [cell.name for cell in plan(values | {"constants": {"seed": 7}}, tmp_path)] == ["bald-seed=7"]


def test_values_may_be_given_as_a_range_or_a_tuple(tmp_path):
    grid = {"seeds": range(2), "values": {"query_fraction": (0.1, 0.4)}}
    assert plan(grid, tmp_path) == plan({"seeds": [0, 1], "values": {"query_fraction": [0.1, 0.4]}}, tmp_path)


def test_a_number_has_one_folder_however_it_is_written(tmp_path, as_users):
    def names(share, steps):
        return [cell.name for cell in plan({"values": {"query_fraction": [share], "total_steps": [steps]}}, tmp_path)]

    assert names(1, 1_000_000) == names(1.0, 1e6) == ["query_fraction=1.0-total_steps=1000000-seed=0"]


def test_paths_make_folder_names_and_do_not_depend_on_the_working_folder(tmp_path, monkeypatch, pong_expert):
    monkeypatch.chdir(pong_expert.parent)
    (cell,) = plan({"values": {"expert": ["./pong.safetensors"]}}, tmp_path)
    assert cell.config.expert == str(pong_expert)
    assert cell.parameters["expert"] == str(pong_expert)
    assert cell.run_dir.parent == tmp_path


@pytest.fixture
def own_functions(monkeypatch):
    """Those that stand beside the grids can be imported, as with PYTHONPATH=notebooks/grids."""
    monkeypatch.syspath_prepend(FOLDER)


def test_the_small_grid_is_four_short_runs(tmp_path):
    assert [cell.config.n_rounds for cell in plan(FOLDER / "small.toml", tmp_path)] == [4] * 4


def test_decided_is_where_the_mean_policy_is_not_indifferent(own_functions):
    weak = torch.tensor([1.0, 0, 0, 0]).expand(4, 4)  # 0.91 of the highest entropy
    logits = torch.stack([torch.zeros(4, 4), 30 * weak, 30 * torch.eye(4), weak])
    assert find_acquisition("decided:decided")(logits).tolist() == [0, 1, 0, 1]


def test_mixed_is_half_chance_alone_and_half_where_the_action_matters(own_functions):
    matters = torch.arange(100_000) % 8 == 0  # for more states than there are questions left
    logits = torch.zeros(100_000, 2, 4)
    logits[matters, :, 0] = 30
    scores = find_acquisition("mixed:mixed")(logits, generator=torch.Generator().manual_seed(0))
    chosen = choose(scores, 10_000, torch.Generator().manual_seed(0))
    by_chance = scores[chosen] == 2
    assert by_chance.float().mean() == pytest.approx(0.5, abs=0.02)
    assert matters[chosen[by_chance]].float().mean() == pytest.approx(1 / 8, abs=0.02)
    assert matters[chosen[~by_chance]].all()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_grids_of_published_runs_name_the_expert_that_labelled_them(folder, tmp_path, own_functions):
    cells = {cell.name: cell.config for cell in plan(FOLDER / f"{folder.name}.toml", tmp_path)}
    for name, run_dir in find_runs(folder).items():
        config = cells[name]
        card = aamlib.read_card(config.expert or config.game)
        assert {start["expert_sha256"] for start in read_starts(run_dir)} == {card["weights_sha256"]}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "the grid is empty; list values"),
        ({"seeds": []}, "the grid is empty"),
        ({"values": {"acquisition": []}}, r"acquisition = \[\] lists no values"),
        ({"values": {"aquisition": ["bald"]}}, "unknown setting 'aquisition' in the grid; did you mean 'acquisition'"),
        ({"constants": {"total_step": 1}, "seeds": [0]}, "did you mean 'total_steps'"),
        ({"valuse": {"acquisition": ["bald"]}}, "unknown part of a grid 'valuse'; did you mean 'values'"),
        ({"acquisition": ["bald"]}, "'acquisition' stands outside of the grid's tables"),
        ({"preset": "quikc", "seeds": [0]}, "did you mean 'quick'"),
        ({"preset": ["quick"], "seeds": [0]}, r"preset = \['quick'\] is no name"),
        ({"seeds": 3}, r"values of seed = 3 are no list; write \[3\]"),
        ({"values": {"acquisition": ["bald", "bald"]}}, "acquisition lists 'bald' twice"),
        ({"seeds": [1, 1]}, "seed lists 1 twice"),
        ({"values": {"acquisition": "bald"}}, r"no list; write \['bald'\]"),
        ({"values": ["bald"]}, "no table"),
        ({"seeds": [0], "values": {"seed": [1]}}, "seeds and also a seed in its tables"),
        ({"seeds": [0], "constants": {"seed": 1}}, "seeds and also a seed in its tables"),
        ({"seeds": [0], "constants": {"game": "pong"}, "values": {"game": ["pong"]}}, "both .constants. and .values."),
        ({"values": {"query_fraction": [0.1, 2.0]}}, "cell query_fraction=2.0-seed=0: query_fraction = 2.0 is out of"),
        ({"values": {"acquisition": ["bold"]}}, "unknown acquisition 'bold'; did you mean 'bald'"),
        ({"seeds": [0], "exclude": [{"seed": 0}]}, "every cell of the grid is excluded"),
        ({"seeds": [0, 1], "exclude": [{"seed": 2}]}, "exclusion of seed = 2, which is not in the grid"),
        ({"seeds": [0, 1], "exclude": [{"game": "pong"}]}, "exclusion of 'game', which does not vary"),
        ({"values": {"expert": ["a/pong", "a:pong"]}}, "2 cells have only 1 folder names"),
        ({"constants": {"seed": 5}, "values": {"seed": [0, 1]}}, "'seed' stands in both .constants. and .values."),
        (
            {"values": {"query_fraction": [0.1, 1.0], "acquisition": ["bald", "random"]}},
            "query_fraction=1.0-bald-seed=0 and query_fraction=1.0-random-seed=0 differ in their function alone",
        ),
        ({"values": {"acquisition": ["torch:abs"]}}, "acquisition 'torch:abs' fails: TypeError"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_sentence(tmp_path, grid, message):
    with pytest.raises(aamlib.ConfigError, match=message):
        plan(grid, tmp_path)


def test_a_missing_expert_and_a_wrong_file_are_said_before_anything_starts(tmp_path):
    with pytest.raises(
        aamlib.ExpertError,
        match="the grid has an expert that cannot be used: no expert is bundled for tennis: train one",
    ):
        plan({"values": {"game": ["tennis"]}}, tmp_path)
    with pytest.raises(aamlib.ConfigError, match="cannot read the grid .*none.toml: No such file"):
        plan(tmp_path / "none.toml", tmp_path)
    (tmp_path / "bad.toml").write_text("seeds = [0")
    with pytest.raises(aamlib.ConfigError, match="bad.toml is no valid TOML"):
        plan(tmp_path / "bad.toml", tmp_path)
