"""The house's shape: imports run in one direction, and files stay small."""

import ast
from pathlib import Path

import pytest

import aamlib

PACKAGE = Path(aamlib.__file__).parent
# Each module may import only those before it.
ORDER = [
    "runtime",
    "config",
    "files",
    "networks",
    "trunks",
    "acquisition",
    "replay",
    "scoring",
    "starts",
    "runs",
    "tensorboard",
    "stats",
    "comparison",
    "plots",
    "selections",
    "figures",
    "evidence",
    "report",
    "publish",
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
    "widgets.base",
    "widgets.expert",
    "widgets.round",
    "widgets.selection",
    "widgets.scatter",
    "widgets.__init__",
    "sample",
    "__init__",
]


def source(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def imports(module):
    """What the module imports of aamlib; "from aamlib import figures" is read as a module's name."""
    imported = [node for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.ImportFrom)]
    names = {node.module.removeprefix("aamlib.") for node in imported if (node.module or "").startswith("aamlib.")}
    return names | {alias.name for node in imported if node.module == "aamlib" for alias in node.names}


def test_every_module_has_its_place():
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    assert sorted(".".join(path.parts) for path in paths) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_in_one_direction(module):
    assert imports(module) - {module} <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", ORDER)
def test_modules_stay_thin(module):
    assert len(source(module).splitlines()) <= 340


@pytest.mark.parametrize("module", ["stats", "comparison", "plots", "selections", "figures", "evidence", "publish"])
def test_figures_and_tables_know_no_torch(module):
    assert "import torch" not in source(module)
