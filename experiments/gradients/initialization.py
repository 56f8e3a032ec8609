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

import jax
import jax.numpy as jnp
import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import bundled
from dlexp.learners.propagation import propagation
from dlexp.results import Results, Table
from dlexp.sweep import grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

CHANCE = 0.1
XAVIER, HE = 1.0, 2**0.5  # of layers with as many inputs as outputs
SCALES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, XAVIER, HE, 2.0, 3.0, 5.0, 10.0, 30.0)
NAMED = {"tanh": ("Xavier", XAVIER), "relu": ("He", HE)}
TITLES = {"tanh": "tanh", "relu": "ReLU"}


def network(config: Config, num_steps: int) -> Learner:
    """A perceptron of width 64 on digits."""
    model = models.mlp(
        width=64,
        num_layers=config["num_layers"],
        num_outputs=10,
        activation=config["activation"],
        initializer="lecun",
    )
    data = bundled.load("digits")
    return learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), data, batch_size=64)


def alike(config: Config, num_steps: int) -> Learner:
    """Three layers of 16 ReLUs that start alike; also measures how far the units of a layer have come apart."""
    model = models.mlp(width=16, num_layers=3, num_outputs=10, initializer=config["start"])
    data = bundled.load("digits")
    trained = learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), data, batch_size=64)

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: learners.State) -> Metrics:
        kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params) if _hidden_kernel(path)]
        apart = [jnp.max(jnp.abs(kernel - kernel[..., :1])) for kernel in kernels]
        return {**trained.evaluate(key, hyper, data, state), "units/apart": jnp.max(jnp.stack(apart))}

    return trained._replace(evaluate=evaluate)


def _hidden_kernel(path: tuple) -> bool:
    names = [entry.key for entry in path]
    return names[-1] == "kernel" and names[0] != "output"


def untrained(config: Config, num_steps: int) -> Learner:
    """20 layers of width 256 at initialization."""
    inputs = bundled.load("digits").train.inputs[:128]
    return propagation(inputs, width=256, num_layers=20, activation=config["activation"])


def sweeps(scale: str) -> dict[str, Sweep]:
    """Scale x depth x activation, starts in which all units are alike, and the signal at initialization."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    scales = {"smoke": (0.01, HE), "cpu": SCALES, "gpu": sorted({*SCALES, *np.geomspace(0.01, 100, 33)})}[scale]
    few = scale == "smoke"
    config = {"activation": ("relu",) if few else ("tanh", "relu"), "num_layers": (2,) if few else (2, 10)}
    trained = grid(config=config, hyper={"init_scale": scales, "learning_rate": (0.001, 0.01, 0.1)[few:]}, seeds=seeds)
    signal = grid(config={"activation": config["activation"]}, hyper={"init_scale": scales}, seeds=seeds)
    starts = grid(
        config={"start": ("constant",) if few else ("zeros", "constant", "he")},
        hyper={"init_scale": (0.1,), "learning_rate": (0.1,)},
        seeds=seeds,
    )
    num_steps = 20 if few else 300
    return {
        "scales": Sweep(trained, network, num_steps),
        "alike": Sweep(starts, alike, num_steps, num_evals=5),
        "signal": Sweep(signal, untrained, num_steps=0),
    }


def figures(results: Results) -> Figures:
    """Accuracy over the scale of the weights; the signal by layer; units that stay alike."""
    return {
        "accuracy_by_scale": lambda: _accuracy_by_scale(results["scales"]),
        "signal_by_layer": lambda: _signal_by_layer(results["signal"]),
        "units_alike": lambda: _units_alike(results["alike"]),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of each start."""
    lesson = 'text 004, "ML Deep Learning Introduction", Weight Initialization'
    scales, starts = results["scales"], results["alike"]
    cases = [(activation, layers) for activation in NAMED for layers in (2, 10)]
    return [
        judge(
            "Weights that start at zero, or all equal, make all units of a layer learn the same.",
            source=lesson,
            rule="minus the largest difference between the incoming weights of any two units of a hidden layer after "
            "the training; above -1e-6, the rounding of float32",
            effects=each("{}", ("zeros", "constant"), lambda start: -_apart(starts, start)),
            smallest=-1e-6,
        ),
        judge(
            "Too small weights make training fail.",
            source=lesson,
            rule="test accuracy at the best scale minus at 0.01, each at its own best rate, "
            "all chosen on validation, paired by seed; at least 0.1",
            effects=each("{}, {} layers", cases, lambda a, n: _best(scales, a, n) - _accuracy(scales, a, n, 0.01)),
            smallest=0.1,
        ),
        judge(
            "Too large weights make training fail.",
            source=lesson,
            rule="test accuracy at the best scale minus at 30, each at its own best rate, all chosen on validation, "
            "paired by seed; at least 0.1",
            effects=each("{}, {} layers", cases, lambda a, n: _best(scales, a, n) - _accuracy(scales, a, n, 30.0)),
            smallest=0.1,
        ),
        judge(
            "Xavier's scale is best for tanh and He's for ReLU.",
            source=lesson,
            rule="test accuracy at the named scale minus at the best scale, each at its own best rate, all chosen on "
            "validation, paired by seed; not lower by a point (-0.01)",
            effects=each(
                "{}, {} layers", cases, lambda a, n: _accuracy(scales, a, n, NAMED[a][1]) - _best(scales, a, n)
            ),
            smallest=-0.01,
        ),
        judge(
            "Ten ReLU layers want He's scale and not Xavier's.",
            source=f"{lesson}; He et al., Delving Deep into Rectifiers, 2015, https://arxiv.org/abs/1502.01852",
            rule="test accuracy at He's scale minus at Xavier's, each at its own best rate by validation, paired by "
            "seed; at least one point (0.01)",
            effects={
                "ReLU, 10 layers": lambda: _accuracy(scales, "relu", 10, HE) - _accuracy(scales, "relu", 10, XAVIER)
            },
            smallest=0.01,
        ),
        judge(
            "Xavier's start keeps the variance of the signal of tanh layers, He's that of ReLU layers.",
            source=lesson,
            rule="1 minus the size of the change over 19 layers, in factors of e; more than 0",
            effects=each("{}", NAMED, lambda activation: 1 - abs(_change(results["signal"], activation))),
        ),
    ]


