"""What an experiment's own functions must return, checked where they are called first, before anything is compiled.

Each misuse is a sentence that names the function and the line, where it is known, and what to write instead.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax

from dlexp import sources
from dlexp.sweep.grids import Grid
from dlexp.types import Learner, Measurement, Sweep

_TRACING = (
    jax.errors.ConcretizationTypeError,  # a traced value where a Python bool or number is needed
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class Reading(dict):
    """A config that notes in `read` which of its axes were read."""

    def __init__(self, config: Mapping[str, Any], read: set[str]) -> None:
        """Holds the config."""
        super().__init__(config)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        raise _NoSuchAxisError(name)

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self._read |= set(super().keys())
        return super().__iter__()

    def __or__(self, other: Any) -> dict:
        return {**self, **other}

    def __ror__(self, other: Any) -> dict:
        return {**other, **self}

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value on an axis, or the default."""
        return self[name] if name in self else default  # noqa: SIM401 - this is `get`

    def keys(self) -> Any:
        """Returns the axes, all of which count as read."""
        self._read |= set(super().keys())
        return super().keys()

    def values(self) -> Any:
        """Returns the values, all of which count as read."""
        self._read |= set(super().keys())
        return super().values()

    def items(self) -> Any:
        """Returns the pairs, all of which count as read."""
        self._read |= set(super().keys())
        return super().items()

    def copy(self) -> dict:
        """Returns a plain dictionary, all of which counts as read."""
        return dict(self.items())


class _NoSuchAxisError(KeyError):
    """`make_learner` read an axis that its config has not."""


def check_sweeps(declared: Any) -> None:
    """Raises TypeError unless `sweeps(scale)` returned a mapping of names to sweeps, each with a grid."""
    if isinstance(declared, Sweep):
        raise TypeError("an experiment's sweeps must return {name: Sweep}, got a Sweep; write {'main': Sweep(...)}")
    if not isinstance(declared, Mapping):
        raise TypeError(f"an experiment's sweeps must return {{name: Sweep}}, got {_what(declared)}")
    for name, sweep in declared.items():
        if not isinstance(sweep, Sweep):
            raise TypeError(f"sweeps: {name!r} must be a dlexp.types.Sweep, got {_what(sweep)}")
        if not isinstance(sweep.grid, Grid):
            raise TypeError(f"sweep {name}: grid must be made by dlexp.sweep.grid(...), got {_what(sweep.grid)}")
        if not callable(sweep.make_learner):
            raise TypeError(
                f"sweep {name}: make_learner must be a function (config, num_steps) -> Learner, got "
                f"{_what(sweep.make_learner)}; pass the function itself, without calling it"
            )


def guarded(where: str, sweep: Sweep, read: set[str]) -> Sweep:
    """Returns the sweep, whose `make_learner` notes in `read` which axes it reads, now or when it is traced.

    Raises:
      ValueError: when it is called and reads an axis that there is not.
      TypeError: when it is called and returns anything but a Learner or a Measurement.
    """

    def make_learner(config: Mapping[str, Any], num_steps: int) -> Learner | Measurement:
        try:
            made = sweep.make_learner(Reading(config, read), num_steps)
        except _NoSuchAxisError as error:
            name, known = str(error.args[0]), ", ".join(config) or "no axis"
            raise ValueError(
                f"{where}: make_learner reads config[{name!r}] ({sources.own_line(error)}), but the grid's config has "
                f"{known}{_meant(name, config)}"
            ) from None
        if isinstance(made, (Learner, Measurement)):
            return made
        name = getattr(sweep.make_learner, "__name__", "make_learner")
        remedy = "; end it with `return ...`" if made is None else ""
        raise TypeError(f"{where}: {name} must return a Learner (or a Measurement), got {_what(made)}{remedy}")

    return sweep._replace(make_learner=make_learner)


