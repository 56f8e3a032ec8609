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

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, api, cli, learners, losses, models, optim, plots
from dlexp.data import Dataset, mnist1d, splits
from dlexp.results import Results, ResultsError, Table, folders, load
from dlexp.sweep import geomspace, grid
from dlexp.theory import optimizers as theory
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

LESSON_RATES = (1e-3, 1e-1)
CHANCE, BAND = 0.1, 0.02
TITLES = {"none": "plain", "batch": "with batch norm"}
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
    tx = optim.momentum()

    def loss(weights: jax.Array, curvatures: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvatures * weights**2)

    def init(key: Key, hyper: Hyper, data: PyTree) -> learners.State:
        weights = jax.random.uniform(key, data.shape, minval=0.5, maxval=1.5)
        return learners.State(weights, {}, tx.make_tx(hyper).init(weights))

    def update(key: Key, hyper: Hyper, data: PyTree, state: learners.State) -> tuple[learners.State, Metrics]:
        value, grads = jax.value_and_grad(loss)(state.params, data)
        updates, opt_state = tx.make_tx(hyper).update(grads, state.opt_state, state.params)
        return learners.State(optax.apply_updates(state.params, updates), {}, opt_state), {"batch/loss": value}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.State) -> Metrics:
        return {"train/loss": loss(state.params, data)}

    return Learner(CURVATURES.astype(np.float32), tx.hyper, init, update, evaluate)


def full_batch(config: Config, num_steps: int) -> Learner:
    """40-32-32-10 tanh layers on 200 examples at once, squared error; also measures the sharpest curvature."""
    model = models.mlp(width=32, num_layers=3, num_outputs=10, activation="tanh", initializer="lecun")
    data = Dataset(splits.with_first(mnist1d.load(), 200).train)
    plain = learners.supervised(model, _summed_error, optim.momentum(), data, batch_size=None)

    def evaluate(key: Key, hyper: Hyper, data: Dataset, state: learners.State) -> Metrics:
        def loss(params: PyTree) -> jax.Array:
            variables = {"params": params, **state.rest}
            outputs, _ = model.apply(variables, hyper, data.train.inputs, key=key, train=False)
            return _summed_error(outputs, data.train.labels).mean()

        sharpest = sharpness(loss, state.params, key)
        return {**plain.evaluate(key, hyper, data, state), "curvature/largest": sharpest}

    return plain._replace(evaluate=evaluate)


def _summed_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return 0.5 * outputs.shape[-1] * losses.squared_error(outputs, labels)


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


