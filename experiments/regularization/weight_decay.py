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

from typing import Any

import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import mnist1d
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.sweep import geomspace, grid
from dlexp.types import Config, Experiment, Figures, Learner, Sweep

CHANCE = 0.1
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
RATES = {"sgd_l2": (0.003, 1.0), "adam_l2": (3e-4, 0.1), "adamw": (3e-4, 0.1)}


def network(config: Config, num_steps: int) -> Learner:
    """The MNIST-1D authors' perceptron, 40-100-100-10 with a residual layer."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, residual=True)
    tx = OPTIMIZERS[config["optimizer"]][1]
    return learners.supervised(model, losses.softmax_cross_entropy, tx, mnist1d.load(), batch_size=100)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Learning rate x strength for each of the three."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    num_rates = {"smoke": 2, "cpu": 8, "gpu": 22}[scale]
    blocks = {}
    for name, (_, _, strength) in OPTIMIZERS.items():
        strengths = STRENGTHS[name] if scale != "smoke" else STRENGTHS[name][::5]
        hyper = {"learning_rate": geomspace(*RATES[name], num_rates), strength: strengths}
        blocks[name] = grid(config={"optimizer": (name,)}, hyper=hyper, seeds=seeds)
    if scale == "smoke":
        return {"map": Sweep(blocks["adam_l2"] | blocks["adamw"], network, num_steps=40)}
    return {"map": Sweep(blocks["sgd_l2"] | blocks["adam_l2"] | blocks["adamw"], network, num_steps=1000, num_evals=4)}


def figures(results: Results) -> Figures:
    """The three maps; accuracy and gap over the strength."""
    return {"maps": lambda: _maps(results["map"]), "accuracy_by_strength": lambda: _by_strength(results["map"])}


def claims(results: Results) -> list[Claim]:
    """What the lesson says of the penalty, and the paper of decoupling it."""
    lesson = 'text 002, "Deep Learning Intro", Model Capacity and Regularization'
    paper = "Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101"
    table = results["map"]
    return [
        judge(
            "Penalizing large weights makes the network better on new data.",
            source=lesson,
            rule="test accuracy at the best strength above 0 minus without, each at its own best rate, all chosen on "
            "validation, paired by seed; at least one point (0.01)",
            effects=each("{}", OPTIMIZERS, lambda name: _best(table, name) - _at(table, name, 0.0)),
            smallest=0.01,
        ),
        judge(
            "It prevents overfitting.",
            source=lesson,
            rule="training minus test accuracy without minus at the best strength, each at its own best rate, all "
            "chosen on validation, paired by seed; at least 0.05",
            effects=each(
                "{}", OPTIMIZERS, lambda name: _gap(table, name, 0.0) - _gap(table, name, _strength(table, name))
            ),
            smallest=0.05,
        ),
        judge(
            "With Adam, decoupled decay is better than the penalty in the loss.",
            source=paper,
            rule="test accuracy of AdamW minus of Adam + L2, each at its own best rate and strength by validation, "
            "paired by seed; at least one point (0.01)",
            effects={"best against best": lambda: _best(table, "adamw") - _best(table, "adam_l2")},
            smallest=0.01,
        ),
        judge(
            "Decoupled, the strength need not be chosen anew for another learning rate.",
            source=paper,
            rule="test accuracy lost by keeping the strength that is best at the best rate (for AdamW also: the rate "
            "times the strength) instead of each rate's own best by validation, mean over the rates within a decade "
            "of the best; Adam + L2 minus AdamW, at least 0.005",
            effects=each(
                "{} kept",
                ("strength", "rate x strength"),
                lambda kept: _regret(table, "adam_l2", "strength") - _regret(table, "adamw", kept),
            ),
            smallest=0.005,
        ),
    ]


def _runs(table: Table, name: str, strength: float) -> Table:
    return table.select(optimizer=name, **{OPTIMIZERS[name][2]: strength})


def _at(table: Table, name: str, strength: float, metric: str = "test/accuracy") -> np.ndarray:
    return analysis.at_best(_runs(table, name, strength), "learning_rate", metric, failed=CHANCE)


def _strengths(table: Table, name: str) -> list[float]:
    return list(np.unique(table.select(optimizer=name).frame[OPTIMIZERS[name][2]]))


def _strength(table: Table, name: str) -> float:
    """The strength above 0 that is best on validation, at its own best rate."""
    return analysis.chosen(_decayed(table, name), [OPTIMIZERS[name][2], "learning_rate"])[OPTIMIZERS[name][2]]


def _decayed(table: Table, name: str) -> Table:
    return table.select(optimizer=name, **{OPTIMIZERS[name][2]: _strengths(table, name)[1:]})


def _best(table: Table, name: str) -> np.ndarray:
    axes = [OPTIMIZERS[name][2], "learning_rate"]
    return analysis.at_best(_decayed(table, name), axes, "test/accuracy", failed=CHANCE)


def _gap(table: Table, name: str, strength: float) -> np.ndarray:
    return _at(table, name, strength, "train/accuracy") - _at(table, name, strength)


def _map(table: Table, name: str, metric: str) -> np.ndarray:
    """`[strength, seed, rate]`."""
    return np.array(
        [
            analysis.by_seed(_runs(table, name, strength), metric, "learning_rate", failed=CHANCE).to_numpy()
            for strength in _strengths(table, name)
        ]
    )


def _regret(table: Table, name: str, keep: str) -> np.ndarray:
    """Test accuracy that one strength, or one product with the rate, costs within a decade of the best, `[seed]`."""
    means, test = _map(table, name, "validation/accuracy").mean(axis=1), _map(table, name, "test/accuracy")
    best, best_rate = np.unravel_index(means.argmax(), means.shape)
    rates = np.log10(np.unique(table.select(optimizer=name).frame["learning_rate"]))
    if len(rates) < 2:
        raise NotMeasuredError("one rate says nothing of another")
    strengths = np.log10(np.maximum(_strengths(table, name), 1e-12))
    lost = []
    for rate in np.flatnonzero(abs(rates - rates[best_rate]) < 1.01):
        wanted = strengths[best] + (rates[best_rate] - rates[rate] if keep == "rate x strength" else 0.0)
        lost.append(test[means[:, rate].argmax(), :, rate] - test[abs(strengths - wanted).argmin(), :, rate])
    return np.mean(lost, axis=0)


def _maps(table: Table) -> Figure:
    names = [name for name in OPTIMIZERS if name in set(table.frame["optimizer"])]
    figure, panels = plots.subplots(1, len(names), width=5.0, height=4.2)
    for axes, name in zip(np.atleast_1d(panels), names, strict=True):
        title, _, strength = OPTIMIZERS[name]
        runs = table.select(optimizer=name)
        options: dict[str, Any] = {
            "x": "learning_rate",
            "y": strength,
            "failed": CHANCE,
            "vmin": 0.1,
            "vmax": 0.7,
            "cmap": "viridis",
        }
        mesh = plots.heat_map(axes, runs, "test/accuracy", **options)
        means = _map(table, name, "validation/accuracy").mean(axis=1)
        place = np.unravel_index(means.argmax(), means.shape)
        axes.plot(
            place[1], place[0], "o", markerfacecolor="none", markeredgecolor="white", markersize=14, markeredgewidth=2
        )
        axes.set(title=title, xlabel="learning rate", ylabel=strength.replace("_", " "))
        axes.tick_params(axis="x", rotation=45)
    figure.colorbar(mesh, ax=panels, label="test accuracy")
    plots.note(figure, plots.counts([table], failed_as="chance, one class of ten") + "; circle: best by validation")
    return figure


def _by_strength(table: Table) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.6, height=4.2)
    names = [name for name in OPTIMIZERS if name in set(table.frame["optimizer"])]
    for color, name in zip(plots.COLORS, names, strict=False):
        strengths = _strengths(table, name)
        places = np.arange(len(strengths))
        test = np.array([_at(table, name, strength) for strength in strengths]).T
        train = np.array([_at(table, name, strength, "train/accuracy") for strength in strengths]).T
        label = f"{OPTIMIZERS[name][0]}: 0, {strengths[1]:g} to {strengths[-1]:g}"
        plots.band(left, places, test, label=label, color=color, marker="o")
        plots.band(right, places, train - test, label=label, color=color, marker="o")
    for axes in (left, right):
        axes.set(xlabel="strength, from none to the strongest of its grid", xticks=[])
    left.set(ylabel="test accuracy", title="On new data, each at its own best rate", ylim=(0, 0.75))
    right.set(ylabel="training minus test accuracy", title="Overfitting", ylim=(0, None))
    plots.legend_below(figure, left, plots.counts([table], failed_as="chance, one class of ten"))
    return figure


EXPERIMENT = Experiment(
    name="regularization.weight_decay",
    version=1,
    question="L2 in the loss, or decoupled weight decay?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
