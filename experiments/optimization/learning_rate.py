"""How high can the learning rate go, how low is too slow?

The lesson says that too high a rate overshoots, too low a rate is extremely slow, and that most successful networks use
0.001 to 0.1 (text 002, "Training Dynamics"). Rates are swept here on MNIST-1D with and without batch normalization, on
quadratics, where the limit is known, and on a small network trained on all of its data at once.

Theory: gradient descent on a quadratic diverges from the rate 2 / largest curvature on; with momentum beta from
(2 + 2 beta) / curvature (Goh, "Why Momentum Really Works", 2017, https://distill.pub/2017/momentum). Networks trained
on the full batch raise their curvature until it is at that limit, 2 / rate, and stay there (Cohen et al., "Gradient
Descent on Neural Networks Typically Occurs at the Edge of Stability", 2021, https://arxiv.org/abs/2103.00065).

    python -m experiments.optimization.learning_rate
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dlexp import api, cli, learners, losses, models, optim
from dlexp.data import Dataset, mnist1d, splits
from dlexp.results import Results, ResultsError, Table, folders, load
from dlexp.study import (
    FRESH_SEEDS,
    Claim,
    at_best,
    by,
    good_bands,
    inside_minus_outside,
    judge,
    last,
    lines,
    measure,
    overlaid,
    side_by_side,
    text,
)
from dlexp.sweep import geomspace, grid
from dlexp.theory import optimizers as theory
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Sweep

LOWEST, HIGHEST = 1e-3, 1e-1  # of the lesson's good rates
TITLES = {"none": "SGD, plain", "batch": "SGD, with batch norm"}
CURVATURES = np.geomspace(1.0, 100.0, 20)  # of the quadratic
EDGE_RATES, MOMENTA = (0.2, 0.25, 0.3), (0.0, 0.5)
POWER_STEPS = 40


def network(config: Config, num_steps: int) -> Learner:
    """40-100-100-10 on MNIST-1D, trained by SGD."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, normalization=config["normalization"])
    return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), mnist1d.load(), batch_size=100)


def quadratic(config: Config, num_steps: int) -> Learner:
    """`sum(curvature w^2) / 2` over 20 curvatures from 1 to 100, by momentum from a random point, none of whose
    coordinates is small."""

    def init(key: Key, hyper: Hyper, curvatures: jax.Array) -> jax.Array:
        return jax.random.uniform(key, curvatures.shape, minval=0.5, maxval=1.5)

    def loss(key: Key, hyper: Hyper, curvatures: jax.Array, weights: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvatures * weights**2)

    return learners.descent(init, loss, optim.momentum(), data=CURVATURES.astype(np.float32))


def full_batch(config: Config, num_steps: int) -> Learner:
    """40-32-32-10 tanh layers on 200 examples at once, squared error; also measures the sharpest curvature."""
    model = models.mlp(width=32, num_layers=3, num_outputs=10, activation="tanh", initializer="lecun")
    data = Dataset(splits.with_first(mnist1d.load(), 200).train)

    def summed_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        return 0.5 * outputs.shape[-1] * losses.squared_error(outputs, labels)

    def largest_curvature(key: Key, hyper: Hyper, data: Dataset, state: learners.State) -> Metrics:
        def loss(params: PyTree) -> jax.Array:
            variables = {"params": params, **state.rest}
            outputs, _ = model.apply(variables, hyper, data.train.inputs, key=key, train=False)
            return summed_error(outputs, data.train.labels).mean()

        return {"curvature/largest": sharpness(loss, state.params, key)}

    trained = learners.supervised(model, summed_error, optim.momentum(), data, batch_size=None)
    return learners.measuring(trained, largest_curvature)


def sharpness(loss: Callable[[PyTree], jax.Array], params: PyTree, key: Key) -> jax.Array:
    """Returns the Hessian's largest eigenvalue by 40 steps of power iteration."""
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def product(vector: jax.Array) -> jax.Array:
        return jax.jvp(jax.grad(lambda point: loss(unflatten(point))), (flat,), (vector,))[1]

    def step(_: int, vector: jax.Array) -> jax.Array:
        following = product(vector)
        return following / jnp.linalg.norm(following)

    start = jax.random.normal(key, flat.shape)
    vector = jax.lax.fori_loop(0, POWER_STEPS, step, start / jnp.linalg.norm(start))
    return vector @ product(vector)


def sweeps() -> dict[str, Sweep]:
    """Rates with and without batch normalization; quadratics around their limit; full-batch training."""
    kinds, rates = {"normalization": TITLES}, {"learning_rate": geomspace(1e-3, 10.0, 17)}
    shares = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99, 1.01, 1.1, 1.3])  # of the largest stable rate
    parabola = grid(hyper={"learning_rate": shares * 2 / 100, "momentum": (0.0,)}, seeds=FRESH_SEEDS)
    parabola |= grid(hyper={"learning_rate": shares * 3 / 100, "momentum": (0.5,)}, seeds=FRESH_SEEDS)
    edge = grid(hyper={"learning_rate": EDGE_RATES, "momentum": MOMENTA}, seeds=FRESH_SEEDS)
    return {
        "rates": Sweep(grid(config=kinds, hyper=rates, seeds=FRESH_SEEDS), network, num_steps=700, num_evals=7),
        "quadratic": Sweep(parabola, quadratic, num_steps=200, num_evals=50),
        "full_batch": Sweep(edge, full_batch, num_steps=3000, num_evals=60),
    }