def sweeps(scale: str) -> dict[str, Sweep]:
    """Rates with and without batch normalization; quadratics around their limit; full-batch training."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    num_rates = {"smoke": 3, "cpu": 17, "gpu": 49}[scale]
    rates = {"learning_rate": geomspace(1e-3, 10.0, num_rates)}
    kinds = ("none",) if scale == "smoke" else tuple(TITLES)
    shares = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99, 1.01, 1.1, 1.3])  # of the largest stable rate
    parabola = grid(hyper={"learning_rate": shares * 2 / 100, "momentum": (0.0,)}, seeds=seeds)
    parabola |= grid(hyper={"learning_rate": shares * 3 / 100, "momentum": (0.5,)}, seeds=seeds)
    edge = grid(hyper={"learning_rate": EDGE_RATES, "momentum": MOMENTA}, seeds=seeds)
    short = scale == "smoke"
    return {
        "rates": Sweep(
            grid(config={"normalization": kinds}, hyper=rates, seeds=seeds), network, 28 if short else 700, 7
        ),
        "quadratic": Sweep(parabola, quadratic, num_steps=200, num_evals=50),
        "full_batch": Sweep(edge, full_batch, num_steps=60 if short else 3000, num_evals=3 if short else 60),
    }


def figures(results: Results) -> Figures:
    """Accuracy over the rate with the good bands; where quadratics and networks become unstable."""
    return {"accuracy_by_rate": lambda: _accuracy_by_rate(results["rates"]), "stability": lambda: _stability(results)}


def claims(results: Results) -> list[Claim]:
    """What the lesson says of the rate, and where theory puts its limit."""
    lesson, rates = 'text 002, "Deep Learning Intro", Training Dynamics', results["rates"]
    return [
        judge(
            "Good learning rates lie between 0.001 and 0.1.",
            source=lesson,
            rule="test accuracy of SGD at the best rate inside 0.001 to 0.1 minus at the best rate outside, rates "
            "chosen on validation, paired by seed; at least one point (0.01)",
            effects=each(
                "{}",
                TITLES,
                lambda kind: analysis.inside_minus_outside(
                    _runs(rates, kind), "learning_rate", LESSON_RATES, "test/accuracy", failed=CHANCE
                ),
            ),
            smallest=0.01,
        ),
        judge(
            "Too low a rate makes training extremely slow.",
            source=lesson,
            rule="training loss after 700 steps at the rate 0.001 minus at the best rate by validation, paired by "
            "seed; at least 0.5 nats",
            effects=each("{}", TITLES, lambda kind: _slow(_runs(rates, kind))),
            smallest=0.5,
        ),
        judge(
            "Too high a rate overshoots: beyond (2 + 2 momentum) / curvature a quadratic diverges, below it does not.",
            source=f"{lesson}; Goh, Why Momentum Really Works, 2017, https://distill.pub/2017/momentum",
            rule="whether the loss falls at every rate up to 0.99 of the limit and rises at every rate from 1.01 of it "
            "(1 or 0); above 0.5",
            effects=each("momentum {}", MOMENTA, lambda momentum: _brackets(results["quadratic"], momentum)),
            smallest=0.5,
        ),
        judge(
            "Training on the full batch drives the largest curvature to (2 + 2 momentum) / rate and holds it there.",
            source="Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, "
            "2021, https://arxiv.org/abs/2103.00065",
            rule="0.15 minus the relative distance of the largest curvature, averaged over the last third of the "
            "training, from the limit, 1 where it is not finite; more than 0",
            effects=each(
                "rate {}, momentum {}",
                [(rate, momentum) for momentum in MOMENTA for rate in EDGE_RATES],
                lambda rate, momentum: 0.15 - _off_the_edge(results["full_batch"], rate, momentum),
            ),
        ),
    ]


def _runs(table: Table, kind: str) -> Table:
    return table.select(normalization=kind)


def _slow(runs: Table) -> np.ndarray:
    values = analysis.by_seed(runs, "train/loss", "learning_rate", failed=np.log(10))
    lowest = runs.select(learning_rate=LESSON_RATES[0]).frame["learning_rate"].iloc[0]
    return (values[lowest] - values[analysis.chosen(runs, "learning_rate")["learning_rate"]]).to_numpy()


def _limit(momentum: float) -> float:
    """The rate from which the quadratic diverges."""
    return float(theory.largest_stable_curvature(1.0, momentum) / CURVATURES.max())


def _brackets(table: Table, momentum: float) -> np.ndarray:
    runs = table.select(momentum=momentum)
    curves = np.nan_to_num(runs.curves("train/loss"), nan=np.inf)
    fell = pd.Series(curves[:, -1] < curves[:, 0])
    right = fell == (runs.frame["learning_rate"] < _limit(momentum))
    return right.groupby(runs.frame["seed"]).all().to_numpy(float)


def _off_the_edge(table: Table, rate: float, momentum: float) -> np.ndarray:
    runs = table.select(learning_rate=rate, momentum=momentum)
    curves = runs.curves("curvature/largest")
    last_third = curves[:, -(curves.shape[1] // 3) :].mean(axis=1)
    distance = abs(last_third / theory.largest_stable_curvature(rate, momentum) - 1)
    return np.nan_to_num(distance, nan=1.0, posinf=1.0)


def _optimizer_bands() -> dict[str, analysis.Band]:
    """The good bands on MNIST-1D of the optimizers compared in `optimization.optimizers`, where they are saved."""
    try:
        saved = load(folders.folder_of(api.REFERENCE, "optimization.optimizers", "cpu"))["mnist1d"]
    except ResultsError:
        return {}
    names = ("momentum", "rmsprop", "adam")
    return {name: _band(saved.select(optimizer=name)) for name in names}


def _band(runs: Table) -> analysis.Band:
    means = analysis.by_seed(runs, "validation/accuracy", "learning_rate", failed=0.0).mean()
    return analysis.good_band(means, BAND)


def _accuracy_by_rate(table: Table) -> Figure:
    figure, (curves, bands) = plots.subplots(2, 1, width=7.0, height=3.0)
    kinds = [kind for kind in TITLES if kind in set(table.frame["normalization"])]
    drawn = {}
    for color, kind in zip(plots.COLORS, kinds, strict=False):
        runs, label = _runs(table, kind), f"SGD, {TITLES[kind]}"
        over = "learning_rate"
        plots.points_band(curves, runs, "test/accuracy", over=over, label=label, color=color, failed=CHANCE)
        drawn[label] = (_band(runs), color)
    for (name, known), color in zip(_optimizer_bands().items(), plots.COLORS[2:], strict=False):
        drawn[name] = (known, color)
    for place, (name, (band, color)) in enumerate(drawn.items()):
        bands.plot([band.low, band.high], [-place, -place], color=color, linewidth=6, solid_capstyle="butt")
        bands.plot(band.best, -place, "o", color="white", markeredgecolor=color)
        bands.text(1.3e-4, -place, name, va="center")
    for axes in (curves, bands):
        axes.axvspan(*LESSON_RATES, color=plots.LESSON, alpha=0.35, linewidth=0, zorder=0)
        axes.set(xscale="log", xlim=(1e-4, 20))
    curves.set(ylabel="test accuracy", ylim=(0, 0.8), title="MNIST-1D; grey: the lesson's 0.001 to 0.1")
    curves.legend(loc="upper left")
    bands.set(yticks=[], ylim=(-len(drawn) + 0.4, 0.6), xlabel="learning rate")
    bands.set(title="Rates within two points of the best (circle)")
    text = plots.counts([table], failed_as="chance, one class of ten (x: every seed)")
    plots.note(figure, f"{text}; momentum, rmsprop, adam: from optimization.optimizers")
    return figure


def _stability(results: Results) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.8, height=4.4)
    for color, momentum in zip(plots.COLORS, MOMENTA, strict=False):
        runs = results["quadratic"].select(momentum=momentum)
        final = analysis.by_seed(runs, "train/loss", "learning_rate", failed=1e20).clip(1e-12, 1e20)
        shares = final.columns.to_numpy(float) / _limit(momentum)
        plots.band(left, shares, final.to_numpy(), label=f"momentum {momentum:g}", color=color, log=True, marker="o")
    left.axvline(1.0, color="black", linestyle="--", linewidth=1.5, label="theory: the limit")
    left.set(xscale="log", yscale="log", xlabel="rate, share of (2 + 2 momentum) / curvature")
    left.set(ylabel="loss after 200 steps", title="A quadratic, curvatures 1 to 100")
    left.legend()
    settings = [(rate, momentum) for momentum in MOMENTA for rate in EDGE_RATES]
    for color, (rate, momentum) in zip(plots.COLORS, settings, strict=False):
        runs = results["full_batch"].select(learning_rate=rate, momentum=momentum)
        metric, label = "curvature/largest", f"rate {rate:g}, momentum {momentum:g}"
        plots.band(right, runs.steps(metric), runs.curves(metric), label=label, color=color)
        limit = float(theory.largest_stable_curvature(rate, momentum))
        right.axhline(limit, color=color, linestyle="--", linewidth=1)
    right.plot([], [], color="black", linestyle="--", linewidth=1, label="theory: (2 + 2 momentum) / rate")
    right.set(xlabel="step on the full batch", ylabel="largest curvature", title="A network rises to its limit")
    right.set(ylim=(0, None))
    plots.legend_below(figure, right, plots.counts([results["full_batch"]], failed_as="missing"))
    return figure


EXPERIMENT = Experiment(
    name="optimization.learning_rate",
    version=1,
    question="How high can the learning rate go, how low is too slow?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
