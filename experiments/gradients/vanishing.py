"""How does the gradient change from layer to layer?

The lesson shows a gradient that shrinks from 0.8 at the output to a fifth a layer, 625 times smaller at layer 1, and
names ReLU, batch normalization and residual connections as the remedies (text 004, "The Vanishing and Exploding
Gradient Problems"). Here the gradient is measured in every layer of random networks, and the remedies are trained.

Theory: the squared gradient changes by chi a layer; sqrt chi is 0.236 for sigmoid layers at LeCun's scale and exactly
0.2 at sigma_w^2 = 0.694, 1 for ReLU at He's (Schoenholz et al., "Deep Information Propagation", 2017,
https://arxiv.org/abs/1611.01232), but 1.211 with batch normalization (Yang et al., 2019,
https://arxiv.org/abs/1902.08129), and sqrt 2 a block with unscaled skips.

    python -m experiments.gradients.vanishing
"""

from __future__ import annotations

from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled
from dlexp.results import Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Claim,
    Measure,
    at_best,
    by,
    decades,
    judge,
    lines,
    measure,
    side_by_side,
    style,
    text,
)
from dlexp.sweep import grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Learner, Sweep

NUM_LAYERS, HE = 50, 2**0.5
LESSON_SCALE = 0.694488**0.5  # sigma_w of the sigmoid network whose gradient shrinks to a fifth a layer
PROFILES = {  # label -> activation, sigma_w
    "sigmoid, a fifth a layer": ("sigmoid", LESSON_SCALE),
    "sigmoid, LeCun": ("sigmoid", 1.0),
    "sigmoid, 4 x LeCun": ("sigmoid", 4.0),
    "tanh, LeCun": ("tanh", 1.0),
    "tanh, 2 x LeCun": ("tanh", 2.0),
    "ReLU, He": ("relu", HE),
    "ReLU, 1.4 x He": ("relu", 2.0),
}
PLAIN = {
    name: {"activation": activation, "init_scale": sigma, "normalization": "none", "residual": False}
    for name, (activation, sigma) in PROFILES.items()
}
KEEPERS: dict[str, dict[str, Any]] = {
    "ReLU, He": PLAIN["ReLU, He"],
    "ReLU, batch norm": {"normalization": "batch"},
    "ReLU, skips": {"residual": True, "branch_scale": 1.0},
    "ReLU, skips / sqrt(50)": {"residual": True, "branch_scale": NUM_LAYERS**-0.5},
}
REMEDIES: dict[str, dict[str, Any]] = {
    "sigmoid": {"activation": "sigmoid", "initializer": "lecun"},
    "relu": {"activation": "relu", "initializer": "he"},
    "batch_norm": {"activation": "sigmoid", "initializer": "lecun", "normalization": "batch"},
    "skips": {"activation": "sigmoid", "initializer": "lecun", "residual": True, "preactivation": True},
}
TITLES = {"sigmoid": "sigmoid layers", "relu": "ReLU instead", "batch_norm": "with batch norm", "skips": "with skips"}
GROWS = decades("layer/log_gradient", "gradient", squared=True)
SHRINKS = Measure(
    "decades by which the gradient shrinks from the last of 50 layers to the first",
    lambda runs: -np.asarray(GROWS.of(runs)),
)


def untrained(config: Config, num_steps: int) -> Learner:
    """50 layers of width 256 at initialization, on a batch of digits."""
    return learners.propagation(bundled.load("digits").train.inputs[:128], width=256, num_layers=NUM_LAYERS, **config)


def network(config: Config, num_steps: int) -> Learner:
    """20 layers of width 64 on digits."""
    model = models.mlp(width=64, num_layers=20, num_outputs=10, **REMEDIES[config["remedy"]])
    data = bundled.load("digits")
    return learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), data, batch_size=64)


def sweeps() -> dict[str, Sweep]:
    """Gradient profiles at initialization; the remedies trained at four rates."""
    seeded = partial(grid, seeds=FRESH_SEEDS)
    plain = {"normalization": ("none",), "residual": (False,)}
    profiles = [
        seeded(
            config={"activation": (name,), **plain},
            hyper={"init_scale": [sigma for activation, sigma in PROFILES.values() if activation == name]},
        )
        for name in ("sigmoid", "tanh", "relu")
    ]
    relu = {"activation": ("relu",), **plain}
    profiles.append(seeded(config={**relu, "normalization": ("batch",)}, hyper={"init_scale": (HE,)}))
    branches = {"init_scale": (HE,), "branch_scale": (1.0, NUM_LAYERS**-0.5)}
    profiles.append(seeded(config={**relu, "residual": (True,)}, hyper=branches))
    rates = {"learning_rate": (1e-3, 1e-2, 1e-1, 1.0)}
    return {
        "profiles": Sweep(reduce(or_, profiles), untrained, num_steps=0),
        "remedies": Sweep(seeded(config={"remedy": REMEDIES}, hyper=rates), network, num_steps=400, num_evals=20),
    }


