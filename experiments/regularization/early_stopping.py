"""When to stop, what does patience cost, and why do loss and accuracy disagree?

The lesson says that early stopping watches validation performance and stops when it degrades, before the network
overfits (text 002, "Model Capacity and Regularization"). Networks are trained here on 500 examples of MNIST-1D, with
and without a fifth of the labels drawn anew, and measured every ten steps; the stopping rules are applied afterwards,
and compared with weight decay and dropout. Adam at the rate 0.0046, the best on all of MNIST-1D in
`optimization.optimizers`.

Theory: on least squares stopping acts as ridge regression does; the risk of gradient flow at time t is at most 1.69
times that of ridge at the penalty 1 / t (Ali, Kolter and Tibshirani, "A Continuous-Time View of Early Stopping for
Least Squares", 2019, https://arxiv.org/abs/1810.10082). Published: the MNIST-1D authors' CNN has its best test loss at
step 1000 and its best accuracy at step 6000 (https://github.com/greydanus/mnist1d).

    python -m experiments.regularization.early_stopping
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import Dataset, mnist1d, splits
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.theory import linear as theory
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

CHANCE, RATE = 0.1, 0.0046
NOISES = (0.0, 0.2)
PATIENCES = (1, 5, 20)
DECAYS, DROPOUTS = (0.1, 0.3, 1.0, 3.0), (0.2, 0.35, 0.5, 0.65)
SHAPES = {"50 features": 50, "200 features": 200}  # for 100 examples
NUM_EXAMPLES, NUM_TARGETS, SIGNAL, NOISE, STEP = 100, 64, 1.0, 1.0, 0.05  # of least squares


@cache
def noisy(noise: float) -> Dataset:
    """MNIST-1D with 500 training examples, a share of them with a label drawn anew."""
    return splits.with_label_noise(splits.with_first(mnist1d.load(), 500), noise, num_classes=10)


def network(config: Config, num_steps: int) -> Learner:
    """40-100-100-10, trained by AdamW; with dropout where the grid sweeps it."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, dropout=config["dropout"])
    data = noisy(config["noise"])
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adamw(), data, batch_size=100)


class _Fit(NamedTuple):
    """Gradient descent on least squares: weights `[feature, target]`, the problem, and its eigenvectors for ridge."""

    weights: jax.Array
    step: jax.Array
    truth: jax.Array
    covariance: jax.Array
    moment: jax.Array
    eigenvalues: jax.Array
    eigenvectors: jax.Array


