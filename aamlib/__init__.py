"""aamlib: active policy distillation on Atari, from notebooks."""

import aamlib.runtime  # noqa: F401  (before torch)

# isort: split
from aamlib.acquisition import ACQUISITIONS
from aamlib.atari import evaluate
from aamlib.cards import read_card
from aamlib.checkpoints import load_student
from aamlib.config import PRESETS, ConfigError, ExperimentConfig, preset
from aamlib.distill import distill
from aamlib.experts import ExpertError, load_expert, save_expert
from aamlib.files import DATA_DIR, RunFolderError
from aamlib.networks import MCDropoutDQN, NatureDQN
from aamlib.pqn import PQNConfig, train_expert
from aamlib.runs import Run, load_evaluations, load_runs

__version__ = "0.1.0"

__all__ = [
    "ACQUISITIONS",
    "DATA_DIR",
    "PRESETS",
    "ConfigError",
    "ExperimentConfig",
    "ExpertError",
    "MCDropoutDQN",
    "NatureDQN",
    "PQNConfig",
    "Run",
    "RunFolderError",
    "distill",
    "evaluate",
    "load_evaluations",
    "load_expert",
    "load_runs",
    "load_student",
    "preset",
    "read_card",
    "save_expert",
    "train_expert",
]
