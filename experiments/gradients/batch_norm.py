"""Which of batch normalization's four benefits are there, and what does it cost?

The lesson names four: faster training, higher learning rates, less sensitivity to initialization, and regularization
(text 000, "4. Batch Normalization"), and places it between the linear layer and the activation (text 004). Each is
measured here on its own, on MNIST-1D, each network at its own best rate by validation.

Theory: the weights' scale has no effect before a normalization, so a poor scale costs nothing. But in deep plain
networks it makes gradients grow, by 1.21 a ReLU layer, 10^4 over 50 layers (Yang et al., "A Mean Field Theory of Batch
Normalization", 2019, https://arxiv.org/abs/1902.08129). Published: the same accuracy in 14 times fewer steps (Ioffe and
Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167, abstract).

    python -m experiments.gradients.batch_norm
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import mnist1d
from dlexp.learners import propagation
from dlexp.results import Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Among,
    Claim,
    Effect,
    at_best,
    by,
    decades,
    each,
    highest_good,
    judge,
    lines,
    side_by_side,
    spread_over,
    statistics,
    text,
    train_minus_test,
)
from dlexp.sweep import geomspace, grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Learner, Sweep

PLACEMENTS = {"none": "without", "before": "before the activation", "after": "after the activation"}
TITLES = {"relu": "ReLU", "tanh": "tanh"}
DEPTHS, BATCH_SIZES = (2, 10), (8, 32, 128)
INIT_SCALES = (0.1, 0.3, 3.0, 10.0)
COARSE_RATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # where all scales are compared
USABLE = highest_good(0.05)  # within five points of the best rate's validation accuracy
NO_BETTER = 10  # times the training: what a network that never gets there counts as


def network(config: Config, num_steps: int) -> Learner:
    """ReLU layers of width 64 on MNIST-1D, trained by SGD."""
    placement = config["placement"]
    model = models.mlp(
        width=64,
        num_layers=config["num_layers"],
        num_outputs=10,
        normalization="none" if placement == "none" else "batch",
        placement="after" if placement == "after" else "before",
    )
    batch_size = config.get("batch_size", 64)
    return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), mnist1d.load(), batch_size=batch_size)


def untrained(config: Config, num_steps: int) -> Learner:
    """50 layers of width 256 with batch normalization at initialization."""
    inputs = mnist1d.load().train.inputs[:256]
    return propagation(inputs, width=256, num_layers=50, activation=config["activation"], normalization="batch")


def sweeps() -> dict[str, Sweep]:
    """Placement x depth x rate, initial scales, batch sizes, and gradients at initialization."""
    wide = {"learning_rate": geomspace(1e-3, 10.0, 9), "init_scale": (1.0,)}
    rates = grid(config={"placement": PLACEMENTS, "num_layers": DEPTHS}, hyper=wide, seeds=FRESH_SEEDS)
    scales = {"learning_rate": COARSE_RATES, "init_scale": INIT_SCALES}
    rates |= grid(config={"placement": ("none", "before"), "num_layers": (10,)}, hyper=scales, seeds=FRESH_SEEDS)
    sizes = {"placement": ("none", "before"), "num_layers": (2,), "batch_size": BATCH_SIZES}
    batches = grid(config=sizes, hyper={"learning_rate": geomspace(1e-2, 10**0.5, 4)}, seeds=FRESH_SEEDS)
    profile = grid(config={"activation": TITLES}, hyper={"init_scale": (2**0.5,)}, seeds=FRESH_SEEDS)
    return {
        "rates": Sweep(rates, network, num_steps=600, num_evals=20),
        "batches": Sweep(batches, network, num_steps=2000, num_evals=4),
        "initialization": Sweep(profile, untrained, num_steps=0),
    }


def accuracy_by_rate(results: Results) -> Figure:
    """Test accuracy over the rate, by placement and depth."""
    cases: Any = {"hue": by("placement", PLACEMENTS), "panels": by("num_layers", DEPTHS, "{} layers, batch norm:")}
    axes: Any = {"x": "learning_rate", "xscale": "log", "xlabel": "learning rate of SGD", "ylim": (0, 0.8)}
    return side_by_side(lines(results, "rates", "test/accuracy", fixed={"init_scale": 1.0}, **cases, **axes))


def scales_and_gradients(results: Results) -> Figure:
    """Sensitivity to the initial scale; gradients by layer at initialization."""
    factors = [mean_field.batch_norm_chi(name) ** 0.5 for name in TITLES]
    theory = {f"theory: {f:.3f} a layer": lambda layer, f=f: f ** (layer.max() - layer) for f in factors}
    placed: Any = {"hue": by("placement", {"none": "without", "before": "with batch norm"}), "title": "Own best rates"}
    coarse: Any = {"num_layers": 10, "learning_rate": COARSE_RATES}
    axes: Any = {"xscale": "log", "xlabel": "scale of the weights, He = 1", "ylim": (0, 0.8)}
    named: Any = {"ylabel": "gradient norm, last layer = 1", "title": "50 layers with batch norm, untrained"}
    look: Any = {"log": True, "transform": lambda log_squares: np.exp(log_squares / 2), "first_color": 2}
    profile: Any = {"x": "layer", "hue": by("activation", TITLES), "theory": theory, **look, **named}
    return side_by_side(
        lines(results, "rates", at_best("test/accuracy"), x="init_scale", fixed=coarse, **placed, **axes),
        lines(results, "initialization", "layer/log_gradient", **profile),
    )


def claims(results: Results) -> list[Claim]:
    """The lesson's four benefits, its placement, and what theory says of deep networks."""
    lesson, own = text("000", "4. Batch Normalization"), {"num_layers": DEPTHS, "init_scale": 1.0}
    accuracy, usable = (partial(measure, results, "rates", **own) for measure in (at_best("test/accuracy"), USABLE))
    gap = partial(train_minus_test(), results, "batches", batch_size=BATCH_SIZES)
    coarse: Any = {"num_layers": 10, "learning_rate": Among(COARSE_RATES)}
    spread = partial(spread_over("init_scale"), results, "rates", **coarse)
    growth = decades("layer/log_gradient", "gradient", squared=True)(results, "initialization", activation=TITLES)
    none, before, after = ({"placement": placement} for placement in PLACEMENTS)
    place = text("004", "Batch Normalization")
    return [
        judge("Batch normalization makes training faster.", lesson, _speed_up(results), least=np.log2(1.5)),
        judge("It makes higher learning rates possible.", lesson, usable(**before) - usable(**none), least=np.log10(3)),
        judge(
            "It makes training less sensitive to initialization.", lesson, spread(**none) - spread(**before), least=0.1
        ),
        judge("It acts as a regularizer.", lesson, gap(**none) - gap(**before), least=0.02),
        judge(
            "Its place is before the activation rather than after it.",
            place,
            accuracy(**before) - accuracy(**after),
            least=0.01,
        ),
        judge(
            "It keeps the gradients of deep plain networks from exploding.",
            text("003", "Training Deep Networks"),
            growth,
            most=1,
        ),
    ]


def _speed_up(results: Results) -> Effect:
    def log_ratio(num_layers: int) -> np.ndarray:
        plain, normalized = (_best_runs(results["rates"], name, num_layers) for name in ("none", "before"))
        target = 0.9 * plain.frame["train/accuracy"].mean()
        without = statistics.first_step(plain, "train/accuracy", target, never=plain.num_steps)
        within = statistics.first_step(normalized, "train/accuracy", target, never=NO_BETTER * plain.num_steps)
        return np.log2(without / within)

    words = "log2 of the steps to 90% of the plain network's final training accuracy, without over with, each at its "
    return Effect(words + "own best rate by validation", each("{} layers", DEPTHS, log_ratio))


def _best_runs(table: Table, placement: str, num_layers: int) -> Table:
    runs = table.select(placement=placement, num_layers=num_layers, init_scale=1.0)
    return runs.select(**statistics.chosen(runs, "learning_rate"))


EXPERIMENT = Experiment("gradients.batch_norm", 1, __doc__, sweeps, (accuracy_by_rate, scales_and_gradients), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
