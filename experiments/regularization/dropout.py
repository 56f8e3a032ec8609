"""Does dropout prevent overfitting, at which rate, with how much data, and what if neither side is scaled?

The lesson says that dropping units keeps them from relying on one another and so prevents overfitting (text 004,
"Dropout Regularization"), at rates of 0.2 to 0.5 (text 002, "Model Capacity and Regularization"); one text scales
activations by 1 - p at inference (text 001, "Dropout"), another uses all units as they are (text 004). Two hidden
layers of 100 units are trained here at seven rates on 250, 1000 and 4000 examples; half of their units are cut out
afterwards.

Theory: scaling by 1 / (1 - p) in training and by 1 - p at inference are one model; with neither, every hidden layer
multiplies the signal by 1 / (1 - p), so the two layers here make logits 1 / (1 - p)^2 too large (Srivastava et al.,
"Dropout", 2014, https://jmlr.org/papers/v15/srivastava14a.html). Each setting is trained at two rates and judged at the
better one by validation.

    python -m experiments.regularization.dropout
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import Dataset, mnist1d
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

CHANCE = 0.1
RATES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
LESSON_RATES = (0.2, 0.5)
LESIONS = {"kept": 1.0, "doubled": 2.0}  # what becomes of the units that are not cut out
SIZES = (250, 1000, 4000)


def network(config: Config, num_steps: int) -> Learner:
    """40-100-100-10 on MNIST-1D with dropout after both hidden layers; also measured with what it should not do."""
    shape: dict[str, Any] = {"width": 100, "num_layers": 3, "num_outputs": 10}
    model, unscaled = models.mlp(**shape, dropout=config["convention"]), models.mlp(**shape)
    plain = learners.supervised(
        model, losses.softmax_cross_entropy, optim.adam(), mnist1d.load(), batch_size=100, sweep_num_train=True
    )

    def evaluate(key: Key, hyper: Hyper, data: Dataset, state: learners.State) -> Metrics:
        assert data.test is not None
        variables, (inputs, labels) = {"params": state.params}, data.test
        neither, _ = unscaled.apply(variables, hyper, inputs, key=key, train=False)
        scaled, _ = model.apply(variables, hyper, inputs, key=key, train=False)
        lesioned = {name: {"params": without_half(state.params, key, factor)} for name, factor in LESIONS.items()}
        cut = {name: model.apply(params, hyper, inputs, key=key, train=False)[0] for name, params in lesioned.items()}
        return {
            **plain.evaluate(key, hyper, data, state),
            "unscaled/accuracy": losses.accuracy(neither, labels).mean(),
            "unscaled/loss": losses.softmax_cross_entropy(neither, labels).mean(),
            "unscaled/ratio": jnp.abs(neither).mean() / jnp.abs(scaled).mean(),
            **{f"lesion/{name}": losses.accuracy(outputs, labels).mean() for name, outputs in cut.items()},
        }

    return plain._replace(evaluate=evaluate)


def without_half(params: PyTree, key: Key, factor: float) -> PyTree:
    """Returns the weights without those that leave a random half of both hidden layers, the others times `factor`."""
    first, second = factor * jax.random.bernoulli(key, 0.5, (2, params["output"]["kernel"].shape[0]))
    hidden = params["stacked_layers"]["Dense_0"]
    return {
        **params,
        "stacked_layers": {"Dense_0": {**hidden, "kernel": hidden["kernel"] * first[None, :, None]}},
        "output": {**params["output"], "kernel": params["output"]["kernel"] * second[:, None]},
    }


def sweeps(scale: str) -> dict[str, Sweep]:
    """Rate x training size x learning rate; the convention that scales at inference."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    rates = {"smoke": (0.0, 0.5), "cpu": RATES, "gpu": sorted({*RATES, *np.round(np.linspace(0.05, 0.9, 18), 2)})}[
        scale
    ]
    sizes = {"smoke": (250,), "cpu": SIZES, "gpu": (*SIZES, 500, 2000)}[scale]
    swept = {"dropout_rate": rates, "num_train": sizes, "learning_rate": (0.003, 0.01)}
    at_inference = {**swept, "num_train": (1000,)}
    num_steps = 20 if scale == "smoke" else 1000
    inverted = grid(config={"convention": ("inverted",)}, hyper=swept, seeds=seeds)
    classic = grid(config={"convention": ("classic",)}, hyper=at_inference, seeds=seeds)
    return {
        "rates": Sweep(inverted, network, num_steps, num_evals=4),
        "classic": Sweep(classic, network, num_steps, num_evals=4),
    }


