"""Zeros, a constant, too small, too large, Xavier, He: what does each start do?

The lesson says that zeros make all neurons learn the same, too large weights explode, too small ones vanish, and that
Xavier's start is best for sigmoid and tanh and He's for ReLU (text 004, "Weight Initialization"). Thirteen scales are
trained here from far too small to far too large, each at the best of three rates by validation, Xavier and He among
them; the scale is the weights' standard deviation times the square root of the number of inputs.

Theory: from zeros only the output bias moves, so the loss ends at the entropy of the labels; from a constant all units
of a layer stay equal for ever. ReLU layers keep the signal's variance at He's scale, sqrt 2, alone (He et al.,
"Delving Deep into Rectifiers", 2015, https://arxiv.org/abs/1502.01852); tanh near Xavier's, 1.

    python -m experiments.gradients.initialization
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled
from dlexp.results import Results, Table
from dlexp.study import FRESH_SEEDS, Claim, Panel, at_best, by, judge, last, lines, measure, side_by_side, text
from dlexp.sweep import grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Sweep

XAVIER, HE = 1.0, 2**0.5  # of layers with as many inputs as outputs
SCALES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, XAVIER, HE, 2.0, 3.0, 5.0, 10.0, 30.0)
SHOWN = {"scale 0.5": 0.5, "scale 1, Xavier": XAVIER, "scale 1.41, He": HE, "scale 3": 3.0}
NAMED = {"tanh": ("tanh", "Xavier", XAVIER), "ReLU": ("relu", "He", HE)}  # title -> activation, scale the lesson names
LAYERS = {2: "2 layers", 10: "10 layers"}
STARTS = {"zeros": "start: all zero", "constant": "start: all 0.1", "he": "start: random (He x 0.1)"}


def network(config: Config, num_steps: int) -> Learner:
    """A perceptron of width 64 on digits."""
    activation, num_layers = config["activation"], config["num_layers"]
    model = models.mlp(width=64, num_layers=num_layers, num_outputs=10, activation=activation, initializer="lecun")
    data = bundled.load("digits")
    return learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), data, batch_size=64)


def alike(config: Config, num_steps: int) -> Learner:
    """Three layers of 16 ReLUs that start alike; also measures how far the units of a layer have come apart."""
    model = models.mlp(width=16, num_layers=3, num_outputs=10, initializer=config["start"])
    data = bundled.load("digits")
    trained = learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), data, batch_size=64)
    return learners.measuring(trained, units_apart)


def units_apart(key: Key, hyper: Hyper, data: PyTree, state: learners.State) -> Metrics:
    """Returns the largest difference between the incoming weights of a unit of a hidden layer and of its first."""
    hidden = {name: layer for name, layer in state.params.items() if name != "output"}
    named = jax.tree_util.tree_leaves_with_path(hidden)
    kernels = [leaf for path, leaf in named if path[-1].key == "kernel"]
    return {"units/apart": jnp.max(jnp.stack([jnp.max(jnp.abs(kernel - kernel[..., :1])) for kernel in kernels]))}


def untrained(config: Config, num_steps: int) -> Learner:
    """20 layers of width 256 at initialization."""
    inputs = bundled.load("digits").train.inputs[:128]
    return learners.propagation(inputs, width=256, num_layers=20, activation=config["activation"])


def sweeps() -> dict[str, Sweep]:
    """Scale x depth x activation, starts in which all units are alike, and the signal at initialization."""
    activations = {"activation": ("tanh", "relu")}
    trained = {"init_scale": SCALES, "learning_rate": (0.001, 0.01, 0.1)}
    scales = grid(config={**activations, "num_layers": LAYERS}, hyper=trained, seeds=FRESH_SEEDS)
    small = {"init_scale": (0.1,), "learning_rate": (0.1,)}
    starts = grid(config={"start": STARTS}, hyper=small, seeds=FRESH_SEEDS)
    signal = grid(config=activations, hyper={"init_scale": SCALES}, seeds=FRESH_SEEDS)
    return {
        "scales": Sweep(scales, network, num_steps=300),
        "alike": Sweep(starts, alike, num_steps=300, num_evals=5),
        "signal": Sweep(signal, untrained, num_steps=0),
    }


def accuracy_by_scale(results: Results) -> Figure:
    """Accuracy over the scale of the weights, each at its own best rate."""
    accuracy = partial(lines, results, "scales", at_best("test/accuracy"), x="init_scale", hue=by("num_layers", LAYERS))
    axes: Any = {"xscale": "log", "ylim": (0, 1.02), "xlabel": "scale of the weights, std x sqrt(inputs)"}
    panels: list[Panel] = []
    for title, (activation, name, scale) in NAMED.items():
        named: Any = {
            "title": f"{title} on digits; {name}'s scale is {scale:.3g}",
            "at": {"the scale the lesson names": scale},
        }
        panels += accuracy(fixed={"activation": activation}, **named, **axes)
    return side_by_side(*panels)


def signal_by_layer(results: Results) -> Figure:
    """The signal by layer, and its theory."""

    def theory(activation: str, label: str, layer: np.ndarray) -> np.ndarray:
        runs = results["signal"].select(activation=activation, init_scale=SHOWN[label])
        first = float(runs.curves("layer/variance")[:, 0, 0].mean())
        return mean_field.profile(len(layer), activation, SHOWN[label] ** 2, first=first)[0]

    hue = {label: {"init_scale": scale} for label, scale in SHOWN.items()}
    variance = partial(lines, results, "signal", "layer/variance", x="layer", hue=hue, log=True)
    panels: list[Panel] = []
    for title, (activation, _, _) in NAMED.items():
        shown = {"activation": activation, "init_scale": [*SHOWN.values()]}
        expected = ("theory of wide networks", partial(theory, activation))
        named: Any = {"title": f"{title} layers of width 256 at initialization", "ylabel": "variance of the signal"}
        panels += variance(fixed=shown, expected=expected, **named)
    return side_by_side(*panels)


def units_alike(results: Results) -> Figure:
    """Units that start alike, and what they learn."""
    alike = partial(lines, results, "alike", x="step", hue=by("start", STARTS))
    guess = {"theory: a constant guess, log 10": np.log(10)}
    loss: Any = {"ylabel": "training loss (nats)", "ylim": (0, 2.6)}
    return side_by_side(
        alike("units/apart", ylabel="largest difference of weights", title="Units of one hidden layer"),
        alike("train/loss", marks=guess, title="What they learn", **loss),
    )


@measure("log of the signal's variance in the last of 20 layers over the first, at the scale that the lesson names")
def _change(runs: Table) -> np.ndarray:
    logs = np.log(runs.curves("layer/variance")[:, 0])
    return logs[:, -1] - logs[:, 0]


def claims(results: Results) -> list[Claim]:
    """What the lesson says of each start."""
    lesson = text("004", "Weight Initialization")
    cases = {title: {"activation": activation} for title, (activation, _, _) in NAMED.items()}
    named = {title: {"activation": activation, "init_scale": scale} for title, (activation, _, scale) in NAMED.items()}
    tuned = at_best("test/accuracy")
    at_scale, at_named = (
        tuned,
        tuned.with_words(f"{tuned.words} and the scale that the lesson names for the activation"),
    )
    best = at_best("test/accuracy", over=("init_scale", "learning_rate"))(results, "scales", cases, num_layers=LAYERS)
    small, large = (at_scale(results, "scales", cases, num_layers=LAYERS, init_scale=scale) for scale in (0.01, 30.0))
    lessons = at_named(results, "scales", named, num_layers=LAYERS)
    he, xavier = (
        at_scale(results, "scales", activation="relu", num_layers=10, init_scale=scale) for scale in (HE, XAVIER)
    )
    apart = last("units/apart").with_words(
        "largest difference between the incoming weights of two units of a hidden layer after the training"
    )
    return [
        judge(
            "Weights that start at zero, or all equal, make all units of a layer learn the same.",
            lesson,
            apart(results, "alike", start=("zeros", "constant")),
            most=1e-6,  # the rounding of float32
        ),
        judge("Too small weights make training fail.", lesson, best - small, least=0.1),
        judge("Too large weights make training fail.", lesson, best - large, least=0.1),
        judge("Xavier's scale is best for tanh and He's for ReLU.", lesson, lessons - best, least=-0.01),
        judge(
            "Ten ReLU layers want He's scale and not Xavier's.",
            f"{lesson}; He et al., Delving Deep into Rectifiers, 2015, https://arxiv.org/abs/1502.01852",
            he - xavier,
            least=0.01,
        ),
        judge(
            "Xavier's start keeps the variance of the signal of tanh layers, He's that of ReLU layers.",
            lesson,
            abs(_change(results, "signal", named)),
            most=1,
        ),
    ]


FIGURES = (accuracy_by_scale, signal_by_layer, units_alike)
EXPERIMENT = Experiment("gradients.initialization", 1, __doc__, sweeps, FIGURES, claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
