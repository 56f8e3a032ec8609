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

from functools import cache, partial, reduce
from operator import or_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import Dataset, mnist1d, splits
from dlexp.results import Results, Table
from dlexp.study import (
    Claim,
    Effect,
    Measure,
    at_best,
    by,
    intervals,
    judge,
    last,
    lines,
    measure,
    overlaid,
    side_by_side,
    statistics,
    stopped,
    style,
    text,
    with_metric,
)
from dlexp.sweep import grid
from dlexp.theory import linear as theory
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Sweep

NOISES = {0.0: "0% redrawn labels", 0.2: "20% redrawn labels"}
PATIENCES = (1, 5, 20)  # evaluations without improvement
DECAYS, DROPOUTS = (0.1, 0.3, 1.0, 3.0), (0.2, 0.35, 0.5, 0.65)
RIVALS = {"weight decay": {"dropout": "none"}, "dropout": {"dropout": "inverted"}}
SHAPES = {50: "50 features", 200: "200 features"}  # for 100 examples
NUM_EXAMPLES, NUM_TARGETS, SIGNAL, NOISE, STEP = 100, 64, 1.0, 1.0, 0.05  # of least squares
STOPPED = partial(stopped, "test/accuracy", by="validation/accuracy")
BY_LOSS = stopped("test/accuracy", by="validation/loss")
BEST_RIVAL = at_best("test/accuracy", over=("weight_decay", "dropout_rate"))
GREYDANUS = "Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, https://arxiv.org/abs/2011.14439"


@cache
def noisy(noise: float) -> Dataset:
    """MNIST-1D with 500 training examples, a share of them with a label drawn anew."""
    return splits.with_label_noise(splits.with_first(mnist1d.load(), 500), noise, num_classes=10)


def network(config: Config, num_steps: int) -> Learner:
    """40-100-100-10, trained by AdamW; with dropout where the grid sweeps it."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, dropout=config["dropout"])
    data = noisy(config["noise"])
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adamw(), data, batch_size=100)


class Problem(NamedTuple):
    """Least squares: the true weights, the inputs' covariance with its eigenvectors, their moment with the targets."""

    truth: jax.Array
    covariance: jax.Array
    moment: jax.Array
    eigenvalues: jax.Array
    eigenvectors: jax.Array


def least_squares(config: Config, num_steps: int) -> Learner:
    """100 Gaussian examples with 64 random targets: gradient descent from zero, and ridge at the penalty 1 / time."""
    num_features = config["num_features"]

    def drawn(key: Key, hyper: Hyper, data: PyTree) -> Problem:
        keys = jax.random.split(key, 3)
        inputs = jax.random.normal(keys[0], (NUM_EXAMPLES, num_features))
        truth = jax.random.normal(keys[1], (num_features, NUM_TARGETS))
        truth = SIGNAL * truth / jnp.linalg.norm(truth, axis=0)
        targets = inputs @ truth + NOISE * jax.random.normal(keys[2], (NUM_EXAMPLES, NUM_TARGETS))
        covariance = inputs.T @ inputs / NUM_EXAMPLES
        return Problem(truth, covariance, inputs.T @ targets / NUM_EXAMPLES, *jnp.linalg.eigh(covariance))

    def loss(key: Key, hyper: Hyper, problem: Problem, weights: jax.Array) -> jax.Array:
        return jnp.sum(weights * (problem.covariance @ weights / 2 - problem.moment))

    def evaluate(key: Key, hyper: Hyper, problem: Problem, state: learners.DescentState) -> Metrics:
        penalty = 1 / jnp.maximum(STEP * state.step, 1e-6)
        filtered = (problem.eigenvectors.T @ problem.moment) / (problem.eigenvalues + penalty)[:, None]
        fits = {"risk/stopped": state.params, "risk/ridge": problem.eigenvectors @ filtered}
        return {name: jnp.mean(jnp.sum((fit - problem.truth) ** 2, axis=0)) for name, fit in fits.items()}

    return learners.descent(
        lambda key, hyper, problem: jnp.zeros_like(problem.truth),
        loss,
        optim.Optimizer({}, lambda hyper: optax.sgd(STEP)),
        problem=drawn,
        evaluate=evaluate,
        measure_step=lambda hyper, step: {"gradient/norm": jnp.linalg.norm(step.grads)},
    )


