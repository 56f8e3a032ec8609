"""Adam combines momentum and adaptive rates: what does each part give, and what does bias correction?

The lesson writes Adam as momentum over adaptive learning rates, without the bias correction of the paper (text 001,
"3. Advanced Optimizers"). The parts are trained here one by one on MNIST-1D at every rate and b2: momentum alone,
adaptive rates alone (b1 = 0), both, and both without correction, as the lesson has it.

Theory: on a constant gradient the paper's Adam makes steps of exactly the learning rate; the lesson's first step is
(1 - b1) / sqrt(1 - b2) = 3.16 times as long, its longest 6.57 times, the twelfth (Kingma and Ba, "Adam", 2015, section
3, https://arxiv.org/abs/1412.6980).

    python -m experiments.optimization.adam
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dlexp.claims import Claim, each, judge
from matplotlib.figure import Figure

from dlexp import analysis, cli, learners, losses, models, optim, plots
from dlexp.data import mnist1d
from dlexp.results import Results, Table
from dlexp.sweep import geomspace, grid
from dlexp.theory import optimizers as theory
from dlexp.types import Config, Experiment, Figures, Hyper, Key, Learner, Metrics, PyTree, Sweep

CHANCE, _RATE = 0.1, "learning_rate"
DECAYS = (0.9, 0.99, 0.999, 0.9999)  # b2
PARTS: dict[str, dict[str, Any]] = {  # label -> what is selected
    "momentum alone": {"algorithm": "momentum"},
    "adaptive rates alone": {"algorithm": "adam", "b1": 0.0},
    "both": {"algorithm": "adam", "b1": 0.9},
    "both, without correction": {"algorithm": "uncorrected", "b1": 0.9},
}
OPTIMIZERS = {
    "momentum": optim.momentum(),
    "adam": optim.adam(),
    "uncorrected": optim.adam(bias_correction=False),
}


def network(config: Config, num_steps: int) -> Learner:
    """The MNIST-1D authors' perceptron, 40-100-100-10 with a residual layer."""
    model = models.mlp(width=100, num_layers=3, num_outputs=10, residual=True)
    tx = OPTIMIZERS[config["algorithm"]]
    return learners.supervised(model, losses.softmax_cross_entropy, tx, mnist1d.load(), batch_size=100)


def constant_gradient(config: Config, num_steps: int) -> Learner:
    """One weight under a constant gradient, drawn by the seed; measures each step in units of the learning rate."""
    tx = OPTIMIZERS[config["algorithm"]]

    def init(key: Key, hyper: Hyper, data: PyTree) -> tuple:
        gradient = jnp.exp(jax.random.normal(key))
        return tx.make_tx(hyper).init(gradient), gradient, jnp.zeros(())

    def update(key: Key, hyper: Hyper, data: PyTree, state: tuple) -> tuple[tuple, Metrics]:
        opt_state, gradient, _ = state
        updates, opt_state = tx.make_tx(hyper).update(gradient, opt_state, jnp.zeros(()))
        step = -updates / hyper["learning_rate"]
        return (opt_state, gradient, step), {"step/length": step}

    def evaluate(key: Key, hyper: Hyper, data: PyTree, state: tuple) -> Metrics:
        return {"step/last": state[-1]}

    return Learner({"unused": np.ones(1)}, tx.hyper, init, update, evaluate)


def sweeps(scale: str) -> dict[str, Sweep]:
    """Each part at every rate and b2; the steps under a constant gradient."""
    seeds = {"smoke": range(2), "cpu": range(16, 24), "gpu": range(16, 80)}[scale]  # rules were tried on 0 to 15
    num_rates = {"smoke": 2, "cpu": 11, "gpu": 31}[scale]
    rates = {"learning_rate": geomspace(1e-4, 1.0, num_rates)}
    steady = {"learning_rate": (1e-3,), "b2": (0.99, 0.999)}
    if scale == "smoke":
        few = {**rates, "b1": (0.0, 0.9), "b2": (0.999,)}
        steps = grid(config={"algorithm": ("uncorrected",)}, hyper=steady, seeds=seeds)
        return {
            "parts": Sweep(grid(config={"algorithm": ("adam",)}, hyper=few, seeds=seeds), network, 40, num_evals=4),
            "steps": Sweep(steps, constant_gradient, num_steps=20, num_evals=20),
        }
    parts = grid(config={"algorithm": ("momentum",)}, hyper=rates, seeds=seeds)
    adaptive = {**rates, "b2": DECAYS}
    parts |= grid(config={"algorithm": ("adam",)}, hyper={**adaptive, "b1": (0.0, 0.9)}, seeds=seeds)
    parts |= grid(config={"algorithm": ("uncorrected",)}, hyper={**adaptive, "b1": (0.9,)}, seeds=seeds)
    steps = grid(config={"algorithm": ("adam", "uncorrected")}, hyper=steady, seeds=seeds)
    return {
        "parts": Sweep(parts, network, num_steps=800, num_evals=8),
        "steps": Sweep(steps, constant_gradient, num_steps=100, num_evals=100),
    }


def figures(results: Results) -> Figures:
    """Accuracy over the rate for each part; step lengths with theory; what missing correction costs early."""
    return {
        "accuracy_by_rate": lambda: _accuracy_by_rate(results["parts"]),
        "bias_correction": lambda: _bias_correction(results),
    }


