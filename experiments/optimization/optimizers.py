"""Which optimizer, at which learning rate?

The lesson names Adam and RMSprop as the better optimizers (text 004, "Why Deep Learning Became Practical") and says
that most successful networks use learning rates between 0.001 and 0.1 (text 002, "Training Dynamics"). Every
optimizer is trained here at every rate, and each is judged at its own best rate, chosen on validation.

Theory: on slowly changing gradients momentum 0.9 makes steps 1 / (1 - 0.9) = 10 times as long as SGD's, so its curve
should be SGD's, moved to rates ten times lower (Goh, "Why Momentum Really Works", 2017,
https://distill.pub/2017/momentum). Published: 68% test accuracy of this network on MNIST-1D after tuning, 65.1% in
the authors' own run at Adam 0.01 and 6000 steps (https://github.com/greydanus/mnist1d).

    python -m experiments.optimization.optimizers
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled, mnist1d
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import (
    Claim,
    Effect,
    Measure,
    Panel,
    at_best,
    by,
    inside_minus_outside,
    judge,
    lines,
    measure,
    side_by_side,
    statistics,
    style,
    text,
)
from dlexp.study.measures import lost_value, pick
from dlexp.sweep import geomspace, grid
from dlexp.theory import optimizers as theory
from dlexp.types import Config, Experiment, Learner, Sweep

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adamw")
DATA = {"mnist1d": "MNIST-1D", "digits": "digits, 8 x 8"}
LOW, HIGH = 1e-3, 1e-1  # the lesson's good rates
BAND = 0.02  # "as good as the best": within two points of accuracy
FACTOR = theory.momentum_step_multiplier(np.inf)


def mnist1d_learner(config: Config, num_steps: int) -> Learner:
    """The MNIST-1D authors' perceptron: 40-100-100-10, the second hidden layer residual, 15,210 parameters."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, residual=True)
    tx = optim.from_name(config["optimizer"])
    return learners.supervised(model, losses.softmax_cross_entropy, tx, mnist1d.load(), batch_size=100)


def digits_learner(config: Config, num_steps: int) -> Learner:
    """64-64-64-10 on scikit-learn's digits."""
    model = models.mlp(width=64, num_layers=3, num_outputs=10)
    tx = optim.from_name(config["optimizer"])
    return learners.supervised(model, losses.softmax_cross_entropy, tx, bundled.load("digits"), batch_size=64)


def sweeps() -> dict[str, Sweep]:
    """Every optimizer at every rate, on two data sets."""
    rates = {"learning_rate": geomspace(1e-4, 10.0, 16)}
    every = grid(config={"optimizer": OPTIMIZERS}, hyper=rates, seeds=range(8, 16))  # rules were tried on 0 to 7
    return {
        "mnist1d": Sweep(every, mnist1d_learner, num_steps=1500, num_evals=15),
        "digits": Sweep(every, digits_learner, num_steps=500, num_evals=10),
    }


def accuracy_by_rate(results: Results) -> Figure:
    """Accuracy over the learning rate, and each optimizer's band of good rates."""
    span = {"the lesson's 0.001 to 0.1": (LOW, HIGH)}
    axes: Any = {"x": "learning_rate", "xscale": "log", "ylim": (0, 1.0)}
    hue, note = by("optimizer", OPTIMIZERS), f"bars: validation accuracy within {BAND:g} of the best, circle: the best"
    curves = lines(results, DATA, "test/accuracy", hue=hue, span=span, also=_momentum_line, **axes)
    bands = [Panel(partial(_draw_bands, table=panel.runs[0])) for panel in curves]
    return side_by_side(*curves, *bands, num_rows=2, heights=(4, 1.2), height=5.4, note=note)


def _momentum_line(axes: Axes, table: Table) -> None:
    """What theory says of momentum: SGD's curve at a tenth of the rate."""
    if {"sgd", "momentum"} <= set(table.frame["optimizer"]):
        sgd = _by_rate(table.select(optimizer="sgd"), "test/accuracy").mean()
        sgd = sgd[sgd.index / FACTOR > 0.99 * sgd.index.min()]
        style.theory_line(axes, sgd.index / FACTOR, sgd, "theory: momentum as SGD at 10x the rate")


def _draw_bands(axes: Axes, table: Table) -> None:
    for place, (name, color) in enumerate(zip(OPTIMIZERS, style.COLORS, strict=False)):
        if name in set(table.frame["optimizer"]):
            band = statistics.good_band(_by_rate(table.select(optimizer=name), "validation/accuracy").mean(), BAND)
            axes.plot([band.low, band.high], [-place, -place], color=color, linewidth=5, solid_capstyle="butt")
            axes.plot(band.best, -place, marker="o", color="white", markeredgecolor=color)
    axes.set(
        xscale="log",
        xlim=(5e-5, 20),
        xlabel="learning rate",
        yticks=[],
        ylabel="good band",
        ylim=(-len(OPTIMIZERS) + 0.4, 0.6),
    )


