"""From runs to statements: best points, bands and intervals. Failed runs are counted, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dlexp.results.table import Table

LEVEL = 0.95
CHOOSE_BY = ("validation/accuracy", "validation/loss")
HIGHER_IS_BETTER, LOWER_IS_BETTER = ("accuracy", "r2", "auc", "f1"), ("loss", "error")


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> Interval:
    """Returns the mean and Student's t interval; NaN bounds on fewer than two values or values that are not finite.

    >>> [round(float(x), 3) for x in t_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    from scipy import stats

    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, seed: int = 0, level: float = LEVEL, num_resamples: int = 9999
) -> Interval:
    """Returns the mean and its bias-corrected, accelerated bootstrap interval, the same for the same values.

    Source: Efron, "Better Bootstrap Confidence Intervals", 1987, https://doi.org/10.2307/2289144.

    Raises:
      ValueError: on fewer than three values.
    """
    from scipy import stats

    values = np.asarray(values, float)
    if len(values) < 3:
        raise ValueError(f"bootstrap_interval: needs at least 3 values, got {len(values)}; take t_interval")
    if np.ptp(values) == 0:
        return Interval(*[float(values[0])] * 3)
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=num_resamples, method="BCa", rng=seed
    )
    bounds = result.confidence_interval
    return Interval(float(values.mean()), float(bounds.low), float(bounds.high))


def interquartile_mean(values: Sequence[float] | np.ndarray) -> float:
    """Returns the mean of the middle half; a quarter at each end is cut. NaN where a value is NaN.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021,
    https://arxiv.org/abs/2108.13264.
    """
    from scipy import stats

    values = np.asarray(values, float)
    return float("nan") if np.isnan(values).any() else float(stats.trim_mean(values, 0.25))


def higher_is_better(metric: str, better: str | None = None) -> bool:
    """Returns whether larger values of a metric are better.

    >>> higher_is_better("validation/accuracy"), higher_is_better("test/loss"), higher_is_better("test/ppl", "lower")
    (True, False, False)

    Args:
      metric: its name tells the direction where it ends in accuracy, r2, auc or f1 (up), loss or error (down).
      better: "higher" or "lower", for every other name.

    Raises:
      ValueError: where neither the name nor `better` tells.
    """
    if better is not None:
        if better not in ("higher", "lower"):
            raise ValueError(f'better must be "higher" or "lower", got {better!r}')
        return better == "higher"
    if metric.endswith(HIGHER_IS_BETTER):
        return True
    if metric.endswith(LOWER_IS_BETTER):
        return False
    raise ValueError(f'whether more of {metric!r} is better is unknown; say better="higher" or better="lower"')


def diverged(table: Table, *, constant_loss: float, metric: str = "train/loss") -> np.ndarray:
    """Returns which runs failed to train, `[run]`: non-finite, or the final loss not below a constant prediction's.

    Args:
      table: the runs.
      constant_loss: loss of the best constant prediction, `log(num_classes)` for balanced classes.
      metric: the training loss.
    """
    frame = table.frame
    return (frame["status"] != "ok").to_numpy() | ~(frame[metric].to_numpy() < constant_loss)