def _runs(table: Table, activation: str, num_layers: int, scale: float) -> Table:
    return table.select(activation=activation, num_layers=num_layers, init_scale=scale)


def _accuracy(table: Table, activation: str, num_layers: int, scale: float) -> np.ndarray:
    runs = _runs(table, activation, num_layers, scale)
    return analysis.at_best(runs, "learning_rate", "test/accuracy", failed=CHANCE)


def _best(table: Table, activation: str, num_layers: int) -> np.ndarray:
    """Test accuracy `[seed]` at the scale and rate that are best on validation."""
    runs = table.select(activation=activation, num_layers=num_layers)
    return analysis.at_best(runs, ["init_scale", "learning_rate"], "test/accuracy", failed=CHANCE)


def _apart(table: Table, start: str) -> np.ndarray:
    return table.select(start=start).frame["units/apart"].to_numpy()


def _change(table: Table, activation: str) -> np.ndarray:
    """Log of the last layer's variance over the first's, `[seed]`, at the scale named for the activation."""
    runs = table.select(activation=activation, init_scale=NAMED[activation][1])
    logs = np.log(runs.curves("layer/variance")[:, 0])
    return logs[:, -1] - logs[:, 0]


def _accuracy_by_scale(table: Table) -> Figure:
    activations = [name for name in NAMED if name in set(table.frame["activation"])]
    figure, panels = plots.subplots(1, len(activations), width=5.6, height=4.2)
    for axes, activation in zip(np.atleast_1d(panels), activations, strict=True):
        for num_layers, color in zip((2, 10), plots.COLORS, strict=False):
            runs = table.select(activation=activation)
            if num_layers not in set(runs.frame["num_layers"]):
                continue
            scales = np.unique(runs.frame["init_scale"])
            values = [_accuracy(table, activation, num_layers, scale) for scale in scales]
            plots.band(axes, scales, np.array(values).T, label=f"{num_layers} layers", color=color, marker="o")
        name, place = NAMED[activation]
        axes.axvline(place, color="black", linestyle="--", linewidth=1.5, label="the scale the lesson names")
        axes.text(place * 1.1, 0.05, name, fontsize=11)
        axes.set(xscale="log", ylim=(0, 1.02), title=f"{TITLES[activation]} on digits", ylabel="test accuracy")
        axes.set(xlabel="scale of the weights, std x sqrt(inputs)")
    counted = plots.counts([table], failed_as="chance, one class of ten")
    plots.legend_below(figure, np.atleast_1d(panels)[0], counted)
    return figure


def _signal_by_layer(table: Table) -> Figure:
    activations = [name for name in NAMED if name in set(table.frame["activation"])]
    figure, panels = plots.subplots(1, len(activations), width=5.6, height=4.2)
    shown = [scale for scale in (0.5, XAVIER, HE, 3.0) if np.isclose(table.frame["init_scale"], scale).any()]
    for axes, activation in zip(np.atleast_1d(panels), activations, strict=True):
        for scale, color in zip(shown, plots.COLORS, strict=False):
            variances = table.select(activation=activation, init_scale=scale).curves("layer/variance")[:, 0]
            layers = np.arange(1, variances.shape[1] + 1)
            label = {XAVIER: "1, Xavier", HE: "1.41, He"}.get(scale, f"{scale:g}")
            plots.band(axes, layers, variances, label=f"scale {label}", color=color, log=True)
            first = float(variances[:, 0].mean())
            theory, _ = mean_field.profile(len(layers), activation, scale**2, first=first)
            axes.plot(layers, theory, color="black", linestyle="--", linewidth=1)
        axes.plot([], [], color="black", linestyle="--", linewidth=1, label="theory of wide networks")
        axes.set(yscale="log", xlabel="layer", ylabel="variance of the signal", title=f"{TITLES[activation]} layers")
    plots.legend_below(figure, np.atleast_1d(panels)[0], "width 256 at initialization, bands: 95% intervals")
    return figure


def _units_alike(table: Table) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=4.8, height=3.8)
    titles = {"zeros": "all zero", "constant": "all 0.1", "he": "random (He x 0.1)"}
    for start, color in zip(titles, plots.COLORS, strict=False):
        if start in set(table.frame["start"]):
            runs, label = table.select(start=start), f"start: {titles[start]}"
            for axes, metric in ((left, "units/apart"), (right, "train/loss")):
                values = runs.curves(metric)
                plots.band(axes, runs.steps(metric), values, label=label, color=color, failed=np.log(10))
    left.set(xlabel="step", ylabel="largest difference of weights", title="Units of one hidden layer")
    plots.theory_line(right, [0, table.num_steps], [np.log(10)] * 2, "theory: a constant guess, log 10")
    right.set(xlabel="step", ylabel="training loss (nats)", title="What they learn", ylim=(0, 2.6))
    plots.legend_below(figure, right, plots.counts([table], failed_as="log 10"))
    return figure


EXPERIMENT = Experiment(
    name="gradients.initialization",
    version=1,
    question="Zeros, a constant, too small, too large, Xavier, He: what does each start do?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
