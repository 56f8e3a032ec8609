"""Which networks of 10, 50, 200 and 1000 layers train at all?

The lesson begins with networks of 10, 50, or even 1000 layers (text 000, "Introduction: Beyond Shallow Networks") and
warns that those of 50 and more need careful tuning (text 003, "How deep should my network be?"). Here they are
trained for 200 steps (1000 layers for 100) over the scale sigma_w of their initial weights, and in the variants meant
to save them.

Theory: a random tanh network forgets its input over xi layers, xi = -1 / ln chi, and trains up to a depth of about
6 xi: 50 layers at sigma_b^2 = 0.05 from sigma_w^2 = 1.32 (1.17 if 9 xi will do, 1.51 if only 3 xi) to beyond the edge
of chaos at 1.76 (Schoenholz et al., "Deep Information Propagation", 2017, https://arxiv.org/abs/1611.01232). In
narrow networks what counts is depth over width (Hanin, 2018, https://arxiv.org/abs/1801.03744). Digits, momentum 0.9,
batches as large as the layers are wide; each setting at the best of three learning rates by validation, 200 layers and
the wider network at 0.001, the best rate for 50 layers here.

    python -m experiments.depth.trainability
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlexp import cli, learners, losses, models, optim
from dlexp.data import bundled
from dlexp.results import Results, Table
from dlexp.study import (
    FRESH_SEEDS,
    Claim,
    Effect,
    Measure,
    Panel,
    at_best,
    each,
    judge,
    lines,
    measure,
    overlaid,
    pick,
    side_by_side,
    text,
)
from dlexp.sweep import grid
from dlexp.sweep.grids import Grid
from dlexp.theory import mean_field
from dlexp.types import Config, Experiment, Learner, Sweep

BIAS_VARIANCE = 0.05
SHOWN = (("depths", 32, 10), ("depths", 32, 50), ("boundary", 64, 50), ("depths", 32, 200))
SCALED = "scaled by 1 / sqrt(layers)"
WEIGHT_VARIANCES = (0.5, 0.8, 1.0, 1.2, 1.4, 1.6, 1.76, 2.0, 2.5, 4.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "tanh_orthogonal": {"activation": "tanh", "initializer": "orthogonal"},
    "relu_he": {"activation": "relu", "initializer": "he"},
    "sigmoid_lecun": {"activation": "sigmoid", "initializer": "lecun"},
    "relu_batch_norm": {"activation": "relu", "normalization": "batch"},
    "relu_residual": {"activation": "relu", "residual": True, "preactivation": True, "scaled_branches": True},
}
SKIPS = "relu_residual"
TITLES = {
    "tanh_orthogonal": "tanh, orthogonal weights",
    "relu_he": "ReLU, He weights",
    "sigmoid_lecun": "sigmoid, LeCun weights",
    "relu_batch_norm": "ReLU, batch norm",
}


def network(config: Config, num_steps: int) -> Learner:
    """A perceptron on digits: tanh with Gaussian weights, or one of the variants."""
    choices = VARIANTS.get(config.get("variant", ""), {"activation": "tanh", "initializer": "lecun"})
    model = models.mlp(width=config["width"], num_layers=config["num_layers"], num_outputs=10, **choices)
    batches: dict[str, Any] = {"batch_size": config["width"], "num_train_evaluated": 300}
    return learners.supervised(model, losses.softmax_cross_entropy, optim.momentum(), bundled.load("digits"), **batches)


def untrained(config: Config, num_steps: int) -> Learner:
    """50 tanh layers of width 256 at initialization."""
    return learners.propagation(bundled.load("digits").train.inputs[:128], width=256, num_layers=50, activation="tanh")


def sweeps() -> dict[str, Sweep]:
    """Depth x sigma_w, the boundary in a wider network, the variants, and the theory's own quantities."""
    sigmas = {"init_scale": tuple(np.sqrt(WEIGHT_VARIANCES)), "bias_scale": (BIAS_VARIANCE**0.5,)}
    rates, slow = ({**sigmas, "learning_rate": values} for values in ((3e-4, 1e-3, 1e-2), (1e-3,)))
    depths = grid(config={"width": (32,), "num_layers": (10, 50)}, hyper=rates, seeds=FRESH_SEEDS)
    depths |= grid(config={"width": (32,), "num_layers": (200,)}, hyper=slow, seeds=FRESH_SEEDS)
    boundary = grid(config={"width": (64,), "num_layers": (50,)}, hyper=slow, seeds=FRESH_SEEDS)
    fifty = _variants(50, list(TITLES), (1.0, 50**-0.5))
    thousand = _variants(1000, ["tanh_orthogonal", "relu_he"], (1000**-0.5,))
    return {
        "depths": Sweep(depths, network, num_steps=200, num_evals=4),
        "initialization": Sweep(grid(hyper=sigmas, seeds=FRESH_SEEDS), untrained, num_steps=0),
        "variants": Sweep(fifty, network, num_steps=200, num_evals=10),
        "boundary": Sweep(boundary, network, num_steps=200, num_evals=4),
        "thousand": Sweep(thousand, network, num_steps=100, num_evals=5),
    }


