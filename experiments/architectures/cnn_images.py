"""What does a convolutional network gain on images, with how many of them?

The lesson gives images to convolutional networks, whose filters detect local patterns (text 003, "Deep Learning
Architectures"; text 004, "Types of Deep Learning Architectures"), and says that deep learning needs tens of thousands
of examples (text 004, "Deep Learning vs Classical Machine Learning"). A perceptron and a convolutional network of fewer
parameters are trained here on growing shares of digits (8 x 8) and Fashion-MNIST (28 x 28), with random shifts of the
training images and without.

Published: on all 60,000 images of Fashion-MNIST a perceptron of 256-128-64 units reaches 90.0%, networks of two
convolutions 87.6 to 92.5% (https://github.com/zalandoresearch/fashion-mnist). There is no theory of the difference.
Fashion-MNIST is downloaded at first use. Adam, each setting at the best of three rates by validation.

    python -m experiments.architectures.cnn_images
"""

from __future__ import annotations

from itertools import product

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.claims import Claim, each, judge
from dlexp.data import Dataset, Split, bundled, idx
from dlexp.models import ConvLayer
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, Model, Sweep

CHANCE = 0.1
SIZES = {"digits": (50, 200, 1000), "fashion_mnist": (200, 1000, 5000)}
TITLES = {"digits": "digits, 8 x 8", "fashion_mnist": "Fashion-MNIST, 28 x 28"}
NETWORKS = {"mlp": "perceptron", "cnn": "convolutional"}
EXTENTS = {"digits": 8, "fashion_mnist": 28}
SHIFTS = {"digits": 1, "fashion_mnist": 2}


def images(name: str) -> Dataset:
    """Images `[example, row, column]`; the large set as bytes, its test split and validation cut to 2000."""
    if name == "digits":
        flat = bundled.load("digits")
        return Dataset(*(Split(split.inputs.reshape(-1, 8, 8), split.labels) for split in flat if split))
    full = idx.load(name)
    cut = {"train": max(SIZES[name]), "validation": 2000, "test": 2000}
    return Dataset(**{part: Split(*(array[:num] for array in getattr(full, part))) for part, num in cut.items()})


def network(config: Config, num_steps: int) -> Learner:
    """Either network behind random shifts; keeps the first layer's filters of the convolutional one."""
    name, kind = config["data"], config["network"]
    data = images(name)
    model = models.shifted(models.standardised(_network(name, kind), **_moments(name)))
    trained = learners.supervised(
        model, losses.softmax_cross_entropy, optim.adam(), data, batch_size=50, sweep_num_train=True
    )

    def evaluate(key: Key, hyper: Hyper, data: Dataset, state: learners.State) -> Metrics:
        measured = dict(trained.evaluate(key, hyper, data, state))
        if kind == "cnn":
            measured["filters/first"] = jnp.squeeze(state.params["Conv_0"]["kernel"], axis=2)
        return measured

    return trained._replace(evaluate=evaluate)


def _network(name: str, kind: str) -> Model:
    if kind == "mlp":
        return models.mlp(width=64 if name == "digits" else 128, num_layers=3, num_outputs=10)
    shape = (EXTENTS[name], EXTENTS[name], 1)
    if name == "digits":
        convolutions = (ConvLayer(8, 3, padding=1), ConvLayer(16, 3, padding=1, pool=2))
    else:
        convolutions = (ConvLayer(8, 5, stride=2, padding=2), ConvLayer(16, 3, stride=2, padding=1))
    return models.cnn(input_shape=shape, conv_layers=convolutions, dense_widths=(32,), num_outputs=10)


def _moments(name: str) -> dict[str, float]:
    """Of the pixels; digits come standardised."""
    return {"mean": 0.0, "std": 1.0} if name == "digits" else {"mean": 72.9, "std": 90.0}


