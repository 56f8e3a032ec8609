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

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.claims import Claim, judge
from dlexp.data import bundled, mnist1d
from dlexp.results import Results, Table
from dlexp.sweep import geomspace, grid
from dlexp.theory import optimizers as theory
from dlexp.types import Config, Experiment, Learner, Sweep

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adamw")
LESSON_RATES = (1e-3, 1e-1)
CHANCE = 0.1  # accuracy of a network that diverged: it names one class of ten
CHANCE_LOSS = float(np.log(10))
BAND = 0.02  # "as good as the best": within two points of accuracy
TITLES = {"mnist1d": "MNIST-1D", "digits": "digits, 8 x 8"}


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


def sweeps(scale: str) -> dict[str, Sweep]:
    """Every optimizer at every rate, on two data sets."""
    if scale == "smoke":
        few = {"learning_rate": (1e-2, 1e-1, 1.0)}
        two = grid(config={"optimizer": ("sgd", "momentum")}, hyper=few, seeds=2)
        one = grid(config={"optimizer": ("adam",)}, hyper=few, seeds=2)
        return {
            "mnist1d": Sweep(two, mnist1d_learner, num_steps=40, num_evals=2),
            "digits": Sweep(one, digits_learner, num_steps=40, num_evals=2),
        }
    # The rules of the claims were tried on seeds 0 to 7; they are judged on fresh ones.
    num_rates, seeds = {"cpu": (16, tuple(range(8, 16))), "gpu": (46, tuple(range(8, 72)))}[scale]
    rates = {"learning_rate": geomspace(1e-4, 10.0, num_rates)}
    every = grid(config={"optimizer": OPTIMIZERS}, hyper=rates, seeds=seeds)
    return {
        "mnist1d": Sweep(every, mnist1d_learner, num_steps=1500, num_evals=15),
        "digits": Sweep(every, digits_learner, num_steps=500, num_evals=10),
    }


def figures(results: Results) -> dict[str, Figure]:
    """Accuracy over the learning rate with each optimizer's good band; losses at each one's own best rate."""
    return {"accuracy_by_rate": _accuracy_by_rate(results), "loss_curves": _loss_curves(results)}


def claims(results: Results) -> list[Claim]:
    """What the lesson and the theory say, judged on each data set."""
    lesson = 'text 002, "Deep Learning Intro", Training Dynamics'
    return [
        judge(
            "Good learning rates lie between 0.001 and 0.1.",
            source=lesson,
            rule="test accuracy at the best rate inside 0.001 to 0.1 minus at the best rate outside, rates chosen on "
            "validation, paired by seed; at least one point (0.01)",
            effects=_effects(results, OPTIMIZERS, _inside_minus_outside),
            smallest=0.01,
        ),
        judge(
            "Most rates between 0.001 and 0.1 are good ones.",
            source=lesson,
            rule="share of the grid's rates inside 0.001 to 0.1 with a validation accuracy within two points of the "
            "best mean over seeds; more than half",
            effects=_effects(results, OPTIMIZERS, lambda t, o: _good_rates(t, o, LESSON_RATES).mean(axis=1)),
            smallest=0.5,
        ),
        judge(
            "Too high a rate overshoots, too low a rate is very slow.",
            source=lesson,
            rule="final training loss at the grid's lowest and highest rate, the better of the two, minus at the best "
            "rate; losses above log 10, a constant guess, and diverged runs count as log 10; at least 0.1 nats",
            effects=_effects(results, OPTIMIZERS, _ends_minus_best),
            smallest=0.1,
        ),
        judge(
            "Adam and RMSprop are better optimizers than gradient descent with momentum.",
            source='text 004, "ML Deep Learning Introduction", Why Deep Learning Became Practical',
            rule="test accuracy minus momentum's, each at its own best rate by validation, paired by seed; at least "
            "one point (0.01)",
            effects=_effects(results, ("rmsprop", "adam"), _at_best_minus_momentum, against="momentum"),
            smallest=0.01,
        ),
        judge(
            "Adam needs little tuning of its rate: ten times too much or too little does no harm.",
            source="Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980, abstract; the number is ours",
            rule="decades of rates with a validation accuracy within two points of the best mean over seeds; more "
            "than 2",
            effects=_effects(results, ("adam",), lambda t, o: _good_rates(t, o).sum(axis=1) * _decades_a_rate(t)),
            smallest=2.0,
        ),
        judge(
            "Up to SGD's best rate, momentum 0.9 acts as gradient descent at ten times the rate.",
            source="Goh, Why Momentum Really Works, 2017, https://distill.pub/2017/momentum",
            rule="0.05 minus the gap in test accuracy between momentum and SGD at ten times its rate, at the rate "
            "where the mean gap is widest; more than 0",
            effects=_effects(results, ("momentum",), lambda t, _: 0.05 - _widest_gap(t), against="sgd"),
        ),
    ]