def sweeps() -> dict[str, Sweep]:
    """Dense curves; the rivals; random designs for the theory."""
    seeds, rate = range(32, 48), {"learning_rate": (0.0046,)}  # the rules were tried on 0 to 31
    plain, dropped = ({"noise": NOISES, **rival} for rival in ({"dropout": ("none",)}, {"dropout": ("inverted",)}))
    curves = grid(config=plain, hyper={**rate, "weight_decay": (0.0,)}, seeds=seeds)
    rivals = grid(config=plain, hyper={**rate, "weight_decay": DECAYS}, seeds=seeds)
    rivals |= grid(config=dropped, hyper={**rate, "weight_decay": (0.0,), "dropout_rate": DROPOUTS}, seeds=seeds)
    return {
        "curves": Sweep(curves, network, num_steps=1500, num_evals=150),
        "rivals": Sweep(rivals, network, num_steps=1500, num_evals=5),
        "linear": Sweep(grid(config={"num_features": SHAPES}, seeds=seeds), least_squares, num_steps=400, num_evals=50),
    }


def curves(results: Results) -> Figure:
    """Loss and accuracy by step, with the step of the best on validation."""

    def mark(axes: Axes, runs: Table, metric: str) -> None:
        best = np.median(runs.steps("test/loss")[statistics.stopped_at(runs, f"validation/{metric}")])
        axes.axvline(best, color="black", linestyle=":", linewidth=1.5, label="best validation, median")

    rows = []
    for metric, name, top in (("loss", "loss (nats)", 4), ("accuracy", "accuracy", 1.02)):
        splits = {split: f"{split}/{metric}" for split in ("train", "validation", "test")}
        panels = by("noise", {noise: f"{noise:.0%}" for noise in NOISES}, "{} of the training labels redrawn")
        look: dict[str, Any] = {"ylabel": name, "ylim": (0, top), "also": partial(mark, metric=metric)}
        rows += lines(results, "curves", splits, x="step", panels=panels, **look)
    return side_by_side(*rows, num_rows=2, height=3.2)


def rules(results: Results) -> Figure:
    """Test accuracy where each rule stops, and of the rivals at their best."""
    rules = {f"patience {patience}": STOPPED(patience=patience) for patience in PATIENCES}
    rules |= {"best step": STOPPED(), "best step of\nthe loss": BY_LOSS}
    rules["the end"] = last("test/accuracy")
    runs = [table for name, table in results.items() if name != "linear"]
    look: dict[str, Any] = {"runs": runs, "colors": dict.fromkeys(RIVALS, style.COLORS[1]), "xlabel": "test accuracy"}
    panels = []
    for noise in NOISES:
        ends = {name: rule(results, "curves", noise=noise) for name, rule in rules.items()}
        ends |= {name: BEST_RIVAL(results, "rivals", noise=noise, **rival) for name, rival in RIVALS.items()}
        panels += intervals(ends, title=f"{noise:.0%} of the training labels redrawn", **look)
    return side_by_side(*panels)


