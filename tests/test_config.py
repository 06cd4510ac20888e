"""Settings: what is accepted, and that each refusal names the value, what is allowed and the nearest name."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from aamlib.config import (
    FOR_TWO,
    PRESETS,
    RECORDED_PER_RUN,
    Config,
    ConfigError,
    ExperimentConfig,
    available_device,
    check_game,
    playable_games,
    preset,
    setting,
)
from aamlib.pqn import PQNConfig


@dataclass(frozen=True)
class Bakery(Config):
    name: str = setting("corner", "what the sign says")
    loaves: int = setting(10, "baked a day", minimum=1, maximum=100)
    salt: float = setting(0.02, "share of the flour", above=0, below=0.1)
    rye: bool = setting(False, "rye flour is used")
    helpers: int | None = setting(None, "None: as many as come", minimum=1)
    oven: str = setting("gas", "what it burns", choices=("gas", "wood"))


def test_docstrings_explain_every_setting():
    assert "loaves: baked a day (default 10)" in (Bakery.__doc__ or "").splitlines()
    for config in (ExperimentConfig, PQNConfig):
        lines = (config.__doc__ or "").splitlines()
        assert [line.partition(":")[0] for line in lines[2:]] == config.names()


def load(*games):
    """Load games' ROMs in a process of its own."""
    script = (
        "import sys, ale_py\nfor game in sys.argv[1:]: ale_py.ALEInterface().loadROM(ale_py.roms.get_rom_path(game))"
    )
    return subprocess.run([sys.executable, "-c", script, *games], check=False, capture_output=True).returncode


@pytest.mark.slow
def test_games_are_those_with_which_ale_py_does_not_end_the_process():
    assert load(*playable_games()) == 0
    assert all(load(game) for game in FOR_TWO)


def test_defaults_are_valid():
    assert Bakery().asdict() == {
        "name": "corner", "loaves": 10, "salt": 0.02, "rye": False, "helpers": None, "oven": "gas",
    }  # fmt: skip


def test_numbers_of_numpy_and_paths_are_taken_as_pythons_own():
    bakery = Bakery(loaves=np.arange(5)[3], salt=np.float32(0.0625), rye=np.bool_(True))
    assert [type(value) for value in (bakery.loaves, bakery.salt, bakery.rye)] == [int, float, bool]
    assert json.loads(json.dumps(bakery.asdict()))["loaves"] == 3
    assert Bakery(name=Path("a") / "path").name == str(Path("a/path"))


@pytest.mark.parametrize(
    ("name", "hint"), [("loafs", "did you mean 'loaves'"), ("zzzz", "allowed: name, loaves, salt, rye, helpers, oven")]
)
def test_unknown_setting_is_told_the_nearest(name, hint):
    with pytest.raises(ConfigError, match=f"unknown setting '{name}'; {hint}"):
        Bakery(**{name: 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loaves": True}, "loaves = True is of type bool; give int"),
        ({"loaves": "7"}, "loaves = '7' is of type str; give int"),
        ({"loaves": 7.5}, "loaves = 7.5 is of type float; give int"),
        ({"loaves": math.inf}, "loaves = inf is of type float; give int"),
        ({"loaves": None}, "loaves = None is of type NoneType; give int"),
        ({"salt": "0.03"}, "salt = '0.03' is of type str; give float"),
        ({"salt": False}, "salt = False is of type bool; give float"),
        ({"rye": 1}, "rye = 1 is of type int; give bool"),
        ({"name": 3}, "name = 3 is of type int; give str"),
        ({"helpers": "two"}, "helpers = 'two' is of type str; give int or None"),
        ({"helpers": True}, "helpers = True is of type bool; give int or None"),
    ],
)
def test_wrong_type_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Bakery(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loaves": 0}, "loaves = 0 is out of range; give a value at least 1 and at most 100"),
        ({"loaves": 101}, "loaves = 101 is out of range"),
        ({"salt": 0.0}, "salt = 0.0 is out of range; give a value above 0 and below 0.1"),
        ({"salt": 0.1}, "salt = 0.1 is out of range"),
        ({"salt": math.nan}, "salt = nan is out of range"),
        ({"salt": -math.inf}, "salt = -inf is out of range"),
        ({"helpers": 0}, "helpers = 0 is out of range; give a value at least 1"),
        ({"oven": "Wod"}, "oven = 'Wod' is unknown; did you mean 'wood'"),
        ({"oven": "coal"}, "oven = 'coal' is unknown; allowed: gas, wood"),
    ],
)
def test_value_out_of_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Bakery(**settings)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"loaves": 1}, 1),
        ({"loaves": 100}, 100),
        ({"loaves": 1e2}, 100),
        ({"helpers": 3}, 3),
        ({"helpers": 3.0}, 3),
        ({"helpers": None}, None),
        ({"salt": 0.05}, 0.05),
        ({"rye": True}, True),
    ],
)
def test_value_in_range_is_kept_in_its_own_type(settings, kept):
    [value] = [getattr(Bakery(**settings), name) for name in settings]
    assert value == kept
    assert type(value) is type(kept)