def least_squares(config: Config, num_steps: int) -> Learner:
    """100 Gaussian examples with 64 random targets: gradient descent from zero, and ridge at the penalty 1 / time."""
    num_features = config["num_features"]

    def init(key: Key, hyper: Hyper, data: PyTree) -> _Fit:
        keys = jax.random.split(key, 3)
        inputs = jax.random.normal(keys[0], (NUM_EXAMPLES, num_features))
        truth = jax.random.normal(keys[1], (num_features, NUM_TARGETS))
        truth = SIGNAL * truth / jnp.linalg.norm(truth, axis=0)
        targets = inputs @ truth + NOISE * jax.random.normal(keys[2], (NUM_EXAMPLES, NUM_TARGETS))
        covariance = inputs.T @ inputs / NUM_EXAMPLES
        eigen = jnp.linalg.eigh(covariance)
        moment = inputs.T @ targets / NUM_EXAMPLES
        return _Fit(jnp.zeros_like(truth), jnp.zeros(()), truth, covariance, moment, *eigen)

    def update(key: Key, hyper: Hyper, data: PyTree, fit: _Fit) -> tuple[_Fit, Metrics]:
        gradient = fit.covariance @ fit.weights - fit.moment
        moved = fit._replace(weights=fit.weights - STEP * gradient, step=fit.step + 1)
        return moved, {"gradient/norm": jnp.linalg.norm(gradient)}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, fit: _Fit) -> Metrics:
        penalty = 1 / jnp.maximum(STEP * fit.step, 1e-6)
        filtered = (fit.eigenvectors.T @ fit.moment) / (fit.eigenvalues + penalty)[:, None]
        ridge = fit.eigenvectors @ filtered

        def risk(weights: jax.Array) -> jax.Array:
            return jnp.mean(jnp.sum((weights - fit.truth) ** 2, axis=0))

        return {"risk/stopped": risk(fit.weights), "risk/ridge": risk(ridge)}

    return Learner({"unused": np.ones(1)}, {}, init, update, evaluate)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Dense curves; the rivals; random designs for the theory."""
    seeds = {"smoke": range(2), "cpu": range(32, 48), "gpu": range(32, 96)}[scale]  # rules were tried on 0 to 31
    base = {"learning_rate": (RATE,)}
    few = scale == "smoke"
    noises = NOISES[:1] if few else NOISES
    plain = {"noise": noises, "dropout": ("none",)}
    curves = grid(config=plain, hyper={**base, "weight_decay": (0.0,)}, seeds=seeds)
    linear = grid(config={"num_features": tuple(SHAPES.values())[:1] if few else tuple(SHAPES.values())}, seeds=seeds)
    if few:
        return {
            "curves": Sweep(curves, network, num_steps=40, num_evals=20),
            "linear": Sweep(linear, least_squares, num_steps=40, num_evals=10),
        }
    rivals = grid(config=plain, hyper={**base, "weight_decay": DECAYS}, seeds=seeds)
    dropped = {**base, "weight_decay": (0.0,), "dropout_rate": DROPOUTS}
    rivals |= grid(config={"noise": noises, "dropout": ("inverted",)}, hyper=dropped, seeds=seeds)
    return {
        "curves": Sweep(curves, network, num_steps=1500, num_evals=150),
        "rivals": Sweep(rivals, network, num_steps=1500, num_evals=5),
        "linear": Sweep(linear, least_squares, num_steps=400, num_evals=50),
    }


def stopped_at(scores: np.ndarray, patience: int) -> np.ndarray:
    """Returns the evaluation kept by the rule, `[run]`: the best until none of the next `patience` was better.

    Args:
      scores: `[run, evaluation]`, larger is better.
      patience: evaluations without improvement after which training stops.
    """
    kept = []
    for curve in scores:
        best = 0
        for place in range(1, len(curve)):
            if curve[place] > curve[best]:
                best = place
            elif place - best >= patience:
                break
        kept.append(best)
    return np.array(kept)


def figures(results: Results) -> Figures:
    """Curves with their best steps; what each rule and rival ends with; stopping beside ridge."""
    return {
        "curves": lambda: _curves(results["curves"]),
        "rules": lambda: _rules(results),
        "ridge": lambda: _ridge(results["linear"]),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of early stopping, and what it leaves out."""
    lesson = 'text 002, "Deep Learning Intro", Model Capacity and Regularization'
    table = results["curves"]
    return [
        judge(
            "Without stopping the network overfits: its loss on new data degrades.",
            source=lesson,
            rule="test loss at the end minus at the step of the best validation loss, by seed; at least 0.1 nats",
            effects=each(
                "{:.0%} redrawn labels",
                NOISES,
                lambda n: _value(table, n, "loss", None) - _value(table, n, "loss", 10**9),
            ),
            smallest=0.1,
        ),
        judge(
            "Stopping when validation accuracy degrades keeps the accuracy: a little patience is enough.",
            source=lesson,
            rule="test accuracy where the rule stops minus at the step of the best validation accuracy of the whole "
            "training, paired by seed; not lower by a point (-0.01)",
            effects=each(
                "patience {1}, {0:.0%} redrawn labels",
                [(noise, patience) for noise in NOISES for patience in PATIENCES],
                lambda n, patience: _value(table, n, "accuracy", patience) - _value(table, n, "accuracy", 10**9),
            ),
            smallest=-0.01,
        ),
        judge(
            "Stopping makes the network more accurate on new data than training on.",
            source=lesson,
            rule="test accuracy at the step of the best validation accuracy minus at the end, paired by seed; at "
            "least one point (0.01)",
            effects=each(
                "{:.0%} redrawn labels",
                NOISES,
                lambda n: _value(table, n, "accuracy", 10**9) - _value(table, n, "accuracy", None),
            ),
            smallest=0.01,
        ),
        judge(
            "Loss and accuracy ask for different steps: the accuracy goes on rising after the loss is least.",
            source="Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, "
            "https://arxiv.org/abs/2011.14439, and their notebook",
            rule="test accuracy at the step of the best validation accuracy minus at that of the best validation loss, "
            "paired by seed; at least one point (0.01)",
            effects=each(
                "{:.0%} redrawn labels", NOISES, lambda n: _value(table, n, "accuracy", 10**9) - _by_loss(table, n)
            ),
            smallest=0.01,
        ),
        *_rival_claims(results),
    ]