def check_all_read(where: str, grid: Grid, read: Collection[str]) -> None:
    """Raises ValueError at an axis of config that no group has read: each of its values would be trained alike.

    An axis of one value may be there as a label.
    """
    swept = set(grid.hyper_names)
    for name, values in grid.axes.items():
        if len(values) > 1 and name not in swept and name not in (*read, "seed"):
            raise ValueError(
                f"{where}: no group reads the config axis {name!r}, so its values would change nothing; use "
                f"config[{name!r}] in make_learner, correct the name, or take it out of the grid"
            )


def checked(where: str, learner: Learner) -> Learner:
    """Returns the learner, whose functions say in a sentence what is wrong with what they return or raise.

    Raises:
      TypeError: when they are traced and return something else than the contract says.
      ValueError: when they read a swept value that is not declared, or need the number behind a traced value.
    """

    def guarded(name: str, function: Callable, check: Callable[[tuple, Any], None]) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **told: Any) -> Any:
            try:
                returned = function(*args, **told)
            except Exception as error:
                explained = _explained(where, name, learner, error)
                if explained is None:
                    raise
                raise explained from None
            check(args, returned)
            return returned

        return call

    def check_metrics(name: str, metrics: Any) -> None:
        if not isinstance(metrics, Mapping):
            remedy = "return {'test/loss': loss, ...}"
            raise TypeError(f"{where}: {name} must return a dictionary of metrics, got {_what(metrics)}; {remedy}")

    def check_update(args: tuple, returned: Any) -> None:
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            remedy = "return the state and a dictionary, `return state, {'batch/loss': loss}` (it may be empty)"
            raise TypeError(f"{where}: update must return (state, metrics), got {_what(returned)}; {remedy}")
        _check_same_state(where, args[-1], returned[0])

    return learner._replace(
        init=guarded("init", learner.init, lambda args, returned: None),
        evaluate=guarded("evaluate", learner.evaluate, lambda args, returned: check_metrics("evaluate", returned)),
        update=learner.update and guarded("update", learner.update, check_update),
        draw=guarded("draw", learner.draw, lambda args, returned: None),
    )


def _check_same_state(where: str, before: Any, after: Any) -> None:
    """A state that changes its structure, shapes or types cannot be looped over."""
    sentence = f"{where}: update must return a state of the same structure and shapes as init's"
    structures: list[Any] = [jax.tree.structure(before), jax.tree.structure(after)]
    if structures[0] != structures[1]:
        raise TypeError(f"{sentence}; init's is {_what(before)}, update's {_what(after)}, or their entries differ")
    leaves = jax.tree_util.tree_leaves_with_path(before)
    for (path, old), new in zip(leaves, jax.tree.leaves(after), strict=True):
        old, new = jax.typeof(old), jax.typeof(new)
        if old.shape != new.shape or (old.dtype != new.dtype and not getattr(old, "weak_type", False)):
            name = jax.tree_util.keystr(path) or "the state"
            raise TypeError(f"{sentence}: {name} is {old.str_short()} before a step and {new.str_short()} after it")


def _explained(where: str, name: str, learner: Learner, error: Exception) -> Exception | None:
    """A sentence in place of an error of the user's own function, None where the error says it best itself."""
    line = sources.own_line(error)
    if line is None:
        return None
    if isinstance(error, _TRACING):
        return ValueError(
            f"{where}: {name} is traced by JAX, so that a value in it has no number yet that Python could branch on, "
            f"index by or convert ({line}); use jnp.where or jax.lax.cond, jax.numpy in place of numpy, or put a "
            "static choice into config"
        )
    if isinstance(error, KeyError) and "hyper[" in line.text and error.args and error.args[0] not in learner.hyper:
        missing, known = error.args[0], ", ".join(sorted(learner.hyper)) or "nothing"
        return ValueError(
            f"{where}: {name} reads hyper[{missing!r}] ({line}), but the learner declares {known}; declare it in "
            f"Learner(hyper={{{missing!r}: Range(...)}}){_meant(str(missing), learner.hyper)}"
        )
    return None


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [str(each) for each in known], 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _what(value: Any) -> str:
    """Names what came in place of what is required."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)}"
    return f"{value!r}" if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
