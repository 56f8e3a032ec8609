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

from functools import partial
from typing import Any

import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import bundled
from dlexp.learners.propagation import propagation
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Figures, Learner, Sweep

NUM_LAYERS = 50
LESSON_SCALE = 0.694488**0.5  # sigma_w of the sigmoid network whose gradient shrinks to a fifth a layer
CHANCE = 0.1
HE = 2**0.5
PROFILES = {  # label -> (static choices, sigma_w)
    "sigmoid, a fifth a layer": ("sigmoid", LESSON_SCALE),
    "sigmoid, LeCun": ("sigmoid", 1.0),
    "sigmoid, 4 x LeCun": ("sigmoid", 4.0),
    "tanh, LeCun": ("tanh", 1.0),
    "tanh, 2 x LeCun": ("tanh", 2.0),
    "ReLU, He": ("relu", HE),
    "ReLU, 1.4 x He": ("relu", 2.0),
}
KEEPERS = ("ReLU, He", "ReLU, batch norm", "ReLU, skips", "ReLU, skips / sqrt(50)")
REMEDIES: dict[str, dict[str, Any]] = {
    "sigmoid": {"activation": "sigmoid", "initializer": "lecun"},
    "relu": {"activation": "relu", "initializer": "he"},
    "batch_norm": {"activation": "sigmoid", "initializer": "lecun", "normalization": "batch"},
    "skips": {"activation": "sigmoid", "initializer": "lecun", "residual": True, "preactivation": True},
}
TITLES = {
    "sigmoid": "sigmoid layers",
    "relu": "ReLU instead",
    "batch_norm": "with batch norm",
    "skips": "with skips",
}


def untrained(config: Config, num_steps: int) -> Learner:
    """50 layers of width 256 at initialization, on a batch of digits."""
    inputs = bundled.load("digits").train.inputs[:128]
    return propagation(
        inputs,
        width=256,
        num_layers=NUM_LAYERS,
        activation=config["activation"],
        normalization=config["normalization"],
        residual=config["residual"],
    )


def network(config: Config, num_steps: int) -> Learner:
    """20 layers of width 64 on digits."""
    model = models.mlp(width=64, num_layers=20, num_outputs=10, **REMEDIES[config["remedy"]])
    data = bundled.load("digits")
    return learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), data, batch_size=64)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Gradient profiles at initialization; the remedies trained at four rates."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    plain = {"normalization": ("none",), "residual": (False,)}
    wanted = {
        name: tuple(sigma for activation, sigma in PROFILES.values() if activation == name)
        for name in ("sigmoid", "tanh", "relu")
    }
    profiles = grid(config={"activation": ("sigmoid",), **plain}, hyper={"init_scale": wanted["sigmoid"]}, seeds=seeds)
    if scale == "smoke":
        remedies = grid(config={"remedy": ("relu",)}, hyper={"learning_rate": (1e-2, 1e-1)}, seeds=seeds)
        return {
            "profiles": Sweep(profiles, untrained, num_steps=0),
            "remedies": Sweep(remedies, network, num_steps=10, num_evals=2),
        }
    for name in ("tanh", "relu"):
        profiles |= grid(config={"activation": (name,), **plain}, hyper={"init_scale": wanted[name]}, seeds=seeds)
    he, relu = {"init_scale": (HE,)}, ("relu",)
    profiles |= grid(
        config={"activation": relu, "normalization": ("batch",), "residual": (False,)}, hyper=he, seeds=seeds
    )
    branches = {**he, "branch_scale": (1.0, NUM_LAYERS**-0.5)}
    skips = {"activation": relu, "normalization": ("none",), "residual": (True,)}
    profiles |= grid(config=skips, hyper=branches, seeds=seeds)
    rates = {"learning_rate": (1e-3, 1e-2, 1e-1, 1.0)}
    return {
        "profiles": Sweep(profiles, untrained, num_steps=0),
        "remedies": Sweep(grid(config={"remedy": REMEDIES}, hyper=rates, seeds=seeds), network, 400, num_evals=20),
    }


