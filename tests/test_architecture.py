"""The arrows between the rooms, read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_MODEL_NO_ENGINE = (
    "dlexp.models",
    "dlexp.learners",
    "dlexp.sweep.engine",
    "dlexp.sweep.plan",
    "jax",
    "flax",
    "optax",
)
NO_FILES = ("dlexp.results", "dlexp.data", "dlexp.models", "dlexp.api", "pandas", "pyarrow", "matplotlib")
OUTER = ("dlexp.api", "dlexp.cli", "dlexp.report", "experiments")
FORBIDDEN = {
    "dlexp/types.py": ("dlexp", "jax", "flax", "optax"),
    "dlexp/checks.py": ("dlexp", "jax", "flax", "optax"),
    "dlexp/ops/": (
        *("dlexp.models", "dlexp.losses", "dlexp.optim", "dlexp.learners", "dlexp.data", "dlexp.sweep"),
        *("dlexp.results", "flax", *OUTER),
    ),
    "dlexp/losses.py": ("dlexp.learners", "dlexp.sweep", "dlexp.results", *OUTER),
    "dlexp/optim.py": ("dlexp.learners", "dlexp.sweep", "dlexp.results", *OUTER),
    "dlexp/models/": ("dlexp.learners", "dlexp.sweep", "dlexp.results", "dlexp.data", *OUTER),
    "dlexp/data/": ("dlexp.learners", "dlexp.sweep", "dlexp.results", "jax", "flax", *OUTER),
    "dlexp/theory/": ("dlexp.learners", "dlexp.sweep", "dlexp.results", "dlexp.models", "jax", *OUTER),
    "dlexp/learners/": ("dlexp.sweep", "dlexp.results", "flax", *OUTER),
    "dlexp/learners/supervised.py": ("dlexp.models",),
    "dlexp/sweep/": (*NO_FILES, "dlexp.learners", "flax", "optax", *OUTER),
    "dlexp/results/": (*NO_MODEL_NO_ENGINE, *OUTER),
    "dlexp/study/": (*NO_MODEL_NO_ENGINE, *OUTER),
    "dlexp/study/statistics.py": ("dlexp.study", "matplotlib"),
    "dlexp/study/effects.py": ("dlexp",),
    "dlexp/api.py": ("dlexp.models", "dlexp.learners", "dlexp.cli", "flax", "experiments"),
    "dlexp/cli.py": ("dlexp.models", "dlexp.learners", "dlexp.sweep.engine", "flax", "experiments"),
}


def modules() -> list[Path]:
    return sorted(path for room in ("dlexp", "experiments") for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports when it runs; imports for type checking alone do not count."""
    for node in _running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_arrows_point_one_way(place):
    paths = [path for path in modules() if path.relative_to(ROOT).as_posix().startswith(place)]
    assert paths
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        for room in FORBIDDEN[place]
        if name == room or name.startswith(f"{room}.")
    ]
    assert wrong == []


def test_only_models_import_flax():
    users = [path for path in modules() if any(name.split(".")[0] == "flax" for name in imports(path))]
    assert {path.parent.name for path in users if path.parts[-3] != "experiments"} <= {"models"}


def test_nothing_imports_experiments():
    library = [path for path in modules() if "experiments" not in path.parts]
    assert not [path for path in library for name in imports(path) if name.startswith("experiments")]


def test_functions_stay_short():
    long = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
                length = node.end_lineno - node.lineno + 1 - docstring
                if length > 60:
                    long.append(f"{path.relative_to(ROOT)}:{node.name} has {length} lines")
    assert long == []