def ridge(results: Results) -> Figure:
    """The risk of stopping beside that of ridge and its theory; their ratio."""

    def flow(name: str, times: np.ndarray) -> np.ndarray:
        num_features = next(num for num, shape in SHAPES.items() if name.endswith(f", {shape}"))
        inputs = np.random.default_rng(0).standard_normal((NUM_EXAMPLES, num_features))
        eigenvalues = np.maximum(np.linalg.eigvalsh(inputs.T @ inputs / NUM_EXAMPLES), 0)
        return theory.flow_risk(eigenvalues, times, num_examples=NUM_EXAMPLES, signal=SIGNAL, noise=NOISE)

    table = with_metric(results["linear"], "risk/ratio", _ratio)
    draw = partial(lines, table, None, x="step", place=lambda steps: STEP * steps)
    fits = {fit: by("num_features", SHAPES, f"{fit}, {{}}") for fit in ("stopped", "ridge")}
    dotted = dict.fromkeys(fits["ridge"], ":")
    most = {"theory: at most 1.6862": lambda times: np.full_like(times, theory.FLOW_OVER_RIDGE)}
    risk: dict[str, Any] = {"ylabel": "risk", "ylim": (0, 2.2), "title": "Least squares, 100 examples"}
    ratio: dict[str, Any] = {"ylim": (0.5, 1.8), "title": "Stopping is nearly ridge", "theory": most}
    both = overlaid(
        draw("risk/stopped", hue=fits["stopped"], expected=("theory: gradient flow", flow)),
        draw(
            "risk/ridge", hue=fits["ridge"], linestyles=dotted, xlabel="time t = steps x rate, or 1 / penalty", **risk
        ),
    )
    ratio |= {"xlabel": "time t, or 1 / penalty", "ylabel": "risk of stopping / risk of ridge"}
    return side_by_side(both, draw("risk/ratio", hue=by("num_features", SHAPES), **ratio))


def claims(results: Results) -> list[Claim]:
    """What the lesson says of early stopping, and what it leaves out."""
    lesson = text("002", "Model Capacity and Regularization")
    soon = (
        "test accuracy where training stops, after as many evaluations without a better validation accuracy (patience)"
    )
    rival = BEST_RIVAL.with_words("of the rival at its best strength by validation, trained to the end")

    def at(end: Measure, *cases: dict) -> Effect:
        return end(results, "curves", *cases, noise=NOISES)

    kept = reduce(or_, [at(STOPPED(patience=p).with_words(soon), {f"patience {p}": {}}) for p in PATIENCES])
    best, end = at(STOPPED()), at(last("test/accuracy").with_words("at the end"))
    rise = at(last("test/loss").with_words("test loss at the end")) - at(stopped("test/loss", by="validation/loss"))
    beside = at(STOPPED(patience=20)) - rival(results, "rivals", RIVALS, noise=NOISES)
    return [
        judge("Without stopping the network overfits: its loss on new data degrades.", lesson, rise, least=0.1),
        judge(
            "Stopping when validation accuracy degrades keeps the accuracy: a little patience is enough.",
            lesson,
            kept - best,
            least=-0.01,
        ),
        judge("Stopping makes the network more accurate on new data than training on.", lesson, best - end, least=0.01),
        judge(
            "Loss and accuracy ask for different steps: the accuracy goes on rising after the loss is least.",
            f"{GREYDANUS}, and their notebook",
            best - at(BY_LOSS),
            least=0.01,
        ),
        judge("Early stopping regularizes as well as weight decay and dropout.", lesson, beside, least=-0.01),
        judge(
            "On least squares the risk of stopping at t is at most 1.6862 times ridge's at the penalty 1 / t.",
            "Ali, Kolter and Tibshirani, 2019, https://arxiv.org/abs/1810.10082, theorem 1",
            _largest_ratio(results, "linear", num_features=SHAPES),
            most=theory.FLOW_OVER_RIDGE,
        ),
    ]


@measure(
    "largest ratio, at 50 times up to 20, of the errors of gradient descent and ridge, means of 64 random targets for "
    "each random design"
)
def _largest_ratio(runs: Table) -> np.ndarray:
    return _ratio(runs).max(axis=1)


def _ratio(runs: Table) -> np.ndarray:
    """Risk of stopping over that of ridge, `[run, evaluation]`."""
    return runs.curves("risk/stopped") / runs.curves("risk/ridge")


EXPERIMENT = Experiment("regularization.early_stopping", 1, __doc__, sweeps, (curves, rules, ridge), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