def gradient_by_layer(results: Results) -> Figure:
    """Gradients by layer in plain networks and behind each remedy, with theory."""
    look: Any = {"log": True, "transform": lambda logs: np.exp(logs / 2), "ylabel": "gradient norm, last layer = 1"}
    beside: Any = {"expected": ("theory of wide networks", _theory)}
    gradient = partial(lines, results, "profiles", "layer/log_gradient", x="layer", **look, **beside)
    panels = gradient(hue=PLAIN, title="Plain layers"), gradient(hue=KEEPERS, title="The remedies")
    return side_by_side(*panels, width=6.2, height=5.0)


def _theory(name: str, layer: np.ndarray) -> np.ndarray:
    """The gradient's norm by layer, the last layer's is 1."""
    above = layer.max() - layer
    if name in PROFILES:
        activation, sigma = PROFILES[name]
        return np.exp(mean_field.profile(len(layer), activation, sigma**2, first=sigma**2)[1] / 2)
    if name == "ReLU, batch norm":
        return mean_field.batch_norm_chi("relu") ** (above / 2)
    return (1 + KEEPERS[name]["branch_scale"] ** 2) ** (above / 2)


def lesson_numbers(results: Results) -> Figure:
    """The lesson's five numbers beside what a network measures."""
    figure, axes = style.subplots(width=6.2, height=4.2)
    logs = results["profiles"].select(**PLAIN["sigmoid, a fifth a layer"]).curves("layer/log_gradient")[:, 0] / 2
    measured = 0.8 * np.exp(logs[:, 40:35:-1] - logs[:, [40]])
    places, lesson = np.arange(5), 0.8 * 0.2 ** np.arange(5)
    axes.bar(places - 0.2, lesson, 0.38, color=style.LESSON, label="the lesson's numbers")
    label = r"sigmoid layers at $\sigma_w^2 = 0.694$, measured"
    axes.bar(places + 0.2, measured.mean(axis=0), 0.38, color=style.COLORS[0], label=label)
    style.interval_points(axes, places + 0.2, measured, label="95% interval", color="black")
    for place, value in zip(places, lesson, strict=True):
        axes.text(place - 0.2, value * 1.1, f"{value:.3g}", ha="center", va="bottom", fontsize=9)
    axes.set(yscale="log", ylim=(5e-4, 3), ylabel="gradient norm", title="0.8, then a fifth a layer")
    axes.set_xticks(places, ["output", "layer 4", "layer 3", "layer 2", "layer 1"])
    axes.legend()
    style.note(figure, f"{len(logs)} networks of width 256, 95% intervals; scaled to 0.8 at the output")
    return figure


def remedies(results: Results) -> Figure:
    """The remedies' training."""
    axes: Any = {"ylim": (0, 1.02), "title": "20 layers, each at its own best rate"}
    hue = by("remedy", TITLES)
    return side_by_side(lines(results, "remedies", at_best("test/accuracy"), x="step", hue=hue, **axes), width=6.2)


@measure(
    "factor by which the gradient shrinks over four sigmoid layers at sigma_w^2 = 0.694, from layer 40 to 10 of 50"
)
def _over_four(runs: Table) -> np.ndarray:
    logs = runs.curves("layer/log_gradient")[:, 0] / 2
    return np.exp((logs[:, 40] - logs[:, 10]) * 4 / 30)


def claims(results: Results) -> list[Claim]:
    """What the lesson says of vanishing gradients and of each remedy."""
    lesson = text("004", "The Vanishing and Exploding Gradient Problems")
    both = f"{lesson}; text 003, Training Deep Networks"
    fifth = _over_four(results, "profiles", {"width 256": PLAIN["sigmoid, a fifth a layer"]})
    sigmoid = {name: case for name, case in PLAIN.items() if name.startswith("sigmoid")}
    large = {name: PLAIN[name] for name in ("tanh, 2 x LeCun", "ReLU, 1.4 x He")}
    accuracy = partial(at_best("test/accuracy"), results, "remedies")
    return [
        judge(
            "A gradient that shrinks to a fifth a layer is 625 times smaller four layers down.",
            lesson,
            fifth.off(625),
            most=0.1,
        ),
        judge(
            "With sigmoid layers the gradient of the early layers is near zero.",
            lesson,
            SHRINKS(results, "profiles", sigmoid),
            least=3,
        ),
        judge(
            "Each remedy keeps the gradient within a factor of ten over 49 layers at initialization.",
            both,
            abs(GROWS(results, "profiles", KEEPERS)),
            most=1,
        ),
        judge("Gradients can also explode.", lesson, GROWS(results, "profiles", large), least=1),
        judge(
            "Each remedy lets a network of 20 sigmoid layers learn.",
            both,
            accuracy(remedy=("relu", "batch_norm", "skips")).called("with the remedy") - accuracy(remedy="sigmoid"),
            least=0.3,
        ),
    ]


FIGURES = (gradient_by_layer, lesson_numbers, remedies)
EXPERIMENT = Experiment("gradients.vanishing", 1, __doc__, sweeps, FIGURES, claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
