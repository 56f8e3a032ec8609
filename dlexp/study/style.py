"""House style: what every figure shares, and the few shapes that most of them are made of."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp.results import files
from dlexp.results.table import Table
from dlexp.study import statistics

# Okabe and Ito, "Color Universal Design", 2008: told apart by every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LESSON = "#BBBBBB"

_STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=COLORS),
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "dlexp",
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
}


def style() -> AbstractContextManager:
    """Returns the context in which figures are made and saved."""
    return matplotlib.rc_context(_STYLE)


def subplots(num_rows: int = 1, num_columns: int = 1, *, width: float = 5.0, height: float = 3.8) -> tuple[Figure, Any]:
    """Returns a figure and its axes, `width` x `height` inches each."""
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns)


def band(
    axes: Axes,
    x: np.ndarray,
    values: np.ndarray,
    *,
    label: str,
    color: str,
    failed: float = np.nan,
    log: bool = False,
    marker: str = "",
    linestyle: str = "-",
) -> None:
    """Draws the mean over runs as a line and its 95% interval as a band.

    Args:
      axes: where.
      x: `[position]`.
      values: `[run, position]`.
      label: the line's name in a legend.
      color: of both.
      failed: what a value that is not finite counts as.
      log: take mean and interval of the logarithms: for values drawn on a logarithmic axis.
      marker: of each position.
      linestyle: of the line.
    """
    filled = np.where(np.isfinite(values), values, failed)
    intervals = [statistics.t_interval(np.log(column) if log else column) for column in filled.T]
    mean, low, high = (np.exp(each) if log else np.array(each) for each in zip(*intervals, strict=True))
    axes.plot(x, mean, color=color, label=label, marker=marker, markersize=3.5, linestyle=linestyle)
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def interval_points(
    axes: Axes, x: np.ndarray, values: np.ndarray, *, label: str, color: str, horizontal: bool = False
) -> None:
    """Draws the mean over runs as points with their 95% intervals.

    Args:
      axes: where.
      x: `[position]`.
      values: `[run, position]`.
      label: the points' name in a legend.
      color: of points and bars.
      horizontal: whether the values lie along the x axis and the positions along the y axis.
    """
    mean, low, high = np.array([statistics.t_interval(column) for column in np.asarray(values).T]).T
    errors = np.array([mean - low, high - mean])
    if horizontal:
        axes.errorbar(mean, x, xerr=errors, fmt="o", color=color, label=label)
    else:
        axes.errorbar(x, mean, errors, fmt="o", color=color, label=label)


def heat_map(axes: Axes, table: Table, metric: str, *, x: str, y: str, failed: float = np.nan, **options: Any) -> Any:
    """Draws the mean over seeds of a metric's last value over the two axes `x` and `y`; returns it for a colour bar."""
    means = statistics.points(table, metric, failed=failed)
    grid = means.pivot(index=y, columns=x, values="mean").sort_index(axis=0).sort_index(axis=1)
    mesh = axes.pcolormesh(np.arange(grid.shape[1]), np.arange(grid.shape[0]), grid.to_numpy(), **options)
    for axis, values in ((axes.xaxis, grid.columns), (axes.yaxis, grid.index)):
        axis.set_ticks(np.arange(len(values)), tick_labels(values))
    axes.set(xlabel=x, ylabel=y)
    axes.grid(False)
    return mesh


def tick_labels(values: Iterable[Any]) -> list[str]:
    """Returns the shortest labels, from two significant digits on, that tell the values of an axis apart.

    >>> tick_labels([0.05, 0.0501]), tick_labels([100, 128, 129]), tick_labels(["adam", "sgd"])
    (['0.05', '0.0501'], ['100', '128', '129'], ['adam', 'sgd'])
    """
    listed = list(values)
    if not all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in listed):
        return [str(value) for value in listed]
    for digits in range(2, 17):
        labels = [f"{value:.{digits}g}" for value in listed]
        exact = all(float(label) == value for label, value in zip(labels, listed, strict=True))
        whole = all(float(value).is_integer() and abs(value) < 1e6 for value in listed)
        if (exact or not whole) and len(set(labels)) == len(set(listed)):
            break
    return [f"{value:g}" if whole else label for label, value in zip(labels, listed, strict=True)]


def theory_line(axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, label: str) -> None:
    """Draws what theory predicts: black and dashed, in the same axes as what was measured."""
    axes.plot(x, y, color="black", linestyle="--", linewidth=1.5, label=label, zorder=3)


def spans(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Draws grey stripes on the horizontal axis, behind everything: label -> both ends."""
    for label, pair in ends.items():
        axes.axvspan(*pair, color=LESSON, alpha=0.35, linewidth=0, zorder=0, label=label)


def legend_below(figure: Figure, *axes: Axes, note: str = "") -> None:
    """Puts one legend of these axes' entries under the figure, with a note (such as `counts`) above them."""
    entries = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    handles, labels = list(entries.values()), list(entries)
    columns = next((n for n in range(min(len(labels), 6), 1, -1) if _fits(figure, labels, n)), 1)
    title = _wrapped(figure, note)
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title, title_fontsize=9)
    legend.get_title().set_color("#666666")


def note(figure: Figure, text: str) -> None:
    """Puts a small grey line (such as `counts`) under a figure that has no legend there."""
    figure.supxlabel(_wrapped(figure, text), fontsize=9, color="#666666")


def _fits(figure: Figure, labels: Sequence[str], num_columns: int) -> bool:
    """Whether a legend of that many columns is narrower than its figure, at about 0.085 inches a character."""
    columns = np.array_split([len(label) for label in labels], num_columns)
    return sum(0.75 + 0.085 * max(column) for column in columns) < 0.97 * figure.get_figwidth()


def _wrapped(figure: Figure, text: str) -> str:
    return textwrap.fill(text, int(13.5 * figure.get_figwidth()))  # characters of 9 points


def counts(tables: Iterable[Table], failed_as: str) -> str:
    """Returns a note on how many runs a figure counts and what became of those without finite values.

    Args:
      tables: the runs.
      failed_as: what a run without finite values was counted as, in words.
    """
    tables = list(tables)
    num_runs = sum(map(len, tables))
    num_lost = sum(int((table.frame["status"] != "ok").sum()) for table in tables)
    seeds = " or ".join(map(str, sorted({table.frame["seed"].nunique() for table in tables})))
    text = f"{num_runs:,} runs, {seeds} seeds a point, bands: 95% intervals; {num_lost} runs non-finite"
    return f"{text}, counted as {failed_as}" if num_lost else text


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes `path.svg` and `path.png`, the same bytes for the same figure, and returns both paths."""
    written = []
    for ending, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        content = io.BytesIO()
        with style():
            figure.savefig(content, format=ending, metadata=metadata, dpi=140)
        target = path.with_name(f"{path.name}.{ending}")
        files.write_bytes(target, content.getvalue())
        written.append(target)
    return written