def claims(results: Results) -> list[Claim]:
    """What the lesson says of the parts, and what its formula leaves out."""
    lesson = 'text 001, "Deep Learning Basics: Architectures & Training", 3. Advanced Optimizers'
    adam = "Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980"
    parts, steps = results["parts"], results["steps"]
    return [
        judge(
            "Combining momentum and adaptive rates is better than either alone.",
            source=lesson,
            rule="test accuracy of both minus of the part, each at its own best rate and b2 by validation, paired by "
            "seed; at least one point (0.01)",
            effects=each("{}", list(PARTS)[:2], lambda part: _best(parts, "both") - _best(parts, part)),
            smallest=0.01,
        ),
        judge(
            "Bias correction makes the result better.",
            source=f"{lesson}, which leaves it out; {adam}, section 6.4",
            rule="test accuracy with correction minus without, each at its own best rate by validation, paired by "
            "seed; at least one point (0.01)",
            effects=each(
                "b2 = {}",
                DECAYS,
                lambda b2: _best(parts, "both", b2=b2) - _best(parts, "both, without correction", b2=b2),
            ),
            smallest=0.01,
        ),
        judge(
            "Without bias correction the good rates are lower.",
            source=f"{adam}, section 3; the number is ours",
            rule="log10 of the highest rate within two points of the best validation accuracy, with correction minus "
            "without, paired by seed; at least a quarter",
            effects=each(
                "b2 = {}",
                DECAYS,
                lambda b2: _highest_rate(parts, "both", b2) - _highest_rate(parts, "both, without correction", b2),
            ),
            smallest=0.25,
        ),
        judge(
            "Without bias correction Adam's first steps are too long: 3.16 times the rate, then up to 6.57 times.",
            source=f"{adam}, section 3, without the correction",
            rule="0.001 minus the largest relative distance of a step from (1 - b1^t) / sqrt(1 - b2^t); more than 0",
            effects=each("b2 = {}", (0.999,), lambda b2: 0.001 - _distance(steps, "uncorrected", b2)),
        ),
    ]


def _part(table: Table, part: str, **chosen: float) -> Table:
    return table.select(**PARTS[part], **chosen)


def _best(table: Table, part: str, **chosen: float) -> np.ndarray:
    """Test accuracy `[seed]` at the rate and b2 that are best on validation."""
    axes = [_RATE] if part == "momentum alone" or chosen else [_RATE, "b2"]
    return analysis.at_best(_part(table, part, **chosen), axes, "test/accuracy", failed=CHANCE)


def _highest_rate(table: Table, part: str, b2: float) -> np.ndarray:
    """log10 of the highest rate within two points of the best, `[seed]`."""
    accuracy = analysis.by_seed(_part(table, part, b2=b2), "validation/accuracy", _RATE, failed=0.0)
    return analysis.highest_good(accuracy, 0.02)


def _distance(table: Table, algorithm: str, b2: float) -> np.ndarray:
    lengths = table.select(algorithm=algorithm, b2=b2).curves("step/length")
    expected = theory.adam_step_multiplier(np.arange(1, lengths.shape[1] + 1), b2=b2, bias_correction=False)
    return abs(lengths / expected - 1).max(axis=1)


def _accuracy_by_rate(table: Table) -> Figure:
    figure, axes = plots.subplots(width=7.0, height=4.6)
    for color, part in zip(plots.COLORS, PARTS, strict=False):
        if PARTS[part]["algorithm"] not in set(table.frame["algorithm"]):
            continue
        runs = _part(table, part)
        if part != "momentum alone":
            runs = runs.select(b2=0.999)
        plots.points_band(axes, runs, "test/accuracy", over=_RATE, label=part, color=color, failed=CHANCE)
    axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", ylim=(0, 0.75))
    axes.set(title="The parts of Adam on MNIST-1D, b2 = 0.999")
    axes.legend(loc="lower center")
    plots.note(figure, plots.counts([table], failed_as="chance, one class of ten"))
    return figure


def _bias_correction(results: Results) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, width=5.6, height=4.2)
    steps, parts = results["steps"], results["parts"]
    for color, b2 in zip(plots.COLORS, (0.99, 0.999), strict=False):
        lengths = steps.select(algorithm="uncorrected", b2=b2).curves("step/length")
        number = np.arange(1, lengths.shape[1] + 1)
        left.plot(number, lengths.mean(axis=0), color=color, label=f"measured, b2 = {b2:g}")
        expected = theory.adam_step_multiplier(number, b2=b2, bias_correction=False)
        left.plot(number, expected, color="black", linestyle="--", linewidth=1.2)
    left.plot([], [], color="black", linestyle="--", linewidth=1.2, label="theory")
    left.axhline(1, color="#666666", linewidth=1)
    left.text(steps.num_steps, 0.9, "with correction: 1", ha="right", va="top", color="#666666")
    left.set(xlabel="step on a constant gradient", ylabel="length of the step / learning rate", ylim=(0, 7.5))
    left.set(title="The lesson's Adam, without correction")
    left.legend(loc="upper right")
    for color, part in zip(plots.COLORS[2:], ("both", "both, without correction"), strict=False):
        if PARTS[part]["algorithm"] in set(parts.frame["algorithm"]):
            decays = np.unique(_part(parts, part).frame["b2"])
            values = np.array([_best(parts, part, b2=b2) for b2 in decays]).T
            plots.band(right, 1 - decays, values, label=part, color=color, marker="o")
    right.set(xscale="log", xlabel="1 - b2", ylabel="test accuracy", xlim=(5e-5, 0.2), ylim=(0, 0.75))
    right.set(title="Each at its own best rate")
    right.legend(loc="lower center")
    plots.note(figure, plots.counts([parts], failed_as="chance, one class of ten"))
    return figure


EXPERIMENT = Experiment(
    name="optimization.adam",
    version=1,
    question="Adam combines momentum and adaptive rates: what does each part give, and what does bias correction?",
    sweeps=sweeps,
    figures=figures,
    claims=claims,
)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
