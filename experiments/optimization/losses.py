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

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import mnist1d
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.theory import linear as theory
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Range, Sweep

CHANCE = 0.1
DEPTHS = (2, 4)
CLASSIFIERS = {
    "cross_entropy": ("cross-entropy", losses.softmax_cross_entropy),
    "squared_error": ("squared error", losses.squared_error),
}
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

    def loss(logit: jax.Array) -> jax.Array:
        a = jax.nn.sigmoid(logit)
        return 0.5 * a**2 if config["loss"] == "squared_error" else jax.nn.softplus(logit)

    def init(key: Key, hyper: Hyper, data: PyTree) -> tuple[jax.Array, jax.Array]:
        weight = hyper["logit"] * jax.random.uniform(key)
        return weight, hyper["logit"] + 0.1 * jax.random.normal(jax.random.fold_in(key, 1)) - weight

    def update(key: Key, hyper: Hyper, data: PyTree, state: tuple) -> tuple[tuple, Metrics]:
        value, slope = jax.value_and_grad(loss)(state[0] + state[1])
        return (state[0] - 0.15 * slope, state[1] - 0.15 * slope), {"batch/loss": value}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: tuple) -> Metrics:
        logit = state[0] + state[1]
        return {"neuron/output": jax.nn.sigmoid(logit), "neuron/slope": jax.grad(loss)(logit)}

    return Learner({"input": np.ones(1)}, {"logit": Range(default=4.0)}, init, update, evaluate)


def estimator(config: Config, num_steps: int) -> Learner:
    """One number c, fitted to exponential variables with mean 1 by gradient descent at a rate that falls as 1 / t."""
    function: Callable[[jax.Array], jax.Array] = ESTIMATES[config["loss"]][2]

    def init(key: Key, hyper: Hyper, data: PyTree) -> tuple[jax.Array, jax.Array]:
        return 3 * jax.random.uniform(key), jnp.zeros(())

    def update(key: Key, hyper: Hyper, data: PyTree, state: tuple) -> tuple[tuple, Metrics]:
        constant, step = state
        drawn = jax.random.exponential(key, (100,))
        value, slope = jax.value_and_grad(lambda c: jnp.mean(function(drawn - c)))(constant)
        return (constant - 2.0 / (1 + 0.1 * step) * slope, step + 1), {"batch/loss": value}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: tuple) -> Metrics:
        return {"estimate/constant": state[0]}

    return Learner({"unused": np.ones(1)}, {}, init, update, evaluate)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Classifiers, a saturated neuron, and what losses estimate."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    if scale == "smoke":
        few = grid(config={"loss": ("cross_entropy",), "num_layers": (2,)}, hyper={"learning_rate": (0.01,)}, seeds=2)
        one = grid(config={"loss": ("squared_error",)}, hyper={"logit": (4.0,)}, seeds=seeds)
        mean = grid(config={"loss": ("squared",)}, seeds=seeds)
        return {
            "classifier": Sweep(few, classifier, num_steps=40, num_evals=4),
            "neuron": Sweep(one, neuron, num_steps=40, num_evals=20),
            "estimate": Sweep(mean, estimator, num_steps=40),
        }
    rates = {"learning_rate": (0.001, 0.003, 0.01, 0.03)}
    trained = grid(config={"loss": CLASSIFIERS, "num_layers": DEPTHS}, hyper=rates, seeds=seeds)
    start = grid(config={"loss": CLASSIFIERS}, hyper={"logit": (1.0, 4.0)}, seeds=seeds)
    return {
        "classifier": Sweep(trained, classifier, num_steps=2000, num_evals=20),
        "neuron": Sweep(start, neuron, num_steps=400, num_evals=100),
        "estimate": Sweep(grid(config={"loss": ESTIMATES}, seeds=seeds), estimator, num_steps=4000, num_evals=20),
    }