def accuracy_by_rate(results: Results) -> Figure:
    """Accuracy over the rate, and the rates that are as good as the best, other optimizers' beside them."""
    table = results["rates"]
    good = {
        title: table.select(normalization=kind)
        for kind, title in TITLES.items()
        if kind in set(table.frame["normalization"])
    }
    shared: Any = {"span": {"the lesson's 0.001 to 0.1": (LOWEST, HIGHEST)}, "xscale": "log", "xlim": (7e-4, 15)}
    curves: Any = {"x": "learning_rate", "hue": by("normalization", TITLES), "ylim": (0, 0.8), "title": "MNIST-1D"}
    return side_by_side(
        lines(table, None, "test/accuracy", **curves, **shared),
        good_bands(good | _other_optimizers(), 0.02, title="Rates within two points of the best (circle)", **shared),
        num_rows=2,
        width=7.0,
        height=3.0,
        note="x: every seed non-finite; momentum, rmsprop, adam: from optimization.optimizers",
    )


def _other_optimizers() -> dict[str, Table]:
    """Runs on MNIST-1D of the optimizers compared in `optimization.optimizers`, where they are saved."""
    try:
        saved = load(folders.folder_of(api.REFERENCE, "optimization.optimizers", "cpu"))["mnist1d"]
    except ResultsError:
        return {}
    return {name: saved.select(optimizer=name) for name in ("momentum", "rmsprop", "adam")}


def stability(results: Results) -> Figure:
    """Where quadratics become unstable, and how networks rise to that limit."""
    axes: Any = {
        "xscale": "log",
        "xlabel": "rate, share of (2 + 2 momentum) / curvature",
        "ylabel": "loss after 200 steps",
    }
    look: Any = {"log": True, "failed": 1e20, "clip": (1e-12, 1e20), "title": "A quadratic, curvatures 1 to 100"}
    loss = partial(lines, results, "quadratic", "train/loss", x="learning_rate", **look, **axes)
    plain, heavy = (by("momentum", (momentum,), "momentum {:g}") for momentum in MOMENTA)
    first, second = (partial(_share_of_limit, momentum=momentum) for momentum in MOMENTA)
    curves = loss(hue=plain, place=first), loss(hue=heavy, place=second, first_color=1, at={"theory: the limit": 1.0})
    edges = {
        f"rate {rate:g}, momentum {momentum:g}": {"learning_rate": rate, "momentum": momentum}
        for momentum in MOMENTA
        for rate in EDGE_RATES
    }

    def limit(label: str, step: np.ndarray) -> np.ndarray:
        return np.full(len(step), theory.largest_stable_curvature(**edges[label]))

    beside: Any = {"expected": ("theory: (2 + 2 momentum) / rate", limit), "title": "A network rises to its limit"}
    named: Any = {"xlabel": "step on the full batch", "ylabel": "largest curvature", "ylim": (0, None)}
    return side_by_side(
        overlaid(*curves),
        lines(results, "full_batch", "curvature/largest", x="step", hue=edges, **beside, **named),
        lost="10^20",
        height=5.0,
    )


def _share_of_limit(rates: Any, momentum: Any) -> Any:
    """The rates as shares of the rate from which the quadratic diverges."""
    return rates * CURVATURES.max() / theory.largest_stable_curvature(1.0, momentum)


@measure(
    "whether the loss falls at every rate below the limit, up to 0.99 of it, and at none from 1.01 of it on (1 or 0)"
)
def _keeps_limit(runs: Table) -> np.ndarray:
    curves = np.nan_to_num(runs.curves("train/loss"), nan=np.inf)
    is_stable = _share_of_limit(runs.frame["learning_rate"], runs.frame["momentum"]) < 1
    agrees = pd.Series(curves[:, -1] < curves[:, 0]) == is_stable
    return agrees.groupby(runs.frame["seed"]).all().to_numpy(float)


@measure(
    "relative distance of the largest curvature, averaged over the last third of the training, from (2 + 2 momentum) / "
    "rate, 1 where it is not finite"
)
def _off_the_edge(runs: Table) -> np.ndarray:
    curves, (setting, *_) = (
        runs.curves("curvature/largest"),
        runs.frame[["learning_rate", "momentum"]].to_dict("records"),
    )
    last_third = curves[:, -(curves.shape[1] // 3) :].mean(axis=1)
    distance = abs(last_third / theory.largest_stable_curvature(**setting) - 1)
    return np.nan_to_num(distance, nan=1.0, posinf=1.0)


def claims(results: Results) -> list[Claim]:
    """What the lesson says of the rate, and where theory puts its limit."""
    lesson, loss = text("002", "Training Dynamics"), "train/loss"
    inside = inside_minus_outside("learning_rate", LOWEST, HIGHEST)(results, "rates", normalization=TITLES)
    lowest = last(loss)(results, "rates", normalization=TITLES, learning_rate=LOWEST)
    best = at_best(loss)(results, "rates", normalization=TITLES)
    return [
        judge("Good learning rates lie between 0.001 and 0.1.", lesson, inside, least=0.01),
        judge("Too low a rate makes training extremely slow.", lesson, lowest - best, least=0.5),
        judge(
            "Too high a rate overshoots: beyond (2 + 2 momentum) / curvature a quadratic diverges, below it does not.",
            f"{lesson}; Goh, Why Momentum Really Works, 2017, https://distill.pub/2017/momentum",
            _keeps_limit(results, "quadratic", momentum=MOMENTA),
            least=0.5,
        ),
        judge(
            "Training on the full batch drives the largest curvature to (2 + 2 momentum) / rate and holds it there.",
            "Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, "
            "2021, https://arxiv.org/abs/2103.00065",
            _off_the_edge(results, "full_batch", learning_rate=EDGE_RATES, momentum=MOMENTA),
            most=0.15,
        ),
    ]


EXPERIMENT = Experiment("optimization.learning_rate", 1, __doc__, sweeps, (accuracy_by_rate, stability), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
