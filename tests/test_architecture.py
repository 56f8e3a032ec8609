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


def words(path: Path) -> set[str]:
    """Every name that a file uses or imports, and every string in it but its docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.update(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.add(node.value)
    return found


TRICKS = {"optimization_barrier", "custom_jvp", "custom_vjp", "custom_vmap", "with_layout_constraint", "XLA_FLAGS"}
ABOUT_PLATFORMS = {"dlexp/sweep/machine.py", "dlexp/sweep/layouts.py", "dlexp/sweep/programs.py"}


def test_only_ops_holds_barriers_derivatives_of_its_own_layouts_in_memory_and_flags():
    users = {path.relative_to(ROOT).as_posix(): TRICKS & words(path) for path in modules()}
    assert {path: used for path, used in users.items() if used and not path.startswith("dlexp/ops/")} == {}


def test_only_ops_asks_for_the_backend_and_only_where_no_mesh_has_said_it():
    asking = [path.relative_to(ROOT).as_posix() for path in modules() if "default_backend" in words(path)]
    assert asking == ["dlexp/ops/compiler.py"]


def test_only_ops_and_the_rooms_of_the_machine_know_a_platform_by_name():
    def names_one(path: Path) -> bool:
        comparisons = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
        return any("'cpu'" in ast.unparse(node) and "platform" in ast.unparse(node) for node in comparisons)

    naming = {path.relative_to(ROOT).as_posix() for path in modules() if names_one(path)}
    assert {path for path in naming if path.startswith("dlexp/") and "/ops/" not in path} <= ABOUT_PLATFORMS


def test_nothing_imports_experiments():
    library = [path for path in modules() if "experiments" not in path.parts]
    assert not [path for path in library for name in imports(path) if name.startswith("experiments")]


def lengths(path: Path) -> dict[str, int]:
    """Lines of each function of a file, docstrings left out."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            found[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1 - docstring
    return found


def longer_than(num_lines: int, *rooms: str) -> dict[str, int]:
    paths = [path for path in modules() if path.relative_to(ROOT).as_posix().startswith(rooms)]
    return {name: length for path in paths for name, length in lengths(path).items() if length > num_lines}


def test_functions_stay_short():
    assert longer_than(60, "dlexp/", "experiments/") == {}


def test_functions_stay_shorter_where_programs_are_made():
    rooms = ("dlexp/ops/", "dlexp/models/", "dlexp/sweep/", "dlexp/losses.py", "dlexp/optim.py")
    assert longer_than(40, *rooms) == {}
