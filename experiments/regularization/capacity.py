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

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import Dataset, mnist1d, splits
from dlexp.results import NotMeasuredError, Results, Table
from dlexp.sweep import grid
from dlexp.theory import linear as theory
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

NUM_TRAIN, LABEL_NOISE, CHANCE = 200, 0.15, 0.1
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

    def init(key: Key, hyper: Hyper, data: PyTree) -> PyTree:
        keys = jax.random.split(key, 3)
        weights = jax.random.normal(keys[0], (NUM_ALL,))
        weights = weights / jnp.linalg.norm(weights)
        inputs = jax.random.normal(keys[1], (NUM_EXAMPLES, NUM_ALL))
        targets = inputs @ weights + NOISE * jax.random.normal(keys[2], (NUM_EXAMPLES,))

        def risk(num: int, penalty: float) -> jax.Array:
            fitted = _fit(inputs[:, :num], targets, penalty)
            return jnp.sum((fitted - weights[:num]) ** 2) + jnp.sum(weights[num:] ** 2) + NOISE**2

        plain = [risk(num, 0.0) for num in FEATURES]
        return {"plain": jnp.stack(plain), "ridge": jnp.stack([risk(num, _best_penalty(num)) for num in FEATURES])}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: PyTree) -> Metrics:
        return {"risk/plain": state["plain"], "risk/ridge": state["ridge"]}

    return Learner({"unused": np.ones(1)}, {}, init, None, evaluate)


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


def sweeps(scale: str) -> dict[str, Sweep]:
    """Widths on noisy labels, random labels, and least squares."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    rate = {"learning_rate": (0.003, 0.01, 0.03)}
    draws = {"smoke": range(16), "cpu": range(400, 800), "gpu": range(400, 4400)}[scale]
    exact = Sweep(grid(seeds=draws), least_squares, num_steps=0)
    if scale == "smoke":
        few = grid(config={"width": (3,), "noise": (LABEL_NOISE,)}, hyper=rate, seeds=seeds)
        return {"width": Sweep(few, network, num_steps=40), "least_squares": exact}
    widths = grid(config={"width": WIDTHS, "noise": (LABEL_NOISE,)}, hyper=rate, seeds=seeds)
    random = grid(config={"width": RANDOM_WIDTHS, "noise": (1.0,)}, hyper=rate, seeds=seeds)
    return {
        "width": Sweep(widths, network, num_steps=5000, num_evals=10),
        "random_labels": Sweep(random, network, num_steps=5000, num_evals=10),
        "least_squares": exact,
    }


def figures(results: Results) -> Figures:
    """Errors over width; the exact double descent; random labels."""
    return {
        "error_by_width": lambda: _error_by_width(results),
        "double_descent": lambda: _double_descent(results["least_squares"]),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of capacity, and what it leaves out."""
    lesson = 'text 002, "Deep Learning Intro", Model Capacity and Regularization'
    table = results["width"]
    return [
        judge(
            "There is a sweet spot of capacity: beyond it the network gets worse on new data.",
            source=lesson,
            rule="test error of the widest network minus at the width with the least validation error, paired by seed; "
            "at least two points (0.02)",
            effects={"MNIST-1D": lambda: _error(table, WIDTHS[-1]) - _error(table, _best_width(table))},
            smallest=0.02,
        ),
        judge(
            "Where the network begins to fit every label its test error peaks, and falls again with more units.",
            source="Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, "
            "https://arxiv.org/abs/2011.14439",
            rule="test error at the first width with a mean training error below 2% minus at the best narrower one by "
            "validation, and minus at the widest, the smaller of the two, paired by seed; at least a point (0.01)",
            effects={"MNIST-1D": lambda: _peak(table)},
            smallest=0.01,
        ),
        judge(
            "A training accuracy far above that on new data is the sign of too much capacity.",
            source=lesson,
            rule="test error at the width with the widest gap between training and validation error minus at the width "
            "with the least validation error, paired by seed; at least two points (0.02)",
            effects={"MNIST-1D": lambda: _error(table, _widest_gap(table)) - _error(table, _best_width(table))},
            smallest=0.02,
        ),
        judge(
            "Networks with more parameters than examples memorize even random labels.",
            source="Zhang et al., Understanding deep learning requires rethinking generalization, 2017, "
            "https://arxiv.org/abs/1611.03530",
            rule="training accuracy on random labels, at the best rate for it; at least 0.99",
            effects=each("width {}", RANDOM_WIDTHS, lambda width: _random(results, width)),
            smallest=0.99,
        ),
        *_exact_claims(results["least_squares"]),
    ]


def _exact_claims(exact: Table) -> list[Claim]:
    lesson = 'text 002, "Deep Learning Intro", Model Capacity and Regularization'
    belkin = (
        "Belkin, Hsu and Xu, Two models of double descent for weak features, 2020, https://arxiv.org/abs/1903.07571"
    )
    return [
        judge(
            "The risk of least squares follows the exact curve, on both sides of its peak.",
            source=belkin,
            rule="0.1 plus and minus the relative distance of the risk from theory; more than 0, both",
            effects=each(
                "{} features, not {}",
                [(num, side) for num in (10, 20, 28, 60, 120, 200) for side in ("below", "above")],
                lambda num, side: 0.1 + {"below": 1, "above": -1}[side] * _distance(exact, num),
            ),
        ),
        judge(
            "Regularization at its best removes the peak.",
            source=f"{lesson}; Nakkiran et al., Optimal Regularization Can Mitigate Double Descent, 2021, "
            "https://arxiv.org/abs/2003.01897",
            rule="risk of the best ridge penalty at 20 features minus at 40, paired by seed; not below -0.05",
            effects={"least squares": lambda: _risk(exact, "ridge", 20) - _risk(exact, "ridge", 40)},
            smallest=-0.05,
        ),
    ]


