"""Where is the sweet spot of capacity, and what lies beyond it?

The lesson looks for a sweet spot: enough capacity to capture the patterns, not so much that the network memorizes; a
training accuracy far above the validation accuracy is its sign of too much (text 002, "Model Capacity and
Regularization"). Another text explains why large networks generalize all the same by their hierarchy (text 003). Here
networks of two layers and 1 to 300 units are trained on 200 examples of MNIST-1D, 15% of the labels drawn anew, until
they fit; some learn random labels; and least squares is solved exactly on 5 to 200 of 200 features.

Theory: the risk of least squares falls, rises to infinity where features equal examples, and falls again (Belkin, Hsu
and Xu, "Two models of double descent for weak features", 2020, https://arxiv.org/abs/1903.07571); the best ridge
penalty has no peak. Published: on 4000 examples the error of MNIST-1D perceptrons peaks at width 47, where parameters
are about as many as examples (https://github.com/greydanus/mnist1d, notebook on double descent).

    python -m experiments.regularization.capacity
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import Dataset, mnist1d, splits
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Claim,
    Effect,
    Measure,
    at_best,
    by,
    each,
    judge,
    lines,
    measure,
    overlaid,
    side_by_side,
    text,
    with_metric,
)
from dlexp.sweep import grid
from dlexp.theory import linear as theory
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Sweep

NUM_TRAIN, LABEL_NOISE = 200, 0.15
WIDTHS = (1, 2, 3, 5, 8, 12, 20, 50, 120, 300)
RANDOM_WIDTHS = (8, 120)
NUM_EXAMPLES, NUM_ALL, NOISE = 40, 200, 0.5  # of least squares
FEATURES = (5, 10, 20, 28, 34, 37, 40, 43, 46, 52, 60, 80, 120, 200)


@cache
def noisy(noise: float) -> Dataset:
    """MNIST-1D with 200 training examples, a share of them with a label drawn anew."""
    return splits.with_label_noise(splits.with_first(mnist1d.load(), NUM_TRAIN), noise, num_classes=10)


def network(config: Config, num_steps: int) -> Learner:
    """40-width-10, trained by Adam on the 200 examples, at the best of three rates by validation."""
    model = models.mlp(width=config["width"], num_layers=2, num_outputs=10)
    data = noisy(config["noise"])
    return learners.supervised(model, losses.softmax_cross_entropy, optim.adam(), data, batch_size=50)


def least_squares(config: Config, num_steps: int) -> Learner:
    """Fits 40 Gaussian examples of 200 features by their first p, with the smallest norm; and with the best penalty."""

    def risks(key: Key, hyper: Hyper, data: PyTree) -> Metrics:
        keys = jax.random.split(key, 3)
        weights = jax.random.normal(keys[0], (NUM_ALL,))
        weights = weights / jnp.linalg.norm(weights)
        inputs = jax.random.normal(keys[1], (NUM_EXAMPLES, NUM_ALL))
        targets = inputs @ weights + NOISE * jax.random.normal(keys[2], (NUM_EXAMPLES,))

        def risk(num: int, penalty: float) -> jax.Array:
            fitted = _fit(inputs[:, :num], targets, penalty)
            return jnp.sum((fitted - weights[:num]) ** 2) + jnp.sum(weights[num:] ** 2) + NOISE**2

        plain, ridge = ([risk(num, of(num)) for num in FEATURES] for of in (lambda num: 0.0, _best_penalty))
        return {"risk/plain": jnp.stack(plain), "risk/ridge": jnp.stack(ridge)}

    return learners.computed(risks)


def _fit(inputs: jax.Array, targets: jax.Array, penalty: float) -> jax.Array:
    """Ridge weights, those of smallest norm at penalty 0, by the smaller of the two normal equations."""
    num_examples, num_features = inputs.shape
    if num_features <= num_examples:
        return jnp.linalg.solve(inputs.T @ inputs + penalty * jnp.eye(num_features), inputs.T @ targets)
    return inputs.T @ jnp.linalg.solve(inputs @ inputs.T + penalty * jnp.eye(num_examples), targets)


def _best_penalty(num_features: int) -> float:
    """Noise over signal in each used feature; what the left-out features carry is noise, too."""
    signal = num_features / NUM_ALL
    return num_features * (1 - signal + NOISE**2) / signal


def sweeps() -> dict[str, Sweep]:
    """Widths on noisy labels, random labels, and least squares."""
    rate = {"learning_rate": (0.003, 0.01, 0.03)}
    widths = grid(config={"width": WIDTHS, "noise": (LABEL_NOISE,)}, hyper=rate, seeds=FRESH_SEEDS)
    random = grid(config={"width": RANDOM_WIDTHS, "noise": (1.0,)}, hyper=rate, seeds=FRESH_SEEDS)
    return {
        "width": Sweep(widths, network, num_steps=5000, num_evals=10),
        "random_labels": Sweep(random, network, num_steps=5000, num_evals=10),
        "least_squares": Sweep(grid(seeds=range(400, 800)), least_squares, num_steps=0),
    }


def error_by_width(results: Results) -> Figure:
    """Errors over width; random labels learned by heart."""
    errors = {f"{split} error": at_best(f"{split}/accuracy") for split in ("train", "test")}
    wrong: dict[str, Any] = {"transform": lambda accuracy: 1 - accuracy, "ylabel": "share of wrong labels"}
    equal = {"as many parameters as examples": (NUM_TRAIN - 10) / 51}
    axis: dict[str, Any] = {"xlabel": "hidden units", "xscale": "log", "ylim": (-0.02, 1)}
    memory: dict[str, Any] = {"x": "step", "hue": by("width", RANDOM_WIDTHS, "{} units"), "first_color": 2}
    memory |= {"linestyles": {"test": ":"}, "ylabel": "accuracy", "ylim": (0, 1.02)}
    train, test = ({split: at_best(f"{split}/accuracy", by="train/accuracy")} for split in ("train", "test"))
    heart: dict[str, Any] = {"title": "Random labels: learned by heart", "marks": {"chance": 0.1}}
    return side_by_side(
        lines(
            results, "width", errors, x="width", title="MNIST-1D, 200 examples, 15% redrawn", at=equal, **wrong, **axis
        ),
        overlaid(
            lines(results, "random_labels", train, **memory), lines(results, "random_labels", test, **memory, **heart)
        ),
    )


def double_descent(results: Results) -> Figure:
    """The exact double descent of least squares, and the best ridge penalty beside it."""
    features, dense = np.array(FEATURES), range(3, NUM_ALL + 1)
    is_finite = np.isfinite([_theory(num) for num in FEATURES])
    measured = results["least_squares"]
    table = with_metric(measured, "risk/finite", lambda runs: np.where(is_finite, runs.curves("risk/plain"), np.nan))
    exact = np.array([_theory(num) for num in dense])

    def mark(axes: Axes, runs: Table) -> None:
        axes.axvline(NUM_EXAMPLES, color="#666666", linewidth=1, label="as many features as examples")

    drawn = {"least squares": "risk/finite", "best ridge penalty": "risk/ridge"}
    look: dict[str, Any] = {"x": "layer", "place": lambda entries: features[entries - 1], "points": True, "also": mark}
    look["theory"] = {"theory: exact": (dense, np.where(np.isfinite(exact), exact, np.nan))}
    axis: dict[str, Any] = {"xlabel": "features used, of 200", "ylabel": "risk on new data", "yscale": "log"}
    axis |= {"ylim": (0.8, 30), "yticks": [1, 2, 5, 10, 20], "yticklabels": ["1", "2", "5", "10", "20"]}
    panel = lines(table, None, drawn, title="Least squares on 40 examples", **look, **axis)
    return side_by_side(panel, note="the mean of least squares at 39 to 41 is infinite", width=7.0, height=4.6)


def claims(results: Results) -> list[Claim]:
    """What the lesson says of capacity, and what it leaves out."""
    lesson = text("002", "Model Capacity and Regularization")
    best = at_best("test/accuracy", over=("width", "learning_rate"))(results, "width", {"MNIST-1D": {}})
    widest = at_best("test/accuracy")(results, "width", width=WIDTHS[-1])
    heart = at_best("train/accuracy", by="train/accuracy")
    heart = heart.with_words("training accuracy on random labels at the best learning rate for it")
    ratio = "risk of least squares over that of theory, minus 1, mean over draws"
    exact = Effect(ratio, each("{} features", (10, 20, 28, 60, 120, 200), partial(_distance, results)))
    ridge = [_risk("ridge", num)(results, "least_squares") for num in (20, 40)]
    return [
        judge(
            "There is a sweet spot of capacity: beyond it the network gets worse on new data.",
            lesson,
            best - widest,
            least=0.02,
        ),
        judge(
            "Where the network begins to fit every label its test error peaks, and falls again with more units.",
            "Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, https://arxiv.org/abs/2011.14439",
            _peak(results, "width", {"MNIST-1D": {}}),
            least=0.01,
        ),
        judge(
            "A training accuracy far above that on new data is the sign of too much capacity.",
            lesson,
            _at_widest_gap(results, "width", {"MNIST-1D": {}}),
            least=0.02,
        ),
        judge(
            "Networks with more parameters than examples memorize even random labels.",
            "Zhang et al., Understanding deep learning requires rethinking generalization, 2017, "
            "https://arxiv.org/abs/1611.03530",
            heart(results, "random_labels", width=RANDOM_WIDTHS),
            least=0.99,
        ),
        judge(
            "The risk of least squares follows the exact curve, on both sides of its peak.",
            "Belkin, Hsu and Xu, Two models of double descent for weak features, 2020, https://arxiv.org/abs/1903.07571",
            exact,
            within=0.1,
        ),
        judge(
            "Regularization at its best removes the peak.",
            f"{lesson}; Nakkiran et al., Optimal Regularization Can Mitigate Double Descent, 2021, "
            "https://arxiv.org/abs/2003.01897",
            ridge[0] - ridge[1],
            least=-0.05,
        ),
    ]


def _errors(runs: Table) -> tuple[dict[int, np.ndarray], ...]:
    """Width -> error `[seed]` at its own best rate by validation, on the training, validation and test split."""
    at_width = {width: runs.select(width=width) for width in np.unique(runs.frame["width"])}
    if len(at_width) < 2:
        raise NotMeasuredError("one width says nothing of another")
    measures = [at_best(f"{split}/accuracy") for split in ("train", "validation", "test")]
    return tuple({w: 1 - np.asarray(each.of(own)) for w, own in at_width.items()} for each in measures)


@measure(
    "test error at the first width with a mean training error below 2% minus at the best narrower one by validation, "
    "and minus at the widest, the smaller of the two"
)
def _peak(runs: Table) -> np.ndarray:
    train, validation, test = _errors(runs)
    fitting = [width for width in train if train[width].mean() < 0.02]
    if not fitting or fitting[0] == min(train):
        raise NotMeasuredError("no width of the grid begins to fit every label")
    best = min((width for width in train if width < fitting[0]), key=lambda width: validation[width].mean())
    peak = test[fitting[0]]
    return np.minimum(peak - test[best], peak - test[max(test)])


@measure(
    "test error at the width with the widest gap between training and validation error minus at the width with the "
    "least validation error"
)
def _at_widest_gap(runs: Table) -> np.ndarray:
    train, validation, test = _errors(runs)
    widest = max(train, key=lambda width: (validation[width] - train[width]).mean())
    return test[widest] - test[min(validation, key=lambda width: validation[width].mean())]


def _risk(kind: str, num: int) -> Measure:
    """The risk with so many features: of least squares (plain), or with the best ridge penalty (ridge)."""
    words = f"risk of {'least squares' if kind == 'plain' else 'the best ridge penalty'} at {num} features"
    return Measure(words, lambda runs: runs.curves(f"risk/{kind}")[:, 0, FEATURES.index(num)])


def _distance(results: Results, num: int) -> np.ndarray:
    return np.asarray(_risk("plain", num).of(results["least_squares"])) / _theory(num) - 1


def _theory(num: int) -> float:
    return theory.subset_risk(num, num_examples=NUM_EXAMPLES, num_all=NUM_ALL, signal=1.0, noise=NOISE)


EXPERIMENT = Experiment("regularization.capacity", 1, __doc__, sweeps, (error_by_width, double_descent), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
