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

from collections.abc import Mapping
from functools import partial, reduce
from operator import or_
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import Dataset, Split, bundled, idx
from dlexp.models import ConvLayer
from dlexp.results import Results
from dlexp.study import FRESH_SEEDS, Claim, Effect, Panel, at_best, by, judge, lines, side_by_side, statistics, text
from dlexp.sweep import grid, scales
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, Model, Sweep

SIZES = {"digits": (50, 200, 1000), "fashion_mnist": (200, 1000, 5000)}
TITLES = {"digits": "digits, 8 x 8", "fashion_mnist": "Fashion-MNIST, 28 x 28"}
NETWORKS = {"mlp": "perceptron", "cnn": "convolutional"}
EXTENTS = {"digits": 8, "fashion_mnist": 28}
SHIFTS, NO_SHIFT = {"digits": 1, "fashion_mnist": 2}, {"digits": 0, "fashion_mnist": 0}


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
    """Network x training size x shifts x rate on each data set; `smoke` needs no download: it has the digits alone."""
    declared = {}
    for name, num_steps in (("digits", 600), ("fashion_mnist", 1000)):
        hyper = {"num_train": SIZES[name], "max_shift": (0, SHIFTS[name]), "learning_rate": (0.001, 0.003, 0.01)}
        runs = grid(config={"data": (name,), "network": tuple(NETWORKS)}, hyper=hyper, seeds=FRESH_SEEDS)
        declared[name] = Sweep(runs, network, num_steps, num_evals=2)
    if scale == "smoke":
        return scales.smoke({"digits": declared["digits"]})
    return scales.gpu(declared) if scale == "gpu" else declared


def accuracy_by_size(results: Results) -> Figure:
    """Accuracy over the number of images, with and without shifts."""
    panels = []
    for name, title in TITLES.items():
        plain = by("network", NETWORKS)
        shifted = {f"{label}, shifted by up to {SHIFTS[name]}": case for label, case in plain.items()}
        axes: Any = {"x": "num_train", "xscale": "log", "xlabel": "training images", "title": title}
        hue = {label: {**case, "max_shift": 0} for label, case in plain.items()}
        hue |= {label: {**case, "max_shift": SHIFTS[name]} for label, case in shifted.items()}
        panels += lines(
            results, name, at_best("test/accuracy"), hue=hue, linestyles=dict.fromkeys(shifted, "--"), **axes
        )
    return side_by_side(*panels)


def filters(results: Results) -> Figure:
    """The filters of the convolutional network's first layer, before and after training."""
    panels = []
    for name in results:
        runs = results[name].select(network="cnn", max_shift=0)
        runs = runs.select(num_train=runs.frame["num_train"].max())
        kernels = runs.select(**statistics.chosen(runs, "learning_rate")).curves("filters/first")[0]
        for when, shown in (("start", kernels[0]), ("trained", kernels[-1])):
            title = f"{name.split('_')[0]},\n{when}"
            panels += [
                Panel(
                    partial(
                        _draw_filter, kernel=shown[..., place], limit=np.abs(shown).max(), title=title * (place == 0)
                    )
                )
                for place in range(shown.shape[-1])
            ]
    note = "all eight filters of the first layer, first seed; blue negative, red positive"
    return side_by_side(*panels, num_rows=2 * len(results), width=1.1, height=1.15, note=note)


def _draw_filter(axes: Axes, kernel: np.ndarray, limit: float, title: str) -> None:
    axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set(xticks=[], yticks=[], ylabel=title)
    axes.grid(False)


def claims(results: Results) -> list[Claim]:
    """What the lesson says of convolutional networks and of data."""
    lesson = text("003", "Deep Learning Architectures")
    needs = text("004", "Why Deep Learning Became Practical: deep networks need large data")
    accuracy = at_best("test/accuracy")
    kinds: Any = {"network": NETWORKS}

    def on(sizes: Mapping[str, Any], shifts: Mapping[str, int] = NO_SHIFT, **axes: Any) -> Effect:
        """Test accuracy on each data set's own numbers of images."""
        each = (
            ({name: title}, {"num_train": sizes[name], "max_shift": shifts[name]}) for name, title in TITLES.items()
        )
        return reduce(or_, (accuracy(results, sweep, **own, **axes) for sweep, own in each))

    fewest, most = ({name: sizes[end] for name, sizes in SIZES.items()} for end in (0, -1))
    few, many = "on the fewest images", "on the most"
    gain = {
        name: on(sizes, network="cnn") - on(sizes, network="mlp") for name, sizes in (("few", fewest), ("most", most))
    }
    return [
        judge(
            "On images a convolutional network is better than a perceptron.",
            lesson,
            on(SIZES, network="cnn") - on(SIZES, network="mlp"),
            least=0.01,
        ),
        judge(
            "The fewer images, the more a convolutional network gains.",
            needs,
            gain["few"].called(few) - gain["most"].called(many),
            least=0.01,
        ),
        judge(
            "More images make both better.",
            needs,
            on(most, **kinds).called(many) - on(fewest, **kinds).called(few),
            least=0.05,
        ),
        judge(
            "Random shifts of the training images stand in for more images.",
            "Shorten and Khoshgoftaar, A survey on Image Data Augmentation for Deep Learning, 2019, "
            "https://doi.org/10.1186/s40537-019-0197-0",
            on(fewest, SHIFTS, **kinds).called("shifted") - on(fewest, **kinds),
            least=0.01,
        ),
    ]


EXPERIMENT = Experiment("architectures.cnn_images", 1, __doc__, sweeps, (accuracy_by_size, filters), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
