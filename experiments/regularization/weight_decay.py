"""L2 in the loss, or decoupled weight decay?

The lesson adds lambda times the sum of the squared weights to the loss against overfitting (text 002, "Model Capacity
and Regularization"; text 000, "L2 Regularization"). SGD with that penalty, Adam with it, and AdamW, which decays the
weights beside the gradient, are trained here on MNIST-1D over a whole map of learning rates and strengths.

Theory: the penalty's gradient is 2 lambda w, so the usual "weight decay" number is twice the lesson's lambda, and under
SGD both forms are one. Adam divides the penalty's gradient by its own size, so where the penalty dominates, weights
shrink at the same pace whatever lambda; decoupled, the best strength should not depend on the rate (Loshchilov and
Hutter, "Decoupled Weight Decay Regularization", 2019, https://arxiv.org/abs/1711.05101). There a step decays by the
strength alone; in AdamW as libraries have it, and here, by the rate times the strength: both ways of keeping it are
judged.

    python -m experiments.regularization.weight_decay
"""

from __future__ import annotations

from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import mnist1d
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Among,
    Claim,
    Effect,
    Measure,
    at_best,
    each,
    heat,
    judge,
    lines,
    overlaid,
    side_by_side,
    statistics,
    text,
    train_minus_test,
)
from dlexp.study.panels import Panel
from dlexp.sweep import geomspace, grid
from dlexp.types import Config, Experiment, Learner, Sweep

