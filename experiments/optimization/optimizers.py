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

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dlexp import analysis, cli, learner, losses, models, optim, plots
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
    return learner.supervised(model, losses.softmax_cross_entropy, tx, mnist1d.load(), batch_size=100)


def digits_learner(config: Config, num_steps: int) -> Learner:
    """64-64-64-10 on scikit-learn's digits."""
    model = models.mlp(width=64, num_layers=3, num_outputs=10)
    tx = optim.from_name(config["optimizer"])
    return learner.supervised(model, losses.softmax_cross_entropy, tx, bundled.load("digits"), batch_size=64)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Every optimizer at every rate, on two data sets."""

    def rates(optimizers: tuple[str, ...], num_rates: int, seeds: int) -> "Grid":
        low, high = (1e-4, 10.0) if num_rates > 3 else (1e-3, 1e-1)
        hyper = {"learning_rate": geomspace(low, high, num_rates)}
        return grid(config={"optimizer": optimizers}, hyper=hyper, seeds=seeds)

    if scale == "smoke":
        return {
            "mnist1d": Sweep(rates(("sgd", "momentum"), 3, 2), mnist1d_learner, num_steps=40, num_evals=2),
            "digits": Sweep(rates(("adam",), 3, 2), digits_learner, num_steps=40, num_evals=2),
        }
    num_rates, seeds = {"cpu": (16, 8), "gpu": (46, 64)}[scale]
    return {
        "mnist1d": Sweep(rates(OPTIMIZERS, num_rates, seeds), mnist1d_learner, num_steps=1500, num_evals=15),
        "digits": Sweep(rates(OPTIMIZERS, num_rates, seeds), digits_learner, num_steps=500, num_evals=10),
    }


def figures(results: Results) -> dict[str, Figure]:
    """Accuracy over the learning rate with each optimizer's good band; losses at each one's own best rate."""
    return {"accuracy_by_rate": _accuracy_by_rate(results), "loss_curves": _loss_curves(results)}


def claims(results: Results) -> list[Claim]:
    """What the lesson and the theory say, judged."""
    return [
        judge(
            "Learning rates between 0.001 and 0.1 are the ones to use.",
            source='text 002, "Deep Learning Intro", Training Dynamics',
            rule="test accuracy at the best rate within 0.001 to 0.1 minus at the best rate outside, both chosen on "
            "validation; more than 0",
            effects=_by_optimizer(results, _inside_minus_outside),
        ),
    ]


def _optimizers(table: Table) -> list[str]:
    return [name for name in OPTIMIZERS if name in set(table.frame["optimizer"])]
