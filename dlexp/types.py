"""The contracts between the rooms: named tuples of pure functions, and nothing that runs by itself."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from dlexp.results.table import Results
    from dlexp.study.claims import Claim
    from dlexp.sweep.grids import Grid

Key: TypeAlias = "jax.Array"
Hyper: TypeAlias = "Mapping[str, jax.Array]"
Metrics: TypeAlias = "Mapping[str, jax.Array]"
Config = Mapping[str, Any]
PyTree = Any


class Range(NamedTuple):
    """The legal values of one swept hyperparameter: the mark that says it may be swept.

    Attributes:
      low: smallest legal value (itself legal unless `open_low`).
      high: largest legal value (itself legal unless `open_high`).
      default: value of a run whose grid does not name it; None means the grid must.
      integer: whether the value is an int32 in the compiled program (else a float).
      open_low: whether `low` itself is illegal.
      open_high: whether `high` itself is illegal.
    """

    low: float = -math.inf
    high: float = math.inf
    default: float | None = None
    integer: bool = False
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or not abs(value) < math.inf:
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and (not self.integer or isinstance(value, int) or value.is_integer())

    def first_illegal(self, values: Sequence[float], dtype: Any) -> int | None:
        """Returns the place of the first value that is illegal as a number of a dtype, None where all are legal.

        A program gets the value rounded to the dtype, and takes what is smaller than its smallest normal number for 0:
        that has to be legal too, between bounds rounded likewise. What an integer dtype cannot hold is illegal.
        """
        declared, limits = np.asarray(values, np.float64), np.array([self.low, self.high])
        if is_integer := np.issubdtype(dtype, np.integer):
            used, (low, high) = declared, np.clip(limits, np.iinfo(dtype).min, np.iinfo(dtype).max)
        else:
            used, (low, high) = rounded_to(declared, dtype), rounded_to(limits, dtype)
        legal = np.isfinite(used) & (declared >= self.low) & (declared <= self.high)
        legal &= (used > low) if self.open_low else (used >= low)
        legal &= (used < high) if self.open_high else (used <= high)
        if self.integer or is_integer:
            legal &= declared == np.floor(declared)
        return None if legal.all() else int(np.argmin(legal))

    def __str__(self) -> str:
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        kind = "an integer" if self.integer else "a number"
        return f"{kind} in {left}{self.low:g}, {self.high:g}{right}"


def rounded_to(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns what programs take numbers for in a dtype of floats: 0 where they are smaller than its normal numbers."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    return np.where(np.abs(rounded) < np.finfo(dtype).tiny, rounded.dtype.type(0), rounded)


class Model(NamedTuple):
    """A network as pure functions of one run; batch statistics travel in `variables`.

    Attributes:
      init: `(key, hyper, inputs) -> variables`, a mapping with at least the collection `params`.
      apply: `(variables, hyper, inputs, *, key, train) -> (outputs, variables)`.
      hyper: the swept values that `init` and `apply` read, with their legal ranges.
      is_separable: whether each example goes its own way in training, too: no batch statistics, no chance.
    """

    init: Callable[[Key, Hyper, jax.Array], PyTree]
    apply: Callable[..., tuple[jax.Array, PyTree]]
    hyper: Mapping[str, Range] = {}
    is_separable: bool = False


def _the_key_itself(key: Key, hyper: Hyper, data: PyTree) -> Key:
    return key


class Learner(NamedTuple):
    """All that one run does, as pure functions; the engine adds the axis of runs.

    Metric names hold a slash (`test/accuracy`); a metric is a scalar or an array of fixed shape, and finite
    as long as the run is healthy.

    Attributes:
      data: pytree of host arrays; the engine puts it on the devices and passes it as an argument.
      hyper: what may be swept, with its legal range.
      init: `(key, hyper, data) -> state`.
      update: `(drawn, hyper, data, state) -> (state, metrics)`, one optimizer step; None where nothing is trained. If
        it has a parameter `step`, it is told by that name how many steps were made: an int32 that is the same for all
        runs of a call, so that `jax.lax.cond` on it computes one branch alone.
      evaluate: `(key, hyper, data, state) -> metrics`, at step 0 and at each evaluation.
      draw: `(key, hyper, data) -> drawn`, what chance decides in a step whatever the state, such as the rows of a
        batch: the engine draws for many steps at once, which costs less. Without it, `drawn` is the step's key.
        It is told `step` as `update` is.
    """

    data: PyTree
    hyper: Mapping[str, Range]
    init: Callable[[Key, Hyper, PyTree], PyTree]
    update: Callable[[PyTree, Hyper, PyTree, PyTree], tuple[PyTree, Metrics]] | None
    evaluate: Callable[[Key, Hyper, PyTree, PyTree], Metrics]
    draw: Callable[[Key, Hyper, PyTree], PyTree] = _the_key_itself

    @property
    def is_told_the_step(self) -> bool:
        """Whether `update` or `draw` asks for the number of steps made so far."""
        asking = [each for each in (self.update, self.draw) if each and "step" in inspect.signature(each).parameters]
        return bool(asking)

    def step(
        self, key: Key, hyper: Hyper, data: PyTree, state: PyTree, step: jax.Array | int = 0
    ) -> tuple[PyTree, Metrics]:
        """One `update` with a `draw` of its own, after so many steps.

        Raises:
          TypeError: where nothing is trained.
        """
        if self.update is None:
            raise TypeError("this learner has no update: nothing is trained")
        return self.told(self.update, step)(self.told(self.draw, step)(key, hyper, data), hyper, data, state)

    @staticmethod
    def told(function: Callable[..., Any], step: jax.Array | int) -> Callable[..., Any]:
        """Returns `update` or `draw`, told the number of steps made so far if it has a parameter `step`."""
        if "step" not in inspect.signature(function).parameters:
            return function
        return functools.partial(function, step=step)


class Measurement(NamedTuple):
    """A run that is no program of JAX: a baseline of another library, a benchmark. It stands in a Learner's place.

    Runs are measured one after another in this process, nothing else beside them.

    Attributes:
      measure: `(hyper, seed) -> metrics`, plain numbers or arrays of fixed shape, names with a slash.
      hyper: what may be swept, with its legal range.
    """

    measure: Callable[[Mapping[str, float], int], Mapping[str, Any]]
    hyper: Mapping[str, Range] = {}


class Sweep(NamedTuple):
    """All runs of a grid, trained equally long.

    Attributes:
      grid: the points and seeds (`dlexp.sweep.grid`).
      make_learner: `(config, num_steps) -> Learner`, called once per group; or a Measurement, where num_steps is 0.
      num_steps: optimizer steps of each run; 0 measures at initialization only.
      num_evals: evaluations after step 0, evenly spaced; must divide `num_steps`.
    """

    grid: Grid
    make_learner: Callable[[Config, int], Learner | Measurement]
    num_steps: int
    num_evals: int = 1


class Experiment(NamedTuple):
    """One question and all it takes to answer it.

    Attributes:
      name: `section.module`, unique; also the folder of its results.
      version: part of every run's identity; raise it when the meaning of the code or its constants changes.
      doc: the module's docstring; its first line is the question and ends with a question mark.
      sweeps: `() -> {name: Sweep}` at the size for two CPU cores, from which `smoke` and `gpu` are derived
        (`dlexp.sweep.scales`); or `scale -> {name: Sweep}`, which says all three itself.
      figures: functions `results -> Figure` of saved results alone; a figure has its function's name, and one whose
        runs the grid lacks (`NotMeasuredError`) is left out.
      claims: `results -> [Claim]`, from saved results alone.
    """

    name: str
    version: int
    doc: str
    sweeps: Callable[..., Mapping[str, Sweep]]
    figures: Sequence[Callable[[Results], Figure]] = ()
    claims: Callable[[Results], Sequence[Claim]] = lambda results: ()

    @property
    def question(self) -> str:
        """The first line of the docstring."""
        return self.doc.strip().splitlines()[0].strip() if self.doc and self.doc.strip() else ""