def points(table: Table, metric: str, *, failed: float = np.nan) -> pd.DataFrame:
    """Returns a row a point: its axes, `mean`, `low`, `high` over seeds, `num_seeds`, `num_failed`.

    Args:
      table: the runs.
      metric: its last value counts.
      failed: what a run without a finite value counts as, such as chance accuracy; NaN makes the point's mean NaN.

    Raises:
      ValueError: where the sweep has no such metric.
    """
    if metric not in table.frame:
        raise ValueError(f"points: sweep {table.name} has no metric {metric!r}; it has {', '.join(table.metrics)}")
    axes = [name for name in table.axes if name in table.frame]
    groups = table.frame.groupby(axes, sort=False, dropna=False) if axes else [((), table.frame)]
    rows = []
    for key, runs in groups:
        values = runs[metric].to_numpy(float)
        bad = ~np.isfinite(values)
        interval = t_interval(np.where(bad, failed, values))
        point = dict(zip(axes, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append({**point, **interval._asdict(), "num_seeds": len(values), "num_failed": int(bad.sum())})
    return pd.DataFrame(rows)


def best(
    table: Table,
    over: str | Sequence[str],
    *,
    choose_by: str | None = None,
    report: str | None = None,
    better: str | None = None,
) -> pd.DataFrame:
    """Returns, for each setting of the other axes, the best value of `over` and what `report` is there.

    The choice is by the mean over seeds on validation; a run without a finite value counts as the worst possible
    (accuracy 0, loss infinity), so a value where runs failed does not win by the runs that did not.

    Args:
      table: the runs.
      over: the axis or axes to choose on, such as `learning_rate`.
      choose_by: the metric that chooses; default validation accuracy, else validation loss.
      report: the metric to report; default the test split's of the same name, where there is one.
      better: "higher" or "lower", where the name of `choose_by` does not tell (`higher_is_better`).

    Returns:
      the other axes, `over`, `mean`, `low`, `high`, `num_seeds`, `num_failed`.

    Raises:
      ValueError: where the sweep has no such axis or metric.
    """
    over = [over] if isinstance(over, str) else list(over)
    missing = [name for name in over if name not in table.frame]
    if missing:
        raise ValueError(f"best: sweep {table.name} has no axis {missing[0]!r}; it has {', '.join(table.axes)}")
    choose_by = choose_by or choosing_metric(table)
    if choose_by is None or choose_by not in table.frame:
        raise ValueError(f"best: sweep {table.name} lacks {choose_by or CHOOSE_BY}; name a metric with choose_by")
    report = report or reported_metric(table, choose_by)
    higher = higher_is_better(choose_by, better)
    candidates = points(table, choose_by, failed=_worst(choose_by, higher))
    reported = points(table, report)
    others = [name for name in table.axes if name in candidates and name not in over]
    score = candidates["mean"] if higher else -candidates["mean"]
    if not others:
        return reported.loc[[score.idxmax()]].reset_index(drop=True)
    winners = score.groupby([candidates[name] for name in others], sort=False, dropna=False).idxmax()
    return reported.loc[winners.to_numpy()].reset_index(drop=True)


def _worst(metric: str, higher: bool) -> float:
    """What a lost run counts as in a choice."""
    if not higher:
        return np.inf
    return -np.inf if metric.endswith("r2") else 0.0


def choosing_metric(table: Table) -> str | None:
    """Returns the metric that chooses: validation accuracy, else validation loss, else None."""
    return next((name for name in CHOOSE_BY if name in table.frame), None)


def reported_metric(table: Table, choose_by: str) -> str:
    """Returns the test split's metric of the same name, or `choose_by` itself where there is none."""
    report = choose_by.replace("validation/", "test/")
    return report if report in table.frame else choose_by


class Band(NamedTuple):
    """The values of an axis that are as good as the best one.

    Attributes:
      best: the best value.
      low: lowest value reached from the best without a gap.
      high: highest such value.
      decades: `log10(high / low)`.
      at_edge: whether it touches an end of the axis and may be wider than was measured.
    """

    best: float
    low: float
    high: float
    decades: float
    at_edge: bool


def good_band(scores: pd.Series, tolerance: float) -> Band:
    """Returns the values around the best one whose scores are within `tolerance` of its score.

    >>> good_band(pd.Series({0.001: 0.89, 0.01: 0.5, 0.1: 0.9, 1.0: 0.89}), 0.02)[:3]
    (0.1, 0.1, 1.0)

    Args:
      scores: positive axis value -> score, larger is better; one that is not finite is never good.
      tolerance: in the score's unit.

    Raises:
      ValueError: where no score is finite.
    """
    scores = scores.sort_index()
    scores = scores.where(np.isfinite(scores), -np.inf)
    if not np.isfinite(scores).any():
        raise ValueError("good_band: no score is finite, so there is no best value")
    values, good = scores.index.to_numpy(float), (scores >= scores.max() - tolerance).to_numpy()
    first = last = top = int(np.argmax(scores.to_numpy()))
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(good) - 1 and good[last + 1]:
        last += 1
    low, high = float(values[first]), float(values[last])
    return Band(float(values[top]), low, high, float(np.log10(high / low)), first == 0 or last == len(good) - 1)


def differing(table: Table, besides: Sequence[str] = ()) -> list[str]:
    """Returns the axes on which the runs have several values, without some that are known."""
    frame = table.frame
    return [name for name in table.axes if name not in besides and name in frame and frame[name].nunique() > 1]


def by_seed(table: Table, metric: str, over: str, *, failed: float) -> pd.DataFrame:
    """Returns a metric's last values, a row a seed and a column a value of the axis `over`.

    Args:
      table: runs that differ in `over` and the seed alone.
      metric: its name.
      over: the axis.
      failed: what a run without a finite value counts as.

    Raises:
      ValueError: where runs differ in more (select first), or a seed lacks a value that others have.
    """
    frame = table.frame
    if frame.duplicated(["seed", over]).any():
        others = ", ".join(differing(table, [over]))
        raise ValueError(f"by_seed: the runs of sweep {table.name} also differ in {others}: select one of each first")
    counted = frame[metric].where(frame["status"] == "ok", failed)
    values = frame.assign(**{metric: counted}).pivot(index="seed", columns=over, values=metric)
    if values.isna().any(axis=None):
        raise ValueError(f"by_seed: not every seed of sweep {table.name} has every {over}; select those that do")
    return values


def chosen(
    table: Table, over: str | Sequence[str], *, choose_by: str | None = None, better: str | None = None
) -> dict[str, Any]:
    """Returns the values of some axes with the best mean of a metric over seeds: name -> value.

    A run without a finite value counts as the worst possible, so it never wins.

    Args:
      table: runs that differ in these axes and the seed alone.
      over: the axis or axes to choose on.
      choose_by: the metric that chooses; default validation accuracy, else validation loss.
      better: "higher" or "lower", where the metric's name does not tell (`higher_is_better`).

    Raises:
      ValueError: where runs differ in more than these axes and the seed (select first), or lack the metric.
    """
    choose_by = choose_by or choosing_metric(table)
    if choose_by is None or choose_by not in table.frame:
        raise ValueError(f"chosen: sweep {table.name} lacks {choose_by or CHOOSE_BY}; name a metric with choose_by")
    axes, frame = [over] if isinstance(over, str) else list(over), table.frame
    if frame.duplicated(["seed", *axes]).any():
        others = ", ".join(differing(table, axes))
        raise ValueError(f"chosen: the runs of sweep {table.name} also differ in {others}: select one of each first")
    higher = higher_is_better(choose_by, better)
    counted = frame[choose_by].where((frame["status"] == "ok") & frame[choose_by].notna(), _worst(choose_by, higher))
    means = counted.groupby([frame[name] for name in axes]).mean()
    best = means.idxmax() if higher else means.idxmin()
    return dict(zip(axes, best if isinstance(best, tuple) else (best,), strict=True))


def first_step(table: Table, metric: str, target: float, *, never: float) -> np.ndarray:
    """Returns the step at which a metric first reaches a target, `[run]`, between evaluations by a straight line.

    Args:
      table: the runs.
      metric: one number an evaluation.
      target: to reach or pass.
      never: what a run that does not counts as, such as the last step for the slower of two.
    """
    steps, curves = table.steps(metric).astype(float), table.curves(metric)
    reached = np.nan_to_num(curves, nan=-np.inf) >= target
    first = np.argmax(reached, axis=1)
    rows = np.arange(len(curves))
    before, after = curves[rows, np.maximum(first - 1, 0)], curves[rows, first]
    share = (target - before) / np.where(after > before, after - before, 1.0)
    share = np.where(np.isfinite(share), share, 1.0)
    between = steps[np.maximum(first - 1, 0)] + share * (steps[first] - steps[np.maximum(first - 1, 0)])
    return np.where(reached.any(axis=1), np.where(first == 0, steps[0], between), never)


def stopped_at(table: Table, metric: str, patience: float = np.inf) -> np.ndarray:
    """Returns the evaluation that early stopping keeps, `[run]`: the best until none of the next ones was better.

    Args:
      table: the runs.
      metric: what is watched; its name tells whether more is better.
      patience: how many evaluations without a better one end the training; default: it is never ended.
    """
    curves = table.curves(metric) * (1 if higher_is_better(metric) else -1)
    places = np.arange(curves.shape[1])
    is_better = np.diff(np.maximum.accumulate(curves, axis=1), axis=1, prepend=-np.inf) > 0
    best = np.maximum.accumulate(np.where(is_better, places, 0), axis=1)
    is_over = places - best >= patience
    last = np.where(is_over.any(axis=1), is_over.argmax(axis=1), places[-1])
    return best[np.arange(len(best)), last]


def highest_good(scores: pd.DataFrame, tolerance: float) -> np.ndarray:
    """Returns log10 of the highest axis value whose score is within `tolerance` of the seed's own best, `[seed]`.

    Minus infinity for a seed without a finite score.

    Args:
      scores: as from `by_seed`, larger is better; a score that is not finite is never good.
      tolerance: in the score's unit.
    """
    values, array = np.log10(scores.columns.to_numpy(float)), scores.to_numpy(float)
    finite = np.isfinite(array)
    best = np.where(finite, array, -np.inf).max(axis=1, keepdims=True)
    return np.where(finite & (array >= best - tolerance), values, -np.inf).max(axis=1)