def _variants(num_layers: int, plain: Sequence[str], branch_scales: Sequence[float]) -> Grid:
    config, rates = {"width": (32,), "num_layers": (num_layers,)}, {"learning_rate": (1e-4, 1e-3, 1e-2)}
    skips = {"branch_scale": branch_scales, **rates}
    return grid(config={"variant": plain, **config}, hyper=rates, seeds=FRESH_SEEDS) | grid(
        config={"variant": (SKIPS,), **config}, hyper=skips, seeds=FRESH_SEEDS
    )


def accuracy_by_scale(results: Results) -> Figure:
    """Training accuracy over sigma_w^2 with the theory's boundary; the gradient's growth at initialization."""
    edge = {"theory: edge of chaos": mean_field.critical_weight_variance("tanh", BIAS_VARIANCE)}
    axis: dict[str, Any] = {"x": "init_scale", "place": np.square, "at": edge}
    axis["xlabel"] = r"$\sigma_w^2$, variance of the weights x width"
    trained: dict[str, Any] = {"ylabel": "training accuracy after 200 steps", "ylim": (0, 1.02)}
    begin = {"span": {"theory: 50 layers begin to train": _predicted()}}
    dense = np.linspace(min(WEIGHT_VARIANCES), max(WEIGHT_VARIANCES), 50)
    factor: dict[str, Any] = {"ylabel": "squared gradient, factor a layer"}
    factor["title"] = "The same at initialization, 50 layers"
    factor |= {"theory": {"theory: chi": (dense, [_chi(value) for value in dense])}, "also": _mark_directions, **axis}
    drawn: list[Panel] = []
    for color, (sweep, width, layers) in enumerate(SHOWN):
        hue, beside = {f"{layers} layers, width {width}": {"num_layers": layers}}, begin if color == 0 else {}
        look: dict[str, Any] = {"hue": hue, "first_color": color, **trained, **axis, **beside}
        drawn += lines(results, sweep, at_best("train/accuracy"), title="Plain tanh networks on digits", **look)
    measured = lines(results, "initialization", {"width 256": _factor}, points=True, first_color=4, **factor)
    return side_by_side(overlaid(*drawn), measured, legend="below", width=6.0, height=4.4)


def _mark_directions(axes: Axes, runs: Table) -> None:
    axes.axhline(1.0, color="#666666", linewidth=1)
    axes.text(max(WEIGHT_VARIANCES), 1.01, "explodes above", ha="right", va="bottom", color="#666666")
    axes.text(max(WEIGHT_VARIANCES), 0.99, "vanishes below", ha="right", va="top", color="#666666")


def variants(results: Results) -> Figure:
    """Training curves of the variants with 50 and with 1000 layers."""
    panels = []
    for sweep, layers in (("variants", 50), ("thousand", 1000)):
        hue: dict[str, Any] = {title: {"variant": name} for name, title in TITLES.items()}
        hue |= {f"ReLU, skips {SCALED}": {"variant": SKIPS, "branch_scale": layers**-0.5}}
        hue |= {"ReLU, skips, unscaled": {"variant": SKIPS, "branch_scale": 1.0}}
        look: dict[str, Any] = {"ylim": (0, 1.02), "title": f"{layers} layers of width 32"}
        panels += lines(results, sweep, at_best("train/accuracy"), x="step", hue=hue, **look)
    return side_by_side(*panels, width=6.0, height=4.4)