def figures(results: Results) -> Figures:
    """The saturated start and what losses estimate; the classifiers."""
    return {
        "saturated_and_estimates": lambda: _small(results),
        "classifiers": lambda: _classifiers(results["classifier"]),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson and its sources say of the two losses."""
    lesson = 'text 002, "Deep Learning Intro", Training Dynamics'
    table, starts = results["classifier"], results["neuron"]
    return [
        judge(
            "Cross-entropy is the loss for classification: it is better there than squared error.",
            source=f"{lesson}, which names it for that; against it Hui and Belkin, Evaluation of Neural Architectures "
            "Trained with Square Loss vs Cross-Entropy, 2021, https://arxiv.org/abs/2006.07322",
            rule="test accuracy with cross-entropy minus with squared error, each at its own best rate by validation, "
            "paired by seed; at least one point (0.01)",
            effects=each(
                "{} layers", DEPTHS, lambda n: _best(table, "cross_entropy", n) - _best(table, "squared_error", n)
            ),
            smallest=0.01,
        ),
        judge(
            "A neuron on the wrong side learns slowly from squared error: a (1 - a) times cross-entropy's slope.",
            source="Nielsen, Neural Networks and Deep Learning, 2015, http://neuralnetworksanddeeplearning.com",
            rule="0.001 minus the relative distance of the measured ratio of slopes from 1 / (a (1 - a)) at the output "
            "a it starts with, 5 at the logit 1 and 57 at 4; more than 0",
            effects=each("logit {:g}", (1.0, 4.0), lambda logit: 0.001 - _ratio_distance(starts, logit)),
        ),
        judge(
            "Squared errors estimate the mean, absolute errors the median, pinball errors a quantile.",
            source="Koenker and Bassett, Regression Quantiles, 1978, https://doi.org/10.2307/1913643",
            rule="0.05 minus the relative distance of the fitted constant from the exponential variable's; more than 0",
            effects=each(
                "{}",
                ESTIMATES,
                lambda loss: 0.05 - abs(_constants(results["estimate"], loss) / ESTIMATES[loss][1] - 1),
            ),
        ),
    ]


def _best(table: Table, loss: str, num_layers: int) -> np.ndarray:
    runs = table.select(loss=loss, num_layers=num_layers)
    return analysis.at_best(runs, "learning_rate", "test/accuracy", failed=CHANCE)


def _ratio_distance(table: Table, logit: float) -> np.ndarray:
    entropy, squared = (
        table.select(loss=loss, logit=logit).curves("neuron/slope")[:, 0] for loss in ("cross_entropy", "squared_error")
    )
    outputs = table.select(loss="squared_error", logit=logit).curves("neuron/output")[:, 0]
    expected = [np.divide(*theory.saturated_slopes(float(np.log(a / (1 - a))))[::-1]) for a in outputs]
    return abs(entropy / squared / expected - 1)


def _constants(table: Table, loss: str) -> np.ndarray:
    return table.select(loss=loss).frame["estimate/constant"].to_numpy()


def _small(results: Results) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.6, height=4.2)
    for color, (loss, (title, _)) in zip(plots.COLORS, CLASSIFIERS.items(), strict=False):
        if loss in set(results["neuron"].frame["loss"]):
            for logit, style in ((1.0, "-"), (4.0, "--")):
                runs = results["neuron"].select(loss=loss)
                if np.isclose(runs.frame["logit"], logit).any():
                    runs = runs.select(logit=logit)
                    curve = runs.curves("neuron/output").mean(axis=0)
                    label = f"{title}, start {curve[0]:.2f}"
                    left.plot(runs.steps("neuron/output"), curve, color=color, linestyle=style, label=label)
    left.set(xlabel="step", ylabel="output of the neuron, target 0", ylim=(0, 1.02), title="One neuron, started wrong")
    left.legend()
    for color, (loss, (title, expected, _)) in zip(plots.COLORS[2:], ESTIMATES.items(), strict=False):
        if loss in set(results["estimate"].frame["loss"]):
            runs = results["estimate"].select(loss=loss)
            metric = "estimate/constant"
            plots.band(right, runs.steps(metric), runs.curves(metric), label=title, color=color)
            right.axhline(expected, color=color, linestyle="--", linewidth=1.2)
    right.plot([], [], color="black", linestyle="--", linewidth=1.2, label="theory: 1, ln 2, ln 10")
    right.set(xlabel="step", ylabel="fitted constant", title="One constant, exponential data", ylim=(0, 3.2))
    right.legend()
    plots.note(figure, plots.counts([results["neuron"], results["estimate"]], failed_as="missing"))
    return figure


def _classifiers(table: Table) -> Figure:
    depths = [depth for depth in DEPTHS if depth in set(table.frame["num_layers"])]
    figure, panels = plots.subplots(1, len(depths), width=5.6, height=4.2)
    for axes, num_layers in zip(np.atleast_1d(panels), depths, strict=True):
        for color, (loss, (title, _)) in zip(plots.COLORS, CLASSIFIERS.items(), strict=False):
            if loss in set(table.frame["loss"]):
                runs = table.select(loss=loss, num_layers=num_layers)
                label = f"{title}, rate {{:g}}"
                plots.curve_at_best(axes, runs, "test/accuracy", label=label, color=color, failed=CHANCE)
        axes.set(xlabel="step", ylabel="test accuracy", ylim=(0, 0.75), title=f"MNIST-1D, {num_layers} layers")
        axes.legend(loc="lower right")
    plots.note(figure, plots.counts([table], failed_as="chance, one class of ten"))
    return figure


EXPERIMENT = Experiment(
    name="optimization.losses",
    version=1,
    question="Mean squared error or cross-entropy?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
