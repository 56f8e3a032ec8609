"""Measures: one number a seed from the runs of a sweep, with the words that say what it is.

A measure is applied to results, the name of a sweep, and what is fixed or varied. Several values of an axis are
several conditions:

    accuracy = at_best("test/accuracy")
    accuracy(results, "rates", placement="before", num_layers=(2, 10))  # an Effect under two conditions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from dlexp.results.table import NotMeasuredError, Part, Table
from dlexp.study import statistics
from dlexp.study.effects import Effect, Labels, Values

Sweeps: TypeAlias = "str | Sequence[str] | Mapping[str, str] | None"
Source: TypeAlias = "Mapping[str, Table] | Table"  # results, any tables by title, or one
Cases: TypeAlias = "Mapping[str, Mapping[str, Any]]"
RATE = "learning_rate"


@dataclass(frozen=True)
class Among:
    """Several values of an axis that belong to one condition: `learning_rate=Among(COARSE)`."""

    values: Sequence[Any]

    def __str__(self) -> str:
        return "among " + ", ".join(map(_shown, self.values))


@dataclass(frozen=True)
class Measure:
    """One number a seed.

    Attributes:
      words: what it is, such as "test accuracy at the best learning rate by validation".
      of: from runs that differ in the chosen axes and the seed alone to `[seed]`, in the order of the seeds.
      metric: the metric whose last value it is, where it is one.
      choose: from the same runs to those at the chosen values, where it chooses.
      failed: what a run without a finite value counts as.
    """

    words: str
    of: Callable[[Table], Values]
    metric: str | None = None
    choose: Callable[[Table], Mapping[str, Any]] | None = None
    failed: float = np.nan

    def __call__(self, source: Source, sweep: Sweeps = None, cases: Cases | None = None, /, **axes: Any) -> Effect:
        """Returns the effect under every condition.

        Args:
          source: results, any tables by title, or one table.
          sweep: the name of a sweep of the results; several names, or name -> title, are several conditions; None
            takes all sweeps, or the table itself.
          cases: label of a condition -> the values it fixes, where they are no product of axes.
          axes: the value of an axis; several values in a list, tuple, range or as keys of value -> title are several
            conditions each; `Among(values)` is one condition with all of them.
        """
        fixed = {name: value for name, value in axes.items() if not _is_several(value)}
        varied = [_options(name, value) for name, value in axes.items() if _is_several(value)]
        varied = [cases, *varied] if cases is not None else varied
        conditions: dict[Labels | str, Callable[[], Values]] = {}
        for title, table in tables_of(source, sweep).items():
            for options in product(*(each.items() for each in varied)):
                labels = tuple(filter(None, [title, *(name for name, _ in options)]))
                case = fixed | {name: value for _, chosen in options for name, value in chosen.items()}
                conditions[labels] = partial(self._measured, table, case)
        return Effect(self.words, conditions, {name: f"{spoken(name)} {_shown(v)}" for name, v in fixed.items()})

    def with_words(self, words: str) -> Measure:
        """Returns the same measure, said in other words."""
        return replace(self, words=words)

    def _measured(self, table: Callable[[], Table], case: Mapping[str, Any]) -> Values:
        return self.of(pick(table(), case))


def measure(words: str) -> Callable[[Callable[[Table], Values]], Measure]:
    """Makes a measure of a function from runs to one number a seed: `@measure("pieces of the network")`."""
    return lambda of: Measure(words, of)


def last(metric: str, *, failed: float | None = None) -> Measure:
    """Returns the measure of a metric's last value, of runs that differ in the seed alone."""
    lost = lost_value(metric) if failed is None else failed
    return Measure(spoken(metric), lambda runs: _final(runs, metric, lost), metric, lambda runs: {}, lost)


def at_best(
    metric: str, *, over: str | Sequence[str] = RATE, by: str | None = None, failed: float | None = None
) -> Measure:
    """Returns the measure of a metric's last value at the best values of some axes: a variant at its own best rate.

    Args:
      metric: its name.
      over: the axis or axes to choose on; those that the runs lack are left out.
      by: the metric that chooses by its mean over seeds; default validation accuracy, else validation loss. A run
        without a finite value counts there as the worst possible.
      failed: what a run without a finite value counts as in `metric`; default `lost_value(metric)`.
    """
    lost = lost_value(metric) if failed is None else failed
    wanted = (over,) if isinstance(over, str) else tuple(over)

    def choose(runs: Table) -> Mapping[str, Any]:
        there = [name for name in wanted if name in runs.frame]
        return statistics.chosen(runs, there, choose_by=by) if there else {}

    names = " and ".join(filter(None, [", ".join(map(spoken, wanted[:-1])), *map(spoken, wanted[-1:])]))
    words = f"{spoken(metric)} at the best {names} by {spoken(by) if by else 'validation'}"
    return Measure(words, lambda runs: _final(runs.select(**choose(runs)), metric, lost), metric, choose, lost)


