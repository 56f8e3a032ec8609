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
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import mnist1d
from dlexp.results import Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Claim,
    Effect,
    Measure,
    at_best,
    by,
    highest_good,
    judge,
    lines,
    measure,
    side_by_side,
    text,
)
from dlexp.sweep import geomspace, grid
from dlexp.theory import optimizers as theory
from dlexp.types import Config, Experiment, Hyper, Key, Learner, Metrics, PyTree, Sweep

DECAYS, SHOWN_DECAYS = (0.9, 0.99, 0.999, 0.9999), (0.99, 0.999)  # b2
BOTH, UNCORRECTED = "both", "both, without correction"
PARTS: dict[str, dict[str, Any]] = {  # label -> what is selected
    "momentum alone": {"algorithm": "momentum"},
    "adaptive rates alone": {"algorithm": "adam", "b1": 0.0},
    BOTH: {"algorithm": "adam", "b1": 0.9},
    UNCORRECTED: {"algorithm": "uncorrected", "b1": 0.9},
}
OPTIMIZERS = {"momentum": optim.momentum(), "adam": optim.adam(), "uncorrected": optim.adam(bias_correction=False)}


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

    return Learner((), tx.hyper, init, update, evaluate)


def sweeps() -> dict[str, Sweep]:
    """Each part at every rate and b2; the steps under a constant gradient."""
    rates = {"learning_rate": geomspace(1e-4, 1.0, 11)}
    decayed = {**rates, "b2": DECAYS}
    parts = grid(config={"algorithm": ("momentum",)}, hyper=rates, seeds=FRESH_SEEDS)
    parts |= grid(config={"algorithm": ("adam",)}, hyper={**decayed, "b1": (0.0, 0.9)}, seeds=FRESH_SEEDS)
    parts |= grid(config={"algorithm": ("uncorrected",)}, hyper={**decayed, "b1": (0.9,)}, seeds=FRESH_SEEDS)
    steady = {"learning_rate": (1e-3,), "b2": SHOWN_DECAYS}
    steps = grid(config={"algorithm": ("adam", "uncorrected")}, hyper=steady, seeds=FRESH_SEEDS)
    return {
        "parts": Sweep(parts, network, num_steps=800, num_evals=8),
        "steps": Sweep(steps, constant_gradient, num_steps=100, num_evals=100),
    }


def accuracy_by_rate(results: Results) -> Figure:
    """Accuracy over the rate for each part."""
    axes: Any = {"xscale": "log", "ylim": (0, 0.75), "title": "The parts of Adam on MNIST-1D, b2 = 0.999"}
    shown: Any = {"hue": PARTS, "fixed": {"b2": [0.999, None]}}  # momentum alone has no b2
    return side_by_side(lines(results, "parts", "test/accuracy", x="learning_rate", **shown, **axes), width=7.0)


def bias_correction(results: Results) -> Figure:
    """Step lengths with theory; what missing correction costs."""
    hue = by("b2", SHOWN_DECAYS, "measured, b2 = {:g}")

    def expected(label: str, step: np.ndarray) -> np.ndarray:
        return theory.adam_step_multiplier(step, **hue[label], bias_correction=False)

    steps: Any = {"x": "step", "hue": hue, "expected": ("theory (with correction: 1)", expected), "marks": {"_1": 1.0}}
    length: Any = {
        "xlabel": "step on a constant gradient",
        "ylabel": "length of the step / learning rate",
        "ylim": (0, 7.5),
    }
    both: Any = {"hue": {part: PARTS[part] for part in (BOTH, UNCORRECTED)}, "first_color": 2}
    decays: Any = {"x": "b2", "place": lambda b2: 1 - b2, "xscale": "log", "xlabel": "1 - b2", "ylim": (0, 0.75)}
    fixed, title = {"algorithm": "uncorrected"}, "The lesson's Adam, without correction"
    return side_by_side(
        lines(results, "steps", "step/length", fixed=fixed, title=title, **steps, **length),
        lines(results, "parts", at_best("test/accuracy"), title="Each at its own best rate", **both, **decays),
    )


@measure("largest relative distance of a step's length from (1 - b1^t) / sqrt(1 - b2^t) learning rates")
def _off_theory(runs: Table) -> np.ndarray:
    lengths, b2 = runs.curves("step/length"), float(runs.frame["b2"].iloc[0])
    expected = theory.adam_step_multiplier(np.arange(1, lengths.shape[1] + 1), b2=b2, bias_correction=False)
    return abs(lengths / expected - 1).max(axis=1)


def claims(results: Results) -> list[Claim]:
    """What the lesson says of the parts, and what its formula leaves out."""
    lesson = text("001", "3. Advanced Optimizers")
    paper = "Kingma and Ba, Adam, 2015, https://arxiv.org/abs/1412.6980"

    def of(measured: Measure, *parts: str, **axes: Any) -> Effect:
        return measured(results, "parts", {part if len(parts) > 1 else "": PARTS[part] for part in parts}, **axes)

    def correction(measured: Measure) -> Effect:
        corrected, plain = (of(measured, part, b2=DECAYS) for part in (BOTH, UNCORRECTED))
        return corrected.called("with bias correction") - plain.called("without")

    best = at_best("test/accuracy", over=("learning_rate", "b2"))
    combined = of(best, BOTH).called("both parts") - of(best, *list(PARTS)[:2]).called("one alone")
    first_steps = _off_theory(results, "steps", algorithm="uncorrected", b2=0.999)
    return [
        judge("Combining momentum and adaptive rates is better than either alone.", lesson, combined, least=0.01),
        judge(
            "Bias correction makes the result better.",
            f"{lesson}, which leaves it out; {paper}, section 6.4",
            correction(at_best("test/accuracy")),
            least=0.01,
        ),
        judge(
            "Without bias correction the good rates are lower.",
            f"{paper}, section 3; the number is ours",
            correction(highest_good(0.02)),
            least=0.25,
        ),
        judge(
            "Without bias correction Adam's first steps are too long: 3.16 times the rate, then up to 6.57 times.",
            f"{paper}, section 3, without the correction",
            first_steps,
            most=0.001,
        ),
    ]


EXPERIMENT = Experiment("optimization.adam", 1, __doc__, sweeps, (accuracy_by_rate, bias_correction), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