def _rival_claims(results: Results) -> list[Claim]:
    lesson = 'text 002, "Deep Learning Intro", Model Capacity and Regularization'
    table = results["curves"]
    return [
        judge(
            "Early stopping regularizes as well as weight decay and dropout.",
            source=lesson,
            rule="test accuracy of stopping (patience 20) minus of the rival at its best strength by validation, "
            "trained to the end, paired by seed; not lower by a point (-0.01)",
            effects=each(
                "{0}, {1:.0%} redrawn labels",
                [(rival, noise) for noise in NOISES for rival in ("weight decay", "dropout")],
                lambda rival, n: _value(table, n, "accuracy", 20) - _rival(results, rival, n),
            ),
            smallest=-0.01,
        ),
        judge(
            "On least squares the risk of stopping at t is at most 1.6862 times ridge's at the penalty 1 / t.",
            source="Ali, Kolter and Tibshirani, 2019, https://arxiv.org/abs/1810.10082, theorem 1",
            rule="1.6862 minus the largest ratio, at 50 times up to 20, of the errors of gradient descent and ridge, "
            "means of 64 random targets for each random design; more than 0",
            effects=each(
                "{}", SHAPES, lambda name: theory.FLOW_OVER_RIDGE - _ratios(results["linear"], name).max(axis=1)
            ),
        ),
    ]


def _score(table: Table, noise: float, split: str, metric: str) -> np.ndarray:
    """Accuracy, or minus the loss, `[seed, evaluation]`."""
    values = table.select(noise=noise).curves(f"{split}/{metric}")
    return values if metric == "accuracy" else -values


def _value(table: Table, noise: float, metric: str, patience: int | None) -> np.ndarray:
    """The test metric `[seed]` where the rule on the validation metric stops; at the end without patience."""
    test = table.select(noise=noise).curves(f"test/{metric}")
    if patience is None:
        return test[:, -1]
    kept = stopped_at(_score(table, noise, "validation", metric), patience)
    return test[np.arange(len(test)), kept]


def _rival(results: Results, rival: str, noise: float) -> np.ndarray:
    runs, axis = results["rivals"].select(noise=noise), "weight_decay"
    if rival == "dropout":
        runs, axis = runs.select(dropout="inverted"), "dropout_rate"
    else:
        runs = runs.select(dropout="none")
    return analysis.at_best(runs, axis, "test/accuracy", failed=CHANCE)


def _ratios(table: Table, name: str) -> np.ndarray:
    """Risk of stopping over that of ridge, `[seed, evaluation]`."""
    runs = table.select(num_features=SHAPES[name])
    return runs.curves("risk/stopped") / runs.curves("risk/ridge")


def _curves(table: Table) -> Figure:
    noises = sorted(set(table.frame["noise"]))
    figure, panels = plots.subplots(2, len(noises), width=5.6, height=3.2)
    for column, noise in zip(np.array(panels).reshape(2, -1).T, noises, strict=True):
        runs = table.select(noise=noise)
        for axes, metric in zip(column, ("loss", "accuracy"), strict=True):
            for color, split in zip(plots.COLORS, ("train", "validation", "test"), strict=False):
                values = runs.curves(f"{split}/{metric}")
                plots.band(axes, runs.steps(f"{split}/{metric}"), values, label=split, color=color)
            best = runs.steps("test/loss")[stopped_at(_score(table, noise, "validation", metric), 10**9)]
            axes.axvline(np.median(best), color="black", linestyle=":", linewidth=1.5, label="best validation, median")
            axes.set(
                ylabel="loss (nats)" if metric == "loss" else "accuracy", ylim=(0, 4 if metric == "loss" else 1.02)
            )
        column[0].set(title=f"{noise:.0%} of the training labels redrawn")
        column[1].set(xlabel="step")
    plots.legend_below(figure, column[0], plots.counts([table], failed_as="missing"))
    return figure


