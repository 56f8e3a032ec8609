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

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import Dataset, mnist1d
from dlexp.results import Results
from dlexp.study import (
    FRESH_SEEDS,
    Among,
    Claim,
    Effect,
    at_best,
    by,
    inside_minus_outside,
    judge,
    lines,
    side_by_side,
    text,
    train_minus_test,
)
from dlexp.sweep import grid
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, Model, PyTree, Sweep

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

    def misused(key: Key, hyper: Hyper, data: Dataset, state: learners.State) -> Metrics:
        assert data.test is not None
        inputs, labels = data.test

        def outputs(model: Model, params: PyTree) -> jax.Array:
            return model.apply({"params": params}, hyper, inputs, key=key, train=False)[0]

        scaled, neither = (outputs(each, state.params) for each in (model, unscaled))
        cut = {name: outputs(model, without_half(state.params, key, factor)) for name, factor in LESIONS.items()}
        return {
            "unscaled/accuracy": losses.accuracy(neither, labels).mean(),
            "unscaled/loss": losses.softmax_cross_entropy(neither, labels).mean(),
            "unscaled/ratio": jnp.abs(neither).mean() / jnp.abs(scaled).mean(),
            **{f"lesion/{name}": losses.accuracy(outputs, labels).mean() for name, outputs in cut.items()},
        }

    return learners.measuring(plain, misused)


def without_half(params: PyTree, key: Key, factor: float) -> PyTree:
    """Returns the weights without those that leave a random half of both hidden layers, the others times `factor`."""
    first, second = factor * jax.random.bernoulli(key, 0.5, (2, params["output"]["kernel"].shape[0]))
    hidden = params["stacked_layers"]["Dense_0"]
    return {
        **params,
        "stacked_layers": {"Dense_0": {**hidden, "kernel": hidden["kernel"] * first[None, :, None]}},
        "output": {**params["output"], "kernel": params["output"]["kernel"] * second[:, None]},
    }


def sweeps() -> dict[str, Sweep]:
    """Rate x training size x learning rate; the convention that scales at inference."""
    swept = {"dropout_rate": RATES, "num_train": SIZES, "learning_rate": (0.003, 0.01)}
    inverted = grid(config={"convention": ("inverted",)}, hyper=swept, seeds=FRESH_SEEDS)
    classic = grid(config={"convention": ("classic",)}, hyper={**swept, "num_train": (1000,)}, seeds=FRESH_SEEDS)
    return {
        "rates": Sweep(inverted, network, num_steps=1000, num_evals=4),
        "classic": Sweep(classic, network, num_steps=1000, num_evals=4),
    }


def accuracy_by_rate(results: Results) -> Figure:
    """Accuracy and overfitting over the rate of dropout, by training size."""
    hue, span = by("num_train", SIZES, "{} training examples"), {"the lesson's 0.2 to 0.5": LESSON_RATES}
    draw = partial(lines, results, "rates", x="dropout_rate", hue=hue, span=span, xlabel="dropout rate p")
    return side_by_side(
        draw(at_best("test/accuracy"), ylim=(0, 0.8), title="On new data"),
        draw(train_minus_test(), ylabel="training minus test accuracy", ylim=(0, None), title="Overfitting"),
    )


def scaling_and_lesion(results: Results) -> Figure:
    """What a missing scale does; networks without half of their units."""
    draw = partial(lines, results, x="dropout_rate", fixed={"num_train": 1000}, xlabel="dropout rate p")
    rules = {"scaled by 1 - p at inference": at_best("test/loss"), "scaled nowhere": at_best("unscaled/loss")}
    theory = {"theory: 1 / (1 - p)^2": lambda rates: (1 - rates) ** -2}
    cut = {"all units": "test/accuracy", "half of them, doubled": "lesion/doubled", "half of them": "lesion/kept"}
    ratio: dict[str, Any] = {"ylabel": "size of the logits, unscaled / scaled", "yscale": "log", "theory": theory}
    units: dict[str, Any] = {"ylabel": "test accuracy", "title": "Units cut out, 1000 examples", "ylim": (0, 0.8)}
    return side_by_side(
        draw("classic", rules, ylabel="test loss (nats)", ylim=(0, 10), title="The same weights, two rules"),
        draw(
            "classic", {"measured": at_best("unscaled/ratio")}, first_color=1, title="Too large by this factor", **ratio
        ),
        draw("rates", {name: at_best(metric, failed=0.1) for name, metric in cut.items()}, first_color=2, **units),
        width=4.7,
        height=4.0,
    )


def claims(results: Results) -> list[Claim]:
    """What the lesson says of dropout."""
    capacity, units = text("002", "Model Capacity and Regularization"), text("004", "Dropout Regularization")
    at = {"num_train": {size: f"{size} examples" for size in SIZES}}
    gap = partial(train_minus_test(), results, "rates", **at)
    best = partial(at_best("test/accuracy", over=("dropout_rate", "learning_rate")), results, "rates", **at)
    typical = inside_minus_outside("dropout_rate", *LESSON_RATES)(results, "rates", **at)
    less_gap = gap(dropout_rate=0.0) - gap(dropout_rate=0.5)
    better = best(dropout_rate=Among(RATES[1:])) - best(dropout_rate=0.0)
    stands = _after_lesion(results, "kept") | _after_lesion(results, "doubled")
    return [
        judge("Dropout prevents overfitting.", text("000", "Key Takeaways"), less_gap, least=0.05),
        judge("Dropout makes the network better on new data.", units, better, least=0.01),
        judge("The good rates are those from 0.2 to 0.5.", capacity, typical, least=-0.005),
        judge(
            "All units can be active at inference, unscaled, if training scaled nothing either.",
            f"{units}, at test time",
            _harm(results),
            most=0.05,
        ),
        judge(
            "Dropout makes units that do not depend on one another: the network stands the loss of half of them.",
            units,
            stands,
            least=0.1,
        ),
    ]


def _harm(results: Results) -> Effect:
    """What the loss gains where nothing is scaled."""
    rates = {rate: f"p = {rate}" for rate in (0.2, 0.5, 0.8)}
    neither = at_best("unscaled/loss").with_words("test loss in nats of networks scaled nowhere")
    words = "of the same weights scaled by 1 - p at inference, at their best learning rate (1000 examples)"
    scaled = at_best("test/loss").with_words(words)
    return neither(results, "classic", dropout_rate=rates) - scaled(results, "classic", dropout_rate=rates)


def _after_lesion(results: Results, way: str) -> Effect:
    """What dropout adds to the accuracy of networks without half of their units, the others kept or doubled."""
    words = "test accuracy after a random half of the hidden units, the same for both, is cut out and the others stay "
    words += "as they are or are doubled, at the best learning rate by validation"
    examples = {size: f"{size} examples, the others {way}" for size in SIZES}
    accuracy = partial(at_best(f"lesion/{way}", failed=0.1).with_words(words), results, "rates", num_train=examples)
    return accuracy(dropout_rate=0.5) - accuracy(dropout_rate=0.0)


EXPERIMENT = Experiment("regularization.dropout", 1, __doc__, sweeps, (accuracy_by_rate, scaling_and_lesion), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
