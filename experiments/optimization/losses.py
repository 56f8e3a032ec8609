"""Mean squared error or cross-entropy?

The lesson names mean squared error for regression and cross-entropy for classification (text 002, "Training
Dynamics"). Both start one saturated neuron here, both train classifiers on MNIST-1D at four rates and two depths, and
squared, absolute and pinball errors show what each of them estimates.

Theory: at a logit of 4 and the target 0 the slope of half the squared error is a^2 (1 - a), 56.6 times smaller than the
cross-entropy's, a (Nielsen, "Neural Networks and Deep Learning", 2015, chapter 3,
http://neuralnetworksanddeeplearning.com). Squared errors estimate the mean, absolute ones the median, pinball ones a
quantile: 1, ln 2 and ln 10 of an exponential variable. Published: squared error does as well on classification (Hui
and Belkin, "Evaluation of Neural Architectures Trained with Square Loss vs Cross-Entropy", 2021,
https://arxiv.org/abs/2006.07322).

    python -m experiments.optimization.losses
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import mnist1d
from dlexp.results import Results, Table
from dlexp.study import FRESH_SEEDS, Claim, at_best, by, judge, lines, measure, pick, side_by_side, text
from dlexp.sweep import grid
from dlexp.theory import linear as theory
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Range, Sweep

DEPTHS, LOGITS = (2, 4), {1.0: "logit 1", 4.0: "logit 4"}
CLASSIFIERS = {
    "cross_entropy": ("cross-entropy", losses.softmax_cross_entropy),
    "squared_error": ("squared error", losses.squared_error),
}
TITLES = {loss: title for loss, (title, _) in CLASSIFIERS.items()}
ESTIMATES = {  # loss of the error y - c -> (title, what it estimates of an exponential variable with mean 1)
    "squared": ("squared: the mean", 1.0, lambda error: 0.5 * error**2),
    "absolute": ("absolute: the median", float(np.log(2)), jnp.abs),
    "pinball": ("pinball 0.9: nine in ten", float(np.log(10)), lambda e: jnp.maximum(0.9 * e, -0.1 * e)),
}


def classifier(config: Config, num_steps: int) -> Learner:
    """A perceptron of width 100 on MNIST-1D, trained by Adam on one of the losses."""
    model = models.mlp(width=100, num_layers=config["num_layers"], num_outputs=10)
    loss = CLASSIFIERS[config["loss"]][1]
    return learners.supervised(model, loss, optim.adam(), mnist1d.load(), batch_size=100)


def neuron(config: Config, num_steps: int) -> Learner:
    """One sigmoid neuron with input 1 and target 0, weight and bias together starting near the swept logit."""

    def init(key: Key, hyper: Hyper, data: PyTree) -> tuple[jax.Array, jax.Array]:
        weight = hyper["logit"] * jax.random.uniform(key)
        return weight, hyper["logit"] + 0.1 * jax.random.normal(jax.random.fold_in(key, 1)) - weight

    def loss(logit: jax.Array) -> jax.Array:
        a = jax.nn.sigmoid(logit)
        return 0.5 * a**2 if config["loss"] == "squared_error" else jax.nn.softplus(logit)

    def step_loss(key: Key, hyper: Hyper, data: PyTree, params: tuple[jax.Array, jax.Array]) -> jax.Array:
        weight, bias = params
        return loss(weight + bias)

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.DescentState) -> Metrics:
        logit = state.params[0] + state.params[1]
        return {"neuron/output": jax.nn.sigmoid(logit), "neuron/slope": jax.grad(loss)(logit)}

    tx = optim.with_defaults(optim.sgd(), learning_rate=0.15)
    return learners.descent(init, step_loss, tx, hyper={"logit": Range(default=4.0)}, evaluate=evaluate)


def estimator(config: Config, num_steps: int) -> Learner:
    """One number c, fitted to exponential variables with mean 1 by gradient descent at a rate that falls as 1 / t."""
    error_loss = ESTIMATES[config["loss"]][2]

    def init(key: Key, hyper: Hyper, data: PyTree) -> jax.Array:
        return 3 * jax.random.uniform(key)

    def loss(key: Key, hyper: Hyper, data: PyTree, constant: jax.Array) -> jax.Array:
        return jnp.mean(error_loss(jax.random.exponential(key, (100,)) - constant))

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.DescentState) -> Metrics:
        return {"estimate/constant": state.params}

    tx = optim.Optimizer({}, lambda hyper: optax.sgd(lambda step: 2.0 / (1 + 0.1 * step)))
    return learners.descent(init, loss, tx, evaluate=evaluate)


def sweeps() -> dict[str, Sweep]:
    """Classifiers, a saturated neuron, and what losses estimate."""
    rates, both = {"learning_rate": (0.001, 0.003, 0.01, 0.03)}, {"loss": CLASSIFIERS}
    trained = grid(config={**both, "num_layers": DEPTHS}, hyper=rates, seeds=FRESH_SEEDS)
    start = grid(config=both, hyper={"logit": tuple(LOGITS)}, seeds=FRESH_SEEDS)
    estimates = grid(config={"loss": ESTIMATES}, seeds=FRESH_SEEDS)
    return {
        "classifier": Sweep(trained, classifier, num_steps=2000, num_evals=20),
        "neuron": Sweep(start, neuron, num_steps=400, num_evals=100),
        "estimate": Sweep(estimates, estimator, num_steps=4000, num_evals=20),
    }


def saturated_and_estimates(results: Results) -> Figure:
    """A neuron that starts wrong, and what losses estimate."""
    starts: Any = {
        f"{title}, start {1 / (1 + np.exp(-logit)):.2f}": {"loss": loss, "logit": logit}
        for logit in LOGITS
        for loss, title in TITLES.items()
    }
    dashed = {label: "--" for label, start in starts.items() if start["logit"] == 4.0}
    output: Any = {"hue": starts, "linestyles": dashed, "ylabel": "output of the neuron, target 0", "ylim": (0, 1.02)}
    expected = {title: value for title, value, _ in ESTIMATES.values()}
    theories = ("theory: 1, ln 2, ln 10", lambda label, step: np.full(len(step), expected[label]))
    hue = by("loss", {loss: title for loss, (title, *_) in ESTIMATES.items()})
    constant: Any = {"hue": hue, "expected": theories, "ylabel": "fitted constant", "ylim": (0, 3.2)}
    return side_by_side(
        lines(results, "neuron", "neuron/output", x="step", title="One neuron, started wrong", **output),
        lines(results, "estimate", "estimate/constant", x="step", title="One constant, exponential data", **constant),
    )


def classifiers(results: Results) -> Figure:
    """Classifiers at their own best rates."""
    cases: Any = {"hue": by("loss", TITLES), "panels": by("num_layers", DEPTHS, "MNIST-1D, {} layers")}
    return side_by_side(lines(results, "classifier", at_best("test/accuracy"), x="step", ylim=(0, 0.75), **cases))


@measure(
    "relative distance of the measured ratio of slopes, cross-entropy's over squared error's, from 1 / (a (1 - a)) at "
    "the output a it starts with, 5 at the logit 1 and 57 at 4"
)
def _ratio_off(runs: Table) -> np.ndarray:
    entropy, squared = (pick(runs, {"loss": loss}) for loss in CLASSIFIERS)
    slopes = [each.curves("neuron/slope")[:, 0] for each in (entropy, squared)]
    outputs = squared.curves("neuron/output")[:, 0]
    expected = [np.divide(*theory.saturated_slopes(float(np.log(a / (1 - a))))[::-1]) for a in outputs]
    return abs(np.divide(*slopes) / expected - 1)


@measure("relative distance of the fitted constant from the exponential variable's mean, median or ninth decile")
def _constant_off(runs: Table) -> np.ndarray:
    return abs(runs.frame["estimate/constant"] / ESTIMATES[runs.frame["loss"].iloc[0]][1] - 1).to_numpy()


def claims(results: Results) -> list[Claim]:
    """What the lesson and its sources say of the two losses."""
    lesson = text("002", "Training Dynamics")
    entropy, squared = (
        at_best("test/accuracy")(results, "classifier", loss=loss, num_layers=DEPTHS) for loss in CLASSIFIERS
    )
    return [
        judge(
            "Cross-entropy is the loss for classification: it is better there than squared error.",
            f"{lesson}, which names it for that; against it Hui and Belkin, Evaluation of Neural Architectures "
            "Trained with Square Loss vs Cross-Entropy, 2021, https://arxiv.org/abs/2006.07322",
            entropy - squared,
            least=0.01,
        ),
        judge(
            "A neuron on the wrong side learns slowly from squared error: a (1 - a) times cross-entropy's slope.",
            "Nielsen, Neural Networks and Deep Learning, 2015, http://neuralnetworksanddeeplearning.com",
            _ratio_off(results, "neuron", logit=LOGITS),
            most=0.001,
        ),
        judge(
            "Squared errors estimate the mean, absolute errors the median, pinball errors a quantile.",
            "Koenker and Bassett, Regression Quantiles, 1978, https://doi.org/10.2307/1913643",
            _constant_off(results, "estimate", loss=tuple(ESTIMATES)),
            most=0.05,
        ),
    ]


EXPERIMENT = Experiment("optimization.losses", 1, __doc__, sweeps, (saturated_and_estimates, classifiers), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