def test_whole_number_becomes_a_float_where_one_is_wanted(as_users):
    assert type(PQNConfig(gamma=1).gamma) is float


def test_config_is_frozen_hashable_and_replaceable():
    bakery = Bakery(loaves=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        bakery.loaves = 4
    assert {bakery: 1}[Bakery(loaves=3)] == 1
    assert dataclasses.replace(bakery, rye=True) == Bakery(loaves=3, rye=True)
    with pytest.raises(ConfigError, match="out of range"):
        dataclasses.replace(bakery, loaves=0)


def test_every_setting_is_described():
    for config in (Bakery(loaves=7), PQNConfig(seed=7), ExperimentConfig(seed=7)):
        rows = config.describe()
        assert [row["setting"] for row in rows] == config.names()
        assert all(row["meaning"] for row in rows)
        assert type(config)(**{row["setting"]: row["value"] for row in rows}) == config
        assert type(config)(**{row["setting"]: row["default"] for row in rows}) == type(config)()


# From a notebook.

INJECTED = "# Parameters\nloaves = 20\nrye = True\n"


def test_notebook_variables_become_settings_and_none_is_the_default():
    namespace = {"In": ["", "import aamlib", INJECTED], "loaves": 20, "rye": True, "oven": None, "unrelated": object()}
    assert Bakery.from_notebook(namespace) == Bakery(loaves=20, rye=True)


def test_notebook_values_win_over_the_defaults_given_in_code():
    namespace = {"loaves": 20, "salt": None}
    assert Bakery.from_notebook(namespace, loaves=5, salt=0.05) == Bakery(loaves=20, salt=0.05)


def test_notebook_runs_without_papermill():
    assert Bakery.from_notebook({}) == Bakery()


def test_unknown_parameter_of_papermill_is_an_error():
    namespace = {"In": ["", "# Parameters\nloafs = 20\n"], "loafs": 20}
    with pytest.raises(ConfigError, match="unknown parameter 'loafs'; did you mean 'loaves'"):
        Bakery.from_notebook(namespace)
    namespace["In"].append("# Parameters\nloaves = 20\n")  # mended, and run again in the same kernel
    assert Bakery.from_notebook(namespace | {"loaves": 20}) == Bakery(loaves=20)


def test_other_parameters_of_the_notebook_can_be_named():
    namespace = {"In": ["# Parameters\nrun_dir = 'here'\nloaves = 2\n"], "run_dir": "here", "loaves": 2}
    assert Bakery.from_notebook(namespace, "run_dir") == Bakery(loaves=2)
    with pytest.raises(ConfigError, match="unknown parameter 'run_dir'"):
        Bakery.from_notebook(namespace)


def test_only_the_injected_cell_is_checked():
    assert Bakery.from_notebook({"In": ["", "own_variable = 3"], "own_variable": 3}) == Bakery()


def test_value_from_a_notebook_is_checked():
    with pytest.raises(ConfigError, match="loaves = 'many' is of type str"):
        Bakery.from_notebook({"loaves": "many"})


# The settings of the experiments.


@pytest.mark.parametrize("config", [PQNConfig, ExperimentConfig])
def test_configs_of_the_package_refuse_bad_settings(as_users, config):
    with pytest.raises(ConfigError, match="unknown setting 'evaluate_evry'; did you mean 'evaluate_every'"):
        config(evaluate_evry=10)
    with pytest.raises(ConfigError, match="seed = -1 is out of range; give a value at least 0"):
        config(seed=-1)
    with pytest.raises(ConfigError, match="seed = 18446744073709551616 is out of range; give .* at most"):
        config(seed=2**64)
    with pytest.raises(ConfigError, match="learning_rate = inf is out of range; give a finite value above 0"):
        config(learning_rate=math.inf)
    with pytest.raises(ConfigError, match="seed = '0' is of type str; give int"):
        config(seed="0")
    with pytest.raises(ConfigError, match="precision = 'float23' is unknown; did you mean 'float32'"):
        config(precision="float23")
    assert config(total_steps=1e6).total_steps == 1_000_000


def test_defaults_are_the_setting_of_the_study():
    config = ExperimentConfig()
    of_the_study = {
        "total_steps": 3_450_000, "warmup_steps": 50_000, "round_steps": 10_000, "pool_size": 100_000,
        "query_fraction": 0.1, "epsilon_final": 0.1, "epsilon_decay_steps": 500_000, "acting_dropout": True,
        "dropout": 0.3, "n_samples": 10, "temperature": 0.1, "batch_size": 32, "learning_rate": 6.25e-5,
        "adam_epsilon": 1.5e-4, "evaluate_every": 50_000, "evaluation_episodes": 15, "evaluation_epsilon": 0.05,
        "max_game_frames": 108_000,
    }  # fmt: skip
    assert config.asdict().items() >= of_the_study.items()
    assert config.n_rounds == 340
    assert config.query_size(60_000) == 6_000  # the first round
    assert config.query_size(68) == 7, "rounded"
    assert config.query_size(config.pool_size) == 10_000
    assert [config.epsilon(step) for step in (0, 50_000)] == [1, 1]
    assert config.epsilon(300_000) == pytest.approx(0.55)
    assert [config.epsilon(step) for step in (550_000, 3_450_000)] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(
    ("evaluate_every", "due"), [(25_000, [3, 5, 8, 10]), (20_000, [2, 4, 6, 8, 10]), (3_000, list(range(1, 11)))]
)
def test_an_evaluation_is_due_in_the_round_that_reaches_its_multiple(evaluate_every, due):
    config = ExperimentConfig(evaluate_every=evaluate_every, round_steps=10_000)
    assert [number for number in range(1, 11) if config.evaluation_is_due(10_000 * number)] == due


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    assert ExperimentConfig(**preset(name)).asdict().items() >= PRESETS[name].items()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 1000, "n_envs": 48}, "pool_size = 1000 is not a multiple of n_envs = 48; the nearest is 1008"),
        ({"round_steps": 10_001}, "round_steps = 10001 is not a multiple of n_envs = 40; the nearest is 10000"),
        ({"game": "Breakuot"}, "unknown game 'Breakuot'; did you mean 'breakout'"),
        ({"game": "joust"}, "'joust' is for two players, which ale-py cannot run; give a game for one"),
        ({"query_fraction": 1e-6}, "query_fraction = 1e-06 of the pool is less than one state"),
        ({"device": "tpu"}, "device 'tpu' is unknown; give 'cpu', 'cuda' or 'auto'"),
        ({"device": "meta"}, "device 'meta' is not made use of; give 'cpu', 'cuda' or 'auto'"),
    ],
)
def test_settings_of_an_experiment_must_fit_together(settings, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig(**settings)


def test_a_changed_copy_of_a_preset_changes_nothing_for_the_next():
    preset("quick")["total_steps"] = 5
    assert preset("quick") == PRESETS["quick"] != preset("quick") | {"total_steps": 5}


def test_unknown_preset_is_told_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'quik'; did you mean 'quick'"):
        preset("quik")


def test_a_run_that_ends_within_the_warm_up_is_refused():
    for steps in (40_000, 50_000):
        with pytest.raises(ConfigError, match=f"total_steps = {steps} ends within the warm-up of 50000 steps"):
            ExperimentConfig(total_steps=steps)
    assert ExperimentConfig(total_steps=50_001).n_rounds == 1


def test_games_that_can_be_used_are_returned():
    assert check_game("ms_pacman") == "ms_pacman"


def test_a_device_may_be_planned_for_another_machine_and_is_looked_for_where_the_run_is(monkeypatch):
    assert ExperimentConfig(device="cuda:3").device == "cuda:3"
    assert ExperimentConfig(device="auto").device == "auto"
    assert available_device("cpu") == "cpu"
    for there_is_one, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=there_is_one: answer)
        assert available_device("auto") == device
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used here"):
        available_device("cuda:99")


def test_long_runs_record_fewer_states_a_round_so_that_their_folders_stay_small():
    assert ExperimentConfig(total_steps=700_000).recording == (2_000, 200)
    study = ExperimentConfig()
    states, stacks = study.recording
    rounds = (study.total_steps - study.warmup_steps) // study.round_steps
    assert 0.95 * RECORDED_PER_RUN < rounds * states < 1.05 * RECORDED_PER_RUN
    assert stacks == pytest.approx(states / 10, abs=1)
    assert stacks >= 50, "the study's GIFs show 50 states"
    assert ExperimentConfig(recorded_states=100, recorded_stacks=0).recording == (100, 0)