def stopped(metric: str, *, by: str, patience: float = np.inf) -> Measure:
    """Returns the measure of a metric at the evaluation that early stopping keeps.

    Args:
      metric: its name.
      by: the metric that is watched, such as validation accuracy.
      patience: how many evaluations without a better one end the training; default: the best of all.
    """

    def of(runs: Table) -> Values:
        kept = statistics.stopped_at(runs, by, patience)
        return runs.curves(metric)[np.arange(len(kept)), kept][np.argsort(runs.frame["seed"].to_numpy(), kind="stable")]

    if patience == np.inf:
        return Measure(f"{spoken(metric)} at the step of the best {spoken(by)}", of)
    return Measure(
        f"{spoken(metric)} where training stops, after {patience} evaluations with no better {spoken(by)}", of
    )


def train_minus_test(kind: str = "accuracy", *, over: str | Sequence[str] = RATE) -> Measure:
    """Returns the measure of the training minus the test value of a metric, both at the best values of some axes."""
    train, test = (at_best(f"{split}/{kind}", over=over) for split in ("train", "test"))
    words = f"training minus {test.words}"
    return Measure(words, lambda runs: np.asarray(train.of(runs)) - np.asarray(test.of(runs)))


def highest_good(tolerance: float, *, metric: str = "validation/accuracy", over: str = RATE) -> Measure:
    """Returns the measure of log10 of the highest axis value within a tolerance of each seed's own best."""

    def of(runs: Table) -> Values:
        return statistics.highest_good(statistics.by_seed(runs, metric, over, failed=0.0), tolerance)

    words = f"log10 of the highest {spoken(over)} whose {spoken(metric)} is within {tolerance:g} of the seed's best"
    return Measure(words, of)


def spread_over(
    axis: str,
    *,
    metric: str = "test/accuracy",
    by: str = "validation/accuracy",
    over: str | Sequence[str] = RATE,
    failed: float | None = None,
) -> Measure:
    """Returns the measure of a metric at the best minus at the worst value of an axis, by the mean of another.

    At each value of the axis the axes of `over` are at their own best.
    """
    wanted = tuple(name for name in ((over,) if isinstance(over, str) else over) if name != axis)
    reported, choosing = (
        at_best(each, over=wanted, by=by, failed=lost) for each, lost in ((metric, failed), (by, None))
    )

    def of(runs: Table) -> Values:
        tables = [runs.select(**{axis: value}) for value in values_of(runs, axis)]
        ranked = sorted(tables, key=lambda table: np.mean(choosing.of(table)))
        return np.asarray(reported.of(ranked[-1])) - np.asarray(reported.of(ranked[0]))

    own = f", each at its own best {' and '.join(map(spoken, wanted))}" if wanted else ""
    words = f"{spoken(metric)} at the best minus at the worst {spoken(axis)}{own}, by {spoken(by)}"
    return Measure(words, of)


def inside_minus_outside(
    axis: str, low: float, high: float, *, metric: str = "test/accuracy", over: str | Sequence[str] = RATE
) -> Measure:
    """Returns the measure of a metric at the best value of an axis from low to high minus at the best one beyond.

    At each value of the axis the axes of `over` are at their own best.
    """
    others = tuple(name for name in ((over,) if isinstance(over, str) else over) if name != axis)
    best = at_best(metric, over=(axis, *others))

    def of(runs: Table) -> Values:
        values = values_of(runs, axis)
        inside = (values > 0.999 * low) & (values < 1.001 * high)
        if inside.all() or not inside.any():
            where = "outside" if inside.all() else "in"
            raise NotMeasuredError(f"sweep {runs.name} has no {spoken(axis)} {where} {low:g} to {high:g}")
        within, without = (best.of(runs.select(**{axis: values[side]})) for side in (inside, ~inside))
        return np.asarray(within) - np.asarray(without)

    words = f"{spoken(metric)} at the best {spoken(axis)} from {low:g} to {high:g} minus at the best one outside"
    own = f", each at its own best {' and '.join(map(spoken, others))}, all" if others else ", both"
    return Measure(f"{words}{own} by validation", of)


def share(words: str, holds: Callable[[Table], np.ndarray]) -> Measure:
    """Returns the measure of the share of a seed's runs for which something holds, `holds(runs) -> [run]`."""

    def of(runs: Table) -> Values:
        return runs.frame[["seed"]].assign(holds=holds(runs)).groupby("seed")["holds"].mean().to_numpy()

    return Measure(f"share of the runs that {words}", of)


