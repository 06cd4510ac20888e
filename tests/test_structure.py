"""The house's shape: imports run in one direction, and files stay small."""

import ast
from pathlib import Path

import pytest

import aamlib

PACKAGE = Path(aamlib.__file__).parent
# Each module may import only those before it.
ORDER = [
    "runtime",
    "files",
    "config",
    "networks",
    "acquisition",
    "replay",
    "runs",
    "tensorboard",
    "stats",
    "comparison",
    "plots",
    "selections",
    "figures",
    "atari",
    "experts",
    "cards",
    "games",
    "pqn",
    "checkpoints",
    "diagnosis",
    "distill",
    "grids",
    "workers",
    "batch",
    "widgets",
    "expert_view",
    "round_view",
    "selection_view",
    "scatter_view",
    "sample",
    "__init__",
]


def imports(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[1] for name in names if name.startswith("aamlib.")}


def test_every_module_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_in_one_direction(module):
    assert imports(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", ORDER)
def test_modules_stay_thin(module):
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 340


@pytest.mark.parametrize("module", ["stats", "comparison", "plots", "selections", "figures"])
def test_figures_and_tables_know_no_torch(module):
    assert "import torch" not in (PACKAGE / f"{module}.py").read_text()
