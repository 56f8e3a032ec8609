"""The figure of the main experiment against the numbers it should show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from dlexp import api
from dlexp.results import folders, load
from dlexp.study import at_best, statistics, style
from experiments.optimization import optimizers

FOLDER = folders.folder_of(api.REFERENCE, optimizers.EXPERIMENT.name, "cpu")


@pytest.fixture(scope="module")
def results():
    return load(FOLDER)


def raw(sweep):
    """The saved rows read by Parquet alone."""
    return pd.concat([pq.read_table(path).to_pandas() for path in sorted((FOLDER / sweep).glob("*.parquet"))])


@pytest.mark.parametrize("sweep", ["mnist1d", "digits"])
def test_the_accuracy_curves_show_the_means_of_the_saved_runs(results, sweep):
    with style.style():
        figure = optimizers.accuracy_by_rate(results)
    axes = next(each for each in figure.axes if each.get_title(loc="left").startswith(optimizers.DATA[sweep]))
    rows = raw(sweep)
    final = np.array([curve[-1] for curve in rows["test/accuracy"]])
    rows["final"] = np.where(np.isfinite(final), final, 0.1)
    lines = {line.get_label(): line for line in axes.lines}
    for optimizer in optimizers.OPTIMIZERS:
        expected = rows[rows["optimizer"] == optimizer].groupby("learning_rate")["final"].mean()
        np.testing.assert_allclose(lines[optimizer].get_xdata(), expected.index)
        np.testing.assert_allclose(lines[optimizer].get_ydata(), expected, rtol=1e-6)


def test_the_loss_curves_show_the_geometric_means_at_the_chosen_rates(results):
    with style.style():
        figure = optimizers.loss_curves(results)
    for axes, sweep in zip(figure.axes, ("mnist1d", "digits"), strict=True):
        rows = raw(sweep)
        for line, optimizer in zip(axes.lines, optimizers.OPTIMIZERS, strict=True):
            own = rows[rows["optimizer"] == optimizer]
            last = pd.Series([curve[-1] for curve in own["validation/accuracy"]], index=own["learning_rate"])
            best = last.fillna(0.1).groupby(level=0).mean().idxmax()
            curves = np.stack(own[own["learning_rate"] == best]["train/loss"].to_list())
            np.testing.assert_allclose(line.get_ydata(), np.exp(np.log(curves).mean(axis=0)), rtol=1e-5)


def test_every_optimizer_learned_and_its_best_rate_is_inside_the_grid(results):
    for table in results.values():
        rates = table.axes and sorted(set(table.frame["learning_rate"]))
        for optimizer in optimizers.OPTIMIZERS:
            runs = table.select(optimizer=optimizer)
            assert rates[0] < statistics.chosen(runs, "learning_rate")["learning_rate"] < rates[-1]
            assert at_best("test/accuracy").of(runs).mean() > 0.6


def test_momentum_is_sgd_at_ten_times_the_rate_up_to_sgds_best(results):
    for table in results.values():
        assert optimizers._widest_gap.of(table).mean() < 0.05