def figures(results: Results) -> Figures:
    """Accuracy and gap over the rate; what a missing scale does; networks without half of their units."""
    return {
        "accuracy_by_rate": lambda: _accuracy_by_rate(results["rates"]),
        "scaling_and_lesion": lambda: _scaling_and_lesion(results),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of dropout."""
    capacity = 'text 002, "Deep Learning Intro", Model Capacity and Regularization'
    units = 'text 004, "ML Deep Learning Introduction", Dropout Regularization'
    table, classic = results["rates"], results["classic"]
    return [
        judge(
            "Dropout prevents overfitting.",
            source='text 000, "Deep Learning Basics", Key Takeaways',
            rule="training minus test accuracy without dropout minus with 0.5, each at its own best learning rate by "
            "validation, paired by seed; at least 0.05",
            effects=each("{} examples", SIZES, lambda size: _gap(table, size, 0.0) - _gap(table, size, 0.5)),
            smallest=0.05,
        ),
        judge(
            "Dropout makes the network better on new data.",
            source=units,
            rule="test accuracy at the best rate of dropout above 0 minus without, all chosen on validation, paired by "
            "seed; at least one point (0.01)",
            effects=each(
                "{} examples",
                SIZES,
                lambda size: _best(table, size, lambda p: p > 0) - _best(table, size, lambda p: p == 0),
            ),
            smallest=0.01,
        ),
        judge(
            "The good rates are those from 0.2 to 0.5.",
            source=capacity,
            rule="test accuracy at the best rate from 0.2 to 0.5 minus at the best one outside, no dropout included, "
            "all chosen on validation, paired by seed; not lower by half a point (-0.005)",
            effects=each(
                "{} examples",
                SIZES,
                lambda size: _best(table, size, _typical) - _best(table, size, lambda p: not _typical(p)),
            ),
            smallest=-0.005,
        ),
        judge(
            "All units can be active at inference, unscaled, if training scaled nothing either.",
            source=f"{units}, at test time",
            rule="0.05 nats minus the test loss without any scaling minus with 1 - p at inference, same weights, 1000 "
            "examples; more than 0",
            effects=each("p = {}", (0.2, 0.5, 0.8), lambda rate: 0.05 - _harm(classic, rate)),
        ),
        judge(
            "Dropout makes units that do not depend on one another: the network stands the loss of half of them.",
            source=units,
            rule="test accuracy after a random half of the hidden units, the same for both, is cut out and the others "
            "stay as they are or are doubled, trained with dropout 0.5 minus without, each at its own best learning "
            "rate by validation, paired by seed; at least 0.1",
            effects=each(
                "{} examples, the others {}",
                product(SIZES, LESIONS),
                lambda size, way: _at(table, f"lesion/{way}", size, 0.5) - _at(table, f"lesion/{way}", size, 0.0),
            ),
            smallest=0.1,
        ),
    ]


def _at(table: Table, metric: str, size: int, rate: float) -> np.ndarray:
    """A metric `[seed]` at the best learning rate of one size and rate of dropout."""
    runs = table.select(num_train=size, dropout_rate=rate)
    failed = float(np.log(10)) if metric.endswith("loss") else CHANCE
    return analysis.at_best(runs, "learning_rate", metric, failed=failed)


def _gap(table: Table, size: int, rate: float) -> np.ndarray:
    return _at(table, "train/accuracy", size, rate) - _at(table, "test/accuracy", size, rate)


def _best(table: Table, size: int, wanted: Callable[[float], bool]) -> np.ndarray:
    """Test accuracy `[seed]` at the wanted rate of dropout that is best on validation."""
    rates = [rate for rate in np.unique(table.frame["dropout_rate"]) if wanted(rate)]
    runs = table.select(num_train=size, dropout_rate=rates)
    return analysis.at_best(runs, ["dropout_rate", "learning_rate"], "test/accuracy", failed=CHANCE)


def _typical(rate: float) -> bool:
    return LESSON_RATES[0] - 1e-9 <= rate <= LESSON_RATES[1] + 1e-9


def _harm(table: Table, rate: float) -> np.ndarray:
    return _at(table, "unscaled/loss", 1000, rate) - _at(table, "test/loss", 1000, rate)


def _over_rates(table: Table, metric: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    rates = np.unique(table.frame["dropout_rate"])
    return rates, np.array([_at(table, metric, size, rate) for rate in rates]).T


def _accuracy_by_rate(table: Table) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.6, height=4.2)
    sizes = [size for size in SIZES if size in set(table.frame["num_train"])]
    for color, size in zip(plots.COLORS, sizes, strict=False):
        rates, test = _over_rates(table, "test/accuracy", size)
        _, train = _over_rates(table, "train/accuracy", size)
        label = f"{size} training examples"
        plots.band(left, rates, test, label=label, color=color, marker="o")
        plots.band(right, rates, train - test, label=label, color=color, marker="o")
    for axes in (left, right):
        axes.axvspan(
            *LESSON_RATES, color=plots.LESSON, alpha=0.35, linewidth=0, zorder=0, label="the lesson's 0.2 to 0.5"
        )
        axes.set(xlabel="dropout rate p")
    left.set(ylabel="test accuracy", ylim=(0, 0.8), title="On new data")
    right.set(ylabel="training minus test accuracy", ylim=(0, None), title="Overfitting")
    plots.legend_below(figure, left, plots.counts([table], failed_as="chance, one class of ten"))
    return figure


def _scaling_and_lesion(results: Results) -> Figure:
    figure, (left, middle, right) = plots.subplots(1, 3, width=4.7, height=4.0)
    table, size = results["classic"], 1000
    for color, (metric, label) in zip(
        plots.COLORS, (("test/loss", "scaled by 1 - p at inference"), ("unscaled/loss", "scaled nowhere")), strict=False
    ):
        plots.band(left, *_over_rates(table, metric, size), label=label, color=color, marker="o")
    left.set(xlabel="dropout rate p", ylabel="test loss (nats)", ylim=(0, 10), title="The same weights, two rules")
    left.legend()
    rates, ratio = _over_rates(table, "unscaled/ratio", size)
    plots.band(middle, rates, ratio, label="measured", color=plots.COLORS[1], marker="o")
    plots.theory_line(middle, rates, (1 - rates) ** -2, "theory: 1 / (1 - p)^2")
    middle.set(yscale="log", xlabel="dropout rate p", ylabel="size of the logits, unscaled / scaled")
    middle.set(title="Too large by this factor")
    middle.legend()
    trained = results["rates"]
    size = size if size in set(trained.frame["num_train"]) else int(trained.frame["num_train"].min())
    for color, (metric, label) in zip(
        plots.COLORS[2:],
        (("test/accuracy", "all units"), ("lesion/doubled", "half of them, doubled"), ("lesion/kept", "half of them")),
        strict=False,
    ):
        plots.band(right, *_over_rates(trained, metric, size), label=label, color=color, marker="o")
    right.set(xlabel="dropout rate p in training", ylabel="test accuracy", ylim=(0, 0.8))
    right.set(title=f"Units cut out, {size} examples")
    right.legend()
    plots.note(figure, plots.counts(results.values(), failed_as="chance, one class of ten"))
    return figure


EXPERIMENT = Experiment(
    name="regularization.dropout",
    version=1,
    question="Does dropout prevent overfitting, at which rate, with how much data, and what if neither side is scaled?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
