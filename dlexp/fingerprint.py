"""A fingerprint of the code that decides what a run means, so that changed code is not taken for the saved one.

It covers `make_learner` and everything that it reaches in files of the user's own: functions, classes and constants of
the same file, and of files it imports. The grid is not part of it (runs are identified by their points), nor are
figures and claims, nor dlexp and other installed packages. Comments, docstrings and layout change nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

import dlexp
from dlexp.results.files import ResultsError
from dlexp.sources import is_own_file
from dlexp.sweep import scales
from dlexp.types import Experiment, Sweep

_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def of(make_learner: Callable) -> str | None:
    """Returns 20 hexadecimal digits; None where the source is not there to be read, as in an interactive session."""
    reader = _Reader()
    described = reader.value(make_learner)
    if reader.is_incomplete:
        return None
    return hashlib.blake2b(described.encode(), digest_size=10).hexdigest()


def file_of(function: Callable) -> str:
    """Returns the name of the file that a function is written in, without its folder; empty where there is none."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    path = Path(code.co_filename) if isinstance(code, CodeType) else Path()
    return path.name if path.is_file() else ""


def code_of(sweep: Sweep) -> dict[str, str | None]:
    """Returns what a manifest keeps of the code that a sweep is trained by."""
    make_learner = sweep.make_learner
    return {"file": file_of(make_learner), "fingerprint": of(make_learner), "dlexp": dlexp.__version__}


def check(
    experiment: Experiment, sweeps: Mapping[str, Sweep], scale: str, manifest: Mapping[str, Any], folder: Path
) -> None:
    """Compares the code of sweeps with the code that their saved runs were trained by, where a manifest knows it.

    Raises:
      ResultsError: where they differ; or where the folder has a sweep of another file that this experiment has not.
    """
    saved = manifest.get("sweeps", {})
    known = {name: sweep["code"] for name, sweep in saved.items() if sweep.get("code")}
    for name, code in known.items():
        now = code_of(sweeps[name]) if name in sweeps else None
        if now and now["fingerprint"] and code["fingerprint"] and now["fingerprint"] != code["fingerprint"]:
            raise ResultsError(_changed(experiment, name, code, now, folder))
    files = {file_of(sweep.make_learner) for sweep in sweeps.values()}
    strangers = [name for name, code in known.items() if code["file"] and code["file"] not in files]
    strangers = [name for name in strangers if name not in sweeps and name not in scales.sweeps(experiment, scale)]
    if strangers and any(files):
        raise ResultsError(
            f"{folder} holds sweep {strangers[0]} of {known[strangers[0]]['file']}, another experiment of the name "
            f"{experiment.name}; give one of them another name, or keep both here with --accept"
        )