def claims(results: Results) -> list[Claim]:
    """What the lesson says of deep networks, and what the theory says of where they train."""
    schoenholz = "Schoenholz et al., Deep Information Propagation, 2017, https://arxiv.org/abs/1611.01232"
    low, high = _predicted()
    variances = each("sigma_w^2 = {:.3g}", WEIGHT_VARIANCES, partial(_distance_from_chi, results))
    begin = "distance of the sigma_w^2 where training accuracy passes the middle between chance and the best from the "
    begin += f"nearer end of the predicted {low:.2f} to {high:.2f}, positive inside"
    inside = Measure(begin, lambda runs: np.minimum(_boundary(runs) - low, high - _boundary(runs)))
    scaled = {n: {f"{n} layers, {SCALED}": {"variant": SKIPS, "branch_scale": n**-0.5}} for n in (50, 1000)}
    plain = {"50 layers, plain skips": {"variant": SKIPS, "branch_scale": 1.0}}
    skips = "with skips, their branches as they are or scaled"
    saved = _gain(results, "variants", skips, plain | scaled[50]) | _gain(results, "thousand", skips, scaled[1000])
    normalized = {"50 layers": {"variant": "relu_batch_norm"}}
    return [
        judge(
            "Deep networks need careful tuning: 50 tanh layers train at fewer scales of the weights than 10.",
            text("003", "How deep"),
            _share(results, "depths", {"width 32": {}}, num_layers=10) - _share(results, "depths", num_layers=50),
            least=0.25,
        ),
        judge(
            "50 tanh layers begin to train where the depth scale of the theory is between 50/9 and 50/3 layers.",
            schoenholz,
            inside(results, "boundary", {"width 64": {}}),
            least=0,
        ),
        judge(
            "Skip connections let a network of 50 layers train, and one of 1000.",
            f"{text('000', 'Introduction')}; text 003, Training Deep Networks",
            saved,
            least=0.3,
        ),
        judge(
            "Batch normalization alone lets a plain network of 50 layers train.",
            "text 003, Training Deep Networks: batch normalization among the solutions",
            _gain(results, "variants", "with batch normalization", normalized),
            least=0.3,
        ),
        judge(
            "The gradient of a wide random tanh network changes by the predicted factor a layer.",
            schoenholz,
            Effect(f"relative distance of the {_factor.words} from chi", variances),
            most=0.02,
        ),
    ]


def _gain(results: Results, sweep: str, kind: str, cases: Mapping[str, Any]) -> Effect:
    """What some variants of ReLU layers gain over plain ones."""
    own = "without, each at its own best rate by validation"
    gained = at_best("train/accuracy").with_words(f"final training accuracy of ReLU layers {kind},")
    plain = at_best("train/accuracy").with_words(own)(results, sweep, {"": {"variant": "relu_he"}})
    return gained(results, sweep, cases) - plain


def _predicted() -> tuple[float, float]:
    """sigma_w^2 at which the depth scale is a ninth and a third of 50 layers."""
    low, high = (mean_field.shallowest_weight_variance("tanh", 50 / many, BIAS_VARIANCE) for many in (9, 3))
    return low, high


def _by_scale(runs: Table) -> tuple[np.ndarray, np.ndarray]:
    """sigma_w^2 `[scale]` and training accuracy `[seed, scale]`, each at its best rate."""
    scales = np.unique(runs.frame["init_scale"])
    accuracy = [at_best("train/accuracy").of(runs.select(init_scale=scale)) for scale in scales]
    return scales**2, np.stack(accuracy, axis=1)


@measure("share of the grid's sigma_w with a training accuracy above half the best of its depth")
def _share(runs: Table) -> np.ndarray:
    _, accuracy = _by_scale(runs)
    return (accuracy > accuracy.mean(axis=0).max() / 2).mean(axis=1)


def _boundary(runs: Table) -> np.ndarray:
    """Smallest sigma_w^2 `[seed]` where training accuracy passes the middle between chance and the best mean.

    The grid's largest where it never does.
    """
    variances, accuracy = _by_scale(runs)
    middle = (0.1 + accuracy.mean(axis=0).max()) / 2

    def crossing(row: np.ndarray) -> float:
        passed = np.flatnonzero(row > middle)
        if not len(passed) or passed[0] == 0:
            return variances[0] if len(passed) else variances[-1]
        ends = slice(passed[0] - 1, passed[0] + 1)
        return np.interp(middle, row[ends], variances[ends])

    return np.array([crossing(row) for row in accuracy])


@measure("squared gradient's factor a layer, layers 15 to 35 of 50,")
def _factor(runs: Table) -> np.ndarray:
    logs = runs.curves("layer/log_gradient")[:, 0]
    return np.exp((logs[:, 15] - logs[:, 35]) / 20)


def _chi(variance: float) -> float:
    return mean_field.chi_at_fixed_point("tanh", float(variance), BIAS_VARIANCE)


def _distance_from_chi(results: Results, variance: float) -> np.ndarray:
    factors = _factor.of(pick(results["initialization"], {"init_scale": variance**0.5}))
    return np.abs(np.asarray(factors) / _chi(variance) - 1)


EXPERIMENT = Experiment("depth.trainability", 1, __doc__, sweeps, (accuracy_by_scale, variants), claims)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