def figures(results: Results) -> Figures:
    """Gradients by layer with theory; the lesson's five numbers beside the network; the remedies' training."""
    return {
        "gradient_by_layer": lambda: _gradient_by_layer(results["profiles"]),
        "lesson_numbers": lambda: _lesson_numbers(results["profiles"]),
        "remedies": lambda: _remedies(results["remedies"]),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of vanishing gradients and of each remedy."""
    lesson = 'text 004, "ML Deep Learning Introduction", The Vanishing and Exploding Gradient Problems'
    profiles, remedies = results["profiles"], results["remedies"]
    decades = partial(_decades, profiles)
    return [
        judge(
            "A gradient that shrinks to a fifth a layer is 625 times smaller four layers down.",
            source=lesson,
            rule="0.1 minus the relative distance from 625 of the gradient's ratio over four sigmoid layers at "
            "sigma_w^2 = 0.694, layers 10 to 40; more than 0",
            effects={"width 256": 0.1 - abs(_ratio_over_four(profiles) / 625 - 1)},
        ),
        judge(
            "With sigmoid layers the gradient of the early layers is near zero.",
            source=lesson,
            rule="decades by which the gradient shrinks over 49 layers, by initial scale; at least 3",
            effects={name: -decades(name) for name in PROFILES if name.startswith("sigmoid")},
            smallest=3.0,
        ),
        judge(
            "Each remedy keeps the gradient within a factor of ten over 49 layers at initialization.",
            source=f"{lesson}; text 003, Training Deep Networks",
            rule="1 minus the size of the change in decades; more than 0",
            effects=each("{}", KEEPERS, lambda name: 1 - abs(decades(name))),
        ),
        judge(
            "Gradients can also explode.",
            source=lesson,
            rule="decades by which the gradient grows over 49 layers where the weights start 1.4 to 2 times too "
            "large; at least 1",
            effects=each("{}", ("tanh, 2 x LeCun", "ReLU, 1.4 x He"), decades),
            smallest=1.0,
        ),
        judge(
            "Each remedy lets a network of 20 sigmoid layers learn.",
            source=f"{lesson}; text 003, Training Deep Networks",
            rule="test accuracy with the remedy minus without, each at its own best rate by validation, paired by "
            "seed; at least 0.3",
            effects=each(
                "{}",
                ("relu", "batch_norm", "skips"),
                lambda remedy: _accuracy(remedies, remedy) - _accuracy(remedies, "sigmoid"),
            ),
            smallest=0.3,
        ),
    ]


def _logs(table: Table, name: str) -> np.ndarray:
    """Log gradient norm by layer `[seed, layer]`, relative to the last layer."""
    if name in PROFILES:
        activation, sigma = PROFILES[name]
        runs = table.select(activation=activation, init_scale=sigma, normalization="none", residual=False)
    elif name == "ReLU, batch norm":
        runs = table.select(normalization="batch")
    else:
        runs = table.select(residual=True)
        scales = runs.frame["branch_scale"]
        runs = runs.select(branch_scale=scales.min() if "sqrt" in name else scales.max())
    return runs.curves("layer/log_gradient")[:, 0] / 2


def _decades(table: Table, name: str) -> np.ndarray:
    """How much the gradient grew from the last layer to the first, in powers of ten, `[seed]`."""
    return _logs(table, name)[:, 0] / np.log(10)


def _ratio_over_four(table: Table) -> np.ndarray:
    logs = _logs(table, "sigmoid, a fifth a layer")
    return np.exp((logs[:, 40] - logs[:, 10]) * 4 / 30)


def _accuracy(table: Table, remedy: str) -> np.ndarray:
    return analysis.at_best(table.select(remedy=remedy), "learning_rate", "test/accuracy", failed=CHANCE)


def _theory(name: str) -> np.ndarray:
    """Log gradient norm by layer, relative to the last."""
    above = np.arange(NUM_LAYERS)[::-1]
    if name in PROFILES:
        activation, sigma = PROFILES[name]
        return mean_field.profile(NUM_LAYERS, activation, sigma**2, first=sigma**2)[1] / 2
    if name == "ReLU, batch norm":
        return above * np.log(mean_field.batch_norm_chi("relu")) / 2
    return above * np.log(1 + (1 / NUM_LAYERS if "sqrt" in name else 1)) / 2


def _gradient_by_layer(table: Table) -> Figure:
    figure, panels = plots.subplots(1, 2, width=6.2, height=5.0)
    for axes, names, title in ((panels[0], PROFILES, "Plain layers"), (panels[1], KEEPERS, "The remedies")):
        layers = np.arange(1, NUM_LAYERS + 1)
        for name, color in zip(names, plots.COLORS, strict=False):
            try:
                values = _logs(table, name)
            except ValueError:
                continue
            plots.band(axes, layers, np.exp(values), label=name, color=color, log=True)
            axes.plot(layers, np.exp(_theory(name)), color="black", linestyle="--", linewidth=1)
        axes.plot([], [], color="black", linestyle="--", linewidth=1, label="theory of wide networks")
        axes.set(yscale="log", xlabel="layer", title=title)
        axes.legend(fontsize=9)
    panels[0].set(ylabel="gradient norm, last layer = 1")
    plots.note(figure, plots.counts([table], failed_as="missing"))
    return figure


def _lesson_numbers(table: Table) -> Figure:
    figure, axes = plots.subplots(width=6.2, height=4.2)
    logs = _logs(table, "sigmoid, a fifth a layer")
    measured = 0.8 * np.exp(logs[:, [40, 39, 38, 37, 36]] - logs[:, [40]])
    places, lesson = np.arange(5), 0.8 * 0.2 ** np.arange(5)
    axes.bar(places - 0.2, lesson, 0.38, color=plots.LESSON, label="the lesson's numbers")
    label = r"sigmoid layers at $\sigma_w^2 = 0.694$, measured"
    axes.bar(places + 0.2, measured.mean(axis=0), 0.38, color=plots.COLORS[0], label=label)
    plots.interval_points(axes, places + 0.2, measured, label="95% interval", color="black")
    for place, value in zip(places, lesson, strict=True):
        axes.text(place - 0.2, value * 1.1, f"{value:.3g}", ha="center", va="bottom", fontsize=9)
    axes.set(yscale="log", ylim=(5e-4, 3), ylabel="gradient norm", title="0.8, then a fifth a layer")
    axes.set_xticks(places, ["output", "layer 4", "layer 3", "layer 2", "layer 1"])
    axes.legend()
    plots.note(figure, f"{len(logs)} networks of width 256, 95% intervals; scaled to 0.8 at the output")
    return figure


def _remedies(table: Table) -> Figure:
    figure, axes = plots.subplots(width=6.2, height=4.4)
    for name, color in zip(REMEDIES, plots.COLORS, strict=False):
        if name in set(table.frame["remedy"]):
            style: Any = {"label": f"{TITLES[name]}, rate {{:g}}", "color": color, "failed": CHANCE}
            plots.curve_at_best(axes, table.select(remedy=name), "test/accuracy", **style)
    axes.set(xlabel="step", ylabel="test accuracy", ylim=(0, 1.02), title="20 layers, each at its own best rate")
    axes.legend()
    plots.note(figure, plots.counts([table], failed_as="chance, one class of ten"))
    return figure


EXPERIMENT = Experiment(
    name="gradients.vanishing",
    version=1,
    question="How does the gradient change from layer to layer?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