def _changed(experiment: Experiment, sweep: str, saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> str:
    is_moved = saved["file"] and now["file"] and saved["file"] != now["file"]
    origin = f"another file, {saved['file']}," if is_moved else "other code"
    changed = f"than {now['file']}" if is_moved else f"than {now['file'] or 'make_learner'} has now"
    version = f" (dlexp was at {saved['dlexp']})" if saved.get("dlexp", now["dlexp"]) != now["dlexp"] else ""
    remedy = "give this experiment another name, " if is_moved else ""
    return (
        f"sweep {sweep} in {folder} was trained by {origin} {changed}{version}; {remedy}train it again with --fresh, "
        f"raise the experiment's version (now {experiment.version}), or, if its runs still mean the same, keep them "
        "with --accept"
    )


class _Reader:
    """Writes values and the code behind them as text; what was met before is written once."""

    def __init__(self) -> None:
        self._met: dict[Any, Any] = {}  # with the value itself: the id of one that is gone is given to another
        self.is_incomplete = False

    def value(self, value: Any) -> str:
        """Returns the text of a value that code refers to."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if id(value) in self._met:
            return "met"
        self._met[id(value)] = value
        if isinstance(value, functools.partial):
            named = {name: self.value(each) for name, each in value.keywords.items()}
            return f"partial({self.value(value.func)}, {self.value(value.args)}, {named})"
        if isinstance(value, (list, dict, set)):
            return type(value).__name__  # what is put into it while runs are trained, as into a cache, is no code
        if isinstance(value, tuple):
            return f"({', '.join(map(self.value, value))})"
        if isinstance(value, np.ndarray):
            content = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=10).hexdigest()
            return f"array({value.dtype}, {value.shape}, {content})"
        return self._code_of(value)

    def _code_of(self, value: Any) -> str:
        if isinstance(value, MethodType):
            return f"{self.value(value.__func__)} of {self.value(value.__self__)}"
        if isinstance(value, FunctionType):
            return self._function(inspect.unwrap(value))
        if isinstance(value, ModuleType):
            return self._module(value)
        kind = value if isinstance(value, type) else type(value)
        if _is_own(sys.modules.get(kind.__module__)):
            attributes = {} if isinstance(value, type) else getattr(value, "__dict__", {})
            held = {name: self.value(each) for name, each in attributes.items()}
            return f"{self._names(_path_of(kind), [kind.__qualname__.split('.')[0]], {})} {held}"
        return kind.__qualname__

    def _function(self, function: Callable) -> str:
        code, file = function.__code__, function.__code__.co_filename
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        held = {name: self.value(cell.cell_contents) for name, cell in cells if _is_filled(cell)}
        if not is_own_file(file):
            return f"{function.__name__} with {held}"
        nodes = [node for node in ast.walk(self._tree(file)) if _is_of(node, code)]
        if not nodes:
            self.is_incomplete = True
        used = {name for node in nodes for name in _names_used(node)} - held.keys()
        return f"{' '.join(map(_text, nodes))} with {held} {self._names(file, used, function.__globals__)}"

    def _module(self, module: ModuleType) -> str:
        if not _is_own(module):
            return module.__name__
        return f"{_text(self._tree(str(module.__file__)))}"

    def _names(self, file: str, names: Iterable[str], known: Mapping[str, Any]) -> str:
        """The statements of a file that make these names what they are, and those that make theirs."""
        statements, texts, waiting = self._tree(file).body, list[str](), sorted(names)
        while waiting:
            name = waiting.pop(0)
            if (file, name) in self._met:
                continue
            self._met[file, name] = None
            makers = [each for each in statements if name in _names_made(each)]
            makers += [each for each in statements if not _names_made(each) and _is_about(each, name)]
            if not makers and name in known:
                texts.append(f"{name} = {self.value(known[name])}")
            for statement in makers:
                texts.append(self._statement(statement, file, name))
                waiting += sorted(_names_used(statement) - set(waiting))
        return "\n".join(texts)

    def _statement(self, statement: ast.stmt, file: str, name: str) -> str:
        """What an import brings from another file of the user's is written out, too."""
        if (file, id(statement)) in self._met:
            return ""
        if isinstance(statement, ast.Import):
            brought = [self.value(module) for each in statement.names if (module := sys.modules.get(each.name))]
            return f"{_text(statement)} {' '.join(brought)}"
        if isinstance(statement, ast.ImportFrom):
            return f"{_text(statement)} {self._brought(statement, file, name)}"
        self._met[file, id(statement)] = None
        return _text(statement)

    def _brought(self, statement: ast.ImportFrom, file: str, name: str) -> str:
        importer = next((each for each in list(sys.modules.values()) if getattr(each, "__file__", None) == file), None)
        value = getattr(importer, name, None)
        origin = sys.modules.get(statement.module or "")
        if isinstance(value, ModuleType):
            return self.value(value)
        if origin is None or not _is_own(origin):
            return ""
        original = next(each.name for each in statement.names if (each.asname or each.name) == name)
        return self._names(str(origin.__file__), [original], vars(origin))

    def _tree(self, file: str) -> ast.Module:
        linecache.checkcache(file)
        lines = linecache.getlines(file)
        if not lines:
            self.is_incomplete = True
        return _parsed("".join(lines))


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> ast.Module:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a notebook's cell with a line for its shell
        return ast.Module([], [])
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return tree


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


def _is_of(node: ast.AST, code: CodeType) -> bool:
    """Whether a node is the function or lambda that this code was compiled from; a decorator is its first line."""
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return node.name == code.co_name and first == code.co_firstlineno


def _names_used(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _names_made(statement: ast.stmt) -> set[str]:
    return set(_made(statement))


def _made(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from ((each.asname or each.name).partition(".")[0] for each in statement.names)
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name


def _is_about(statement: ast.stmt, name: str) -> bool:
    """Whether a statement that makes no name, such as a call, is about one."""
    return isinstance(statement, ast.Expr) and name in _names_used(statement)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - empty ones raise
    except ValueError:
        return False
    return True


def _is_own(module: ModuleType | None) -> bool:
    return module is not None and is_own_file(getattr(module, "__file__", None) or "")


def _path_of(kind: type) -> str:
    return str(getattr(sys.modules.get(kind.__module__), "__file__", "") or "")