OPTIMIZERS = {  # name -> (title, optimizer, name of the strength)
    "sgd_l2": ("SGD + L2", optim.chain(optim.add_decayed_weights(), optim.momentum()), "l2_penalty"),
    "adam_l2": ("Adam + L2", optim.chain(optim.add_decayed_weights(), optim.adam()), "l2_penalty"),
    "adamw": ("AdamW", optim.adamw(), "weight_decay"),
}
STRENGTHS = {
    "sgd_l2": (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "adam_l2": (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "adamw": (0.0, 0.03, 0.1, 0.3, 1.0, 3.0),
}
CHOSEN = ("l2_penalty", "weight_decay", "learning_rate")  # axes of a best point; each optimizer has two of them
RATES = {"sgd_l2": (0.003, 1.0), "adam_l2": (3e-4, 0.1), "adamw": (3e-4, 0.1)}
REGRET = (
    "test accuracy lost by keeping the strength that is best at the best rate (for AdamW also: the rate times the "
    "strength) instead of each rate's own best by validation, mean over the rates within a decade of the best, "
    "Adam + L2 minus AdamW"
)


def network(config: Config, num_steps: int) -> Learner:
    """The MNIST-1D authors' perceptron, 40-100-100-10 with a residual layer."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, residual=True)
    tx = OPTIMIZERS[config["optimizer"]][1]
    return learners.supervised(model, losses.softmax_cross_entropy, tx, mnist1d.load(), batch_size=100)


def sweeps() -> dict[str, Sweep]:
    """Learning rate x strength for each of the three."""
    blocks = [
        grid(
            config={"optimizer": (name,)},
            hyper={"learning_rate": geomspace(*RATES[name], 8), strength: STRENGTHS[name]},
            seeds=FRESH_SEEDS,
        )
        for name, (_, _, strength) in OPTIMIZERS.items()
    ]
    return {"map": Sweep(reduce(or_, blocks), network, num_steps=1000, num_evals=4)}


def maps(results: Results) -> Figure:
    """Test accuracy over learning rate and strength, for each of the three."""
    draw = partial(heat, results, "map", "test/accuracy", x="learning_rate", vmin=0.1, vmax=0.7)
    panels = [
        draw(y=strength, panels={title: {"optimizer": name}}, colorbar=name == "adamw")
        for name, (title, _, strength) in OPTIMIZERS.items()
    ]
    return side_by_side(*panels, note="circle: best by validation", width=5.0)


def accuracy_by_strength(results: Results) -> Figure:
    """Accuracy and overfitting over the strength, at each one's own best rate."""
    look = {"place": lambda strengths: np.arange(len(strengths)), "xticks": []}

    def panel(measure: Measure, **options: Any) -> list[Panel]:
        drawn: list[Panel] = []
        for color, (name, (title, _, strength)) in enumerate(OPTIMIZERS.items()):
            label = f"{title}: 0, {STRENGTHS[name][1]:g} to {STRENGTHS[name][-1]:g}"
            one = {"hue": {label: {}}, "fixed": {"optimizer": name}, "first_color": color, **look, **options}
            drawn += lines(results, "map", measure, x=strength, **one)
        return overlaid(*drawn)

    axis = {"xlabel": "strength, from none to the strongest of its grid"}
    overfitting = {"ylabel": "training minus test accuracy", "title": "Overfitting", "ylim": (0, None), **axis}
    return side_by_side(
        panel(at_best("test/accuracy"), title="On new data, each at its own best rate", ylim=(0, 0.75), **axis),
        panel(train_minus_test(), **overfitting),
    )


def claims(results: Results) -> list[Claim]:
    """What the lesson says of the penalty, and the paper of decoupling it."""
    lesson = text("002", "Model Capacity and Regularization")
    paper = "Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101"
    own = "each at its own best learning rate, all chosen by validation"
    accuracy, gap = at_best("test/accuracy", over=CHOSEN), train_minus_test(over=CHOSEN)
    better = _measured(results, accuracy, "test accuracy at the best strength above 0", decayed=True)
    better -= _measured(results, accuracy, f"at strength 0, {own}", decayed=False)
    less_gap = _measured(results, gap, "training minus test accuracy at strength 0", decayed=False)
    less_gap -= _measured(results, gap, f"at the best strength above 0, {own}", decayed=True)
    decoupled = _measured(results, accuracy, "test accuracy of AdamW", "adamw", decayed=True)
    coupled = "of Adam + L2, each at its own best strength above 0 and learning rate by validation"
    decoupled -= _measured(results, accuracy, coupled, "adam_l2", decayed=True)
    kept = Effect(REGRET, each("{} kept", ("strength", "rate x strength"), partial(_less_regret, results)))
    return [
        judge("Penalizing large weights makes the network better on new data.", lesson, better, least=0.01),
        judge("It prevents overfitting.", lesson, less_gap, least=0.05),
        judge("With Adam, decoupled decay is better than the penalty in the loss.", paper, decoupled, least=0.01),
        judge("Decoupled, the strength need not be chosen anew for another learning rate.", paper, kept, least=0.005),
    ]


def _measured(results: Results, measure: Measure, words: str, *names: str, decayed: bool) -> Effect:
    """A measure of some optimizers, default all, at the strengths above 0 or without any."""
    cases = {}
    for name in names or OPTIMIZERS:
        strengths = Among(STRENGTHS[name][1:]) if decayed else 0.0
        cases["best against best" if names else name] = {"optimizer": name, OPTIMIZERS[name][2]: strengths}
    return measure.with_words(words)(results, "map", cases)


def _less_regret(results: Results, kept: str) -> np.ndarray:
    return _regret(results["map"], "adam_l2", "strength") - _regret(results["map"], "adamw", kept)


def _regret(table: Table, name: str, kept: str) -> np.ndarray:
    """Test accuracy that one strength, or one product with the rate, costs within a decade of the best, `[seed]`."""
    strength, runs = OPTIMIZERS[name][2], table.select(optimizer=name)
    rates, strengths = (np.unique(runs.frame[axis]) for axis in ("learning_rate", strength))
    if len(rates) < 2:
        raise NotMeasuredError("one rate says nothing of another")

    def by_strength(metric: str) -> np.ndarray:
        """`[strength, seed, rate]`."""
        tables = [runs.select(**{strength: value}) for value in strengths]
        return np.array([statistics.by_seed(each, metric, "learning_rate", failed=0.1) for each in tables])

    means, test = by_strength("validation/accuracy").mean(axis=1), by_strength("test/accuracy")
    best, best_rate = np.unravel_index(means.argmax(), means.shape)
    log_rates, log_strengths = np.log10(rates), np.log10(np.maximum(strengths, 1e-12))
    lost = []
    for rate in np.flatnonzero(abs(log_rates - log_rates[best_rate]) < 1.01):
        wanted = log_strengths[best] + (log_rates[best_rate] - log_rates[rate] if kept == "rate x strength" else 0.0)
        lost.append(test[means[:, rate].argmax(), :, rate] - test[abs(log_strengths - wanted).argmin(), :, rate])
    return np.mean(lost, axis=0)


EXPERIMENT = Experiment("regularization.weight_decay", 1, __doc__, sweeps, (maps, accuracy_by_strength), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
