"""Panels and figures: what draws one set of axes, and how several stand side by side with a legend and a note."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp.results.table import NotMeasuredError, Table
from dlexp.study import statistics, style
from dlexp.study.effects import Effect, Values, as_labels
from dlexp.study.measures import RATE, Source, lost_value, pick, spoken

GUESS = "a guess among ten classes"


class Panel(NamedTuple):
    """One set of axes.

    Attributes:
      draw: draws everything into matplotlib's axes.
      runs: the runs it shows, which the figure's note counts.
    """

    draw: Callable[[Axes], None]
    runs: tuple[Table, ...] = ()


def side_by_side(
    *panels: Panel | Sequence[Panel],
    note: str = "",
    lost: str = GUESS,
    legend: bool | str = True,
    num_rows: int = 1,
    width: float = 5.6,
    height: float = 4.2,
    heights: Sequence[float] | None = None,
) -> Figure:
    """Returns the figure of some panels, with a note that counts runs, seeds and lost runs.

    One legend stands below the figure where one panel has the entries of all that have any, else one in each panel.

    Args:
      panels: panels, or lists of them as `lines` returns.
      note: what the note says besides.
      lost: what a run without a finite value was counted as, in words.
      legend: whether there is one; "below" puts the entries of all panels below the figure, where none has room inside.
      num_rows: rows of panels.
      width: of one panel, in inches.
      height: of one panel, in inches.
      heights: of the rows, relative to one another; rows then share the height of one.

    Raises:
      NotMeasuredError: where there is no panel: the results lack the runs of all of them.
    """
    flat = _flat(panels)
    if not flat:
        raise NotMeasuredError("the grid has none of the runs that this figure shows")
    num_columns = -(-len(flat) // num_rows)
    total = height * (num_rows if heights is None else 1)
    figure = Figure(figsize=(width * num_columns, total), layout="constrained")
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False, height_ratios=heights).flat)
    for panel, axes in zip(flat, grid, strict=False):
        panel.draw(axes)
    for axes in grid[len(flat) :]:
        axes.set_axis_off()
    counted = _counts([table for panel in flat for table in panel.runs], lost)
    text = "; ".join(filter(None, [counted, note]))
    if legend == "below":
        style.legend_below(figure, *grid[: len(flat)], note=text)
    elif not (legend and _shared_legend(figure, grid[: len(flat)], text)):
        style.note(figure, text)
    return figure


def overlaid(*panels: Panel | Sequence[Panel]) -> list[Panel]:
    """Returns the panel that draws all of these into the same axes; titles and limits are those of the last.

    For lines of different sweeps, or over differently named axes: give each its `first_color`.
    """
    flat = _flat(panels)

    def draw(axes: Axes) -> None:
        for panel in flat:
            axes.autoscale(True)  # limits that the one before has set are for its own lines
            panel.draw(axes)

    return [Panel(draw, tuple(table for panel in flat for table in panel.runs))] if flat else []


def _flat(panels: Iterable[Panel | Sequence[Panel]]) -> list[Panel]:
    return [panel for each in panels for panel in ([each] if isinstance(each, Panel) else each)]


def _shared_legend(figure: Figure, panels: Sequence[Axes], text: str) -> bool:
    """Whether one legend below the figure serves all panels; draws it, or one in each panel."""
    entries = {axes: axes.get_legend_handles_labels()[1] for axes in panels if axes.get_legend_handles_labels()[1]}
    fullest = max(entries, key=lambda axes: len(entries[axes]), default=None)
    if (
        fullest is not None
        and len(entries) > 1
        and all(set(each) <= set(entries[fullest]) for each in entries.values())
    ):
        style.legend_below(figure, fullest, note=text)
        return True
    for axes in entries:
        axes.legend(fontsize=9)
    return False


def _counts(tables: Sequence[Table], lost: str) -> str:
    """Runs that stand in several panels count once."""
    seen: dict[Any, Table] = {}
    for table in tables:
        for part in table.parts:
            seen.setdefault(tuple(part.frame["run_id"]) if "run_id" in part.frame else id(part), table)
    distinct = list({id(table): table for table in seen.values()}.values())
    return style.counts(distinct, failed_as=lost) if distinct else ""


def heat(
    source: Source,
    sweep: str | None,
    metric: str,
    *,
    x: str,
    y: str,
    panels: Mapping[str, Mapping[str, Any]] | None = None,
    best_by: str | None = "validation/accuracy",
    colorbar: bool = True,
    **options: Any,
) -> list[Panel]:
    """Returns a heat map of a metric's last value, mean over seeds, over two axes; a circle marks the best by another.

    Args:
      source: results, or one table.
      sweep: its name, None with a table.
      metric: what is drawn.
      x: the horizontal axis.
      y: the vertical axis.
      panels: title -> what a panel selects; one that the results lack is left out.
      best_by: the metric whose best mean is circled; None for no circle.
      colorbar: whether each panel has one.
      options: of matplotlib's `pcolormesh`.
    """

    def panel(title: str, runs: Table) -> Panel:
        def draw(axes: Axes) -> None:
            lost = lost_value(metric)
            mesh = style.heat_map(axes, runs, metric, x=x, y=y, failed=lost, **{"cmap": "viridis", **options})
            if best_by is not None:
                best = statistics.chosen(runs, [x, y], choose_by=best_by)
                place = [int(np.searchsorted(np.unique(runs.frame[name]), best[name])) for name in (x, y)]
                ring: Any = {"markerfacecolor": "none", "markeredgecolor": "white", "markeredgewidth": 2}
                axes.plot(*place, "o", markersize=14, **ring)
            axes.set(title=title, xlabel=spoken(x), ylabel=spoken(y))
            axes.tick_params(axis="x", rotation=45)
            if colorbar:
                axes.figure.colorbar(mesh, ax=axes, label=spoken(metric))

        return Panel(draw, (runs,))

    made = []
    for title, case in (panels or {"": {}}).items():
        try:
            table = source if isinstance(source, Table) else source[str(sweep)]
            made.append(panel(title, pick(table, case)))
        except NotMeasuredError:
            continue
    return made


def intervals(
    effects: Mapping[str, Effect] | Effect,
    *,
    runs: Iterable[Table] = (),
    colors: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Panel]:
    """Returns a panel with the mean and the 95% interval of every condition, one below another.

    Args:
      effects: label -> effect of one condition, or an effect whose conditions are the labels; what the results lack
        is left out.
      runs: the runs that the note counts.
      colors: label -> colour, where it is not the first of `style.COLORS`.
      options: of matplotlib's `Axes.set`.
    """
    several = effects.conditions.items() if isinstance(effects, Effect) else _only_conditions(effects)
    wanted = {", ".join(as_labels(key)): values for key, values in several}
    measured: dict[str, np.ndarray] = {}
    for label, values in wanted.items():
        try:
            measured[label] = np.asarray(values(), float)
        except NotMeasuredError:
            continue
    if not measured:
        return []

    def draw(axes: Axes) -> None:
        for place, (label, values) in enumerate(measured.items()):
            color = (colors or {}).get(label, style.COLORS[0])
            at = np.array([-place])
            style.interval_points(axes, at, values[:, None], label="_" + label, color=color, horizontal=True)
        axes.set_yticks(-np.arange(len(measured)), list(measured))
        axes.set(**options)

    return [Panel(draw, tuple(runs))]


def _only_conditions(effects: Mapping[str, Effect]) -> list[tuple[str, Callable[[], Values]]]:
    return [(label, values) for label, effect in effects.items() for values in effect.conditions.values()]


def good_bands(
    tables: Mapping[str, Table],
    tolerance: float,
    *,
    axis: str = RATE,
    metric: str = "validation/accuracy",
    span: Mapping[str, tuple[float, float]] | None = None,
    **options: Any,
) -> list[Panel]:
    """Returns a panel with a bar a variant: the values of an axis as good as its best one, which a circle marks.

    The note does not count its runs: they stand in another panel.

    Args:
      tables: label -> runs that differ in the axis and the seed alone.
      tolerance: how far the mean of the metric over seeds may lie below the best.
      axis: its name; drawn on a logarithmic scale.
      metric: a score, larger is better; a run without a finite value counts as 0.
      span: label -> ends of a grey stripe on the axis.
      options: of matplotlib's `Axes.set`.
    """

    def draw(axes: Axes) -> None:
        style.spans(axes, span or {})
        for place, (table, color) in enumerate(zip(tables.values(), style.COLORS, strict=False)):
            scores = statistics.by_seed(table, metric, axis, failed=0.0).mean()
            band = statistics.good_band(scores, tolerance)
            axes.plot([band.low, band.high], [-place, -place], color=color, linewidth=6, solid_capstyle="butt")
            axes.plot(band.best, -place, "o", color="white", markeredgecolor=color)
        axes.set_yticks(-np.arange(len(tables)), list(tables))
        axes.set(**{"xscale": "log", "xlabel": spoken(axis), "ylim": (0.4 - len(tables), 0.6), **options})

    return [Panel(draw)] if tables else []