def loss_curves(results: Results) -> Figure:
    """Training losses at each optimizer's own best rate."""
    hue, label = by("optimizer", OPTIMIZERS), "training loss (nats), geometric mean"
    return side_by_side(
        lines(results, DATA, at_best("train/loss", failed=np.nan), x="step", hue=hue, log=True, ylabel=label),
        lost="missing",
    )


def claims(results: Results) -> list[Claim]:
    """What the lesson and the theory say, judged on each data set."""
    lesson, accuracy = text("002", "Training Dynamics"), at_best("test/accuracy")
    inside = inside_minus_outside("learning_rate", LOW, HIGH)

    def of(measured: Measure, *optimizers: str) -> Effect:
        wanted = optimizers or OPTIMIZERS
        return measured(results, DATA, optimizer=wanted if len(wanted) > 1 else wanted[0])

    return [
        judge("Good learning rates lie between 0.001 and 0.1.", lesson, of(inside), least=0.01),
        judge("Most rates between 0.001 and 0.1 are good ones.", lesson, of(_good_share), least=0.5),
        judge("Too high a rate overshoots, too low a rate is very slow.", lesson, of(_ends_minus_best), least=0.1),
        judge(
            "Adam and RMSprop are better optimizers than gradient descent with momentum.",
            text("004", "Why Deep Learning Became Practical"),
            of(accuracy, "rmsprop", "adam") - of(accuracy, "momentum"),
            least=0.01,
        ),
        judge(
            "Adam needs little tuning of its rate: ten times too much or too little does no harm.",
            "Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980, abstract; the number is ours",
            of(_good_decades, "adam"),
            least=2.0,
        ),
        judge(
            "Up to SGD's best rate, momentum 0.9 acts as gradient descent at ten times the rate.",
            "Goh, Why Momentum Really Works, 2017, https://distill.pub/2017/momentum",
            _widest_gap(results, DATA),
            most=0.05,
        ),
    ]


def _by_rate(runs: Table, metric: str) -> pd.DataFrame:
    """Final values, a row a seed and a column a rate; a run that diverged counts as a guess."""
    return statistics.by_seed(runs, metric, "learning_rate", failed=lost_value(metric))


def _good(runs: Table) -> pd.DataFrame:
    accuracy = _by_rate(runs, "validation/accuracy")
    return accuracy >= accuracy.mean().max() - BAND


@measure(f"share of the rates from {LOW:g} to {HIGH:g} whose validation accuracy is within {BAND:g} of the best mean")
def _good_share(runs: Table) -> np.ndarray:
    good = _good(runs)
    inside = (good.columns > 0.999 * LOW) & (good.columns < 1.001 * HIGH)
    if not inside.any():
        raise NotMeasuredError(f"the grid has no rate from {LOW:g} to {HIGH:g}")
    return good.loc[:, inside].mean(axis=1).to_numpy()


@measure(f"decades of rates whose validation accuracy is within {BAND:g} of the best mean")
def _good_decades(runs: Table) -> np.ndarray:
    good = _good(runs)
    return (good.sum(axis=1) * np.log10(good.columns[-1] / good.columns[0]) / (len(good.columns) - 1)).to_numpy()


@measure(
    "final training loss at the lowest and at the highest rate, the better of the two, minus at the best rate by "
    "validation, losses above a guess's log 10 and lost runs counted as log 10"
)
def _ends_minus_best(runs: Table) -> np.ndarray:
    loss = _by_rate(runs, "train/loss").clip(upper=lost_value("train/loss"))
    ends = np.minimum(loss.iloc[:, 0], loss.iloc[:, -1])
    return (ends - loss[statistics.chosen(runs, "learning_rate")["learning_rate"]]).to_numpy()


@measure(
    "gap in test accuracy between momentum and SGD at ten times its rate, at the rate where the mean gap is widest"
)
def _widest_gap(runs: Table) -> np.ndarray:
    sgd_runs, momentum_runs = (pick(runs, {"optimizer": name}) for name in ("sgd", "momentum"))
    best = statistics.chosen(sgd_runs, "learning_rate")["learning_rate"]
    sgd, momentum = (_by_rate(each, "test/accuracy") for each in (sgd_runs, momentum_runs))
    pairs = [(rate, other) for rate in momentum for other in sgd if np.isclose(other, FACTOR * rate, rtol=1e-6)]
    gaps = [momentum[rate] - sgd[other] for rate, other in pairs if other <= best]
    if not gaps:
        raise NotMeasuredError("no rate of momentum is a tenth of one of SGD's up to its best")
    widest = max(gaps, key=lambda gap: abs(gap.mean()))
    return (widest * np.sign(widest.mean())).to_numpy()


EXPERIMENT = Experiment("optimization.optimizers", 1, __doc__, sweeps, (accuracy_by_rate, loss_curves), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
