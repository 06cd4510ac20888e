"""The house's shape: imports run in one direction."""

import ast
import graphlib
from pathlib import Path

import aamlib

PACKAGE = Path(aamlib.__file__).parent


def imports(path):
    """The modules of aamlib that a file imports; "from aamlib import figures" is read as a module's name."""
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {node.module.removeprefix("aamlib.") for node in imported if (node.module or "").startswith("aamlib.")}
    return names | {alias.name for node in imported if node.module == "aamlib" for alias in node.names}


def test_imports_run_in_one_direction():
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {module: imports(path) - {module} for module, path in paths.items()}
    assert set().union(*graph.values()) <= set(paths)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError and names the circle
