"""Lines: a metric or a measure over an axis, over steps or over layers, with hue, panels, bands and theory.

    lines(results, "rates", "test/accuracy", x="learning_rate", hue=by("optimizer", TITLES), xscale="log")

gives the panels that `side_by_side` puts into a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dlexp.results.table import NotMeasuredError, Table
from dlexp.study import statistics, style
from dlexp.study.measures import Cases, Measure, Source, Sweeps, lost_value, pick, spoken, tables_of, values_of
from dlexp.study.panels import Panel

Theory: TypeAlias = "Callable[[np.ndarray], Any] | tuple[Any, Any]"
Expected: TypeAlias = "tuple[str, Callable[[str, np.ndarray], Any]]"
_THIN: Any = {"color": "black", "linestyle": "--", "linewidth": 1.2}


def by(axis: str, values: Iterable[Any] | Mapping[Any, str], label: str = "{}") -> Cases:
    """Returns a case for each value of an axis, for hue and panels: label -> `{axis: value}`.

    >>> by("num_layers", (2, 10), "{} layers")
    {'2 layers': {'num_layers': 2}, '10 layers': {'num_layers': 10}}

    Args:
      axis: its name.
      values: the values, or value -> title.
      label: a template for the title.
    """
    titles = values if isinstance(values, Mapping) else {value: value for value in values}
    return {label.format(title): {axis: value} for value, title in titles.items()}


class Look(NamedTuple):
    """How the lines of a panel are drawn.

    Attributes:
      log: take mean and interval of logarithms; the vertical axis is logarithmic.
      points: intervals at the points instead of bands.
      markers: a marker at each value (always where `x` is an axis).
      linestyles: label of a line, or of its hue or y alone -> line style.
      place: from the values of `x` to where they are drawn.
      transform: from the values to what is drawn.
      clip: the lowest and highest value drawn.
      first_color: place in `style.COLORS` of the first line's colour.
    """

    log: bool = False
    points: bool = False
    markers: bool = False
    linestyles: Mapping[str, str] = {}
    place: Callable[[np.ndarray], np.ndarray] = lambda x: x
    transform: Callable[[np.ndarray], np.ndarray] = lambda values: values
    clip: tuple[float, float] = (-np.inf, np.inf)
    first_color: int = 0


class Reference(NamedTuple):
    """What stands beside the measurements in the same axes.

    Attributes:
      theory: label -> function of x, or a pair of x and y: black and dashed.
      expected: a label and a function `(hue, x) -> y`: what theory says of each line, thin and dashed.
      marks: label -> height of a horizontal dashed line.
      at: label -> place of a vertical dashed line.
      span: label -> ends of a grey stripe on the horizontal axis.
      also: a function that draws more, given the axes and the panel's runs.
    """

    theory: Mapping[str, Theory] = {}
    expected: Expected | None = None
    marks: Mapping[str, float] = {}
    at: Mapping[str, float] = {}
    span: Mapping[str, tuple[float, float]] = {}
    also: Callable[[Axes, Table], None] = lambda axes, runs: None


class _Line(NamedTuple):
    """One line: label, colour, x `[position]`, values `[run, position]`, positions where every seed was lost."""

    label: str
    color: str
    x: np.ndarray
    values: np.ndarray
    lost: np.ndarray


def lines(
    source: Source,
    sweep: Sweeps,
    y: str | Measure | Mapping[str, str | Measure],
    *,
    x: str,
    hue: Cases | None = None,
    panels: Cases | None = None,
    fixed: Mapping[str, Any] | None = None,
    failed: float | None = None,
    **options: Any,
) -> list[Panel]:
    """Returns a panel for each sweep and each case of `panels` that the results have; a line for each case of `hue`.

    Args:
      source: results, or the table of one sweep.
      sweep: name of a sweep, several names, or name -> title, a panel each; None with a table.
      y: a metric, whose last value is drawn (every value over "step" and "layer"), or a measure. Over steps a
        measure such as `at_best` draws the curve at the chosen values and names them. Label -> y draws several.
      x: an axis, "step" (evaluations), or "layer" (entries of the last evaluation's array, counted from 1).
      hue: label -> what a line selects; a case that the results lack is left out and keeps its colour.
      panels: title -> what a panel selects.
      fixed: what everything selects; a list of values means any of them.
      failed: what a run without a finite value counts as; default: as the measure says, `measures.lost_value(y)` of
        a metric.
      options: fields of `Look` (how lines are drawn) and of `Reference` (theory and marks beside them) by name; the
        rest is of matplotlib's `Axes.set`, such as `xscale`, `ylim` or `title`.
    """
    look = Look(**{name: options.pop(name) for name in Look._fields if name in options})
    beside = Reference(**{name: options.pop(name) for name in Reference._fields if name in options})
    made = []
    for sweep_title, table in tables_of(source, sweep).items():
        for panel_title, case in (panels or {"": {}}).items():
            title = options.get("title") or ", ".join(filter(None, [sweep_title, panel_title]))
            try:
                runs = pick(table(), {**(fixed or {}), **case})
                drawn = list(_drawn(runs, y, x, hue or {"": {}}, failed, look))
            except NotMeasuredError:
                continue
            if drawn:
                made.append(_panel(runs, drawn, _named(y), x, look, beside, {**options, "title": title}))
    return made


def _drawn(
    runs: Table,
    y: str | Measure | Mapping[str, str | Measure],
    x: str,
    hue: Cases,
    failed: float | None,
    look: Look,
) -> Iterator[_Line]:
    several = y if isinstance(y, Mapping) else {"": y}
    wanted = [(y_label, each, label, case) for y_label, each in several.items() for label, case in hue.items()]
    for place, (y_label, each, label, case) in enumerate(wanted):
        color = style.COLORS[(look.first_color + place) % len(style.COLORS)]
        try:
            chosen = pick(runs, case)
            added, positions, values, lost = _series(chosen, each, x, failed)
        except NotMeasuredError:
            continue
        name = ", ".join(filter(None, [label, y_label])) + added
        drawn = np.clip(look.transform(values), *look.clip)
        yield _Line(name, color, np.asarray(look.place(positions)), drawn, lost)


def _series(
    runs: Table, y: str | Measure, x: str, failed: float | None
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """What the label gains, x `[position]`, values `[run, position]`, and where every seed was lost."""
    metric = y if isinstance(y, str) else y.metric
    if x not in ("step", "layer"):
        return _over_axis(runs, y, x, failed)
    if metric is None:
        raise TypeError(f"lines: {_named(y)!r} is no curve; over {x} give a metric, or a measure such as at_best")
    chosen = y.choose(runs) if isinstance(y, Measure) and y.choose else {}
    runs = runs.select(**chosen) if chosen else runs
    if metric not in runs.metrics:
        raise NotMeasuredError(f"sweep {runs.name} has no metric {metric!r}; it has {', '.join(runs.metrics)}")
    curves = runs.curves(metric)
    added = "".join(f", {spoken(name).split()[-1]} {value:.2g}" for name, value in chosen.items())
    if x == "layer":
        last = curves[:, -1]
        return added, np.arange(1, last.shape[1] + 1), last, np.zeros(last.shape[1], bool)
    own = y.failed if isinstance(y, Measure) else lost_value(metric)
    lost = own if failed is None else failed
    return added, runs.steps(metric), np.where(np.isfinite(curves), curves, lost), np.zeros(curves.shape[1], bool)


def _over_axis(
    runs: Table, y: str | Measure, x: str, failed: float | None
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    positions = values_of(runs, x)
    if isinstance(y, Measure):
        values = np.array([np.asarray(y.of(runs.select(**{x: value})), float) for value in positions]).T
        return "", _numbers(positions), values, np.zeros(len(positions), bool)
    lost_as = lost_value(y) if failed is None else failed
    values = statistics.by_seed(runs, y, x, failed=lost_as).to_numpy()
    lost = (runs.frame["status"] != "ok").groupby(runs.frame[x]).all().to_numpy()
    return "", _numbers(positions), values, lost


def _numbers(positions: np.ndarray) -> np.ndarray:
    """The values of an axis, or their places where they are names."""
    return positions if positions.dtype.kind in "iuf" else np.arange(len(positions))


def _panel(
    runs: Table, drawn: Sequence[_Line], y: str, x: str, look: Look, beside: Reference, options: Mapping[str, Any]
) -> Panel:
    named = {"xlabel": spoken(x), "ylabel": y, **options}
    if look.log:
        named.setdefault("yscale", "log")

    def draw(axes: Axes) -> None:
        style.spans(axes, beside.span)
        for line in drawn:
            _draw_line(axes, line, x, look)
        _draw_beside(axes, drawn, beside)
        beside.also(axes, runs)
        axes.set(**named)
        if x == "layer" and axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if x not in ("step", "layer"):
            _ticks(axes, drawn, values_of(runs, x), look)

    return Panel(draw, (runs,))


def _draw_line(axes: Axes, line: _Line, x: str, look: Look) -> None:
    if look.points:
        style.interval_points(axes, line.x, line.values, label=line.label, color=line.color)
        return
    marker = "o" if look.markers or x not in ("step", "layer") else ""
    names = (line.label, *line.label.split(", "))
    linestyle = next((look.linestyles[name] for name in names if name in look.linestyles), "-")
    options: Any = {"label": line.label, "color": line.color, "marker": marker, "linestyle": linestyle}
    style.band(axes, line.x, line.values, log=look.log, **options)
    if line.lost.any():
        axes.plot(line.x[line.lost], line.values.mean(axis=0)[line.lost], "x", color=line.color, markersize=8)


def _draw_beside(axes: Axes, drawn: Sequence[_Line], beside: Reference) -> None:
    positions = np.unique(np.concatenate([line.x for line in drawn]))
    for label, theory in beside.theory.items():
        at, height = theory if isinstance(theory, tuple) else (positions, theory(positions))
        style.theory_line(axes, at, height, label)
    if beside.expected is not None:
        label, function = beside.expected
        for line in drawn:
            axes.plot(line.x, function(line.label, line.x), **_THIN)
        axes.plot([], [], label=label, **_THIN)
    for label, height in beside.marks.items():
        axes.axhline(height, label=label, **_THIN)
    for label, place in beside.at.items():
        axes.axvline(place, label=label, **_THIN)


def _ticks(axes: Axes, drawn: Sequence[_Line], values: np.ndarray, look: Look) -> None:
    """A tick a value where they are names, or few whole numbers on a logarithmic axis."""
    names = values.dtype.kind not in "iuf"
    if names or (axes.get_xscale() == "log" and len(values) <= 8 and all(float(v).is_integer() for v in values)):
        places = np.arange(len(values)) if names else np.asarray(look.place(values))
        axes.set_xticks(places, style.tick_labels(values))
        axes.minorticks_off()


def _named(y: str | Measure | Mapping[str, str | Measure]) -> str:
    if isinstance(y, Mapping):
        y = next(iter(y.values()))
    return spoken(y if isinstance(y, str) else y.metric or y.words)