def _rules(results: Results) -> Figure:
    table = results["curves"]
    noises = sorted(set(table.frame["noise"]))
    figure, panels = plots.subplots(1, len(noises), width=5.6, height=4.2)
    for axes, noise in zip(np.atleast_1d(panels), noises, strict=True):
        ends = {f"patience {patience}": _value(table, noise, "accuracy", patience) for patience in PATIENCES}
        ends["best step"] = _value(table, noise, "accuracy", 10**9)
        ends["best step of\nthe loss"] = _by_loss(table, noise)
        ends["the end"] = _value(table, noise, "accuracy", None)
        if "rivals" in results:
            ends |= {rival: _rival(results, rival, noise) for rival in ("weight decay", "dropout")}
        for place, (name, values) in enumerate(ends.items()):
            color = plots.COLORS[1] if name in ("weight decay", "dropout") else plots.COLORS[0]
            plots.interval_points(axes, np.array([-place]), values[:, None], label=name, color=color, horizontal=True)
        axes.set_yticks(-np.arange(len(ends)), list(ends))
        axes.set(xlabel="test accuracy", title=f"{noise:.0%} of the training labels redrawn")
    plots.note(figure, plots.counts(results.values(), failed_as="chance, one class of ten"))
    return figure


def _by_loss(table: Table, noise: float) -> np.ndarray:
    test = table.select(noise=noise).curves("test/accuracy")
    return test[np.arange(len(test)), stopped_at(_score(table, noise, "validation", "loss"), 10**9)]


def _ridge(table: Table) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.6, height=4.2)
    names = [name for name, num in SHAPES.items() if num in set(table.frame["num_features"])]
    times = STEP * table.steps("risk/stopped")
    for color, name in zip(plots.COLORS, names, strict=False):
        runs = table.select(num_features=SHAPES[name])
        plots.band(left, times, runs.curves("risk/stopped"), label=f"stopped, {name}", color=color)
        left.plot(times, runs.curves("risk/ridge").mean(axis=0), color=color, linestyle=":", label=f"ridge, {name}")
        inputs = np.random.default_rng(0).standard_normal((NUM_EXAMPLES, SHAPES[name]))
        eigenvalues = np.maximum(np.linalg.eigvalsh(inputs.T @ inputs / NUM_EXAMPLES), 0)
        known = theory.flow_risk(eigenvalues, times, num_examples=NUM_EXAMPLES, signal=SIGNAL, noise=NOISE)
        left.plot(times, known, color="black", linestyle="--", linewidth=1)
        plots.band(right, times, _ratios(table, name), label=name, color=color)
    left.plot([], [], color="black", linestyle="--", linewidth=1, label="theory: gradient flow")
    plots.theory_line(right, times[[0, -1]], [theory.FLOW_OVER_RIDGE] * 2, "theory: at most 1.6862")
    left.set(xlabel="time t = steps x rate, or 1 / penalty", ylabel="risk", title="Least squares, 100 examples")
    left.set(ylim=(0, 2.2))
    right.set(xlabel="time t, or 1 / penalty", ylabel="risk of stopping / risk of ridge", ylim=(0.5, 1.8))
    right.set(title="Stopping is nearly ridge")
    left.legend(fontsize=9)
    right.legend(loc="lower right")
    plots.note(figure, plots.counts([table], failed_as="missing"))
    return figure


EXPERIMENT = Experiment(
    name="regularization.early_stopping",
    version=1,
    question="When to stop, what does patience cost, and why do loss and accuracy disagree?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