def decades(metric: str, quantity: str, *, squared: bool = False) -> Measure:
    """Returns the measure of how much a quantity grows from the last layer to the first before training.

    Args:
      metric: natural logarithms by layer.
      quantity: what it is, in words.
      squared: whether the logarithms are of its square.
    """

    def of(runs: Table) -> Values:
        logs = runs.curves(metric)[:, 0]
        return (logs[:, 0] - logs[:, -1]) / np.log(10) / (2 if squared else 1)

    return Measure(f"decades by which the {quantity} grows from the last layer to the first", of)


def lost_value(metric: str) -> float:
    """Returns what a run without a finite value counts as: what guessing one of ten classes gives.

    That is an accuracy of 0.1, an error of 0.9, a loss of log 10 nats; NaN for every other metric.
    """
    guesses = {"accuracy": 0.1, "error": 0.9, "loss": float(np.log(10))}
    return next((guess for kind, guess in guesses.items() if metric.endswith(kind)), np.nan)


def spoken(name: str) -> str:
    """Returns a metric's or an axis' name in words.

    >>> spoken("test/accuracy"), spoken("train/loss"), spoken("learning_rate")
    ('test accuracy', 'training loss', 'learning rate')
    """
    return name.replace("train/", "training/").replace("/", " ").replace("_", " ")


def pick(table: Table, case: Mapping[str, Any]) -> Table:
    """Returns the runs with these values.

    Raises:
      NotMeasuredError: where there are none, or the sweep has no such axis.
    """
    for name in case:
        if name not in (*table.axes, "seed", "status"):
            raise NotMeasuredError(f"sweep {table.name} has no axis {name!r}; it has {', '.join(table.axes)}")
    values = {name: list(value.values) if isinstance(value, Among) else value for name, value in case.items()}
    return table.select(**values) if values else table


def with_metric(table: Table, name: str, of: Callable[[Table], np.ndarray]) -> Table:
    """Returns the table with one more metric, made from the others by `of(runs) -> [run, evaluation, ...]`."""
    parts = (Part(part.frame, {**part.metrics, name: of(replace(table, parts=(part,)))}) for part in table.parts)
    return replace(table, parts=tuple(parts))


def with_axis(table: Table, name: str, of: Callable[[pd.DataFrame], Sequence[Any] | pd.Series]) -> Table:
    """Returns the table with one more axis, made from the others by `of(frame) -> [run]`."""
    parts = (Part(part.frame.assign(**{name: of(part.frame)}), part.metrics) for part in table.parts)
    return replace(table, parts=tuple(parts), axes=(*table.axes, name))


def _final(runs: Table, metric: str, failed: float) -> np.ndarray:
    if metric not in runs.frame:
        raise NotMeasuredError(f"sweep {runs.name} has no metric {metric!r}; it has {', '.join(runs.metrics)}")
    frame = runs.frame.sort_values("seed")
    if frame["seed"].duplicated().any():
        others = ", ".join(statistics.differing(runs))
        raise ValueError(f"{metric}: the runs of sweep {runs.name} differ in {others}; fix a value of each")
    return frame[metric].where(frame["status"] == "ok", failed).to_numpy(float)


def values_of(runs: Table, axis: str) -> np.ndarray:
    """Returns the values of an axis that the runs have, sorted.

    Raises:
      NotMeasuredError: where there is no such axis.
    """
    if axis not in runs.frame:
        raise NotMeasuredError(f"sweep {runs.name} has no axis {axis!r}; it has {', '.join(runs.axes)}")
    return np.unique(runs.frame[axis])


def tables_of(source: Source, sweep: Sweeps) -> dict[str, Callable[[], Table]]:
    """Returns title -> function that returns the table; the title of one sweep named by itself is ""."""
    if isinstance(source, Table):
        if sweep is not None:
            raise TypeError(f"a table is one sweep already; give results to choose the sweep {sweep!r}")
        return {"": lambda: source}
    if isinstance(sweep, str):
        return {"": partial(_table, source, sweep)}
    names = source if sweep is None else sweep
    titles = names if isinstance(names, Mapping) and names is not source else {name: name for name in names}
    return {str(title): partial(_table, source, name) for name, title in titles.items()}


def _table(source: Mapping[str, Table], name: str) -> Table:
    if name not in source:
        raise NotMeasuredError(f"there is no finished run of sweep {name!r}; there are {', '.join(source) or 'none'}")
    return source[name]


def _is_several(value: Any) -> bool:
    return isinstance(value, (list, tuple, range, Mapping, np.ndarray))


def _options(name: str, values: Any) -> Cases:
    if isinstance(values, Mapping):
        return {str(title): {name: value} for value, title in values.items()}
    return {f"{spoken(name)} {_shown(value)}": {name: value} for value in values}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