def _error(table: Table, width: int, split: str = "test") -> np.ndarray:
    return 1 - analysis.at_best(table.select(width=width), "learning_rate", f"{split}/accuracy", failed=CHANCE)


def _widths(table: Table) -> list[int]:
    return sorted(set(table.frame["width"]))


def _best_width(table: Table) -> int:
    return min(_widths(table), key=lambda width: _error(table, width, "validation").mean())


def _peak(table: Table) -> np.ndarray:
    """How far the error where everything begins to be fitted is above the narrower and the widest, `[seed]`."""
    fitting = [width for width in _widths(table) if _error(table, width, "train").mean() < 0.02]
    if not fitting or fitting[0] == _widths(table)[0]:
        raise NotMeasuredError("no width of the grid begins to fit every label")
    narrower = [width for width in _widths(table) if width < fitting[0]]
    best = min(narrower, key=lambda width: _error(table, width, "validation").mean())
    peak = _error(table, fitting[0])
    return np.minimum(peak - _error(table, best), peak - _error(table, WIDTHS[-1]))


def _widest_gap(table: Table) -> int:
    if len(_widths(table)) < 2:
        raise NotMeasuredError("one width says nothing of another")
    gaps = {w: (_error(table, w, "validation") - _error(table, w, "train")).mean() for w in _widths(table)}
    return max(gaps, key=gaps.__getitem__)


def _random(results: Results, width: int) -> np.ndarray:
    runs = results["random_labels"].select(width=width)
    return analysis.at_best(runs, "learning_rate", "train/accuracy", failed=CHANCE, choose_by="train/accuracy")


def _risk(table: Table, kind: str, num: int) -> np.ndarray:
    return table.curves(f"risk/{kind}")[:, 0, FEATURES.index(num)]


def _theory(num: int) -> float:
    return theory.subset_risk(num, num_examples=NUM_EXAMPLES, num_all=NUM_ALL, signal=1.0, noise=NOISE)


def _distance(table: Table, num: int) -> np.ndarray:
    return _risk(table, "plain", num) / _theory(num) - 1


def _error_by_width(results: Results) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.8, height=4.4)
    table = results["width"]
    widths = _widths(table)
    for color, split in zip(plots.COLORS, ("train", "test"), strict=False):
        values = np.array([_error(table, width, split) for width in widths]).T
        plots.band(left, np.array(widths), values, label=f"{split} error", color=color, marker="o")
    left.axvline(
        (NUM_TRAIN - 10) / 51, color="black", linestyle="--", linewidth=1.5, label="as many parameters as examples"
    )
    left.set(xscale="log", xlabel="hidden units", ylabel="share of wrong labels", ylim=(-0.02, 1))
    left.set(title=f"MNIST-1D, {NUM_TRAIN} examples, 15% redrawn")
    left.legend(fontsize=9)
    if "random_labels" in results:
        for color, width in zip(plots.COLORS[2:], RANDOM_WIDTHS, strict=False):
            runs = results["random_labels"].select(width=width)
            runs = runs.select(**analysis.chosen(runs, "learning_rate", choose_by="train/accuracy"))
            for split, style in (("train", "-"), ("test", ":")):
                metric = f"{split}/accuracy"
                mean = runs.curves(metric).mean(axis=0)
                right.plot(runs.steps(metric), mean, style, color=color, label=f"{width} units, {split}")
    right.axhline(0.1, color="#666666", linewidth=1, label="chance")
    right.set(xlabel="step", ylabel="accuracy", ylim=(0, 1.02), title="Random labels: learned by heart")
    right.legend(loc="center right")
    plots.note(figure, plots.counts([table], failed_as="missing"))
    return figure


def _double_descent(table: Table) -> Figure:
    figure, axes = plots.subplots(width=7.0, height=4.6)
    dense = [*range(3, 39), *range(42, NUM_ALL + 1)]
    below, above = ([num for num in dense if (num < 40) == side] for side in (True, False))
    for place, part in enumerate((below, above)):
        plots.theory_line(axes, part, [_theory(num) for num in part], "" if place else "theory: exact")
    for color, kind, label in zip(
        plots.COLORS, ("plain", "ridge"), ("least squares", "best ridge penalty"), strict=False
    ):
        there = [place for place, num in enumerate(FEATURES) if kind == "ridge" or abs(num - NUM_EXAMPLES) > 2]
        values = table.curves(f"risk/{kind}")[:, 0, there]
        plots.interval_points(axes, np.array(FEATURES)[there], values, label=label, color=color)
    axes.axvline(NUM_EXAMPLES, color="#666666", linewidth=1, label="as many features as examples")
    axes.set(yscale="log", ylim=(0.8, 30), xlabel="features used, of 200", ylabel="risk on new data")
    axes.set(title=f"Least squares on {NUM_EXAMPLES} examples")
    axes.legend(loc="upper right")
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    plots.note(figure, f"{len(table)} draws, 95% intervals; the mean of least squares at 39 to 41 is infinite")
    return figure


EXPERIMENT = Experiment(
    name="regularization.capacity",
    version=1,
    question="Where is the sweet spot of capacity, and what lies beyond it?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