def _effects(
    results: Results, optimizers: Sequence[str], effect: Callable[[Table, str], np.ndarray], against: str | None = None
) -> dict[str, Callable[[], np.ndarray]]:
    """One value a seed for every optimizer and data set that is there."""
    return {
        f"{optimizer}, {name}": partial(effect, table, optimizer)
        for name, table in results.items()
        for optimizer in optimizers
        if {optimizer, against or optimizer} <= set(_optimizers(table))
    }


def _optimizers(table: Table) -> list[str]:
    return [name for name in OPTIMIZERS if name in set(table.frame["optimizer"])]


def _by_rate(table: Table, optimizer: str, metric: str) -> pd.DataFrame:
    """Final values, a row a seed and a column a rate; a run that diverged counts as chance."""
    failed = CHANCE_LOSS if metric.endswith("loss") else CHANCE
    return analysis.by_seed(table.select(optimizer=optimizer), metric, "learning_rate", failed=failed)


def _best_rate(table: Table, optimizer: str) -> float:
    return analysis.chosen(table.select(optimizer=optimizer), "learning_rate")["learning_rate"]


def _at_best(table: Table, optimizer: str) -> np.ndarray:
    return analysis.at_best(table.select(optimizer=optimizer), "learning_rate", "test/accuracy", failed=CHANCE)


def _inside_minus_outside(table: Table, optimizer: str) -> np.ndarray:
    runs = table.select(optimizer=optimizer)
    return analysis.inside_minus_outside(runs, "learning_rate", LESSON_RATES, "test/accuracy", failed=CHANCE)


def _at_best_minus_momentum(table: Table, optimizer: str) -> np.ndarray:
    return _at_best(table, optimizer) - _at_best(table, "momentum")


def _between(rates: pd.Index, ends: tuple[float, float]) -> np.ndarray:
    return np.asarray((rates > 0.999 * ends[0]) & (rates < 1.001 * ends[1]))


def _good_rates(table: Table, optimizer: str, ends: tuple[float, float] = (0.0, np.inf)) -> np.ndarray:
    """Which rates are within `BAND` of the best mean, `[seed, rate]`, among those between the ends."""
    accuracy = _by_rate(table, optimizer, "validation/accuracy")
    good = accuracy >= accuracy.mean().max() - BAND
    return good.to_numpy()[:, _between(accuracy.columns, ends)]


def _decades_a_rate(table: Table) -> float:
    rates = np.unique(table.frame["learning_rate"])
    return float(np.log10(rates[-1] / rates[0]) / max(len(rates) - 1, 1))


def _ends_minus_best(table: Table, optimizer: str) -> np.ndarray:
    loss = _by_rate(table, optimizer, "train/loss").clip(upper=CHANCE_LOSS)
    ends = np.minimum(loss.iloc[:, 0], loss.iloc[:, -1])
    return (ends - loss[_best_rate(table, optimizer)]).to_numpy()