def sweeps(scale: str) -> dict[str, Sweep]:
    """Network x training size x shifts x rate on each data set."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 48)}[scale]  # rules were tried on 0 to 15
    if scale == "smoke":
        few = {"num_train": (50,), "max_shift": (0, 1), "learning_rate": (0.003,)}
        small = grid(config={"data": ("digits",), "network": tuple(NETWORKS)}, hyper=few, seeds=seeds)
        return {"digits": Sweep(small, network, num_steps=20)}
    declared = {}
    for name, num_steps in (("digits", 600), ("fashion_mnist", 1000)):
        hyper = {"num_train": SIZES[name], "max_shift": (0, SHIFTS[name]), "learning_rate": (0.001, 0.003, 0.01)}
        runs = grid(config={"data": (name,), "network": tuple(NETWORKS)}, hyper=hyper, seeds=seeds)
        declared[name] = Sweep(runs, network, num_steps, num_evals=2)
    return declared


def figures(results: Results) -> Figures:
    """Accuracy over the number of images; the filters of the first layer."""
    return {"accuracy_by_size": lambda: _accuracy_by_size(results), "filters": lambda: _filters(results)}


def claims(results: Results) -> list[Claim]:
    """What the lesson says of convolutional networks and of data."""
    lesson = 'text 003, "Deep Learning Overview", Deep Learning Architectures'
    needs = (
        'text 004, "ML Deep Learning Introduction", Why Deep Learning Became Practical: deep networks need large data'
    )
    everywhere = [(name, size) for name, sizes in SIZES.items() for size in sizes]
    return [
        judge(
            "On images a convolutional network is better than a perceptron.",
            source=lesson,
            rule="test accuracy of the convolutional network minus of the perceptron, without shifts, each at its own "
            "best rate by validation, paired by seed; at least one point (0.01)",
            effects=each(
                "{}, {} images", everywhere, lambda name, n: _at(results, name, "cnn", n) - _at(results, name, "mlp", n)
            ),
            smallest=0.01,
        ),
        judge(
            "The fewer images, the more a convolutional network gains.",
            source=needs,
            rule="its gain in test accuracy on the fewest images minus on the most, without shifts, paired by seed; at "
            "least one point (0.01)",
            effects=each(
                "{}", SIZES, lambda name: _gain(results, name, SIZES[name][0]) - _gain(results, name, SIZES[name][-1])
            ),
            smallest=0.01,
        ),
        judge(
            "More images make both better.",
            source=needs,
            rule="test accuracy on the most images minus on the fewest, without shifts, each at its own best rate by "
            "validation, paired by seed; at least five points (0.05)",
            effects=each("{}, {}", product(SIZES, NETWORKS), lambda name, kind: _growth(results, name, kind)),
            smallest=0.05,
        ),
        judge(
            "Random shifts of the training images stand in for more images.",
            source="Shorten and Khoshgoftaar, A survey on Image Data Augmentation for Deep Learning, 2019, "
            "https://doi.org/10.1186/s40537-019-0197-0",
            rule="test accuracy with shifts minus without, on the fewest images, each at its own best rate by "
            "validation, paired by seed; at least one point (0.01)",
            effects=each(
                "{}, {}",
                product(SIZES, NETWORKS),
                lambda name, kind: (
                    _at(results, name, kind, SIZES[name][0], SHIFTS[name]) - _at(results, name, kind, SIZES[name][0])
                ),
            ),
            smallest=0.01,
        ),
    ]


def _at(results: Results, name: str, kind: str, size: int, shift: int = 0) -> np.ndarray:
    runs = results[name].select(network=kind, num_train=size, max_shift=shift)
    return analysis.at_best(runs, "learning_rate", "test/accuracy", failed=CHANCE)


def _gain(results: Results, name: str, size: int) -> np.ndarray:
    return _at(results, name, "cnn", size) - _at(results, name, "mlp", size)


def _growth(results: Results, name: str, kind: str) -> np.ndarray:
    return _at(results, name, kind, SIZES[name][-1]) - _at(results, name, kind, SIZES[name][0])


def _accuracy_by_size(results: Results) -> Figure:
    figure, panels = plots.subplots(1, len(results), width=5.8, height=4.4)
    for axes, (name, table) in zip(np.atleast_1d(panels), results.items(), strict=True):
        sizes = np.unique(table.frame["num_train"]).astype(int)
        for color, (kind, title) in zip(plots.COLORS, NETWORKS.items(), strict=False):
            for shift, marker, linestyle in ((0, "o", "-"), (SHIFTS[name], "^", "--")):
                values = np.array([_at(results, name, kind, size, shift) for size in sizes]).T
                label = f"{title}, shifted by up to {shift}" if shift else title
                plots.band(axes, sizes, values, label=label, color=color, marker=marker, linestyle=linestyle)
        axes.set(xscale="log", xlabel="training images", ylabel="test accuracy", title=TITLES[name])
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.legend(loc="lower right", fontsize=9)
    plots.note(figure, plots.counts(results.values(), failed_as="chance, one class of ten") + "; dashed: shifted")
    return figure


def _filters(results: Results) -> Figure:
    names = list(results)
    figure, panels = plots.subplots(2 * len(names), 8, width=1.1, height=1.15)
    for row, name in enumerate(names):
        runs: Table = results[name].select(network="cnn", max_shift=0)
        size = int(runs.frame["num_train"].max())
        runs = runs.select(num_train=size)
        runs = runs.select(**analysis.chosen(runs, "learning_rate"))
        filters = runs.curves("filters/first")[0]
        for line, (when, kernels) in enumerate((("start", filters[0]), ("trained", filters[-1]))):
            for place, axes in enumerate(panels[2 * row + line]):
                kernel, limit = kernels[..., place], np.abs(kernels).max()
                axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
            panels[2 * row + line][0].set_ylabel(f"{name.split('_')[0]},\n{when}")
    plots.note(figure, "all eight filters of the first layer, first seed; blue negative, red positive")
    return figure


EXPERIMENT = Experiment(
    name="architectures.cnn_images",
    version=1,
    question="What does a convolutional network gain on images, with how many of them?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
