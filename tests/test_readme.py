"""What the README tells its readers to type: its Python runs as it stands, and its commands name what there is."""

import dataclasses
import functools
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import papermill
import pytest
from stable_baselines3 import DQN, PPO
from synthetic import Screens

import aamlib
from aamlib.grids import plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)).replace("\\\n", " ").splitlines()
SIZES = ("total_steps", "warmup_steps", "round_steps", "n_envs", "pool_size", "max_game_frames", "probe_states",
         "evaluation_episodes")  # fmt: skip


def example(part):
    """The only one of the README's examples with this part."""
    (found,) = (text for text in EXAMPLES if part in text)
    return found


@pytest.fixture
def small(tiny, tmp_path, monkeypatch):
    """In a folder of their own, examples run as they stand, but for the sizes of runs and games."""
    distill, sizes = aamlib.distill, {name: getattr(tiny, name) for name in SIZES}

    def cut(config, run_dir, **more):
        return distill(dataclasses.replace(config, expert=config.expert or tiny.expert, **sizes), run_dir, **more)

    monkeypatch.setattr(aamlib, "distill", cut)
    monkeypatch.setattr(aamlib, "evaluate", functools.partial(aamlib.evaluate, max_frames=120))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_an_experiment_from_python(small):
    exec(example("run = aamlib.distill"), variables := {})
    assert variables["run"].status == "finished"
    assert variables["metrics"]["run"].unique().tolist() == ["mine-bald"]
    assert variables["scores"].shape == (15,)


@pytest.mark.slow
def test_another_acquisition_function(small):
    Path("margin.py").write_text(example("def margin"))
    config = aamlib.ExperimentConfig(acquisition="margin:margin", recorded_states=100, recorded_stacks=100)
    states = aamlib.distill(config, "run").selection(2).query("kind == 'random'")
    policies = np.exp(np.stack(states["q_samples"].to_list()).astype(float) / config.temperature)
    best = np.sort((policies / policies.sum(axis=2, keepdims=True)).mean(axis=1), axis=1)
    np.testing.assert_allclose(states["score_margin:margin"], best[:, -2] - best[:, -1], atol=0.02)  # half precision


@pytest.mark.slow
def test_another_expert_and_its_card(small):
    DQN("CnnPolicy", Screens(), buffer_size=1, device="cpu", seed=0).save("dqn.zip")
    exec(example('load_expert("dqn.zip")'), variables := {})
    card = aamlib.read_card("data/runs/dqn.safetensors")
    assert (card["score_mean"], card["random_score_mean"]) == (variables["score"], variables["chance"])
    config = aamlib.ExperimentConfig(expert="data/runs/dqn.safetensors")
    assert aamlib.distill(config, "run").status == "finished"


@pytest.mark.slow
def test_a_policy_of_ones_own(small):
    PPO("CnnPolicy", Screens(), n_steps=2, batch_size=2, device="cpu").save("ppo.zip")
    exec(example("PPO.load"), {"__name__": "readme"})
    run = aamlib.Run("data/runs/ppo")
    assert run.status == "finished"
    q_values = np.stack(run.selection(2)["expert_q"].to_list())
    np.testing.assert_allclose(np.exp(q_values).sum(axis=1), 1, rtol=1e-4)  # logits of a Categorical are normalised


def test_the_table_of_grids_tells_how_many_runs_are_planned_and_published(tmp_path, monkeypatch):
    grids = ROOT / "notebooks" / "grids"
    monkeypatch.syspath_prepend(grids)
    rows = re.findall(r"^\| \[(.+)\]\(notebooks/grids/.*\| (\d+) \| (\d+) \|$", README, re.MULTILINE)
    assert {name for name, *_ in rows} == {path.stem for path in grids.glob("*.toml")} - {"small"}
    for name, planned, published in rows:
        assert int(planned) == len(plan(grids / f"{name}.toml", tmp_path))
        assert int(published) == len([*(ROOT / "data").glob(f"*/{name}/*/metrics.csv")])
    assert f"To run all {sum(int(planned) for _, planned, _ in rows)} takes" in README


def test_the_grid_for_ones_own_function_has_the_published_runs_setting(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "margin.py").write_text(example("def margin"))
    (toml,) = re.findall(r"^```toml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (tmp_path / "margin.toml").write_text(toml)
    published = {cell.config for cell in plan(ROOT / "notebooks" / "grids" / "study-pong.toml", tmp_path)}
    configs = [cell.config for cell in plan(tmp_path / "margin.toml", tmp_path)]
    assert [config.seed for config in configs] == [0, 1, 2, 3, 4]
    assert {config.acquisition for config in configs} == {"margin:margin"}
    assert {dataclasses.replace(config, acquisition="random") for config in configs} <= published


def test_commands_name_notebooks_parameters_and_targets_that_there_are():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE)) <= targets
    executed = [shlex.split(command, comments=True) for command in COMMANDS if command.startswith("papermill ")]
    assert len(executed) >= 6
    for words in executed:
        parameters = papermill.inspect_notebook(ROOT / words[1])
        given = {name for flag, name in itertools.pairwise(words) if flag == "-p"}
        given |= {re.match(r"\w+", value)[0] for flag, value in itertools.pairwise(words) if flag == "-y"}
        assert given <= set(parameters), words


def test_links_lead_to_files_that_there_are():
    links = {link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))}
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