def _widest_gap(table: Table) -> np.ndarray:
    """Distance of momentum's accuracy from SGD's at ten times the rate, a value a seed, where its mean is widest."""
    sgd, momentum = (_by_rate(table, name, "test/accuracy") for name in ("sgd", "momentum"))
    factor, best = theory.momentum_step_multiplier(np.inf), _best_rate(table, "sgd")
    pairs = [(rate, other) for rate in momentum for other in sgd if np.isclose(other, factor * rate, rtol=1e-6)]
    gaps = [momentum[rate] - sgd[other] for rate, other in pairs if 0 < other <= best]
    widest = max(gaps, key=lambda gap: abs(gap.mean()), default=pd.Series(dtype=float))
    return (widest * np.sign(widest.mean())).to_numpy()


def _accuracy_by_rate(results: Results) -> Figure:
    figure = Figure(figsize=(5.6 * len(results), 5.4), layout="constrained")
    axes = figure.subplots(2, len(results), sharex="col", squeeze=False, height_ratios=(4, 1))
    for (curves, bands), (name, table) in zip(axes.T, results.items(), strict=True):
        _draw_curves(curves, table)
        _draw_bands(bands, table)
        for each in (curves, bands):
            each.axvspan(*LESSON_RATES, color=plots.LESSON, alpha=0.35, linewidth=0, zorder=0)
        curves.text(1e-2, 1.0, "the lesson's 0.001 to 0.1", ha="center", va="bottom", color="#666666", fontsize=10)
        curves.set(xscale="log", ylim=(0, 1.0), title=TITLES[name] + "\n", ylabel="test accuracy")
    note = plots.counts(results.values(), failed_as="chance, one class of ten (x: every seed)")
    plots.legend_below(figure, axes[0, 0], note)
    return figure


def _draw_curves(axes: Axes, table: Table) -> None:
    for optimizer in _optimizers(table):
        runs, style = table.select(optimizer=optimizer), {"label": optimizer, "color": _color(optimizer)}
        plots.points_band(axes, runs, "test/accuracy", over="learning_rate", failed=CHANCE, **style)
    if "sgd" in _optimizers(table):
        sgd = _by_rate(table, "sgd", "test/accuracy").mean()
        rates = sgd.index / theory.momentum_step_multiplier(np.inf)
        there = rates > 0.99 * sgd.index.min()
        plots.theory_line(axes, rates[there], sgd[there], "theory: momentum as SGD at 10x the rate")


def _draw_bands(axes: Axes, table: Table) -> None:
    for place, optimizer in enumerate(_optimizers(table)):
        band = analysis.good_band(_by_rate(table, optimizer, "validation/accuracy").mean(), BAND)
        color = _color(optimizer)
        axes.plot([band.low, band.high], [-place, -place], color=color, linewidth=5, solid_capstyle="butt")
        axes.plot(_best_rate(table, optimizer), -place, marker="o", color="white", markeredgecolor=color)
    axes.set(xlabel="learning rate", yticks=[], ylabel="good band", ylim=(-len(OPTIMIZERS) + 0.4, 0.6))


def _loss_curves(results: Results) -> Figure:
    figure = Figure(figsize=(5.6 * len(results), 4.6), layout="constrained")
    shown = []
    for axes, (name, table) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for optimizer in _optimizers(table):
            rate = _best_rate(table, optimizer)
            runs = table.select(optimizer=optimizer, learning_rate=rate)
            label, color, metric = f"{optimizer}, rate {rate:.2g}", _color(optimizer), "train/loss"
            plots.band(axes, runs.steps(metric), runs.curves(metric), label=label, color=color, log=True)
            shown.append(runs)
        axes.set(title=TITLES[name], xlabel="step", ylabel="training loss (nats), geometric mean", yscale="log")
        axes.legend()
    plots.note(figure, plots.counts(shown, failed_as="missing"))
    return figure


def _color(optimizer: str) -> str:
    return plots.COLORS[OPTIMIZERS.index(optimizer)]


EXPERIMENT = Experiment(
    name="optimization.optimizers",
    version=1,
    question="Which optimizer, at which learning rate?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
